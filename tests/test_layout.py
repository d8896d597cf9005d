"""The house: who may import whom, which names are free, which files are executable."""

import ast
import subprocess
import sys
import tokenize

import pytest

from conftest import ROOT

PROGRAM = ROOT / "program"

#: Each module of `tandem` and the others of it that it may import.
LEAVES = {
    *("errors", "cuda", "compression", "recordio", "tfrecord", "pipes", "rows"),
    *("image_headers", "image_limits", "image_png", "image_signatures", "image_tiff"),
}
LEVEL_1 = {
    "settings",
    "hyperparameters",
    "channels",
    "formats",
    "images",
    "devices",
    "batching",
    "metrics",
    "resources",
    "logs",
    "monitoring",
    "description",
}
MAY_IMPORT = {
    "errors": set(),
    "cuda": set(),
    "compression": {"errors"},
    "recordio": {"errors"},
    "tfrecord": {"errors"},
    "pipes": {"compression", "errors"},
    "rows": {"errors"},
    "image_limits": {"errors"},
    "image_signatures": {"errors"},
    "image_png": {"errors", "image_limits"},
    "image_tiff": {"errors", "image_limits"},
    "image_headers": {"errors", "image_limits", "image_png", "image_signatures", "image_tiff"},
    **dict.fromkeys(LEVEL_1, LEAVES),
    "job": LEAVES | LEVEL_1,
    "algorithm": LEAVES | LEVEL_1,
    "scoring": LEAVES | LEVEL_1 | {"algorithm"},
    "invocations": LEAVES | LEVEL_1 | {"algorithm", "scoring"},
    "app": LEAVES | LEVEL_1 | {"algorithm", "scoring", "invocations"},
    "refusals": {"errors"},
    "plain": set(),
    "reading": {"plain"},
    "connection": {"reading"},
    "loop": {"connection", "pool"},
    "lingering": {"connection", "loop"},
    "accepting": {"connection", "lingering"},
    "pool": set(),
    "worker": LEAVES | {"accepting", "connection", "loop", "plain", "pool", "refusals"},
    "master": set(),
    "proxy": {"errors"},
    "fleet": {"resources"},
    "server": LEAVES | LEVEL_1 | {"algorithm", "scoring", "app", "worker", "fleet", "master", "proxy"},
    "failures": {"errors", "resources"},
    "supervision": {"failures", "logs", "resources"},
    "environment": {"job", "settings"},
    "archives": {"errors"},
    "submission": {"algorithm", "archives", "errors", "hyperparameters", "job", "settings"},
    "requirements": {"errors"},
    "tuning": {"algorithm", "errors", "hyperparameters"},
    "script": {"errors", "submission", "supervision"},
    "training": LEAVES
    | LEVEL_1
    | {"algorithm", "job", "failures", "environment", "submission", "requirements", "script", "tuning"},
}
FOR_BACKENDS = {"errors", "cuda", "devices"}
FOR_ALGORITHMS = {
    *("errors", "algorithm", "job", "channels", "formats", "images", "hyperparameters", "metrics"),
    *("resources", "pipes", "compression", "recordio", "tfrecord", "image_signatures"),
}

#: Third parties and the only places that import them.
HOMES = {
    "flask": ["tandem/serving/app.py"],
    "gunicorn": [
        "tandem/serving/server.py",
        "tandem/serving/worker.py",
        "tandem/serving/connection.py",
        "tandem/serving/pool.py",
        "tandem/serving/loop.py",
        "tandem/serving/accepting.py",
        "tandem/serving/plain.py",
        "tandem/serving/master.py",
        "tandem/serving/refusals.py",
    ],
    "pynvml": ["tandem/runtime/devices.py"],
    "prometheus_client": ["tandem/serving/monitoring.py"],
    "cv2": ["tandem/images/codec.py"],
    "matplotlib": ["algorithms/"],
    "jinja2": ["algorithms/"],
    "google_crc32c": ["tandem/records/tfrecord.py"],
    "openvino": ["backends/engines/openvino_engine.py"],
    "nncf": ["backends/engines/quantization.py"],
    "tensorflow": ["backends/", "algorithms/"],
    "keras": ["backends/", "algorithms/"],
}
FRAMEWORKS = {"tensorflow", "keras", "openvino", "nncf", "torch", "sklearn"}


def list_modules(folder):
    return sorted(path for path in (PROGRAM / folder).rglob("*.py"))


def list_imports(path, *, top_only=False):
    """Give the dotted names that a file imports; with `top_only` those run when it is imported."""
    tree = ast.parse(path.read_text())
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inside.update(id(child) for child in ast.walk(node))
    names = []
    for node in ast.walk(tree):
        if top_only and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def list_own_imports(path, package):
    return {name.split(".")[1] for name in list_imports(path) if name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", list_modules("tandem"), ids=lambda path: path.name)
def test_the_machine_keeps_its_levels(path):
    if path.stem == "__init__":
        assert list_imports(path) == []
        return
    assert list_own_imports(path, "tandem") <= MAY_IMPORT[path.stem]
    others = {name.split(".")[0] for name in list_imports(path)}
    assert not others & {"backends", "algorithms", "deploy", "bench", *FRAMEWORKS}


@pytest.mark.parametrize("folder", ["backends", "algorithms"])
def test_engines_and_cartridges_import_what_they_may(folder):
    allowed = FOR_BACKENDS if folder == "backends" else FOR_ALGORITHMS
    for path in list_modules(folder):
        assert list_own_imports(path, "tandem") <= allowed, path
        tops = {name.split(".")[0] for name in list_imports(path)}
        assert "algorithms" not in tops or folder == "algorithms", path


def test_third_parties_live_in_one_place_each():
    for path in [*list_modules("tandem"), *list_modules("backends"), *list_modules("algorithms")]:
        place = str(path.relative_to(PROGRAM))
        for name in {name.split(".")[0] for name in list_imports(path)} & set(HOMES):
            assert any(place.startswith(home) for home in HOMES[name]), f"{place} imports {name}"


def test_no_framework_is_imported_at_the_top_of_a_module():
    for path in [*list_modules("backends"), *list_modules("algorithms")]:
        tops = {name.split(".")[0] for name in list_imports(path, top_only=True)}
        assert not tops & FRAMEWORKS, path


def test_the_machine_names_no_framework_and_no_algorithm():
    """Not even in a comment: names are settings' values, and the words of a setting may hold them."""
    allowed = {"settings.py"}
    for path in list_modules("tandem"):
        if path.name in allowed:
            continue
        words = path.read_text().lower()
        for name in ("tensorflow", "keras", "openvino", "torch", "image_classifier"):
            assert name not in words, f"{path.name} names {name}"


def test_nothing_in_program_hides_a_standard_module():
    """`program/` is the first place Python looks when `train` runs."""
    names = {path.stem for path in PROGRAM.iterdir() if not path.name.startswith("__")}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["train", "serve"])
def test_executables_have_no_suffix_and_may_be_executed(name):
    path = PROGRAM / name
    assert path.stat().st_mode & 0o777 == 0o755
    assert path.read_text().startswith("#!/usr/bin/env python3\n")


def test_modules_stay_small():
    for path in PROGRAM.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 280, path


def test_sources_are_plain_utf_8_with_unix_line_ends():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".sh", ".md", ".json", ".toml", ".in", ".txt", ".c"} and path.exists():
            assert b"\r" not in path.read_bytes(), name
    for path in PROGRAM.rglob("*.py"):
        with tokenize.open(path) as file:
            assert file.encoding == "utf-8"


def test_every_module_has_its_tests():
    """One test file a module, by its name, but for the few that are tested with what they serve."""
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    elsewhere = {
        "logs": "test_train_process",
        "errors": "test_app",
        "description": "test_app",
        "server": "test_serve_process",
        "master": "test_serve_process",
        "refusals": "test_worker",
        "lingering": "test_worker",
        "loop": "test_worker",
        "accepting": "test_worker",
        "connection": "test_worker",
        "cuda": "test_devices",
        **dict.fromkeys(
            ("image_limits", "image_png", "image_signatures", "image_tiff"), "test_image_headers"
        ),
        "manifest": "test_bundle",
        "checkpoint_file": "test_checkpoints",
        "tensorflow_backend": "test_backends",
        "openvino_backend": "test_backends",
        "selection": "test_backends",
    }
    for path in [*list_modules("tandem"), *list_modules("backends")]:
        if path.stem != "__init__":
            assert elsewhere.get(path.stem, f"test_{path.stem}") in tests, path.name

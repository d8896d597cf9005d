"""No file that is read can bring code: nothing is unpickled, unpacked or evaluated."""

import ast
import json
import shutil
import zipfile

import pytest

from algorithms.image_classifier.training import initial_weights
from backends.bundle.manifest import Manifest, sha256, verify
from backends.engines import tensorflow_engine
from conftest import ROOT
from tandem.errors import UserError

# Keras 3 on TensorFlow 2.21 under NumPy 2: theirs to repair.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SOURCES = sorted([*(ROOT / "program").rglob("*.py"), ROOT / "program" / "train", ROOT / "program" / "serve"])
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "tarfile",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
#: A user's own program is code; what its archive may hold, tests/script_mode/test_submission.py says.
ALLOWED = {"initial_weights.py": ["tarfile"], "archives.py": ["tarfile"]}
#: What must be said in a call of that name.
SAFELY = {
    "load": {"allow_pickle": False},  # np.load
    "load_model": {"safe_mode": True, "compile": False},
    "extract": None,
    "extractall": None,
    "unpack_archive": None,
    "read_pickle": None,
    "unsafe_load": None,
    "enable_unsafe_deserialization": None,
}


def find_dangers(text):
    """Give what in a source could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            found.append(node.func.id)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in SAFELY:
            owner, needed = ast.unparse(node.func.value), SAFELY[node.func.attr]
            is_numpys = node.func.attr != "load" or owner in {"np", "numpy"}
            if is_numpys and (
                needed is None or any(given.get(name) is not value for name, value in needed.items())
            ):
                found.append(ast.unparse(node.func))
        if given.get("allow_pickle") not in {None, False} or given.get("shell"):
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "program")))
def test_no_source_unpickles_unpacks_or_evaluates(path):
    assert find_dangers(path.read_text()) == ALLOWED.get(path.name, [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import a.b, yaml",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "np.save(path, rows, allow_pickle=True)",
        "keras.models.load_model(path, compile=False)",
        "eval(text)",
        "exec(text)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert find_dangers(text)


@pytest.fixture
def bundle(tmp_path):
    """A model's directory and its manifest; the files hold their own names."""
    model_dir = tmp_path / "model"
    (model_dir / "openvino").mkdir(parents=True)
    files = {}
    for name in ("model.h5", "golden.npz", "openvino/model.xml"):
        (model_dir / name).write_text(name)
        files[name] = sha256(model_dir / name)
    manifest = Manifest(("a", "b"), {}, (8, 8, 3), "uint8", golden_rows=1, files=files)
    verify(model_dir, manifest)
    return model_dir, manifest


@pytest.mark.parametrize("name", ["golden.npz", "openvino/model.xml", "openvino"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_link_in_a_bundle_is_refused_though_the_bytes_are_right(bundle, tmp_path, name, inside):
    model_dir, manifest = bundle
    elsewhere = (model_dir if inside else tmp_path) / "elsewhere"
    shutil.move(model_dir / name, elsewhere)
    (model_dir / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{name}.* is reached through a link"):
        verify(model_dir, manifest)


def test_the_models_directory_itself_may_be_a_link(bundle, tmp_path):
    model_dir, manifest = bundle
    (tmp_path / "link").symlink_to(model_dir)
    verify(tmp_path / "link", manifest)


@pytest.mark.parametrize("name", ["../model.h5", "/etc/passwd", "openvino/../../model.h5"])
def test_a_manifest_cannot_name_a_file_outside(bundle, name):
    _, manifest = bundle
    text = manifest.to_json().replace("openvino/model.xml", name)
    with pytest.raises(UserError, match="inside the model's directory"):
        Manifest.from_json(text)


def write_model(path, module="keras.layers", name="Dense"):
    """Write a Keras file whose configuration names a layer of that module."""
    import keras

    layers = keras.layers
    keras.Sequential([layers.Input((4,)), layers.Dense(2, name="mine")]).save(path)
    layer = {"module": module, "class_name": name, "config": {}, "registered_name": None}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            parts = {entry: archive.read(entry) for entry in archive.namelist()}
        config = json.loads(parts["config.json"])
        config["config"]["layers"].append(layer)
        parts["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in parts.items():
                archive.writestr(entry, content)
        return
    import h5py

    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(layer)
        file.attrs["model_config"] = json.dumps(config)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(
    ("module", "name"), [("keras.layers", "Lambda"), ("os", "system"), ("mine.layers", "Mine")]
)
def test_a_model_that_brings_code_is_refused_before_keras_sees_it(
    tmp_path, suffix, module, name, monkeypatch
):
    """The same in serving and for the channel pretrained; Keras 2 would run it from an .h5."""
    import keras

    path = tmp_path / f"model{suffix}"
    write_model(path, module, name)
    monkeypatch.setattr(keras.models, "load_model", lambda *_args, **_words: pytest.fail("Keras has seen it"))
    with pytest.raises(UserError, match="cannot be loaded.*code would run"):
        tensorflow_engine.read_model(path)
    with pytest.raises(UserError, match="cannot be loaded.*code would run"):
        initial_weights.load_weights(None, path)


def test_a_harmless_archive_behind_an_hdf5_file_hides_nothing(tmp_path):
    write_model(tmp_path / "model.h5", "os", "system")
    write_model(tmp_path / "harmless.keras")
    with (tmp_path / "model.h5").open("ab") as file:
        file.write((tmp_path / "harmless.keras").read_bytes())
    with pytest.raises(UserError, match="code would run"):
        tensorflow_engine.read_model(tmp_path / "model.h5")

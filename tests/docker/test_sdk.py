"""The real SageMaker Python SDK, v2 and v3, runs the cpu image: fit, deploy, predict, batch transform.

`make test-sdk` creates the environments and runs these tests. Nothing is sent to AWS: there are no
credentials, and the telemetry of the SDK is off.
"""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import ROOT
from processes import find_free_port

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.skipif(
        os.environ.get("REQUIRE_SDK") != "1", reason="the SDKs need separate environments: make test-sdk"
    ),
]

IMAGE = "tandem:cpu"
PAGE = (ROOT / "docs" / "notebook.md").read_text()
NETWORK = "sagemaker-local"
WORKING_DIR = "com.docker.compose.project.working_dir"
SECONDS = 300
SENT = {"shuffle": True, "limit": None, "rate": 1e-05, "sizes": [64, 32], "name": "two words"}


def docker(*arguments, check=True):
    return subprocess.run(
        ["docker", *arguments], check=check, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()


@dataclass
class Workplace:
    """A folder with the digits, which is also the home folder with the SDK's configuration."""

    folder: Path
    environment: dict

    @property
    def test_dir(self):
        return self.folder / "local_test" / "test_dir"

    def run(self, version, script, *arguments):
        """Run a script with the SDK of that version; return its exit status and its output."""
        python = ROOT / ".venv" / f"sdk{version}" / "bin" / "python"
        output = self.folder / f"{Path(script).stem}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [python, script, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = f"none after {SECONDS} s"
        return status, output.read_text(errors="replace")

    def start_job(self, version, name, **request):
        """Run one training job; return the exit status, the output, and the folder with the job's files."""
        output = self.folder / name
        output.mkdir()
        request = {"hyperparameters": {}, "program": None, **request}
        source = ROOT / "tests" / "sdk"
        arguments = [
            IMAGE,
            self.test_dir / "input" / "data" / "training",
            source / "source",
            output,
            json.dumps(request),
        ]
        return *self.run(version, source / f"v{version}.py", *map(str, arguments)), output

    def list_containers(self):
        """Return the names of the containers that Compose created from below this folder, running or not."""
        lines = docker("ps", "--all", "--format", f'{{{{.Names}}}}\t{{{{.Label "{WORKING_DIR}"}}}}')
        named = (line.split("\t") for line in lines)
        return [name for name, path in named if path.startswith(f"{self.folder}/")]

    def take_exit_codes(self):
        """Remove these containers; return the exit status of each."""
        names = self.list_containers()
        if not names:
            return []
        codes = docker("inspect", "--format", "{{.State.ExitCode}}", *names)
        docker("rm", "--force", *names)
        return [int(code) for code in codes]


@pytest.fixture(scope="module")
def network():
    """Remove the SDK's network at the end, unless it existed before."""
    existing = docker("network", "ls", "--quiet", "--filter", f"name=^{NETWORK}$")
    yield
    if not existing:
        docker("network", "rm", NETWORK, check=False)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, network):
    assert docker("images", "--quiet", IMAGE), f"there is no image {IMAGE}; run `make cpu-image`."
    folder = tmp_path_factory.mktemp("sdk")
    test_dir = folder / "local_test" / "test_dir"
    subprocess.run([sys.executable, ROOT / "local_test" / "digits.py", test_dir], check=True, timeout=120)
    roots = folder / "containers"
    roots.mkdir()
    local = {"local_code": True, "serving_port": find_free_port(), "container_root": str(roots)}
    telemetry = {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}
    for path, content in (
        (".sagemaker", {"local": local}),
        (".config/sagemaker", {"SchemaVersion": "1.0", "SageMaker": telemetry}),
    ):
        (folder / path).mkdir(parents=True)
        (folder / path / "config.yaml").write_text(json.dumps(content))  # JSON is YAML too
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "DOCKER_HOST", "LANG"}}
    environment = {
        **kept,
        "HOME": str(folder),
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
    }
    workplace = Workplace(folder, environment)
    yield workplace
    workplace.take_exit_codes()
    if os.getuid():  # the files that the containers wrote belong to root
        owner = f"{os.getuid()}:{os.getgid()}"
        docker("run", "--rm", "--volume", f"{folder}:/folder", IMAGE, "chown", "-R", owner, "/folder")


def read_section(title):
    """Return a section's Python blocks as one script, and the lines of output that the page shows."""
    (section,) = re.findall(rf"^## {title}$(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    shown = "".join(text for language, text in blocks if not language)
    return "".join(text for language, text in blocks if language == "python"), shown.splitlines()


def mask(line):
    """Remove what differs between runs from a line: colours, the container's name, numbers."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    line = re.sub(r"^\S*algo-1\S*\s*\| ", "| ", line.strip())
    return re.sub(r"\d[\d.e-]*", "#", line)


def read_archive(path, name):
    with tarfile.open(path) as archive:
        return archive.extractfile(name).read()


@dataclass
class Page:
    """The result of running one section of the page."""

    status: int
    printed: str
    shown: list
    exit_codes: list


@pytest.fixture(scope="module")
def run_page(workplace):
    """`run_page(2)` runs the section on SDK v2, once."""

    @functools.cache
    def run(version):
        script, shown = read_section(f"SDK v{version}")
        path = workplace.folder / f"page{version}.py"
        path.write_text(script)
        status, printed = workplace.run(version, path)
        return Page(status, printed, shown, workplace.take_exit_codes())

    return run


@pytest.mark.parametrize(
    ("version", "archive", "containers"),
    [(2, "sdk2/model.tar.gz", 4), (3, "sdk3/compressed_artifacts/model.tar.gz", 2)],
    ids=["v2", "v3"],
)
def test_the_code_on_the_page_prints_the_output_on_the_page(
    workplace, run_page, version, archive, containers
):
    """At least 90 % of the digits are correct, the output is as shown, and every container exits with 0."""
    page = run_page(version)
    assert page.status == 0, page.printed
    correct, count = map(int, re.search(r"^(\d+) of (\d+) are correct$", page.printed, re.MULTILINE).groups())
    assert count == 40
    assert correct >= 0.9 * count
    manifest = json.loads(read_archive(workplace.test_dir / "output" / archive, "manifest.json"))
    assert manifest["labels"] == [str(digit) for digit in range(10)]
    assert page.exit_codes == [0] * containers
    printed = {mask(line) for line in re.split(r"[\r\n]+", page.printed)}
    assert page.shown
    assert [line for line in page.shown if line != "…" and mask(line) not in printed] == []


def test_v2_batch_transform_predicts_every_image_and_every_line(workplace, run_page):
    """There is one .out file per image, and one prediction per line in order; at least 90 % are correct."""
    page = run_page(2)
    assert page.status == 0, page.printed
    output, held_out = workplace.test_dir / "output", workplace.test_dir / "held_out"
    images = sorted(path.name for path in (held_out / "7").glob("*.png"))
    answers = sorted((output / "sdk2-sevens").glob("*"))
    assert [path.name for path in answers] == [f"{name}.out" for name in images]
    labels = [json.loads(path.read_text())["predictions"][0]["label"] for path in answers]
    assert labels.count("7") >= 0.9 * len(images)
    lines = (output / "sdk2-answers" / "mixed.jsonl.out").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    truth = [path.parent.name for path in sorted(held_out.glob("*/*.png"))[::9]]
    assert len(labels) == len(truth)
    assert sum(label == true for label, true in zip(labels, truth, strict=True)) >= 0.9 * len(truth)


@pytest.mark.parametrize(
    ("version", "archive"), [(2, "model.tar.gz"), (3, "compressed_artifacts/model.tar.gz")]
)
def test_a_users_algorithm_receives_the_values_with_their_python_types(workplace, version, archive):
    """The SDK sends a file that replaces the algorithm; booleans, None, numbers and lists are kept."""
    status, printed, output = workplace.start_job(
        version, f"own{version}", hyperparameters=SENT, program="typed.py"
    )
    assert status == 0, printed
    received = json.loads(read_archive(output / archive, "received.json"))
    assert received["hyperparameters"] == SENT
    assert "training" in received["channels"]
    assert workplace.take_exit_codes() == [0]


@pytest.mark.parametrize("version", [2, 3])
def test_a_wrong_hyperparameter_is_reported(workplace, version):
    """One line says which value is wrong; valid values are not mentioned."""
    values = {"epochs": 0, "image_size": None, "learning_rate": 1e-3, "color": "GRAY"}
    status, printed, _ = workplace.start_job(version, f"wrong{version}", hyperparameters=values)
    assert status == 1, printed
    sentence = "hyperparameter 'epochs' is '0'; it must be a whole number, at least 1 and at most 1000."
    assert f"ERROR: training failed: {sentence}\n" in printed.replace("\r", "")
    assert workplace.take_exit_codes() == [1]


def test_v3_runs_a_script_that_does_not_use_tandem(workplace):
    """The SDK's launcher finds bash, python3 and pip3, and TensorFlow computes."""
    status, printed, output = workplace.start_job(
        3, "script", hyperparameters={"rate": 0.5}, program="look.py", script=True
    )
    assert status == 0, printed
    assert json.loads(read_archive(output / "compressed_artifacts" / "model.tar.gz", "seen.json")) == {
        "arguments": ["--rate", "0.5"],
        "programs": dict.fromkeys(("bash", "python3", "pip3", "train", "serve"), True),
        "images": 1437,
        "six": 6.0,
    }
    assert workplace.take_exit_codes() == [0]

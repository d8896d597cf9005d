"""The real `train` with users' scripts, as they run in AWS's containers."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from processes import wait_for
from tandem.errors import UserError
from tandem.script_mode.runner import make_command, run_command
from tandem.script_mode.submission import Submission
from wheels import make_wheel

SCRIPTS = ROOT / "tests/fixtures/scripts"
WRITE = "open(os.environ['SM_MODEL_DIR'] + '/m', 'w').write({})\n"


@pytest.fixture
def job(opt_ml):
    """`job("train_rows.py", title="…")` returns the root of a job with that script in channel code."""

    def make(program, text=None, **hyperparameters):
        root = opt_ml({"sagemaker_program": program, **hyperparameters}, channels=["training", "code"])
        (root / "input/data/training/rows.csv").write_text("1\n2\n3\n")
        path = root / "input/data/code" / program
        path.parent.mkdir(exist_ok=True)
        if text is None:
            shutil.copy(SCRIPTS / program, path)
        else:
            path.write_text(text)
        return root

    return make


def read_failure(root):
    failure = (root / "output/failure").read_text()
    assert len(failure) <= 1024
    return failure


def test_a_script_of_awss_examples_runs_unchanged(job, run_train):
    title = "two words, 'quotes' \"and\" $HOME;`ls`"
    root = job("train_rows.py", epochs="3", **{"learning-rate": "0.01"}, title=json.dumps(title), k="v")
    done = run_train(root, "echo", TRAINING_JOB_NAME="rows-1", PYTHONPATH=str(ROOT / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    model = json.loads((root / "model/model.json").read_text())
    assert model["rows"] == 3
    arguments = model["arguments"]
    assert (arguments["epochs"], arguments["learning_rate"], arguments["title"], arguments["k"]) == (
        3,
        0.01,
        title,
        "v",
    )
    assert arguments["hosts"] == ["algo-1"]
    assert model["folder"] == str(root / "input/data/code")
    variables = model["variables"]
    assert variables["SM_USER_ENTRY_POINT"] == "train_rows.py"
    assert variables["SAGEMAKER_JOB_NAME"] == "rows-1"
    assert variables["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "TANDEM_WATCHER" not in variables
    assert not (root / "output/failure").exists()


def test_a_script_that_saves_on_sigterm_gets_it_and_succeeds(job):
    root = job("save_when_stopped.py")
    with subprocess.Popen(
        [sys.executable, ROOT / "program/train"], env={**os.environ, "SAGEMAKER_BASE_DIR": str(root)}
    ) as process:
        wait_for((root / "output/step").exists, "the script to begin")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert (root / "model/model.txt").read_text() == "the model so far"
    assert not (root / "output/failure").exists()


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("raise ValueError('no rows')", 1, r"exit status 1: ValueError: no rows\n…Traceback"),
        ("import sys\nsys.exit('the cause')", 1, "exit status 1: the cause"),
        ("import os\nos._exit(7)", 7, "exit status 7: it wrote nothing"),
        ("import os\nos.kill(os.getpid(), 15)", 143, "ended by SIGTERM: stopped before it saved"),
        ("import ctypes\nctypes.string_at(0)", 139, "ended by SIGSEGV(.|\n)*Fatal Python error"),
    ],
)
def test_the_failure_of_a_script_has_its_status_and_last_line(job, run_train, text, status, expected):
    root = job("mine.py", text)
    assert run_train(root, "echo").returncode == status
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(read_failure(root))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("run.sh", '[ "$1 $2 $SM_HP_X" = "-x a b a b" ] && echo done >"$SM_MODEL_DIR/model.txt"'),
        ("run", "#!/bin/sh\n" + '[ "$2" = "a b" ] && echo done >"$SM_MODEL_DIR/model.txt"'),
    ],
)
def test_a_shell_script_or_a_program_is_executed(job, run_train, program, text):
    root = job(program, text, x="a b")
    if program == "run":
        (root / "input/data/code/run").chmod(0o755)
    done = run_train(root, "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "model/model.txt").read_text() == "done\n"


def test_a_program_in_a_package_with_setup_py_runs_as_its_module(job, run_train):
    text = "import os\nfrom mine.part import answer\n" + WRITE.format("__package__")
    root = job("mine/main.py", text)
    code = root / "input/data/code"
    (code / "setup.py").touch()
    (code / "mine/__init__.py").touch()
    (code / "mine/part.py").write_text("answer = 42")
    done = run_train(root, "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "model/m").read_text() == "mine"


def test_a_training_module_is_called_as_the_toolkit_calls_it(job, run_train):
    root = job(
        "mine.py", "import os\ndef main():\n    open(os.environ['SM_MODEL_DIR'] + '/m', 'w').close()\n"
    )
    done = run_train(root, "echo", SAGEMAKER_TRAINING_MODULE="mine:main")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "model/m").exists()
    assert run_train(root, "echo", SAGEMAKER_TRAINING_MODULE="mine.main").returncode == 1
    assert "SAGEMAKER_TRAINING_MODULE is 'mine.main'; expected a module and a function" in read_failure(root)


@pytest.mark.parametrize("kind", ["a script", "a module of the seam"])
def test_vendored_requirements_can_be_imported(job, run_train, kind):
    text = "import os, tandem_vendored\n" + WRITE.format("tandem_vendored.version")
    if kind != "a script":
        text = "def train(job):\n" + "".join(f"    {line}\n" for line in text.splitlines())
    root = job("mine.py", text)
    code = root / "input/data/code"
    make_wheel(code / "wheels", "tandem_vendored", "1.5")
    (code / "requirements.txt").write_text("tandem-vendored\n")
    done = run_train(root, "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "model/m").read_text() == "1.5"


@pytest.mark.parametrize("parameters", ["", "job, more", "*, key"])
def test_a_train_function_that_takes_no_job_is_one_sentence(job, run_train, parameters):
    root = job("mine.py", f"def train({parameters}): pass\n")
    assert run_train(root, "echo").returncode == 1
    failure = read_failure(root)
    assert f"mine.py defines train({parameters}); expected train(job)" in failure
    assert "Traceback" not in failure


def test_a_script_without_a_model_gets_a_warning(job, run_train):
    """It may be intended; the platform has nothing to deploy then."""
    done = run_train(job("mine.py", "print('done')"), "echo")
    assert done.returncode == 0
    assert "WARNING: the program succeeded, but left nothing in" in done.stdout


def test_a_file_that_is_not_executable_is_rejected(tmp_path):
    (tmp_path / "run").touch(mode=0o644)
    with pytest.raises(UserError, match=r"neither \.py nor \.sh, and it is not executable"):
        make_command(Submission(tmp_path, "run"), [])


@pytest.mark.parametrize(
    ("hyperparameter", "expected"),
    [("a\0b", "cannot be passed as a command-line flag"), ("x" * 200_000, "too long for a command line")],
)
def test_a_hyperparameter_that_no_command_line_takes_is_rejected(job, run_train, hyperparameter, expected):
    root = job("train_rows.py", title=hyperparameter)
    assert run_train(root, "echo").returncode == 1
    assert expected in read_failure(root)


def test_a_missing_program_cannot_be_started(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/run cannot be started in .*: No such file"):
        run_command(["/nowhere/run"], tmp_path, {}, [])

"""The real `train`, as a process."""

import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT
from processes import wait_for


def read_failure(root):
    return (root / "output" / "failure").read_text()


def test_a_job_leaves_its_model_and_logs_its_device(opt_ml, run_train):
    root = opt_ml({"epochs": "3"})
    (root / "output").mkdir()
    (root / "output" / "failure").write_text("an earlier job's")
    done = run_train(root, "echo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((root / "model/seen.json").read_text()) == {"epochs": "3"}
    assert not (root / "output" / "failure").exists()
    assert [line for line in done.stdout.splitlines() if line.startswith("device: cpu: ")]


def test_a_user_error_is_one_sentence(opt_ml, run_train):
    root = opt_ml({"how": "user"})
    done = run_train(root, "fails_to_train")
    assert done.returncode == 1
    assert read_failure(root) == "the images are upside down; turn them."
    assert "Traceback" not in done.stdout + done.stderr
    assert list((root / "model").iterdir()) == []


def test_the_failure_of_a_bug_begins_with_its_cause(opt_ml, run_train):
    root = opt_ml({"how": "bug"})
    assert run_train(root, "fails_to_train").returncode == 1
    failure = read_failure(root)
    assert failure.startswith("ZeroDivisionError: a bug")
    assert len(failure) <= 1024


def test_a_job_without_a_model_fails(opt_ml, run_train):
    root = opt_ml({"how": "nothing"})
    assert run_train(root, "fails_to_train").returncode == 1
    assert "left nothing in" in read_failure(root)


@pytest.mark.parametrize(
    ("hyperparameters", "channels", "expected"),
    [
        ({"how": "sideways"}, ["training"], "how"),
        ({"hwo": "user"}, ["training"], "hwo"),
        ({}, ["elsewhere"], "'training' is missing"),
    ],
)
def test_faults_of_a_job_are_reported_before_it_starts(
    opt_ml, run_train, hyperparameters, channels, expected
):
    root = opt_ml(hyperparameters, channels=channels)
    assert run_train(root, "fails_to_train").returncode == 1
    assert expected in read_failure(root)


def test_an_invalid_variable_leaves_a_failure_file(opt_ml, run_train):
    root = opt_ml()
    done = run_train(root, "echo", TANDEM_DEVICE="tpu")
    assert done.returncode == 1
    assert "TANDEM_DEVICE is 'tpu'" in read_failure(root)


def test_a_requested_gpu_that_is_missing_is_an_error(opt_ml, run_train):
    root = opt_ml()
    assert run_train(root, "echo", TANDEM_DEVICE="gpu").returncode == 1
    assert "TANDEM_DEVICE=gpu" in read_failure(root)


@pytest.mark.parametrize("source", ["submit_directory", "code channel", "environment"])
def test_a_users_program_replaces_the_algorithm(opt_ml, run_train, tmp_path, source):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "def train(job): (job.model_dir / 'mine').write_text(str(job.hyperparameters['x']))\n"
    )
    names = {"x": "1", "sagemaker_program": '"mine.py"'}
    env = {}
    if source == "submit_directory":
        root = opt_ml({**names, "sagemaker_submit_directory": json.dumps(str(folder))})
    elif source == "code channel":
        root = opt_ml(names, channels=["training", "code"])
        (root / "input/data/code").rmdir()
        folder.rename(root / "input/data/code")
    else:
        root = opt_ml({"x": "1"})
        env = {"SAGEMAKER_PROGRAM": "mine.py", "SAGEMAKER_SUBMIT_DIRECTORY": str(folder)}
    done = run_train(root, "echo", **env)
    assert done.returncode == 0, done.stdout
    assert (root / "model/mine").read_text() == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_the_model_so_far_and_exits_0(opt_ml, number):
    root = opt_ml()
    process = subprocess.Popen(
        [sys.executable, ROOT / "program/train"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests"),
            "ALGORITHM": "fixtures.trains_until_stopped",
            "SAGEMAKER_BASE_DIR": str(root),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for((root / "output" / "step").exists, "the first step")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "saving the model so far" in output
    assert (root / "model/model.txt").read_text() == "the model so far"


def test_help_lists_hyperparameters_and_settings(opt_ml, run_train):
    done = run_train(opt_ml(), "fails_to_train", "--help")
    assert done.returncode == 0
    assert "The way to fail." in done.stdout
    assert "SAGEMAKER_BASE_DIR" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--tuning"], 0), (["--tunning"], 2), (["--epochs", "3"], 2), (["-h"], 0)]
)
def test_arguments_start_no_job(opt_ml, run_train, arguments, status):
    """They neither remove nor write output/failure; an unknown one is an error."""
    root, algorithm = opt_ml(), "algorithms.image_classifier"
    done = run_train(root, algorithm, *arguments)
    assert done.returncode == status
    assert not (root / "output").exists()
    (root / "output").mkdir()
    (root / "output" / "failure").write_text("an earlier job's")
    run_train(root, algorithm, *arguments)
    assert read_failure(root) == "an earlier job's"
    if status:
        assert done.stderr.startswith(f"train: unknown argument '{' '.join(arguments)}'; hyperparam")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("variables", [{"ALGORITHM": "nowhere"}, {"TANDEM_DEVICE": "tpu"}])
def test_a_page_that_cannot_be_printed_is_one_sentence(opt_ml, run_train, variables):
    done = run_train(opt_ml(), "echo", "--tuning", **variables)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("train: ")


def test_a_closed_pipe_gives_no_traceback(opt_ml):
    """As with `train --tuning | head -1`; here the reader closes before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, ROOT / "program/train", "--tuning"],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml())},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_output_folder_that_cannot_be_written_is_reported_once(opt_ml, run_train):
    """The watching process does not repeat the log."""
    root = opt_ml()
    (root / "output").write_text("a file where the folder should be")
    done = run_train(root, "echo")
    assert done.returncode == 1
    assert f"training failed: nothing can be written to {root / 'output'}: " in done.stdout
    assert "the program ended with" not in done.stdout + done.stderr


def test_folders_that_are_not_channels_are_logged_once(opt_ml, run_train):
    root = opt_ml()
    (root / "input/data/validation").mkdir()
    done = run_train(root, "echo")
    assert done.returncode == 0
    assert done.stdout.count("WARNING: ") == 1
    assert "input/data contains validation, which inputdataconfig.json does not list" in done.stdout


def test_a_model_folder_that_cannot_be_written_is_reported_before_training(opt_ml, run_train):
    root = opt_ml({"how": "bug"})
    (root / "model").rmdir()
    (root / "model").write_text("a file where the folder should be")
    assert run_train(root, "fails_to_train").returncode == 1
    assert read_failure(root).startswith(f"nothing can be written to {root / 'model'}: ")


def test_a_stop_before_anything_is_imported_ends_the_process(opt_ml):
    """The first process of a container ignores signals that it has no handler for."""
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "program/train"],
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml()), "ALGORITHM": "fixtures.echo"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            if " signal" in line:  # the last module before the handlers
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in {143, -15}

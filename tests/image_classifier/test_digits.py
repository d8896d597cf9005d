"""The main use on real data: handwritten digits with local_test's scripts and real processes."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from algorithms import image_classifier
from conftest import ROOT
from processes import wait_for

LOCAL_TEST = ROOT / "local_test"


@pytest.fixture(scope="module")
def trained(make_once, digits):
    """A small /opt/ml with the digits, after `local_test/train.sh`: its root, and the output."""

    def train(root):
        shutil.copytree(digits, root, dirs_exist_ok=True)
        shutil.copytree(LOCAL_TEST / "test_dir" / "input" / "config", root / "input" / "config")
        done = subprocess.run(
            [LOCAL_TEST / "train.sh"],
            env={**os.environ, "TEST_DIR": str(root)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (root / "printed").write_text(done.stdout)

    root = make_once("trained-digits", train)
    return root, (root / "printed").read_text()


@pytest.fixture(scope="module")
def images(trained):
    """The held-out images and their labels."""
    paths = sorted((trained[0] / "held_out").glob("*/*.png"))
    assert len(paths) == 360
    return [path.read_bytes() for path in paths], [path.parent.name for path in paths]


def request_probabilities(server, images):
    """Send one request per image to a server; return float32 (images, labels)."""
    rows = []
    for image in images:
        status, headers, body = server.invoke(image, "image/png", accept="application/x-npy")
        assert (status, headers["Content-Type"]) == (200, "application/x-npy"), body
        rows.append(np.load(io.BytesIO(body), allow_pickle=False)[0])
    return np.array(rows)


def test_the_job_writes_the_complete_bundle(trained):
    root, _ = trained
    files = sorted(
        str(path.relative_to(root / "model")) for path in (root / "model").rglob("*") if path.is_file()
    )
    assert files == ["golden.npz", "manifest.json", "model.h5", "openvino/model.bin", "openvino/model.xml"]
    manifest = json.loads((root / "model/manifest.json").read_text())
    assert manifest["labels"] == list("0123456789")
    assert manifest["device"]["device"] == "cpu"
    assert not (root / "output" / "failure").exists()


def test_every_epoch_logs_one_line_that_the_metric_regexes_match(trained):
    _, output = trained
    lines = [line for line in output.splitlines() if line.startswith("epoch=")]
    epochs = int(
        json.loads((LOCAL_TEST / "test_dir/input/config/hyperparameters.json").read_text())["epochs"]
    )
    assert [int(re.match(r"epoch=(\d+) ", line)[1]) for line in lines] == list(range(1, epochs + 1))
    for line in lines:
        for name, pattern in image_classifier.METRICS.items():
            (number,) = re.findall(pattern, line)
            assert np.isfinite(float(number)), name
    assert "\r" not in output
    assert "\b" not in output


def test_both_backends_are_accurate_and_agree(trained, images, live_server, record_property):
    """At least 97 % accuracy on held-out digits, with equal labels and probabilities equal up to rounding."""
    root, _ = trained
    bodies, labels = images
    probabilities = {}
    for backend in ("openvino", "tensorflow"):
        server = live_server("algorithms.image_classifier", base_dir=root, BACKEND=backend)
        assert f"backend {backend}: " in server.log
        probabilities[backend] = request_probabilities(server, bodies)
        loaded = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in server.list_processes())
        assert ("/site-packages/tensorflow/" in loaded) == (backend == "tensorflow")
        server.stop()
    assert np.mean(probabilities["openvino"].argmax(axis=1) == np.array(labels, int)) >= 0.97
    assert (probabilities["openvino"].argmax(axis=1) == probabilities["tensorflow"].argmax(axis=1)).all()
    difference = np.abs(probabilities["openvino"] - probabilities["tensorflow"]).max()
    record_property("largest difference of a probability", float(difference))
    assert difference < 1e-4


def test_requests_and_their_responses_and_errors(trained, images, live_server):
    root, _ = trained
    (image, *_), (label, *_) = images
    server = live_server("algorithms.image_classifier", base_dir=root)
    status, headers, body = server.invoke(image, "image/png")
    (prediction,) = json.loads(body)["predictions"]
    probabilities = [entry["probability"] for entry in prediction["probabilities"]]
    assert (status, headers["Content-Type"], prediction["label"]) == (200, "application/json", label)
    assert probabilities == sorted(probabilities, reverse=True)
    assert prediction["probability"] == probabilities[0]
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    for content_type, sent, status, kind in [
        ("image/png", image[: len(image) // 2], 400, "image_truncated"),
        ("image/jpeg", b"this is text", 415, "not_an_image"),
        ("image/png", b"", 400, "image_empty"),
        ("application/pdf", image, 415, "unsupported_media_type"),
        ("application/json", b'{"instances": ["no image"]}', 400, "bad_request"),
    ]:
        got, _, body = server.invoke(sent, content_type)
        assert (got, json.loads(body)["error"]) == (status, kind), body
    assert server.invoke(image, "image/png", accept="video/mp4")[0] == 406
    assert server.invoke(image, "image/png")[0] == 200


@pytest.mark.slow
def test_too_many_unreadable_images_fail_the_job_and_are_named(trained, tmp_path, run_train):
    root = tmp_path / "ml"
    shutil.copytree(trained[0] / "input", root / "input")
    for path in sorted((root / "input/data/training").glob("*/*.png"))[::4]:
        path.write_text("this is text, not an image")
    done = run_train(root, "algorithms.image_classifier")
    assert done.returncode == 1
    failure = (root / "output/failure").read_text()
    assert "images were unreadable" in failure
    assert ".png" in failure
    assert not list((root / "model").iterdir())


@pytest.mark.slow
def test_sigterm_within_an_epoch_saves_a_model_that_can_be_served(trained, images, tmp_path, live_server):
    root = tmp_path / "ml"
    shutil.copytree(trained[0] / "input", root / "input")
    (root / "input/config/hyperparameters.json").write_text('{"image_size": "16", "epochs": "1000"}')
    log_path = tmp_path / "train.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "program" / "train"],
            env={**os.environ, "SAGEMAKER_BASE_DIR": str(root)},
            stdout=log,
            stderr=log,
        )
    wait_for(lambda: "epoch=1 " in log_path.read_text(), "the first epoch", 120)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, log_path.read_text()
    assert "SIGTERM" in log_path.read_text()
    server = live_server("algorithms.image_classifier", base_dir=root)
    assert server.invoke(images[0][0], "image/png")[0] == 200


@pytest.mark.parametrize(("name", "has_bar"), [("", True), ("digits-2026-01-01", False)])
def test_a_terminal_gets_a_progress_bar_but_a_named_job_does_not(trained, tmp_path, name, has_bar):
    """In the SDK's local mode a named job has a terminal without a viewer."""
    root = tmp_path / "ml"
    for path in sorted((trained[0] / "input/data/training").glob("[01]/*.png"))[::10]:
        copied = root / "input/data/training" / path.parent.name / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    (root / "input/config").mkdir()
    (root / "input/config/hyperparameters.json").write_text('{"image_size": "8", "epochs": "1"}')
    leader, follower = pty.openpty()
    env = {**os.environ, "SAGEMAKER_BASE_DIR": str(root), "TRAINING_JOB_NAME": name}
    with subprocess.Popen(
        [sys.executable, ROOT / "program" / "train"], env=env, stdout=follower, stderr=subprocess.DEVNULL
    ) as process:
        os.close(follower)
        printed = b""
        with contextlib.suppress(OSError):  # the terminal's end, once the process has closed its side
            while piece := os.read(leader, 65536):
                printed += piece
        os.close(leader)
    assert process.returncode == 0, printed
    assert (b"Epoch 1/1" in printed) == has_bar
    assert re.search(rb"^epoch=1 loss=.*\r?$", printed, re.MULTILINE)

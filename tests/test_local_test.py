"""The scripts of local_test: sample data, train.sh, serve.sh, predict.sh and demo.py."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60
TRAINING = Path("input", "data", "training")

#: Replaces program/train and program/serve: prints how it was started.
RECORDER = """
import json, os, sys
names = ("SAGEMAKER_BASE_DIR", "SAGEMAKER_BIND_TO_PORT")
print(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "env": {n: os.environ.get(n) for n in names}}))
sys.exit(5)
"""

#: Replaces docker: appends its arguments to a log; with DOCKER_WAITS, `train` runs until SIGTERM.
DOCKER = f"""#!{sys.executable}
import json, os, signal, sys
with open(os.environ["DOCKER_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[-1] == "train" and "DOCKER_WAITS" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print("waiting", flush=True)
    signal.pause()
wanted = os.environ.get("DOCKER_FAILS", "")
sys.exit(3 if wanted and wanted in sys.argv else 0)
"""

#: Replaces program/serve: predicts the name of a digit's folder, or LABEL; with BROKEN it exits at once.
ORACLE = """
import glob, http.server, json, os, signal, sys, threading
root = os.environ["SAGEMAKER_BASE_DIR"]
if "BROKEN" in os.environ:
    sys.exit("the model has no layers")
labels = {open(p, "rb").read(): p.split("/")[-2] for p in glob.glob(root + "/held_out/*/*.png")}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    def do_GET(self): self.answer(b"")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        label = os.environ.get("LABEL", labels[body])
        self.answer(json.dumps({"predictions": [{"label": label, "probability": 0.75}]}).encode())
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""


def run(*command, cwd=None, **env):
    """Run a command and return the completed process; a variable that is None is unset."""
    variables = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def read_images(root):
    """Return the pixels of every PNG file below a folder, by path, as OpenCV reads them."""
    return {
        path.relative_to(root): cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in root.rglob("*.png")
    }


@pytest.fixture(scope="module")
def sample_data(digits):
    """Return a folder with the sample data, which tests must not change."""
    return digits


@pytest.fixture
def tree(tmp_path):
    """Return a copy of local_test beside programs that only print how they were started."""
    root = tmp_path / "a tree"
    generated = shutil.ignore_patterns("data", "held_out", "model", "output", ".*", "__pycache__")
    shutil.copytree(ROOT / "local_test", root / "local_test", ignore=generated)
    (root / "program").mkdir()
    for name in ("train", "serve"):
        (root / "program" / name).write_text(RECORDER)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return root


@pytest.fixture
def test_dir(tmp_path):
    """Another folder to use as /opt/ml, with a space in its path."""
    root = tmp_path / "opt ml"
    (root / TRAINING).mkdir(parents=True)
    (root / "model").mkdir()
    return root


@pytest.fixture
def docker(tmp_path):
    """Write a fake docker: `env` puts it on PATH, `calls()` returns the arguments of each `docker run`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    log = tmp_path / "docker.log"

    def calls():
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        return [call for call in calls if call[0] == "run"]

    env = {"PATH": f"{folder}:{os.environ['PATH']}", "DOCKER_LOG": str(log)}
    return SimpleNamespace(env=env, calls=calls)


@pytest.fixture
def bare_path(tmp_path):
    """Return a PATH without docker, curl and python3."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "mkdir", "printf", "tr"):
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


@pytest.fixture
def endpoint():
    """Run a real HTTP server that records requests and responds with `reply`: (status, body)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append((self.path, dict(self.headers), body))
            status, answer = self.server.reply
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.reply = [], (200, b'{"predictions": [3]}')
        server.port = str(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(SECONDS)


class TestSampleData:
    def test_images_are_the_digits_of_the_data_set(self, sample_data):
        """Each PNG is 8-bit grey, has the data set's values times 255/16, and is in its label's folder."""
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        images = read_images(sample_data)
        assert len(images) == 1797
        for path, pixels in images.items():
            number = int(path.stem.removeprefix("digit-"))
            assert pixels.dtype == np.uint8
            np.testing.assert_array_equal(np.round(pixels / 255 * 16), values[number].reshape(8, 8))
            assert path.parent.name == str(labels[number])

    def test_a_stratified_fifth_is_held_out(self, sample_data):
        """20 % of each class is in held_out, and none of these images is in a channel."""
        training, held_out = read_images(sample_data / TRAINING), read_images(sample_data / "held_out")
        assert len(held_out) == 360
        assert {path.name for path in training}.isdisjoint(path.name for path in held_out)
        for label in map(str, range(10)):
            kept = sum(path.parts[0] == label for path in training)
            apart = sum(path.parts[0] == label for path in held_out)
            assert 0.18 < apart / (kept + apart) < 0.22
        assert sorted(path.name for path in sample_data.iterdir()) == ["held_out", "input"]
        assert [path.name for path in (sample_data / "input/data").iterdir()] == ["training"]

    def test_a_second_run_repairs_files_and_keeps_the_others(self, sample_data, tmp_path):
        """A missing and a truncated file are restored byte for byte; the user's own image is kept."""
        root = shutil.copytree(sample_data, tmp_path / "copy")
        missing, cut, *_ = sorted((root / TRAINING / "7").iterdir())
        own = root / TRAINING / "7" / "mine.png"
        missing.unlink()
        cut.write_bytes(cut.read_bytes()[:20])
        own.write_bytes(b"mine")
        done = run(sys.executable, ROOT / "local_test/digits.py", root)
        assert done.returncode == 0, done.stderr
        assert "1797 digits" in done.stdout
        assert "2 of them" in done.stdout
        assert own.read_bytes() == b"mine"
        own.unlink()
        files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        expected = {p.relative_to(sample_data): p.read_bytes() for p in sample_data.rglob("*") if p.is_file()}
        assert files == expected

    def test_a_folder_that_cannot_be_written_is_reported(self, tmp_path):
        """If the folder is a file, the script prints one line and no traceback."""
        (tmp_path / "file").write_text("")
        done = run(sys.executable, ROOT / "local_test/digits.py", tmp_path / "file")
        assert done.returncode == 1
        assert "The sample data cannot be written to" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train.sh", "serve.sh", "predict.sh", "digits.py", "demo.py"])
class TestUsage:
    @pytest.mark.parametrize("option", ["-h", "--help"])
    def test_help(self, script, option):
        """-h and --help print the usage on standard output and exit with 0."""
        done = run(ROOT / "local_test" / script, option, PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage" in done.stdout.lower()
        assert len(done.stdout.splitlines()) > 5

    def test_an_unknown_option_is_rejected(self, script):
        """An unknown option prints the usage on standard error and exits with 2."""
        done = run(ROOT / "local_test" / script, "--gpu", PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
        assert done.returncode == 2
        assert "usage" in done.stderr.lower()


class TestPlainProcess:
    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_the_script_executes_the_program_of_its_tree(self, tree, test_dir, tmp_path, script):
        """From any directory and with a relative TEST_DIR, the script replaces itself with the program."""
        command = [tree / "local_test" / script]
        env = {**os.environ, "TEST_DIR": "opt ml", "PORT": "8123"}
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate(timeout=SECONDS)
        started = json.loads(output)
        assert started["pid"] == process.pid
        assert started["argv"] == []
        assert started["env"]["SAGEMAKER_BASE_DIR"] == str(test_dir)
        assert process.returncode == 5
        if script == "serve.sh":
            assert started["env"]["SAGEMAKER_BIND_TO_PORT"] == "8123"
        else:
            assert (test_dir / "output").is_dir()

    def test_train_keeps_existing_files(self, tree, test_dir):
        """train.sh itself deletes nothing, so a failed training job keeps the previous model."""
        (test_dir / "model/model.h5").write_text("old")
        run(tree / "local_test/train.sh", TEST_DIR=str(test_dir))
        assert (test_dir / "model/model.h5").read_text() == "old"

    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_without_a_venv_python3_is_used(self, tree, test_dir, script):
        """Without .venv, the script uses the python3 on PATH and names the command that creates a .venv."""
        (tree / ".venv/bin/python").unlink()
        done = run(tree / "local_test" / script, TEST_DIR=str(test_dir))
        assert done.returncode == 5
        assert "make environment" in done.stderr

    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_without_any_python(self, tree, test_dir, bare_path, script):
        """Without any Python, the script fails with one sentence."""
        (tree / ".venv/bin/python").unlink()
        done = run(tree / "local_test" / script, TEST_DIR=str(test_dir), PATH=bare_path)
        assert done.returncode == 1
        assert done.stderr == f"{script}: there is no python3; install it, then run 'make environment'.\n"

    def test_nothing_to_train_on(self, tree):
        """The test_dir of a fresh checkout has no data: train.sh names the command that writes some."""
        done = run(tree / "local_test/train.sh", TEST_DIR=None)
        assert done.returncode == 1
        assert "make sample-data" in done.stderr

    @pytest.mark.parametrize(("script", "missing"), [("train.sh", "input"), ("serve.sh", "model")])
    def test_a_missing_test_dir(self, tree, tmp_path, script, missing):
        """A TEST_DIR without the folder that the script reads is an error that names the folder."""
        done = run(tree / "local_test" / script, TEST_DIR=str(tmp_path / "nowhere"))
        assert done.returncode == 1
        assert f"there is no {tmp_path / 'nowhere' / missing}" in done.stderr
        assert not (tmp_path / "nowhere").exists()


class TestContainer:
    def test_train(self, tree, test_dir, docker):
        """TEST_DIR is mounted as /opt/ml, and the new files get the owner of their folder."""
        done = run(
            tree / "local_test/train.sh", "shop/tandem:1", TEST_DIR=str(test_dir), GPUS=None, **docker.env
        )
        assert done.returncode == 0, done.stderr
        settings = ["--env-file", f"{tree}/local_test/settings.env"]
        mount = ["-v", f"{test_dir}:/opt/ml"]
        chown = ["-R", "--reference=/opt/ml", "/opt/ml/model", "/opt/ml/output"]
        assert docker.calls() == [
            ["run", "--rm", *settings, *mount, "shop/tandem:1", "train"],
            ["run", "--rm", *mount, "--entrypoint", "chown", "shop/tandem:1", *chown],
        ]

    def test_serve(self, tree, test_dir, docker):
        """Only the model is mounted, read-only, and the port is published."""
        env = {"TEST_DIR": str(test_dir), "PORT": "8123", "GPUS": None, **docker.env}
        done = run(tree / "local_test/serve.sh", "shop/tandem:1", **env)
        assert done.returncode == 0, done.stderr
        mount = ["-v", f"{test_dir}/model:/opt/ml/model:ro"]
        settings = ["--env-file", f"{tree}/local_test/settings.env"]
        assert docker.calls() == [
            ["run", "--rm", *settings, *mount, "-p", "8123:8080", "shop/tandem:1", "serve"]
        ]

    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_gpus(self, tree, test_dir, docker, script):
        """GPUS is passed to docker as one argument, with all its characters."""
        gpus = '"device=0,1"'
        run(tree / "local_test" / script, "image", TEST_DIR=str(test_dir), GPUS=gpus, **docker.env)
        assert docker.calls()[0][4:6] == ["--gpus", gpus]

    @pytest.mark.parametrize(("script", "calls"), [("train.sh", 2), ("serve.sh", 1)])
    def test_the_exit_code_of_the_container_is_returned(self, tree, test_dir, docker, script, calls):
        """The script exits with the container's exit code; train.sh changes the files' owner even so."""
        env = {"TEST_DIR": str(test_dir), "DOCKER_FAILS": script.removesuffix(".sh"), **docker.env}
        assert run(tree / "local_test" / script, "image", **env).returncode == 3
        assert len(docker.calls()) == calls

    def test_train_forwards_sigterm_and_waits(self, tree, test_dir, docker):
        """A SIGTERM to train.sh is forwarded to the container, and train.sh waits for its exit code."""
        env = {**os.environ, "TEST_DIR": str(test_dir), "DOCKER_WAITS": "1", **docker.env}
        command = [tree / "local_test/train.sh", "image"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"waiting\n"
            process.terminate()
            assert process.wait(SECONDS) == 7
        assert len(docker.calls()) == 2

    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_no_docker(self, tree, test_dir, bare_path, script):
        """Without docker, the script fails with one sentence."""
        done = run(tree / "local_test" / script, "image", TEST_DIR=str(test_dir), PATH=bare_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{script}: docker is not installed")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("script", ["train.sh", "serve.sh"])
    def test_no_engine(self, tree, test_dir, docker, script):
        """If the engine does not answer, the script fails with one sentence and runs nothing."""
        env = {"TEST_DIR": str(test_dir), "DOCKER_FAILS": "version", **docker.env}
        done = run(tree / "local_test" / script, "image", **env)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{script}: the Docker engine does not answer")
        assert done.stderr.count("\n") == 1
        assert docker.calls() == []


class TestPredict:
    SCRIPT = ROOT / "local_test/predict.sh"

    @pytest.mark.parametrize(
        ("name", "content_type"),
        [
            ("a.jpg", "image/jpeg"),
            ("a.JPEG", "image/jpeg"),
            ("a.png", "image/png"),
            ("a.bmp", "image/bmp"),
            ("a.webp", "image/webp"),
            ("a.tif", "image/tiff"),
            ("a.tiff", "image/tiff"),
            ("a.npy", "application/x-npy"),
            ("a.json", "application/json"),
            ("a.jsonl", "application/jsonlines"),
            ("a b;type=x,y.csv", "text/csv"),
        ],
    )
    def test_the_extension_determines_the_content_type(self, endpoint, tmp_path, name, content_type):
        """The file is sent byte for byte with the type of its extension, and the response is printed."""
        body = b"\x00\r\n\xff\n"
        (tmp_path / name).write_bytes(body)
        done = run(self.SCRIPT, tmp_path / name, PORT=endpoint.port, http_proxy="http://127.0.0.1:9")
        assert (done.returncode, done.stdout, done.stderr) == (0, '{"predictions": [3]}\n', "")
        [(path, headers, sent)] = endpoint.requests
        assert (path, headers["Content-Type"], sent) == ("/invocations", content_type, body)

    def test_content_type_and_accept_given(self, endpoint, tmp_path):
        """A given type takes precedence over the extension, and ACCEPT is sent as the header."""
        (tmp_path / "a.png").write_bytes(b"1,2")
        accept = "application/x-npy, */*;q=0.1"
        run(self.SCRIPT, "a.png", "text/csv; header=absent", cwd=tmp_path, PORT=endpoint.port, ACCEPT=accept)
        [(_, headers, _)] = endpoint.requests
        assert headers["Content-Type"] == "text/csv; header=absent"
        assert headers["Accept"] == accept

    def test_an_error_response_is_printed(self, endpoint, tmp_path):
        """For a status of 400 or more, the script exits with 1 and prints the body on standard error."""
        endpoint.reply = (415, b'{"error": "unsupported_media_type", "message": "no"}')
        (tmp_path / "a.csv").write_bytes(b"1")
        done = run(self.SCRIPT, tmp_path / "a.csv", PORT=endpoint.port)
        assert (done.returncode, done.stdout) == (1, "")
        assert "415" in done.stderr
        assert '"message": "no"' in done.stderr

    def test_nothing_listens(self, tmp_path):
        """Without a server, the script fails with one sentence that names the port."""
        (tmp_path / "a.csv").write_bytes(b"1")
        with socket.socket() as bound:  # bound but not listening, so no other process can take the port
            bound.bind(("127.0.0.1", 0))
            port = str(bound.getsockname()[1])
            done = run(self.SCRIPT, tmp_path / "a.csv", PORT=port)
        assert done.returncode == 1
        assert done.stderr.startswith(f"predict.sh: nothing listens on port {port}")
        assert done.stderr.count("\n") == 1

    def test_a_file_that_cannot_be_sent(self, endpoint, tmp_path):
        """A missing file, a folder and an unknown extension are errors, and nothing is sent."""
        (tmp_path / "a.pickle").write_bytes(b"1")
        for name, sentence in [
            ("missing.png", "is not a readable file"),
            ("", "is not a readable file"),
            ("a.pickle", "give one"),
        ]:
            done = run(self.SCRIPT, tmp_path / name, PORT=endpoint.port)
            assert done.returncode == 1
            assert sentence in done.stderr
        assert endpoint.requests == []

    def test_no_curl(self, tmp_path, bare_path):
        """Without curl, the script fails with one sentence."""
        (tmp_path / "a.csv").write_bytes(b"1")
        done = run(self.SCRIPT, tmp_path / "a.csv", PATH=bare_path)
        assert done.returncode == 1
        assert "curl is not installed" in done.stderr


class TestDemo:
    @pytest.fixture
    def oracle_tree(self, tree, sample_data):
        """Return a tree with sample data, a train that does nothing and a serve that knows the labels."""
        shutil.copytree(sample_data, tree / "local_test/test_dir", dirs_exist_ok=True)
        (tree / "program/train").write_text("")
        (tree / "program/serve").write_text(ORACLE)
        return tree

    def test_all_digits_correct(self, oracle_tree):
        """All stages run; the table shows twelve images, the accuracy and the duration of each stage."""
        done = run(sys.executable, oracle_tree / "local_test/demo.py", TEST_DIR=None)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1.000: 360 of 360 held-out images are correct" in done.stdout
        assert done.stdout.count("0.7500") == 12
        assert "█" in done.stdout
        for stage in ("sample data", "train", "start", "predict 360"):
            assert stage in done.stdout

    def test_a_bad_model_fails_the_demo(self, oracle_tree):
        """If the accuracy is too low, the demo exits with 1 and shows misclassified images."""
        done = run(sys.executable, oracle_tree / "local_test/demo.py", TEST_DIR=None, LABEL="3")
        assert done.returncode == 1
        assert "3 (label 0)" in done.stdout
        assert "WRONG" in done.stdout
        assert done.stderr.startswith("demo: the accuracy is 0.1")

    def test_the_log_of_a_server_that_exits_is_shown(self, oracle_tree):
        """If serve exits at its start, the demo fails with the end of its log and without a traceback."""
        done = run(sys.executable, oracle_tree / "local_test/demo.py", TEST_DIR=None, BROKEN="1")
        assert done.returncode == 1
        assert "exit code 1" in done.stderr
        assert "the model has no layers" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_failed_training_ends_the_demo(self, oracle_tree):
        """If train fails, the demo reports its exit code and does not start the server."""
        (oracle_tree / "program/train").write_text("import sys; sys.exit('no images')")
        done = run(sys.executable, oracle_tree / "local_test/demo.py", TEST_DIR=None)
        assert done.returncode == 1
        assert "train ended with exit code 1" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_stopped_demo_leaves_no_process(self, oracle_tree, number):
        """If the demo is stopped during training, it stops what it started and prints one line."""
        # The training process has the pipe open, so the end of the pipe shows that the process is gone.
        (oracle_tree / "program/train").write_text(
            "import signal, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: exit(0))\n"
            "print('training', flush=True)\n"
            "signal.pause()\n"
        )
        command = [sys.executable, oracle_tree / "local_test/demo.py"]
        env = {name: value for name, value in os.environ.items() if name != "TEST_DIR"}
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as demo:
            while demo.stdout.readline() not in {"training\n", ""}:
                pass
            demo.send_signal(number)
            output, _ = demo.communicate(timeout=SECONDS)  # returns once no process has the pipe open
        assert demo.returncode == 1
        assert output == "demo: stopped by a signal.\n"

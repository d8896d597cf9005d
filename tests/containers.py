"""The images, built with make, and containers that run them on a real Docker engine."""

import contextlib
import functools
import http.client
import io
import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from processes import wait_for

REPOSITORY = "tandem-test"
NAMES = {
    "serve": ["serve-image"],
    "cpu": ["cpu-image"],
    "gpu": ["gpu-image"],
    "gpu-cuda11": ["gpu-image", "CUDA=11"],
}
TRAINING = [name for name in NAMES if name != "serve"]
BUILD_GIGABYTES = 25
BUILD_SECONDS = 1800


def docker(*arguments, check=True, seconds=180, **options):
    """Run docker and return the finished process; its stdout is text and includes stderr."""
    done = subprocess.run(
        ["docker", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def need_engine():
    """Skip the test if no Docker engine answers; with REQUIRE_DOCKER=1 start one, or fail."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        subprocess.run([ROOT / "tests" / "docker" / "engine.sh"], check=True, timeout=600)
    elif not shutil.which("docker") or docker("info", check=False).returncode:
        pytest.skip("no Docker engine answers (tests/docker/engine.sh starts one)")
    subprocess.run([ROOT / "tests" / "docker" / "base_image.sh"], check=True, timeout=600)


@functools.cache
def find_builders():
    """Return the builders of the installed docker clients, as {name: environment for make}."""
    found = {}
    for client in dict.fromkeys(
        filter(None, (shutil.which("docker"), shutil.which("docker", path="/usr/bin")))
    ):
        version = subprocess.check_output([client, "version", "--format", "{{.Client.Version}}"], text=True)
        buildx = subprocess.run([client, "buildx", "version"], capture_output=True, check=False)
        # clients before version 23 include BuildKit; later ones need buildx for it
        if buildx.returncode == 0 or int(version.split(".")[0]) < 23:
            found.setdefault("BuildKit", {"DOCKER": client, "DOCKER_BUILDKIT": "1"})
        found.setdefault("classic", {"DOCKER": client, "DOCKER_BUILDKIT": "0"})
    return dict(sorted(found.items()))  # BuildKit first: it skips the targets that are not needed


def make(*arguments, builder=None, **variables):
    """Run make and return its output."""
    environment = {**os.environ, **(builder or next(iter(find_builders().values())))}
    done = subprocess.run(
        ["make", "-C", ROOT, *arguments, *(f"{name}={value}" for name, value in variables.items())],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@functools.cache
def build(name):
    """Build one of `NAMES` and return its reference; layers of earlier builds are reused."""
    if docker("image", "inspect", f"{REPOSITORY}:{name}", check=False).returncode:
        root = docker("info", "--format", "{{.DockerRootDir}}").stdout.strip()
        free = shutil.disk_usage(root if Path(root).is_dir() else "/").free
        assert free > BUILD_GIGABYTES * 1e9, f"{root} has {free / 1e9:.0f} GB free; the images need more"
    make(*NAMES[name], IMAGE=REPOSITORY, TAG=name)
    return f"{REPOSITORY}:{name}"


def inspect(image):
    """Return what `docker image inspect` shows of an image."""
    return json.loads(docker("image", "inspect", image).stdout)[0]


def run(image, *command, options=()):
    """Run a command in a new container and return the finished process."""
    return docker("run", "--rm", *options, image, *command, check=False)


@dataclass
class Container:
    """A running container; with `--network none` requests are sent from inside it."""

    image: str
    options: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=lambda: ["serve"])
    id: str = ""

    def __enter__(self):
        published = [] if "none" in self.options else ["--publish", "127.0.0.1::8080"]
        self.id = docker(
            "run", "--detach", *published, *self.options, self.image, *self.command
        ).stdout.strip()
        return self

    def __exit__(self, *exception):
        docker("rm", "--force", "--volumes", self.id)

    @property
    def log(self):
        return docker("logs", self.id).stdout

    @property
    def running(self):
        return docker("inspect", "--format", "{{.State.Running}}", self.id).stdout.strip() == "true"

    @functools.cached_property
    def port(self):
        return int(docker("port", self.id, "8080/tcp").stdout.split(":")[-1])

    def ping(self):
        """Return the status of /ping, or None while nothing listens."""
        if "none" in self.options:
            code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/ping').status)"
            done = docker("exec", self.id, "python3", "-c", code, check=False)
            return int(done.stdout) if done.returncode == 0 else None
        try:
            return self.request("GET", "/ping")[0]
        except (OSError, http.client.HTTPException):
            return None

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()

    def wait_until_healthy(self):
        def is_healthy():
            assert self.running, self.log
            return self.ping() == 200

        wait_for(is_healthy, f"/ping 200 of {self.image}", 120)
        return self

    def wait_for_log(self, pattern):
        wait_for(lambda: re.search(pattern, self.log) or not self.running, pattern, 120)
        assert self.running, self.log

    def stop(self):
        """Stop it as the platform does and return its exit status."""
        docker("stop", "--time", "30", self.id)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.id).stdout)

    def predict(self, images):
        """Return the probabilities of PNG files, float32 of shape (images, labels)."""
        body = "\n".join(json.dumps({"b64": b64encode(path.read_bytes()).decode()}) for path in images)
        headers = {"Content-Type": "application/jsonlines", "Accept": "application/x-npy"}
        status, answer = self.request("POST", "/invocations", body, headers)
        assert status == 200, answer
        return np.load(io.BytesIO(answer))

"""A local substitute for ECR: a registry with ECR's host names, and the AWS API, on this computer only."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import find_free_port, wait_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv" / "ecr"
REQUIREMENTS = ROOT / "docker" / "requirements" / "ecr.txt"
ACCOUNT = "123456789012"
HOSTS = (f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com", f"{ACCOUNT}.dkr.ecr.cn-north-1.amazonaws.com.cn")
HOSTS_FILE = Path("/etc/hosts")
CERTIFICATES = Path("/etc/docker/certs.d")
MARK = "# Tandem's tests"


@dataclass(frozen=True)
class StandIn:
    """The running substitute: the AWS API's endpoint, and the environment variables of its user."""

    endpoint: str
    variables: dict[str, str]

    def aws(self, *arguments: str, region: str = "us-west-2") -> str:
        """Return the output of the real AWS CLI."""
        command = [ENVIRONMENT / "bin" / "aws", *arguments, "--region", region]
        return subprocess.run(
            command, env=self.variables, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def set_unchecked_calls(self, number: str) -> None:
        """Make the AWS API check permissions after `number` calls; "inf" for never."""
        url = f"{self.endpoint}/moto-api/reset-auth"
        request = urllib.request.Request(url, number.encode(), {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=20).close()


def install() -> None:
    """Create the environment of the AWS CLI and moto, unless it exists with the locked versions."""
    stamp = ENVIRONMENT / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--require-hashes", "-r", REQUIREMENTS], check=True)
    stamp.write_text(wanted)


def find_registry() -> Path:
    """Return the path of docker-registry: the installed one, or Debian's, unpacked but not installed."""
    found = shutil.which("docker-registry")
    if found:
        return Path(found)
    program = ENVIRONMENT / "registry" / "usr" / "bin" / "docker-registry"
    if not program.exists():
        program.parents[2].mkdir(parents=True, exist_ok=True)
        download = ["apt-get", "download", "-qq", "docker-registry"]
        if subprocess.run(download, cwd=ENVIRONMENT, check=False).returncode:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(download, cwd=ENVIRONMENT, check=True)
        package = next(ENVIRONMENT.glob("docker-registry_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, program.parents[2]], check=True)
        package.unlink()
    return program


def write_certificate(directory: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for the registry's host names, and its key."""
    certificate, key = directory / "ca.crt", directory / "ca.key"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run(
        [
            "openssl",
            "req",
            *kind,
            "-subj",
            "/CN=stand-in",
            "-addext",
            f"subjectAltName={names}",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextlib.contextmanager
def known_hosts(certificate: Path) -> Iterator[None]:
    """In the block, this computer has the registry's host names, and Docker trusts the certificate."""
    forget_hosts()
    with HOSTS_FILE.open("a") as hosts:
        hosts.write(f"127.0.0.1 {' '.join(HOSTS)} {MARK}\n")
    try:
        for host in HOSTS:
            (CERTIFICATES / host).mkdir(parents=True, exist_ok=True)
            shutil.copy(certificate, CERTIFICATES / host / "ca.crt")
        yield
    finally:
        forget_hosts()


def forget_hosts() -> None:
    """Undo known_hosts, including what a killed run left behind."""
    lines = HOSTS_FILE.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.rstrip().endswith(MARK)]
    if kept != lines:
        HOSTS_FILE.write_text("".join(kept))  # in place, because in a container the file is a mount
    for host in HOSTS:
        shutil.rmtree(CERTIFICATES / host, ignore_errors=True)
    with contextlib.suppress(OSError):
        CERTIFICATES.rmdir()  # fails if there are other certificates


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[int]:
    """Run the plain registry, with its storage in `directory`; yield its port."""
    port = find_free_port()
    configuration = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": f"127.0.0.1:{port}", "relativeurls": True},
    }
    path = directory / "registry.json"
    path.write_text(json.dumps(configuration))  # JSON is YAML
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen([find_registry(), "serve", path], stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def stand_in(directory: Path) -> Iterator[StandIn]:
    """Run the substitute, as root; at the end, remove all of it from this computer."""
    install()
    certificate, key = write_certificate(directory)
    with registry(directory) as port, (directory / "server.log").open("wb") as log:
        command = [ENVIRONMENT / "bin" / "python", HERE / "server.py", f"--registry-port={port}"]
        server = subprocess.Popen(
            [*command, f"--certificate={certificate}", f"--key={key}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            line = server.stdout.readline()  # returns also when the server exits
            assert line, (directory / "server.log").read_text()
            endpoint = json.loads(line)["endpoint"]
            wait_for(lambda: answers(port), "the registry")
            with known_hosts(certificate):
                yield StandIn(endpoint, describe_user(directory, endpoint))
        finally:
            server.stdin.close()
            server.wait(30)
            server.stdout.close()


def answers(port: int) -> bool:
    """Return whether the plain registry answers requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    return False


def describe_user(directory: Path, endpoint: str) -> dict[str, str]:
    """Return the environment of a user with AWS credentials, a region, and a separate home folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DOCKER_"))}
    return {
        **kept,
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "HOME": str(directory),
        "DOCKER_CONFIG": str(directory / "docker"),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-west-2",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }

"""Build the images and print one table: size, seconds to a healthy /ping, and memory.

The images are tandem-bench:NAME, and are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from urllib.request import urlopen

from bench.figures import Spread, render_table
from bench.samples import ROOT

REPOSITORY = "tandem-bench"
BUILDS = {
    "serve": ["serve-image"],
    "cpu": ["cpu-image"],
    "gpu": ["gpu-image"],
    "gpu-cuda11": ["gpu-image", "CUDA=11"],
}
START_SECONDS = 120
COLUMNS = ("image", "MB", "build, s", "to /ping 200, s", "memory, MB")


def main(arguments: Sequence[str]) -> None:
    """Build the images, train a model in the cpu image, start all by turns, and print the table."""
    parser = argparse.ArgumentParser("make bench-images BENCH_ARGS=", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each image (default 5)")
    parser.add_argument(
        "--only", help="names, such as serve,cpu; cpu is always built, as it trains the model"
    )
    options = parser.parse_args(arguments)
    names = [name for name in BUILDS if not options.only or name in ("cpu", *options.only.split(","))]
    try:
        builds = {name: build(name) for name in names}
        with tempfile.TemporaryDirectory() as folder:
            model = train(Path(folder))
            # The first start of each image reads it from the disk and is not counted.
            starts = [{name: start(name, model) for name in names} for _ in range(options.rounds + 1)][1:]
        rows = [COLUMNS]
        for name in names:
            size = json.loads(docker("image", "inspect", f"{REPOSITORY}:{name}"))[0]["Size"] / 1e6
            seconds = Spread.of(found[name][0] for found in starts).show(2)
            memory = statistics.median(found[name][1] for found in starts)
            rows.append((name, f"{size:.0f}", f"{builds[name]:.1f}", seconds, f"{memory:.0f}"))
        print(render_table(rows))
    finally:
        for name in names:
            subprocess.run(
                ["docker", "image", "rm", f"{REPOSITORY}:{name}"], capture_output=True, check=False
            )


def docker(*arguments: str) -> str:
    """Run docker and return what it prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def build(name: str) -> float:
    """Build an image and return the seconds it took."""
    started = monotonic()
    command = ["make", "-C", str(ROOT), *BUILDS[name], f"IMAGE={REPOSITORY}", f"TAG={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} could not be built:\n{done.stdout[-3000:]}")
    return monotonic() - started


def train(folder: Path) -> Path:
    """Train a model of handwritten digits in the cpu image and return its folder."""
    sys.path.insert(0, str(ROOT / "local_test"))
    import digits

    config = Path("input") / "config"
    (folder / config).mkdir(parents=True)
    for path in (ROOT / "local_test" / "test_dir" / config).iterdir():
        (folder / config / path.name).write_bytes(path.read_bytes())
    digits.write_digits(folder)
    command = [str(ROOT / "local_test" / "train.sh"), f"{REPOSITORY}:cpu"]
    subprocess.run(command, env={**os.environ, "TEST_DIR": str(folder)}, check=True, stdout=sys.stderr)
    return folder / "model"


def start(name: str, model: Path) -> tuple[float, float]:
    """Return the seconds from `docker run` to /ping 200, and the container's PSS in MB."""
    started = monotonic()
    mount = f"{model}:/opt/ml/model:ro"
    image = f"{REPOSITORY}:{name}"
    container = docker("run", "--detach", "--publish", "127.0.0.1::8080", "--volume", mount, image, "serve")
    try:
        port = docker("port", container, "8080/tcp").rsplit(":", 1)[1]
        while not _is_healthy(port):
            if monotonic() > started + START_SECONDS:
                sys.exit(f"{name} was not healthy after {START_SECONDS} s:\n{docker('logs', container)}")
            sleep(0.02)
        seconds = monotonic() - started
        pids = [line.split()[0] for line in docker("top", container, "-eo", "pid").splitlines()[1:]]
        lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        return seconds, sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6
    finally:
        docker("rm", "--force", container)


def _is_healthy(port: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:  # HTTPError and URLError are among them
        return False


if __name__ == "__main__":
    main(sys.argv[1:])

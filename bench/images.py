#!/usr/bin/env python3
"""Builds the images and prints one table: size, layers, build times, seconds to a healthy /ping, and memory.

The tree is copied, so that a change in program/ can be made and built; the images are tandem-bench:NAME.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "tandem-bench"
BUILDS = {
    "serve": ["serve-image"],
    "cpu": ["cpu-image"],
    "gpu": ["gpu-image"],
    "gpu, CUDA=11": ["gpu-image", "CUDA=11"],
}
START_SECONDS = 120


class Row(NamedTuple):
    """What the table says of one image."""

    megabytes: float
    layers: str
    cold: float | None
    rebuild: float
    starts: list[float]
    memory: float


def tag(name: str) -> str:
    """Give the reference that an image of this benchmark has."""
    return f"{REPOSITORY}:{name.replace(', CUDA=', '-cuda')}"


def docker(*arguments: str) -> str:
    """Run docker and give what it prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def copy_tree(folder: Path) -> None:
    """Copy what git knows of, with changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, listed)):
        if (ROOT / name).is_file():  # and not deleted without a commit
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def build(tree: Path, name: str, *, cold: bool = False) -> float:
    """Build an image and give the seconds it took; `cold` takes nothing from an earlier build."""
    engine = os.environ.get("DOCKER", "docker") + (" build --no-cache" if cold else " build")
    command = [
        "make",
        "-C",
        str(tree),
        *BUILDS[name],
        f"IMAGE={REPOSITORY}",
        f"TAG={tag(name).split(':')[1]}",
    ]
    if cold:
        command.append(f"DOCKER={_with_no_cache(tree, engine)}")
    started = monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} could not be built:\n{done.stdout[-3000:]}")
    return monotonic() - started


def _with_no_cache(tree: Path, engine: str) -> Path:
    """Give a docker whose build uses no cache."""
    script = tree / "docker-without-cache"
    script.write_text(f'#!/bin/sh\nshift\nexec {engine} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


def change_program(tree: Path) -> None:
    """Change a file of program/ into what no build has seen before."""
    with (tree / "program" / "tandem" / "app.py").open("a", encoding="utf-8") as file:
        file.write(f"# {secrets.token_hex()}\n")


def describe_layers(image: str) -> str:
    """Give the megabytes of the layers, from the base to program/."""
    shares: dict[str, float] = {}
    lines = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    for line in reversed(lines.splitlines()):
        size, _, made_by = line.partition("\t")
        kind = next((kind for word, kind in _LAYERS.items() if word in made_by), "" if shares else "base")
        if float(size):
            shares[kind or "base"] = shares.get(kind or "base", 0) + float(size) / 1e6
    return ", ".join(f"{kind} {megabytes:.0f}" for kind, megabytes in shares.items() if megabytes >= 1)


_LAYERS = {
    "ensurepip": "Python",
    "requirements/serve.txt": "serving packages",
    "requirements/cpu.txt": "TensorFlow",
    "requirements/gpu.txt": "TensorFlow and CUDA",
    "/program": "program",
    "docker/": "program",
}


def start(image: str, model: Path) -> tuple[float, float]:
    """Give the seconds from `docker run` to /ping 200, and the megabytes that the container then holds."""
    started = monotonic()
    mount = f"{model}:/opt/ml/model:ro"
    container = docker("run", "--detach", "--publish", "127.0.0.1::8080", "--volume", mount, image, "serve")
    try:
        port = int(docker("port", container, "8080/tcp").rsplit(":", 1)[1])
        while not answers_ping(port):
            if monotonic() > started + START_SECONDS:
                sys.exit(f"{image} was not healthy after {START_SECONDS} s:\n{docker('logs', container)}")
            sleep(0.02)
        seconds = monotonic() - started
        return seconds, _read_memory(container)
    finally:
        docker("rm", "--force", container)


def _read_memory(container: str) -> float:
    """Give the megabytes of all processes in a container; what several share counts once."""
    pids = [line.split()[0] for line in docker("top", container, "-eo", "pid").splitlines()[1:]]
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            kilobytes += int(line.split()[1]) if line.startswith("Pss:") else 0
    return kilobytes * 1024 / 1e6


def answers_ping(port: int) -> bool:
    """Tell whether the server says that it is healthy."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def train(folder: Path, image: str) -> Path:
    """Give a model of handwritten digits, trained in the image."""
    sys.path.insert(0, str(ROOT / "local_test"))
    import digits

    shutil.copytree(ROOT / "local_test" / "test_dir" / "input" / "config", folder / "input" / "config")
    digits.write_digits(folder)
    environment = {**os.environ, "TEST_DIR": str(folder)}
    subprocess.run(
        [ROOT / "local_test" / "train.sh", image], env=environment, check=True, capture_output=True, text=True
    )
    return folder / "model"


def measure(work: Path, *, cold: bool, rounds: int) -> dict[str, Row]:
    """Build and start all images; the rounds of starts take turns, as a machine's load comes and goes."""
    tree = work / "tree"
    copy_tree(tree)
    say = functools.partial(print, file=sys.stderr, flush=True)
    first: dict[str, float] = {}
    for name in BUILDS:
        say(f"building {name}")
        first[name] = build(tree, name, cold=cold)
    rebuilds: dict[str, float] = {}
    for name in BUILDS:
        change_program(tree)
        rebuilds[name] = build(tree, name)
    say("training")
    model = train(work / "trained", tag("cpu"))
    starts: dict[str, list[tuple[float, float]]] = {name: [] for name in BUILDS}
    for number in range(rounds + 1):
        for name in BUILDS:
            say(f"round {number} of {rounds}: starting {name}")
            found = start(tag(name), model)
            if number:  # the first one reads the image from the disk
                starts[name].append(found)
    return {
        name: Row(
            megabytes=json.loads(docker("image", "inspect", tag(name)))[0]["Size"] / 1e6,
            layers=describe_layers(tag(name)),
            cold=first[name] if cold else None,
            rebuild=rebuilds[name],
            starts=[seconds for seconds, _ in starts[name]],
            memory=statistics.median(memory for _, memory in starts[name]),
        )
        for name in BUILDS
    }


def show(rows: dict[str, Row]) -> None:
    """Print the table, in Markdown."""
    heads = ("image", "MB", "layers, MB", "cold build, s", "rebuild, s", "to /ping 200, s", "memory, MB")
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cold = "" if row.cold is None else f"{row.cold:.0f}"
        starts = f"{statistics.median(row.starts):.2f} ({min(row.starts):.2f} to {max(row.starts):.2f})"
        print(
            f"| {name} | {row.megabytes:.0f} | {row.layers} | {cold} | {row.rebuild:.1f} | {starts} "
            f"| {row.memory:.0f} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cold", action="store_true", help="build all from nothing, with all downloads (5 GB)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often to start each (default: %(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the images")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        try:
            show(measure(Path(work), cold=options.cold, rounds=options.rounds))
        finally:
            if not options.keep:
                for name in BUILDS:
                    subprocess.run(["docker", "image", "rm", tag(name)], capture_output=True, check=False)


if __name__ == "__main__":
    main()

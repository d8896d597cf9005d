"""One, two and three hosts that train together: their loss curves, their speed, and what a lost host does.

Runs the real `train` on the sample digits, each host with its own network and the same share of this
machine's CPU; writes hosts.md, hosts.json and hosts.png to bench/results. Wants root, for the networks.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cluster import Host, run_hosts
from bench.network import Network, NetworkError, make_network

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DIGITS = ROOT / "local_test" / "test_dir" / "input" / "data" / "training"
ALGORITHM = {"ALGORITHM": "algorithms.image_classifier"}
#: What is random on each host is off; all batches are of 48 pictures, whoever computes them; and the learning
#: rate is low, as at a higher one rounding alone drives two trainings apart.
PARAMETERS = {
    "image_size": 64,
    "batch_size": 48,
    "learning_rate": 1e-4,
    "augmentation": "none",
    "dropout": 0,
    "checkpoint_minutes": 1000,
}
COUNTS = (1, 2, 3)
#: Curves count as equal up to this share of the loss: float32 sums in another order, grown over the epochs.
TOLERANCE = 0.01
#: One host again, with sums in another order: how far rounding alone drives the curves apart.
OTHER_ROUNDING = {"TF_ENABLE_ONEDNN_OPTS": "0"}
EPOCH = re.compile(r"(?m)^epoch=\d+ .*$")
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Curve:
    """What a training logged, epoch by epoch."""

    title: str
    loss: list[float]
    val_loss: list[float]
    images_per_second: float  # the median of all epochs but the first, in which graphs are traced

    @classmethod
    def read(cls, title: str, hosts: Sequence[Host]) -> Curve:
        """Read the first host's log."""
        epochs = [_parse(line) for line in EPOCH.findall(hosts[0].log)]
        return cls(
            title,
            [epoch["loss"] for epoch in epochs],
            [epoch["val_loss"] for epoch in epochs],
            statistics.median(epoch["images_per_second"] for epoch in epochs[1:]),
        )

    def compare(self, other: Curve) -> float:
        """Give the largest difference from the other's curves, as a share of the other's value."""
        pairs = zip([*self.loss, *self.val_loss], [*other.loss, *other.val_loss], strict=True)
        return max(abs(ours - theirs) / theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class Loss:
    """How a training of three hosts ended without one: what happened, and each other host's end."""

    what: str
    seconds: list[float]
    statuses: list[int]
    sentences: list[str]


def main(arguments: Sequence[str]) -> int:
    """Run the experiment; 1 if the curves are not equal or a host that was left did not end with a reason."""
    parser = argparse.ArgumentParser("make bench-hosts BENCH_ARGS=", description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--cores", type=float, default=0.6, help="of the CPU for each host; 0: no limit")
    parser.add_argument("--only", choices=("curves", "losses"), help="the rest is taken from hosts.json")
    given = parser.parse_args(arguments)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "hosts.json"
    found: dict[str, Any] = json.loads(path.read_text()) if given.only and path.exists() else {}
    try:
        if given.only != "losses":
            found["cores"] = given.cores
            found["curves"] = [asdict(curve) for curve in measure_curves(given.epochs, given.cores)]
        if given.only != "curves":
            found["losses"] = [asdict(loss) for loss in measure_losses(given.cores)]
    except (NetworkError, OSError) as error:
        print(f"The experiment cannot be made here: {error}", file=sys.stderr)
        return 1
    path.write_text(json.dumps(found, indent=1) + "\n")
    curves = [Curve(**curve) for curve in found.get("curves", [])]
    losses = [Loss(**loss) for loss in found.get("losses", [])]
    text = render(curves, losses, found.get("cores", 0))
    (RESULTS / "hosts.md").write_text(text)
    print(text)
    if curves:
        draw(curves, RESULTS / "hosts.png")
    equal = all(curve.compare(curves[0]) <= TOLERANCE for curve in curves)
    explained = all(set(loss.statuses) == {1} and all(loss.sentences) for loss in losses)
    return 0 if equal and explained else 1


def measure_curves(epochs: int, cores: float) -> Iterator[Curve]:
    """Train on one host, on several, and on one with another rounding."""
    for count in COUNTS:
        yield _measure_curve(f"{count} host{'s' * (count > 1)}", count, epochs, cores)
    yield _measure_curve("1 host, other rounding", 1, epochs, cores, **OTHER_ROUNDING)


def _measure_curve(title: str, count: int, epochs: int, cores: float, **environment: str) -> Curve:
    with start(count, epochs, cores, **environment) as (_, hosts):
        for host in hosts:
            _expect(host.wait(900) == 0, host)
        return Curve.read(title, hosts)


def measure_losses(cores: float) -> Iterator[Loss]:
    """Lose one of three hosts in its second epoch, in each of the ways."""
    ways: dict[str, tuple[int, Callable[[Network, Host], None]]] = {
        "algo-2 is killed (kill -9)": (1, lambda _, host: host.kill()),
        "algo-1, the first, is killed (kill -9)": (0, lambda _, host: host.kill()),
        "algo-2 is cut off the network": (1, lambda network, host: network.cut(host.name)),
    }
    for what, (place, lose) in ways.items():
        with start(3, 1000, cores) as (network, hosts):
            _wait_for_epoch(hosts)
            others = [host for host in hosts if host is not hosts[place]]
            lose(network, hosts[place])
            lost_at = time.monotonic()
            seconds = dict.fromkeys((host.name for host in others), 0.0)
            while any(host.process.poll() is None for host in others):
                _expect(time.monotonic() - lost_at < 180, others[0])
                for host in others:
                    if host.process.poll() is None:
                        seconds[host.name] = round(time.monotonic() - lost_at, 1)
                time.sleep(POLL_SECONDS)  # two processes end in any order; each has its own time
            yield Loss(
                what,
                list(seconds.values()),
                [host.wait() for host in others],
                [f"{host.name}: {host.failure}" if host.failure else "" for host in others],
            )


@contextmanager
def start(count: int, epochs: int, cores: float, **environment: str) -> Iterator[tuple[Network, list[Host]]]:
    """Start a training of `count` hosts."""
    parameters = PARAMETERS | {"epochs": epochs}
    environment |= ALGORITHM
    with (
        tempfile.TemporaryDirectory() as folder,
        make_network(count) as network,
        run_hosts(network, Path(folder), environment, parameters, {"training": DIGITS}, cores=cores) as hosts,
    ):
        yield network, hosts


def render(curves: Sequence[Curve], losses: Sequence[Loss], cores: float) -> str:
    """Give both tables in Markdown."""
    lines = ["# Several hosts", ""]
    if curves:
        share = f"{cores:g} cores of this machine" if cores else "as much of this machine's CPU as it gets"
        lines.append(
            f"The sample digits, SmallCNN at 64x64, {PARAMETERS['batch_size']} pictures a step in all, "
            f"learning rate {PARAMETERS['learning_rate']}, no dropout, no augmentation; each host has "
            f"{share}. Curves count as equal up to {TOLERANCE:.0%} of the loss."
        )
        lines += ["", "| | pictures/s | times one host's | last loss | last val_loss | furthest apart |"]
        lines += ["|---|---|---|---|---|---|"]
    for curve in curves:
        growth = curve.images_per_second / curves[0].images_per_second
        difference = curve.compare(curves[0])
        lines.append(
            f"| {curve.title} | {curve.images_per_second:.0f} | {growth:.2f} | {curve.loss[-1]:.5f} "
            f"| {curve.val_loss[-1]:.5f} | {difference:.3%} |"
        )
    if losses:
        lines += ["", "One of three hosts is lost in the second epoch:", ""]
        lines += [
            "| what happens | the others end after | exit status | what they say |",
            "|---|---|---|---|",
        ]
    for loss in losses:
        seconds = " and ".join(f"{each:.1f} s" for each in loss.seconds)
        statuses = " and ".join(map(str, loss.statuses))
        lines.append(f"| {loss.what} | {seconds} | {statuses} | {'<br>'.join(loss.sentences)} |")
    return "\n".join(lines) + "\n"


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw the loss curves of all numbers of hosts on one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", "val_loss"), strict=True):
        for curve, width in zip(curves, (8.0, 5.0, 2.5, 1.0), strict=False):
            values = getattr(curve, name)
            axis.plot(range(1, len(values) + 1), values, linewidth=width, label=curve.title)
        axis.set(xlabel="epoch", ylabel=name, ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _wait_for_epoch(hosts: Sequence[Host]) -> None:
    """Wait until the first epoch is over and the second one has begun."""
    deadline = time.monotonic() + 300
    while not EPOCH.search(hosts[0].log):
        for host in hosts:
            _expect(host.process.poll() is None and time.monotonic() < deadline, host)
        time.sleep(POLL_SECONDS)  # a log file does not tell that a line was added


def _expect(fulfilled: bool, host: Host) -> None:  # noqa: FBT001  # reads as an assertion
    if not fulfilled:
        raise OSError(f"{host.name} did not do its part; its log ends: {host.log[-2000:]}")


def _parse(line: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (word.partition("=") for word in line.split())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

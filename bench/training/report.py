"""The results as a table in Markdown and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Record, Spread, group

COLUMNS = "| | images/s | rate / limit | rate / Keras's own | CPU, ms/image | limit's CPU / own |"
COLOURS = {"limit": "#000000", "ours": "#0072b2", "keras": "#8c8c8c"}


def render(results: Mapping[str, Any]) -> str:
    """Give everything that a run found, as Markdown."""
    lines = [f"{results['machine']}; medians of {results['rounds']} rounds (least to most)"]
    for workload, title in results["titles"].items():
        records = [record for record in results["speed"] if record["workload"] == workload]
        lines += ["", f"**{title}**", "", COLUMNS, "|---|" + "---|" * 5]
        lines += list(_render_speed(records))
    if results["memory"]:
        lines += ["", "**Peak of resident memory, two passes without a fit**", ""]
        lines += list(_render_memory(results["memory"]))
    return "\n".join(lines) + "\n"


def compare(records: Sequence[Record], way: str, other: str, figure: str = "rate") -> Spread:
    """Divide a way's figure by another's in the same round: what lies minutes apart is not compared."""
    found = {(record["round"], record["way"]): record[figure] for record in records}
    return Spread.of(value / found[number, other] for (number, name), value in found.items() if name == way)


def _render_speed(records: Sequence[Record]) -> Iterator[str]:
    for (way,), found in group(records, "way").items():
        rate = Spread.of(record["rate"] for record in found)
        shown = f"{rate.median:.0f} ({rate.least:.0f} to {rate.most:.0f})"
        ratios = [compare(records, way, other) for other in ("limit", "keras")]
        cpu = Spread.of(record["cpu"] for record in found)
        ratios.append(compare(records, "limit", way, "cpu"))
        cells = [f"{ratio.median:.3f}" for ratio in ratios]
        yield f"| {way} | {shown} | " + " | ".join([*cells[:2], f"{cpu.median:.2f}", cells[2]]) + " |"


def _render_memory(records: Sequence[Record]) -> Iterator[str]:
    counts = sorted({record["pictures"] for record in records})
    yield "| | " + " | ".join(f"{count} pictures, MB" for count in counts) + " | decoded, MB |"
    yield "|---|" + "---|" * (len(counts) + 1)
    for (size, way), found in group(records, "size", "way").items():
        peaks = {record["pictures"]: record["peak"] for record in found}
        decoded = " to ".join(f"{count * size * size * 3 / 1e6:.0f}" for count in peaks)
        shown = " | ".join(f"{peaks[count]:.0f}" if count in peaks else "" for count in counts)
        yield f"| {size} x {size}, {way} | {shown} | {decoded} |"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw a chart of the rates a workload, each way's rounds as dots beside their median."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    titles = results["titles"]
    figure, charts = plt.subplots(
        len(titles), 1, figsize=(9, 3.2 * len(titles)), squeeze=False, layout="constrained"
    )
    for chart, (workload, title) in zip(charts[:, 0], titles.items(), strict=True):
        records = [record for record in results["speed"] if record["workload"] == workload]
        groups = {way: [one["rate"] for one in found] for (way,), found in group(records, "way").items()}
        names = list(reversed(groups))
        colours = [COLOURS[name.split(",")[0]] for name in names]
        chart.barh(names, [Spread.of(groups[name]).median for name in names], color=colours, alpha=0.7)
        for place, name in enumerate(names):
            chart.plot(groups[name], [place] * len(groups[name]), ".", color="#d55e00", markersize=5)
        chart.axvline(Spread.of(groups["limit"]).median, color="black", linestyle="--", linewidth=1)
        chart.set_title(title, loc="left", fontweight="bold")
        chart.set_xlabel("images a second; dots are rounds")
    figure.savefig(path, dpi=130)
    plt.close(figure)

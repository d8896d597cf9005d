"""The results as a picture: `python chart.py results.json results.png`, in an environment with matplotlib."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

#: Colours that stay apart for readers who see few of them, and in grey.
COLOURS = {"naive": "#8c8c8c", "openvino": "#0072b2", "tensorflow": "#d55e00", "numpy": "#0072b2"}
OTHERS = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw a row of two charts a workload: requests a second, and how long callers wait."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    found = {record["workload"] for record in results["records"]}
    workloads = [name for name in results["titles"] if name in found]
    figure, axes = plt.subplots(len(workloads), 2, figsize=(11, 4.3 * len(workloads)), squeeze=False)
    figure.set_layout_engine("constrained", hspace=0.08, wspace=0.05)
    for (rates, waits), workload in zip(axes, workloads, strict=True):
        records = [record for record in results["records"] if record["workload"] == workload]
        _draw_rates(rates, records)
        _draw_waits(waits, records)
        title = results["titles"][workload]
        rates.set_title(title[0].upper() + title[1:], loc="left", fontweight="bold", pad=14)
        for chart in (rates, waits):
            _label_callers(chart, records)
            chart.legend(frameon=False, fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.15))
    machine = results["machine"].partition(";")[0]
    rounds = f"medians of {results['rounds']} round(s), shaded from the least to the most"
    figure.suptitle(f"Serving on {machine}: {rounds}", x=0.01, ha="left", fontsize=10, color="#666666")
    figure.savefig(path, dpi=130)


def _draw_rates(chart: Any, records: list[dict[str, Any]]) -> None:
    for number, (name, by_callers) in enumerate(_group(records, "load").items()):
        callers = sorted(by_callers)
        medians = [statistics.median(one["rate"] for one in by_callers[count]) for count in callers]
        least = [min(one["rate"] for one in by_callers[count]) for count in callers]
        most = [max(one["rate"] for one in by_callers[count]) for count in callers]
        colour = _choose_colour(name, number)
        chart.plot(callers, medians, marker="o", color=colour, label=name, linewidth=2)
        chart.fill_between(callers, least, most, color=colour, alpha=0.15, linewidth=0)
    limits: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["kind"] == "limit":
            limits[record["precision"]][record["threads"]].append(record["rate"])
    for precision, by_threads in limits.items():
        rate = max(statistics.median(rates) for rates in by_threads.values())
        chart.axhline(rate, color="black", linestyle="--", linewidth=1, label=f"the limit, {precision}")
    chart.set_ylim(0, 1.05 * chart.get_ylim()[1])
    chart.set_ylabel("requests a second")


def _draw_waits(chart: Any, records: list[dict[str, Any]]) -> None:
    for number, (name, by_callers) in enumerate(_group(records, "load").items()):
        callers = sorted(by_callers)
        colour = _choose_colour(name, number)
        for figure, style in (("p50", "-"), ("p99", ":")):
            medians = [statistics.median(one[figure] for one in by_callers[count]) for count in callers]
            chart.plot(callers, medians, style, marker="o", markersize=4, color=colour, linewidth=2)
    chart.plot([], [], "-", color="black", label="half of the requests (p50)")
    chart.plot([], [], ":", color="black", label="99 of 100 requests (p99)")
    chart.set_yscale("log")
    chart.yaxis.set_major_formatter("{x:g}")
    chart.set_ylabel("answered within, ms")


def _label_callers(chart: Any, records: list[dict[str, Any]]) -> None:
    callers = sorted({record["callers"] for record in records if record["kind"] == "load"})
    chart.set_xscale("log", base=2)
    chart.set_xticks(callers, [str(count) for count in callers])
    chart.minorticks_off()
    chart.set_xlabel("callers at once")
    chart.grid(axis="y", color="#e5e5e5")
    chart.set_axisbelow(True)


def _group(records: list[dict[str, Any]], kind: str) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Give the records of a kind by contender, in the order of their names, and by callers."""
    groups: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(
        (one for one in records if one["kind"] == kind), key=lambda one: str(one["contender"])
    ):
        groups[record["contender"]][record["callers"]].append(record)
    return groups


def _choose_colour(name: str, number: int) -> str:
    """Give what COLOURS has for the contender, whose f32 form has its family's colour."""
    known = [colour for family, colour in COLOURS.items() if family in name]
    return known[0] if known and (name.endswith("f32") or "naive" in name) else OTHERS[number % len(OTHERS)]


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

"""The results of `make bench` as tables in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.figures import Record, Spread, compare, find_limit, group, render_table, show_ratio

#: Differences of a probability that count as equal: engines sum in different orders, and a bundle's manifest
#: states the tolerances of reduced precision.
SAME = {"f32": 1e-4, "bf16": 0.03, "int8": 0.1}
STARTS = ("", "ready, s", "PSS, MB", "RSS, MB")
LOADS = (
    *("", "callers", "requests/s", "rate / limit", "rate / naive", "p50, ms", "p99, ms", "CPU, ms/request"),
    *("limit's CPU / own", "errors"),
)


def render_results(results: Mapping[str, Any]) -> str:
    """Return everything that a run found."""
    lines = [f"{results['machine']}; medians of {results['rounds']} round(s), (minimum to maximum)"]
    for workload, title in results["titles"].items():
        records = [record for record in results["records"] if record["workload"] == workload]
        if records:
            lines += ["", f"{workload}: {title}", "", *_render_workload(records, results["precisions"])]
    generator = [record["generator"] for record in results["records"] if record["kind"] == "load"]
    if generator:
        lines += ["", f"The load generator itself used at most {max(generator):.0%} of a core."]
    return "\n".join(lines)


def _render_workload(records: Sequence[Record], precisions: Mapping[str, str]) -> Iterator[str]:
    kinds: dict[str, list[Record]] = {"limit": [], "load": [], "start": [], "answers": []}
    for record in records:
        kinds[record["kind"]].append(record)
    limits = {key: found for (key,), found in group(kinds["limit"], "precision").items()}
    for precision, found in limits.items():
        threads, rate = find_limit(found)
        alone = Spread.of(record["p50"] for record in found if record["threads"] == 1)
        cpu = Spread.of(record["cpu"] for record in found if record["threads"] == threads)
        yield (
            f"The limit at {precision}, without HTTP: {rate.show()} images/s with {threads} thread(s); "
            f"one image alone takes {alone.show()} ms, and {cpu.show()} ms of CPU."
        )
    loads = {key: found for (key,), found in group(kinds["load"], "contender").items()}
    naive = next((found for name, found in loads.items() if name.startswith("naive")), [])
    starts = [STARTS]
    for (name,), started in group(kinds["start"], "contender").items():
        memory = (f"{max(record[kind] for record in loads[name]):.0f}" for kind in ("pss", "rss"))
        starts.append((name, Spread.of(record["ready"] for record in started).show(), *memory))
    rows = [LOADS]
    ordered = sorted(kinds["load"], key=lambda record: int(record["callers"]))
    for (callers, name), found in group(ordered, "callers", "contender").items():
        others = [] if name.startswith("naive") else naive
        rows.append((name, str(callers), *_render_load(found, limits.get(precisions[name], []), others)))
    yield from ("", render_table(rows), "", render_table(starts), "", *_render_answers(kinds["answers"]))


def _render_load(found: Sequence[Record], limit: Sequence[Record], naive: Sequence[Record]) -> Iterator[str]:
    """Yield the cells of one contender and number of callers; the limit counts at its best thread count."""
    threads = find_limit(limit)[0] if limit else 0
    best = [record for record in limit if record["threads"] == threads]
    spreads = {name: Spread.of(record[name] for record in found) for name in ("rate", "p50", "p99", "cpu")}
    yield spreads["rate"].show()
    yield show_ratio(compare(found, best))
    yield show_ratio(compare(found, naive))
    yield from (f"{spreads[name].median:.1f}" for name in ("p50", "p99", "cpu"))
    yield show_ratio(compare(best, found, "cpu"))
    errors: Counter[str] = sum((Counter(record["errors"]) for record in found), Counter())
    yield ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "0"


def _render_answers(records: Sequence[Record]) -> Iterator[str]:
    differences: dict[str, float] = {}
    for record in records:
        for name, difference in record["differences"].items():
            differences[name] = max(differences.get(name, 0.0), difference)
    if len(differences) > 1:
        tolerances = {name: SAME.get(name.split()[-1], SAME["f32"]) for name in differences}
        equal = all(difference <= tolerances[name] for name, difference in differences.items())
        verdict = "The answers are equal within each precision's tolerance" if equal else "ANSWERS DIFFER"
        shown = ", ".join(f"{name} {difference:.1g}" for name, difference in differences.items())
        yield f"{verdict}; largest difference of a probability from the first contender's: {shown}"

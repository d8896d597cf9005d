"""The results as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.figures import Record, Spread, compare, find_limit, group

#: Answers that differ by no more than this count as the same: engines sum in different orders, and what a
#: reduced precision may differ by, the bundle's manifest says.
SAME = {"f32": 1e-4, "bf16": 0.03, "int8": 0.1}
COLUMNS = (
    *("", "callers", "requests/s", "p50, ms", "p99, ms", "p99/p50", "errors", "CPU, ms/request"),
    *("limit's CPU / own", "rate / limit", "rate / naive"),
)


def render_results(results: Mapping[str, Any]) -> str:
    """Give everything that a run found, as lines of text."""
    lines = [
        f"{results['machine']}",
        f"medians of {results['rounds']} round(s), (least to most); one server on loopback answers at a time",
    ]
    for workload, title in results["titles"].items():
        records = [record for record in results["records"] if record["workload"] == workload]
        if records:
            lines += ["", f"{workload}: {title}", *_render_workload(records, results["precisions"])]
    generator = [record["generator"] for record in results["records"] if record["kind"] == "load"]
    if generator:
        lines += ["", f"the load generator itself used at most {100 * max(generator):.0f} % of a core"]
    return "\n".join(lines)


def _render_workload(records: Sequence[Record], precisions: Mapping[str, str]) -> Iterator[str]:
    limits = {key: found for (key,), found in group(_pick(records, "limit"), "precision").items()}
    for precision, found in limits.items():
        threads, rate = find_limit(found)
        alone = Spread.of(record["p50"] for record in found if record["threads"] == 1)
        cpu = Spread.of(record["cpu"] for record in found if record["threads"] == threads)
        yield (
            f"  the limit at {precision}, without HTTP: {_show(rate)} pictures/s with {threads} thread(s); "
            f"one picture alone {_show(alone)} ms, {_show(cpu)} ms of CPU"
        )
    loads = {key: found for (key,), found in group(_pick(records, "load"), "contender").items()}
    naive = next((found for name, found in loads.items() if name.startswith("naive")), [])
    starts = [("", "ready in, s", "PSS, MB", "RSS, MB")]
    for (name,), started in group(_pick(records, "start"), "contender").items():
        ready = Spread.of(record["ready"] for record in started)
        pss, rss = (f"{max(record[kind] for record in loads[name]):.0f}" for kind in ("pss", "rss"))
        starts.append((name, _show(ready), pss, rss))
    yield from _align(starts)
    rows = [COLUMNS]
    ordered = sorted(_pick(records, "load"), key=_by_callers)
    for (callers, name), found in group(ordered, "callers", "contender").items():
        ratios = _ratios(found, limits.get(precisions[name], []), [] if name.startswith("naive") else naive)
        rows.append((name, str(callers), *_figures(found), *ratios))
    yield from _align(rows)
    yield from _render_alone(loads, limits, precisions)
    yield from _render_answers(_pick(records, "answers"))


def _figures(found: Sequence[Record]) -> Iterator[str]:
    spreads = {name: Spread.of(record[name] for record in found) for name in ("rate", "p50", "p99", "cpu")}
    yield _show(spreads["rate"])
    yield f"{spreads['p50'].median:.1f}"
    yield f"{spreads['p99'].median:.1f}"
    yield f"{Spread.of(record['p99'] / record['p50'] for record in found).median:.1f}"
    yield str(sum(record["errors"] for record in found))
    yield f"{spreads['cpu'].median:.1f}"


def _ratios(found: Sequence[Record], limit: Sequence[Record], naive: Sequence[Record]) -> Iterator[str]:
    """Compare with the limit at its best thread count, by CPU and rate, and with the naive stack's rate."""
    threads = find_limit(limit)[0] if limit else 0
    best = [record for record in limit if record["threads"] == threads]
    for ratio in (compare(best, found, "cpu"), compare(found, best), compare(found, naive)):
        yield _show(ratio, 2) if ratio else ""


def _render_alone(
    loads: Mapping[str, list[Record]], limits: Mapping[str, list[Record]], precisions: Mapping[str, str]
) -> Iterator[str]:
    """Say how long one caller waits, measured in what one picture takes without HTTP."""
    for name, found in loads.items():
        single = [record for record in limits.get(precisions[name], []) if record["threads"] == 1]
        ratio = compare([record for record in found if record["callers"] == 1], single, "p50")
        if ratio:
            yield f"  one caller waits {ratio.median:.2f} times as long for {name} as without HTTP (p50)"


def _render_answers(records: Sequence[Record]) -> Iterator[str]:
    differences: dict[str, float] = {}
    for record in records:
        for name, difference in record["differences"].items():
            differences[name] = max(differences.get(name, 0.0), difference)
    if len(differences) > 1:
        allowed = {name: SAME.get(name.split()[-1], SAME["f32"]) for name in differences}
        equal = all(difference <= allowed[name] for name, difference in differences.items())
        same = "the same answers, each within its precision's tolerance" if equal else "ANSWERS DIFFER"
        shown = ", ".join(f"{name} {difference:.1g}" for name, difference in differences.items())
        yield f"  {same}; largest difference of a probability from the first's: {shown}"


def _pick(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _by_callers(record: Record) -> int:
    callers: int = record["callers"]
    return callers


def _show(spread: Spread, digits: int | None = None) -> str:
    """Write a median, and the least and the most where they differ from it."""
    if digits is None:
        digits = 0 if spread.median >= 20 else 1
    median, least, most = (f"{value:.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return median if least == most else f"{median} ({least} to {most})"


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Put cells into columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "   ".join([row[0].ljust(widths[0]), *cells]).rstrip()
    yield ""

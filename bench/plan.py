"""The plan on machines of many kinds: `make plan` prints what `serve` would start there."""

from __future__ import annotations

import sys
from itertools import product

from tandem.runtime.resources import Resources
from tandem.serving.fleet import Plan, make_plan
from tandem.settings import Settings

CORES = (1, 2, 8, 36, 96)
GPUS = (0, 1, 4, 8)
#: Memory for each core, as on most machines, and the bytes of a bundle's files.
BYTES_PER_CORE = 4 << 30
MODELS = {
    "SmallCNN, 1 MB": 1 << 20,
    "MobileNetV2, 24 MB": 24 << 20,
    "a network of 1 GB": 1 << 30,
}


def render() -> str:
    """Give the table as Markdown: processes, and the cores that each has for decoding and computing."""
    head = ("cores", "GPUs", *MODELS)
    rows = [head, ("---",) * len(head)]
    for gpus, cores in product(GPUS, CORES):
        if gpus == 0 or cores >= 4 * gpus:  # no machine has fewer
            resources = Resources(cores, cores * BYTES_PER_CORE)
            plans = [make_plan(resources, gpus, size, Settings.threads) for size in MODELS.values()]
            rows.append((str(cores), str(gpus), *map(_show, plans)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _show(plan: Plan) -> str:
    return f"{plan.workers} x {plan.cores}"


if __name__ == "__main__":
    print(render())
    sys.exit(0)

"""The limit: decode, resize and infer in one process with no HTTP, as a process that measures on demand.

It writes one JSON line with its answer to the picture, then reads lines such as
`{"threads": 2, "seconds": 1}` and answers each with pictures a second and the median milliseconds of one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Threads to try; each decodes and infers on its own, with as many streams as there are threads and cores.
THREADS = (1, 2, 3, 4)
#: Precision → the model's file and OpenVINO's hint.
PRECISIONS = {
    "f32": ("openvino/model.xml", "f32"),
    "bf16": ("openvino/model.xml", "bf16"),
    "int8": ("openvino/int8/model.xml", "f32"),
}


class Limit:
    """The model compiled for one or more streams, and the picture's way through it."""

    def __init__(self, model_dir: Path, body: bytes, cores: int, precision: str) -> None:
        from backends.bundle.manifest import read_manifest
        from tandem.images import codec
        from tandem.images.codec import Preprocessing

        manifest = read_manifest(model_dir)
        assert manifest is not None  # noqa: S101  # samples.py wrote it
        spec = Preprocessing.from_dict(manifest.preprocessing)
        self._labels = manifest.labels
        self._body = body
        self._decode: Callable[[bytes], Any] = lambda file: codec.preprocess(codec.decode(file), spec)
        self._cores = cores
        self._compiled = {
            streams: _compile(model_dir, cores, streams, precision) for streams in {1, max(1, cores)}
        }

    def answer(self) -> dict[str, float]:
        """Give the ten best labels with their probabilities."""
        row = self._compiled[1].create_infer_request().infer({0: self._decode(self._body)[np.newaxis]})[0][0]
        return {self._labels[index]: float(row[index]) for index in np.argsort(-row)[:10]}

    def measure(self, threads: int, seconds: float) -> dict[str, float]:
        """Give pictures a second, the median milliseconds that a thread needs for one, and CPU ms for one."""
        compiled = self._compiled[1 if threads == 1 else max(1, self._cores)]
        times: list[float] = []
        started, cpu = time.perf_counter(), time.process_time()

        def work() -> None:
            request = compiled.create_infer_request()
            while (before := time.perf_counter()) < started + seconds:
                request.infer({0: self._decode(self._body)[np.newaxis]}, share_inputs=True)
                times.append(time.perf_counter() - before)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rate = len(times) / (time.perf_counter() - started)
        cpu = time.process_time() - cpu
        return {"rate": rate, "p50": 1000 * statistics.median(times), "cpu": 1000 * cpu / len(times)}


def _compile(model_dir: Path, cores: int, streams: int, precision: str) -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # nothing is reported
    import openvino

    file, hint = PRECISIONS[precision]
    core = openvino.Core()
    steps = openvino.preprocess.PrePostProcessor(core.read_model(model_dir / file))
    steps.input().tensor().set_element_type(openvino.Type.u8)
    steps.input().preprocess().convert_element_type(openvino.Type.f32)
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": str(cores),
        "NUM_STREAMS": str(streams),
    }
    return core.compile_model(steps.build(), "CPU", settings)


def main() -> None:
    """Answer measurements until the input ends."""
    parser = argparse.ArgumentParser("limit")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("body", type=Path)
    parser.add_argument("cores", type=int)
    parser.add_argument("precision", choices=PRECISIONS)
    given = parser.parse_args()
    limit = Limit(given.model_dir, given.body.read_bytes(), given.cores, given.precision)
    print(json.dumps(limit.answer()), flush=True)
    for line in sys.stdin:
        print(json.dumps(limit.measure(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

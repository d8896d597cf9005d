"""The limit: decode, resize and infer in one process without HTTP.

The process writes one JSON line with its answer to the image, then reads lines such as
`{"threads": 2, "seconds": 1}` and replies to each with images/s, the median milliseconds of one, and its CPU
milliseconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.figures import Record
from bench.samples import ROOT, Workload

#: Threads to try; each decodes and infers by itself, with as many streams as there are threads and cores.
THREADS = (1, 2, 3, 4)
#: Precision → the model's file and OpenVINO's hint.
PRECISIONS = {
    "f32": ("openvino/model.xml", "f32"),
    "bf16": ("openvino/model.xml", "bf16"),
    "int8": ("openvino/int8/model.xml", "f32"),
}


@contextmanager
def open_limit(
    workload: Workload, samples: Path, precision: str
) -> Iterator[tuple[Callable[[int, float], Record], dict[str, float]]]:
    """Start the process; yield a function from (threads, seconds) to figures, and the process's answer."""
    root = samples / workload.name
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.limit", root / "model", root / workload.body, precision],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "program")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout  # noqa: PT018, S101  # for mypy
    to_process, from_process = process.stdin, process.stdout

    def measure(threads: int, seconds: float) -> Record:
        print(json.dumps({"threads": threads, "seconds": seconds}), file=to_process, flush=True)
        found: Record = json.loads(from_process.readline())
        return found

    try:
        yield measure, json.loads(from_process.readline())
    finally:
        process.kill()
        process.wait(10)


class Limit:
    """The model, compiled for one stream and for several, and one encoded image."""

    def __init__(self, model_dir: Path, body: bytes, precision: str) -> None:
        from tandem.images import codec
        from tandem.images.codec import Preprocessing

        manifest = json.loads((model_dir / "manifest.json").read_text(encoding="utf-8"))
        spec = Preprocessing.from_dict(manifest["preprocessing"])
        self._labels = manifest["labels"]
        self._body = body
        self._decode: Callable[[bytes], Any] = lambda file: codec.preprocess(codec.decode(file), spec)[None]
        self._cores = len(os.sched_getaffinity(0))
        self._compiled = {
            streams: _compile(model_dir, self._cores, streams, precision) for streams in {1, self._cores}
        }

    def answer(self) -> dict[str, float]:
        """Return the ten best labels with their probabilities."""
        row = self._compiled[1].create_infer_request().infer({0: self._decode(self._body)})[0][0]
        return {self._labels[index]: float(row[index]) for index in (-row).argsort()[:10]}

    def measure(self, threads: int, seconds: float) -> dict[str, float]:
        """Return images/s, and the median and the CPU milliseconds of one image."""
        compiled = self._compiled[1 if threads == 1 else self._cores]
        times: list[float] = []
        started, cpu = time.perf_counter(), time.process_time()

        def work() -> None:
            request = compiled.create_infer_request()
            while (before := time.perf_counter()) < started + seconds:
                request.infer({0: self._decode(self._body)}, share_inputs=True)
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


def main(model_dir: Path, body: Path, precision: str) -> None:
    """Reply to the lines of the input until it ends."""
    limit = Limit(model_dir, body.read_bytes(), precision)
    print(json.dumps(limit.answer()), flush=True)
    for line in sys.stdin:
        print(json.dumps(limit.measure(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

"""The benchmark's parts: a load generator that counts right, figures, the table, what a process tree used."""

import http.server
import json
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from bench.load import Generator, Plan
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import figures, processes, rounds, table, tabular
from conftest import CPU, ROOT
from processes import find_free_port, wait_for
from tandem.algorithm import Context

BODY = b"x" * 300_000


@pytest.fixture
def answering(tmp_path):
    """`answering(reply)` runs a server whose POSTs `reply(handler, number)` answers; gives what it saw."""
    servers = []

    def start(reply):
        seen = SimpleNamespace(answered=0, bodies=set(), lock=threading.Lock())

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with seen.lock:
                    seen.bodies.add(body)
                    seen.answered += 1
                    number = seen.answered
                reply(self, number)

            def log_message(self, *arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *arguments):
                """Callers that hang up are what some tests are about."""

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        request = tmp_path / "request"
        head = f"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Length: {len(BODY)}\r\n\r\n"
        request.write_bytes(head.encode() + BODY)
        seen.plan = {"port": server.server_port, "request": str(request), "seconds": 0.2, "warm_up": 0.05}
        return seen

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


def give(handler, status=200, body=b'{"predictions": [1]}', **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("callers", [1, 8])
def test_every_request_is_counted_and_none_is_left_unanswered(answering, callers):
    """Callers keep their connection and send the whole body; as many answers are counted as were given."""
    seen = answering(lambda handler, _: give(handler))
    report = Generator(Plan(callers=callers, **seen.plan)).run()
    assert report.answered == seen.answered > 0
    assert 0 < len(report.latencies) <= report.answered
    assert all(latency > 0 for latency in report.latencies)
    assert not report.errors
    assert report.reconnects == 0
    assert seen.bodies == {BODY}
    assert json.loads(report.body) == {"predictions": [1]}
    assert 0 < report.share < 1.5


def test_a_status_other_than_200_is_an_error_and_no_latency(answering):
    """Every third answer is 503: they are told apart, and only the others are measured."""
    seen = answering(lambda handler, number: give(handler, 503 if number % 3 == 0 else 200))
    report = Generator(Plan(callers=3, **seen.plan)).run()
    assert report.answered + report.errors["status 503"] == seen.answered
    assert report.errors["status 503"] == seen.answered // 3
    assert len(report.latencies) <= report.answered


def test_a_server_that_closes_after_each_answer_is_met_again(answering):
    """`Connection: close` is no error: the caller connects anew."""
    seen = answering(lambda handler, _: give(handler, Connection="close"))
    report = Generator(Plan(callers=2, **seen.plan)).run()
    assert report.answered == seen.answered > 2
    assert report.reconnects >= seen.answered - 2
    assert not report.errors


def test_a_server_that_hangs_up_is_an_error(answering):
    """A connection closed before its answer counts, and the caller goes on with a new one."""

    def reply(handler, number):
        if number == 2:
            handler.close_connection = True
        else:
            give(handler)

    seen = answering(reply)
    report = Generator(Plan(callers=1, **seen.plan)).run()
    assert report.errors == {"closed before the answer": 1}
    assert report.answered == seen.answered - 1 > 0


def test_an_answer_that_never_comes_ends_with_the_patience(answering):
    """Nothing waits for ever: what is not answered in time is an error."""
    gate = threading.Event()
    seen = answering(lambda handler, _: gate.wait(20))
    report = Generator(Plan(callers=2, patience=0.1, **seen.plan)).run()
    gate.set()
    assert report.errors == {"no answer": 2}
    assert report.latencies == []


def test_nobody_listening_is_an_error_for_each_caller(tmp_path):
    """With no server at all the run ends at once."""
    request = tmp_path / "request"
    request.write_bytes(b"x")
    port = find_free_port()
    report = Generator(Plan(port=port, request=str(request), callers=3, seconds=1)).run()
    assert report.errors == {"connecting: ConnectionRefusedError": 3}


def test_the_generator_reports_in_json_from_a_process_of_its_own(answering):
    """The process needs nothing but the standard library, and can say which errors there were."""
    seen = answering(lambda handler, number: give(handler, 500 if number == 1 else 200))
    command = [
        sys.executable,
        "-S",
        "-E",
        ROOT / "bench" / "load.py",
        json.dumps({"callers": 2, **seen.plan}),
    ]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert report["errors"] == {"status 500": 1}
    assert report["answered"] == seen.answered - 1
    record = figures.make_record({**report, "cpu": 0.004, "pss": 1, "rss": 2})
    assert record["rate"] == len(report["latencies"]) / 0.2
    assert record["cpu"] == 4
    assert record["errors"] == 1


@pytest.mark.parametrize(
    "wrong", [{"callers": 0}, {"callers": 5000}, {"callers": 1, "seconds": 500}], ids=["none", "many", "long"]
)
def test_load_is_bounded(wrong):
    """Neither the callers nor the time can be without bounds."""
    with pytest.raises(ValueError, match="callers|seconds"):
        Plan(**{"port": 1, "request": "", "seconds": 1, **wrong})


@given(st.lists(st.integers(0, 1000), min_size=1), st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_a_percentile_is_the_least_value_that_covers_its_share(values, share):
    """At least that share of all values is no larger, and it is the smallest value of which this holds."""
    found = figures.percentile(values, share)
    covered = [sum(value <= bound for value in values) / len(values) for bound in (found, found - 1)]
    assert found in values
    assert covered[0] >= share > covered[1]


def test_known_percentiles():
    """The 99th of the numbers 1 to 100 is 99, and nothing has none."""
    shuffled = random.Random(0).sample(range(1, 101), 100)
    assert [figures.percentile(shuffled, share) for share in (0.5, 0.99, 1)] == [50, 99, 100]
    assert np.isnan(figures.percentile([], 0.5))


def make_records():
    """Two rounds of picture: the second one on a machine half as fast."""
    records = []
    for number, speed in enumerate((1.0, 0.5)):
        where = {"round": number, "workload": "picture"}
        for threads, rate in ((1, 100), (2, 200)):
            found = {"rate": rate * speed, "p50": 8 / speed, "cpu": 9.0}
            records.append(
                {**where, "kind": "limit", "precision": "f32", "threads": threads, "callers": 1, **found}
            )
        for name, rate in (("naive", 10), ("ours, openvino f32", 160)):
            load = {"rate": rate * speed, "p50": 10 / speed, "p99": 20 / speed, "errors": 0, "cpu": 10.0}
            used = {"pss": 100 + number, "rss": 200, "generator": 0.02}
            records.append({**where, "kind": "load", "contender": name, "callers": 1, **load, **used})
            records.append({**where, "kind": "start", "contender": name, "ready": 1.5})
        records.append(
            {**where, "kind": "answers", "differences": {"naive": 0.0, "ours, openvino f32": 1e-6}}
        )
    return records


def test_ratios_are_of_the_same_round():
    """A machine that slows down from round to round changes no ratio."""
    records = make_records()
    limits = [record for record in records if record["kind"] == "limit"]
    ours = [record for record in records if record.get("contender") == "ours, openvino f32"]
    loads = [record for record in ours if record["kind"] == "load"]
    assert figures.find_limit(limits) == (2, figures.Spread(150, 100, 200))
    best = [record for record in limits if record["threads"] == 2]
    assert figures.compare(loads, best) == figures.Spread(0.8, 0.8, 0.8)
    assert figures.compare(loads, []) is None


def test_the_table_says_what_was_measured():
    """Medians, spreads, both ratios, and whether the answers agree: all in aligned columns."""
    results = {
        "machine": "2 cores of a machine",
        "rounds": 2,
        "titles": {"picture": "a network", "digits": "not measured"},
        "precisions": {"naive": "f32", "ours, openvino f32": "f32"},
        "records": make_records(),
    }
    text = table.render_results(results)
    ours = next(
        line for line in text.splitlines() if line.startswith("  ours, openvino f32   ") and "0.80" in line
    )
    assert " ".join(ours.split()[3:]) == "1 120 (80 to 160) 15.0 30.0 2.0 0 10.0 0.90 0.80 16.00"
    assert "150 (100 to 200) pictures/s with 2 thread(s)" in text
    assert "waits 1.25 times as long for ours, openvino f32" in text
    assert "the same answers" in text
    assert "digits" not in text
    header = next(line for line in text.splitlines() if "callers" in line and "requests/s" in line)
    assert header.index("p50, ms") + len("p50, ms") == ours.index("15.0") + len("15.0")


def test_answers_differ_where_another_label_is_best():
    """A small difference counts by its size; another best label is as different as can be."""
    differences = rounds.compare_answers(
        {"a": {"cat": 0.5, "dog": 0.3}, "b": {"cat": 0.4, "bee": 0.1}, "c": {"dog": 0.5, "cat": 0.49}}
    )
    assert differences == {"a": 0, "b": pytest.approx(0.1), "c": float("inf")}


def test_reduced_precisions_are_compared_with_f32_wherever_it_comes():
    """The contenders take turns in being first; what the others are held to does not change with them."""
    answers = {"ours, openvino int8": {"cat": 0.45}, "naive": {"cat": 0.5}, "limit, bf16": {"cat": 0.51}}
    expected = {"ours, openvino int8": 0.05, "naive": 0, "limit, bf16": 0.01}
    assert rounds.compare_answers(answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ({"naive": 0.0, "ours, openvino bf16": 0.029, "ours, openvino int8": 0.09}, "the same answers"),
        ({"naive": 0.0, "ours, openvino f32": 0.029}, "ANSWERS DIFFER"),
        ({"naive": 0.0, "ours, openvino bf16": 0.09}, "ANSWERS DIFFER"),
        ({"naive": 0.0, "ours, openvino int8": 0.11}, "ANSWERS DIFFER"),
    ],
)
def test_each_precision_is_held_to_its_own_tolerance(differences, verdict):
    """What is little for int8 is much for float32."""
    assert verdict in "".join(table._render_answers([{"differences": differences}]))


def test_a_tree_is_a_process_with_all_its_descendants():
    """What a child uses counts, and still does when it has ended."""
    child = "import time\nwhile time.process_time() < 0.2: pass\ninput()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        wait_for(lambda: processes.measure_tree(process.pid).cpu >= 0.15, "the child's work")
        tree = processes.list_tree(process.pid)
        used = processes.measure_tree(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_for(lambda: len(processes.list_tree(process.pid)) == 1, "the child's end")
        later = processes.measure_tree(process.pid)
    assert len(tree) == 2
    assert process.pid in tree
    assert os.getpid() not in tree
    assert 0 < used.pss <= used.rss
    assert later.cpu >= used.cpu
    assert later.rss < used.rss


def test_the_tabular_model_gives_one_result_a_row(tmp_path):
    """The model that costs nothing obeys the row rule."""
    np.savez(tmp_path / "weights.npz", weights=np.eye(2))
    model = tabular.model_fn(tmp_path, Context(tmp_path, CPU, "auto", cores=2))
    assert model.concurrency == 2
    assert tabular.predict_fn([[1, 2], [3, 4]], model).tolist() == [[1, 2], [3, 4]]

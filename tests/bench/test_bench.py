"""The benchmark's parts: the load generator, figures, tables, and what a process tree has used."""

import asyncio
import http.server
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from bench.faults import Account
from bench.load import Load, Report
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import figures, processes, servers, table, tabular
from conftest import CPU, ROOT
from processes import find_free_port, wait_for
from tandem.algorithm import Context

BODY = b"x" * 300_000
REQUEST = b"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n" + BODY


@pytest.fixture
def answering():
    """`answering(reply)` runs a server whose POSTs `reply(handler, number)` answers; return what it saw."""
    running = []

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
        running.append((server, thread))
        seen.port = server.server_port
        return seen

    yield start
    for server, thread in running:
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


def load(port, callers, seconds=0.2, **options):
    return asyncio.run(Load(port, REQUEST, callers).run(seconds, **options))


@pytest.mark.parametrize("callers", [1, 8])
def test_every_request_is_counted_and_none_is_left_unanswered(answering, callers):
    """Callers keep their connection and send the whole body; each answer that was given is counted."""
    seen = answering(lambda handler, _: give(handler))
    report = load(seen.port, callers, warm_up=0.05)
    assert len(report.answers) == seen.answered > 0
    assert any(report.start <= at < report.end for at, _ in report.answers)
    assert all(latency > 0 for _, latency in report.answers)
    assert not report.errors
    assert seen.bodies == {BODY}
    assert report.bodies == {'{"predictions": [1]}': seen.answered}
    assert 0 < report.share < 1.5


def test_a_status_other_than_200_is_an_error_and_no_answer(answering):
    """Every third status is 503."""
    seen = answering(lambda handler, number: give(handler, 503 if number % 3 == 0 else 200))
    report = load(seen.port, 3)
    assert len(report.answers) + report.errors["status 503"] == seen.answered
    assert report.errors["status 503"] == seen.answered // 3


def test_different_bodies_are_counted_apart(answering):
    seen = answering(lambda handler, number: give(handler, body=b"wrong" if number == 2 else b"right"))
    report = load(seen.port, 2)
    assert report.bodies == {"right": seen.answered - 1, "wrong": 1}


def test_a_caller_connects_again_after_connection_close(answering):
    """`Connection: close` is no error."""
    seen = answering(lambda handler, _: give(handler, Connection="close"))
    report = load(seen.port, 2)
    assert len(report.answers) == seen.answered > 2
    assert not report.errors


def test_a_connection_closed_without_an_answer_is_an_error(answering):
    """The caller continues on a new connection."""

    def reply(handler, number):
        if number == 2:
            handler.close_connection = True
        else:
            give(handler)

    seen = answering(reply)
    report = load(seen.port, 1, seconds=0.3)
    assert report.errors == {"lost": 1}
    assert len(report.answers) == seen.answered - 1 > 1


def test_an_answer_that_never_comes_is_an_error(answering):
    gate = threading.Event()
    seen = answering(lambda handler, _: gate.wait(20))
    report = load(seen.port, 2, patience=0.1)
    gate.set()
    assert report.errors == {"no answer": 2}
    assert report.answers == []


def test_a_load_can_be_ended_by_another_thread(answering):
    """What was under way is still answered."""
    seen = answering(lambda handler, _: give(handler))
    endless = Load(seen.port, REQUEST, 2)
    timer = threading.Timer(0.2, setattr, (endless, "sending", False))
    timer.start()
    report = asyncio.run(endless.run(float("inf")))
    assert len(report.answers) == seen.answered > 0
    assert not report.errors


def test_without_a_server_no_request_is_sent():
    report = load(find_free_port(), 3)
    assert set(report.errors) == {"unreachable"}
    assert report.errors["unreachable"] >= 3


def test_the_generator_reports_in_json_from_its_own_process(answering, tmp_path):
    seen = answering(lambda handler, number: give(handler, 500 if number == 1 else 200))
    (tmp_path / "request").write_bytes(REQUEST)
    plan = {"port": seen.port, "request": f"{tmp_path}/request", "callers": 2, "seconds": 0.2, "warm_up": 0}
    command = [sys.executable, ROOT / "bench" / "load.py", json.dumps(plan)]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert report["errors"] == {"status 500": 1}
    assert len(report["answers"]) == seen.answered - 1
    assert report["end"] - report["start"] == pytest.approx(0.2)


@pytest.mark.parametrize("callers", [0, 5000])
def test_the_number_of_callers_is_bounded(callers):
    with pytest.raises(ValueError, match=f"{callers} callers; expected 1 to 1024"):
        Load(1, b"", callers)


def test_every_answer_is_compared_with_the_first_one():
    """An answer is right with the same best label and nearly its probability."""

    def render(*pairs):
        rows = [{"label": label, "probability": value} for label, value in pairs]
        return json.dumps({"predictions": [{"probabilities": rows}]})

    server = object.__new__(servers.Server)
    server.answer = {"a": 0.5, "b": 0.4}
    right = render(("a", 0.5001), ("b", 0.4))
    wrong = [render(("b", 0.5)), render(("a", 0.6)), render(("c", 0.5)), "{}", "no JSON"]
    assert server.count_wrong({right: 7}) == 0
    assert server.count_wrong({right: 7, **dict.fromkeys(wrong, 2)}) == 10


def test_full_again_is_when_answers_come_as_fast_as_before():
    answered = [at / 10 for at in range(20)] + [3.5 + at / 10 for at in range(20)]
    account = Account(Report(answers=[(at, 1) for at in answered]))
    assert account.seconds_until_full(2.0) == 1.5
    account.report.answers = account.report.answers[:20]
    assert account.seconds_until_full(2.0) is None


def test_health_is_described_in_order_with_the_seconds_of_all_but_200():
    pings = [(0.0, 200), (1.0, None), (2.5, 503), (3.0, 503), (3.5, 200)]
    assert Account(pings=pings).describe_health() == "200, no answer for 1.5 s, 503 for 1.0 s, 200"
    assert Account().describe_health() == "never asked"


def test_unanswered_requests_count_as_lost():
    account = Account(Report(errors=Counter({"lost": 2, "no answer": 1, "unreachable": 5, "status 503": 3})))
    assert account.lost == 3


@given(st.lists(st.integers(0, 1000), min_size=1), st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_a_percentile_is_the_least_value_that_covers_its_share(values, share):
    """At least that share of the values is not larger, and no smaller value has that property."""
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
    """Return two rounds of the workload picture, the second on a machine half as fast."""
    records = []
    for number, speed in enumerate((1.0, 0.5)):
        where = {"round": number, "workload": "picture"}
        for threads, rate in ((1, 100), (2, 200)):
            found = {"rate": rate * speed, "p50": 8 / speed, "cpu": 9.0}
            records.append(
                {**where, "kind": "limit", "precision": "f32", "threads": threads, "callers": 1, **found}
            )
        for name, rate in (("naive", 10), ("ours, openvino f32", 160)):
            load = {"rate": rate * speed, "p50": 10 / speed, "p99": 20 / speed, "errors": {}, "cpu": 10.0}
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


def test_the_table_has_all_that_was_measured():
    """It has medians, spreads, both ratios, memory and whether the answers agree, in aligned columns."""
    results = {
        "machine": "2 cores of a machine",
        "rounds": 2,
        "titles": {"picture": "a network", "digits": "not measured"},
        "precisions": {"naive": "f32", "ours, openvino f32": "f32"},
        "records": make_records(),
    }
    text = table.render_results(results)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    ours = "| ours, openvino f32 | 1 | 120 (80 to 160) | 0.80 | 16.00 | 15.0 | 30.0 | 10.0 | 0.90 | 0 |"
    assert ours in rows
    assert "| naive | 1.5 | 101 | 200 |" in rows
    assert "150 (100 to 200) images/s with 2 thread(s)" in text
    assert "one image alone takes 12.0 (8.0 to 16.0) ms" in text
    assert "The answers are equal" in text
    assert "digits" not in text
    header = next(line for line in text.splitlines() if "requests/s" in line)
    row = next(line for line in text.splitlines() if "0.80" in line)
    assert header.index("p50, ms") == row.index("15.0")


def test_answers_differ_where_another_label_is_best():
    """A small difference counts by its size; another best label counts as infinite."""
    differences = figures.compare_answers(
        {"a": {"cat": 0.5, "dog": 0.3}, "b": {"cat": 0.4, "bee": 0.1}, "c": {"dog": 0.5, "cat": 0.49}}
    )
    assert differences == {"a": 0, "b": pytest.approx(0.1), "c": float("inf")}


def test_reduced_precisions_are_compared_with_f32_wherever_it_comes():
    """The contenders take turns in being first, and the reference does not change with them."""
    answers = {"ours, openvino int8": {"cat": 0.45}, "naive": {"cat": 0.5}, "limit, bf16": {"cat": 0.51}}
    expected = {"ours, openvino int8": 0.05, "naive": 0, "limit, bf16": 0.01}
    assert figures.compare_answers(answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ({"naive": 0.0, "ours, openvino bf16": 0.029, "ours, openvino int8": 0.09}, "The answers are equal"),
        ({"naive": 0.0, "ours, openvino f32": 0.029}, "ANSWERS DIFFER"),
        ({"naive": 0.0, "ours, openvino bf16": 0.09}, "ANSWERS DIFFER"),
        ({"naive": 0.0, "ours, openvino int8": 0.11}, "ANSWERS DIFFER"),
    ],
)
def test_each_precision_has_its_own_tolerance(differences, verdict):
    """A small difference for int8 is a large one for float32."""
    assert verdict in "".join(table._render_answers([{"differences": differences}]))


def test_a_tree_is_a_process_with_all_its_descendants():
    """The usage of a child counts, also after its end."""
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


def test_the_tabular_model_returns_one_result_per_row(tmp_path):
    np.savez(tmp_path / "weights.npz", weights=np.eye(2))
    model = tabular.model_fn(tmp_path, Context(tmp_path, CPU, "auto", cores=2))
    assert model.concurrency == 2
    assert tabular.predict_fn([[1, 2], [3, 4]], model).tolist() == [[1, 2], [3, 4]]

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

from processes import wait_for
from tandem.serving.monitoring import EMF_VALUES, Monitor


def test_stages_and_batches_are_histograms():
    monitor = Monitor("gpu")
    monitor.observe("predict", 0.003)
    monitor.observe("rows", 4)
    monitor.count_queued = lambda: 7
    text = monitor.render()[0].decode()
    assert 'tandem_stage_seconds_bucket{le="0.005",stage="predict"} 1.0' in text
    assert 'tandem_stage_seconds_bucket{le="0.0025",stage="predict"} 0.0' in text
    assert 'tandem_batch_rows_bucket{le="4.0"} 1.0' in text
    assert "tandem_queued_rows 7.0" in text


def test_an_emf_line_tells_one_period_and_no_more_values_than_cloudwatch_takes():
    monitor = Monitor("cpu")
    for status in [200] * 150 + [404, 500]:
        monitor.finish(status, monitor.begin())
    line = json.loads(monitor.render_emf())
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert {metric["Name"] for metric in directive["Metrics"]} == {*line} - {"_aws", "Device"}
    assert directive["Dimensions"] == [["Device"]]
    assert (line["Device"], line["Requests"], line["ClientErrors"], line["ServerErrors"]) == (
        "cpu",
        152,
        1,
        1,
    )
    assert len(line["Latency"]) == EMF_VALUES
    quiet = json.loads(monitor.render_emf())
    assert quiet["Requests"] == 0
    assert "Latency" not in quiet


def test_emf_lines_come_by_themselves_if_asked_for(live_server):
    server = live_server("echo", EMF_SECONDS="0.1")
    assert server.invoke(b"[1]")[0] == 200

    def list_lines():
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith('{"_aws"')]
        return sum(line["Requests"] for line in lines) == 1

    wait_for(list_lines, "the request in an EMF line")


def test_several_processes_are_counted_together(live_server):
    server = live_server("echo", SAGEMAKER_MODEL_SERVER_WORKERS="2")
    for _ in range(40):
        assert server.invoke(b"[1]")[0] == 200
    text = server.request("GET", "/metrics")[2].decode()
    assert 'tandem_requests_total{status="200"} 40.0' in text
    assert 'tandem_device{device="cpu"} 2.0' in text


def test_one_process_tells_its_metrics_over_http(live_server):
    server = live_server("echo")
    server.invoke(b"[1]")
    status, headers, body = server.request("GET", "/metrics")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert b'tandem_stage_seconds_count{stage="queue"} 1.0' in body


def test_what_a_killed_process_had_in_progress_is_not_counted_for_ever(live_server):
    """What it had counted stays."""
    server = live_server("slow_row", SAGEMAKER_MODEL_SERVER_WORKERS="2")
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(server.invoke, b"[600]") for _ in range(8)]
        wait_for(lambda: server.read_metric("tandem_in_flight") == 8, "eight requests in progress")
        before = server.list_processes()[1:]
        for process in before:
            os.kill(process, signal.SIGKILL)
        assert all(isinstance(future.exception(30), OSError | HTTPException) for future in futures)
    wait_for(lambda: not set(before) & set(server.list_processes()), "other processes")
    server.wait_until(200)
    wait_for(lambda: server.read_metric("tandem_in_flight") == 0, "no request in progress")

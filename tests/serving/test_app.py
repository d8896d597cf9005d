import json

import pytest

from processes import wait_for


def post(client, body=b'{"instances": [1]}', content_type="application/json", **headers):
    return client.post("/invocations", data=body, content_type=content_type, headers=headers)


def test_ping_is_200_with_an_empty_body(client):
    answer = client("echo").get("/ping")
    assert (answer.status_code, answer.data) == (200, b"")


def test_ping_is_503_while_loading_and_500_when_loading_failed(client, tmp_path):
    (tmp_path / "loading").touch()
    loading = client("slow_load", ready=False)
    assert loading.get("/ping").status_code == 503
    answer = post(loading)
    assert (answer.status_code, answer.json["error"], answer.headers["Retry-After"]) == (
        503,
        "model_not_ready",
        "1",
    )
    (tmp_path / "loading").unlink()
    failed = client("fails_to_load", ready=False)
    wait_for(lambda: failed.get("/ping").status_code == 500, "the failure")


def test_an_answer_names_its_type_and_length(client):
    answer = post(client("echo"), Accept="text/csv;q=0.5, application/jsonlines")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/jsonlines"
    assert answer.headers["Content-Length"] == str(len(answer.data))


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        ({"body": b"{"}, 400, "bad_request"),
        ({"body": b""}, 400, "bad_request"),
        ({"content_type": "text/html"}, 415, "unsupported_media_type"),
        ({"content_type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Accept": "image/png"}, 406, "not_acceptable"),
        ({"body": b"[" + b"1," * 600_000 + b"1]"}, 413, "payload_too_large"),
    ],
)
def test_each_fault_has_its_status_and_one_shape(client, request_, status, kind):
    answer = post(client("echo", payload_mb=1), **request_)
    assert (answer.status_code, answer.json["error"]) == (status, kind)
    assert set(answer.json) == {"error", "message"}
    assert len(answer.json["message"]) > 20


def test_routes_and_methods_that_do_not_exist_answer_in_the_same_shape(client):
    echo = client("echo")
    missing, wrong = echo.get("/models"), echo.get("/invocations")
    assert (missing.status_code, missing.json["error"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json["error"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["Allow"]


def test_no_trace_leaves_the_process(client):
    answer = post(client("poisoned_row"), b'["poison"]')
    assert (answer.status_code, answer.json["error"]) == (500, "model_error")
    for inside in (b"secret", b"Traceback", b".py"):
        assert inside not in answer.data


def test_an_error_message_stays_within_what_the_platform_passes_on(client):
    answer = post(client("echo"), Accept="x/" + "y" * 5000)
    assert answer.status_code == 406
    assert len(answer.data) < 2048


def test_execution_parameters_keep_to_batch_transforms_rule(client):
    parameters = json.loads(client("echo").get("/execution-parameters").data)
    assert set(parameters) == {"MaxConcurrentTransforms", "MaxPayloadInMB"}
    assert parameters["MaxConcurrentTransforms"] * parameters["MaxPayloadInMB"] <= 100


def test_every_error_is_one_line_with_its_inference_id(client, caplog):
    echo = client("echo")
    post(echo, b"{", **{"X-Amzn-SageMaker-Inference-Id": "request-7"})
    (line,) = [record.message for record in caplog.records if "request_failed" in record.message]
    logged = json.loads(line)
    assert (logged["status"], logged["error"], logged["inference_id"]) == (400, "bad_request", "request-7")


def test_custom_attributes_travel_both_ways(client):
    answer = post(client("custom_attributes"), **{"X-Amzn-SageMaker-Custom-Attributes": "colour=red"})
    assert answer.json == {"predictions": ["colour=red"]}
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "read"


def test_a_person_and_a_program_are_told_what_this_is_but_not_what_is_inside(client):
    echo = client("echo")
    sentence, document = echo.get("/").text, echo.get("/openapi.json").json
    assert "POST one to /invocations, as application/json" in sentence
    assert set(document["paths"]) == {"/invocations", "/ping", "/execution-parameters", "/metrics"}
    assert "text/csv" in document["paths"]["/invocations"]["post"]["responses"]["200"]["content"]
    for text in (sentence, json.dumps(document)):
        for inside in ("gunicorn", "Flask", "/opt/ml", "fixtures", "Python"):
            assert inside not in text


def test_metrics_count_what_happened(client):
    echo = client("echo")
    for body in (b"[1]", b"[2]", b"{"):
        post(echo, body)
    text = echo.get("/metrics").text
    assert 'tandem_requests_total{status="200"} 2.0' in text
    assert 'tandem_requests_total{status="400"} 1.0' in text
    assert 'tandem_stage_seconds_count{stage="total"} 3.0' in text
    assert "tandem_in_flight 0.0" in text
    assert 'tandem_device{device="cpu"} 1.0' in text


def test_an_algorithm_that_exits_ends_its_request_only(client):
    leaves = client("leaves")
    for _ in range(2):
        answer = post(leaves, b"[1]")
        assert (answer.status_code, answer.json["error"]) == (500, "server_error")
        assert "enough" not in answer.text
    assert leaves.get("/ping").status_code == 200


def test_an_output_fn_that_returns_a_number_is_the_algorithms_fault(client):
    answer = post(client("leaves"), b"[7]")
    assert (answer.status_code, answer.json["error"]) == (500, "server_error")


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "x" * 1025, "é", 7])
def test_custom_attributes_that_no_header_can_hold_are_the_algorithms_fault(client, value):
    answer = post(client("sets_attributes"), json.dumps([value]).encode())
    assert (answer.status_code, answer.json["error"]) == (500, "model_error")
    assert "Set-Cookie" not in answer.headers
    assert "at most 1024 printable ASCII characters" in answer.json["message"]

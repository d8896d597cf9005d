import io
import json

import pytest

from tandem.serving.invocations import CUSTOM_ATTRIBUTES


class Broken(io.RawIOBase):
    """A body that ends in an error, as a connection does that breaks."""

    def readable(self):
        return True

    def readinto(self, _room):
        raise ConnectionResetError


def post(client, body, **headers):
    return client.post("/invocations", data=body, content_type="application/json", headers=headers)


def test_a_body_that_breaks_off_is_its_callers_fault(client):
    answer = client("echo").post(
        "/invocations",
        data=b"[1]",
        content_type="application/json",
        environ_overrides={"wsgi.input": Broken()},
    )
    assert (answer.status_code, answer.json["error"]) == (400, "bad_request")
    assert "ConnectionResetError" in answer.json["message"]


def test_attributes_that_a_caller_may_send_go_back_as_they_came(client):
    given = "é" * 2000
    assert post(client("echo"), b"[1]", **{CUSTOM_ATTRIBUTES: given}).headers[CUSTOM_ATTRIBUTES] == given


@pytest.mark.parametrize("attributes", ["a\r\nSet-Cookie: b", "é", "a" * 1025, 7])
def test_attributes_that_no_header_can_hold_are_the_algorithms_fault(client, attributes):
    answer = post(client("sets_attributes"), json.dumps([attributes]).encode())
    assert (answer.status_code, answer.json["error"]) == (500, "model_error")
    assert "custom attributes" in answer.json["message"]
    assert CUSTOM_ATTRIBUTES not in answer.headers


def test_an_algorithm_that_exits_ends_its_own_request_only(client, caplog):
    leaves = client("leaves")
    answer = post(leaves, b"[1]")
    assert (answer.status_code, answer.json["error"]) == (500, "server_error")
    assert "SystemExit('enough')" in caplog.text
    assert "tandem_in_flight 0.0" in leaves.get("/metrics").text


def test_an_answer_that_holds_no_bytes_is_the_servers_fault(client):
    """Not seven zeros."""
    answer = post(client("leaves"), b"[7]")
    assert (answer.status_code, answer.json["error"]) == (500, "server_error")


def test_what_is_no_post_is_counted_too(client):
    echo = client("echo")
    assert echo.get("/invocations").status_code == 405
    assert 'tandem_requests_total{status="405"} 1.0' in echo.get("/metrics").text
    assert "tandem_in_flight 0.0" in echo.get("/metrics").text

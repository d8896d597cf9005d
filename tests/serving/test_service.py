import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures import any_thread, gated
from processes import wait_for
from tandem.algorithm import Caller
from tandem.errors import (
    ModelError,
    ModelNotReady,
    NotAcceptable,
    Overloaded,
    TandemError,
    UnsupportedMediaType,
    UserError,
)
from tandem.serving.batching import Deadline
from tandem.serving.service import Request


def ask(service, rows, accept=None, content_type="application/json", **how):
    body = json.dumps({"instances": rows}).encode()
    answer = service.invoke(Request(body, content_type, accept, **how), "application/json")
    return json.loads(answer.body)["predictions"]


def is_ready(service):
    try:
        service.check()
    except ModelNotReady:
        return False
    return True


@pytest.fixture
def ready(service):
    def make(name, **limits):
        made = service(name, **limits)
        wait_for(lambda: is_ready(made), f"{name} to load")
        return made

    return make


def test_a_request_travels_from_bytes_to_bytes(ready):
    assert ask(ready("echo"), [1, "two", [3]]) == [1, "two", [3]]


def test_content_type_parameters_and_case_do_not_matter(ready):
    assert ask(ready("echo"), [1], content_type="Application/JSON; charset=utf-8") == [1]


def test_while_loading_nothing_is_scored(service, tmp_path):
    (tmp_path / "loading").touch()
    slow = service("slow_load")
    with pytest.raises(ModelNotReady):
        slow.check()
    with pytest.raises(ModelNotReady):
        ask(slow, [1])
    (tmp_path / "loading").unlink()
    wait_for(lambda: is_ready(slow), "the model")
    assert ask(slow, [1]) == ["loaded"]


def test_a_model_that_fails_to_load_is_told_once(service):
    failures = []
    failed = service("fails_to_load", on_failure=failures.append)
    wait_for(lambda: failures, "the failure")
    assert "there is no model in" in str(failures[0])
    with pytest.raises(ModelError):
        failed.check()
    with pytest.raises(ModelError):
        ask(failed, [1])
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "error"),
    [
        (b"{", "application/json", None, UserError),
        (b"", "application/json", None, UserError),
        (b'{"instances": []}', "application/json", None, UserError),
        (b"[1]", "text/html", None, UnsupportedMediaType),
        (b"[1]", None, None, UnsupportedMediaType),
        (b"[1]", "application/json", "image/png", NotAcceptable),
    ],
)
def test_each_fault_of_the_caller_has_its_own_error(ready, body, content_type, accept, error):
    with pytest.raises(error) as caught:
        ready("echo").invoke(Request(body, content_type, accept), "application/json")
    assert type(caught.value) is error


def test_only_the_guilty_request_of_a_batch_fails(ready):
    """Three requests wait together; the poisoned one fails and the others get their answers."""
    service = ready("poisoned_row", batch_wait=30)
    bodies = [["a", "b"], ["poison"], ["c"]]
    with ThreadPoolExecutor(3) as pool, service._batcher.arrival():
        futures = [pool.submit(ask, service, rows) for rows in bodies]
        wait_for(lambda: service.count_queued() == 4, "three requests in the queue")
    assert futures[0].result(30) == ["good a", "good b"]
    assert futures[2].result(30) == ["good c"]
    with pytest.raises(ModelError, match="predict_fn raised RuntimeError") as caught:
        futures[1].result(30)
    assert "secret" not in str(caught.value)


def test_a_prediction_of_the_wrong_length_is_the_models_fault(ready):
    with pytest.raises(ModelError, match="1 results for 2 rows"):
        ask(ready("wrong_length"), [1, 2])


def test_a_request_of_many_rows_is_computed_in_parts(ready):
    service = ready("gated", batch_rows=4)
    gated.gate.set()
    rows = list(range(10))
    assert ask(service, rows) == rows
    assert gated.batches == [4, 4, 2]


def test_requests_that_wait_share_a_batch(ready):
    service = ready("gated")
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, service, [0])
        assert gated.entered.wait(30)
        others = [pool.submit(ask, service, [number]) for number in range(1, 9)]
        wait_for(lambda: service.count_queued() == 8, "eight requests in the queue")
        gated.gate.set()
        assert first.result(30) == [0]
        assert [future.result(30) for future in others] == [[number] for number in range(1, 9)]
    assert gated.batches == [1, 8]


def test_a_full_queue_answers_at_once(ready):
    service = ready("gated", queue_rows=2)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, service, [0])
        assert gated.entered.wait(30)
        waiting = pool.submit(ask, service, [1, 2])
        wait_for(lambda: service.count_queued() == 2, "a full queue")
        with pytest.raises(Overloaded, match="try again"):
            ask(service, [3])
        gated.gate.set()
        assert (first.result(30), waiting.result(30)) == ([0], [1, 2])


def test_a_request_past_its_time_is_answered_and_not_computed(ready):
    service = ready("gated")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, service, [0], deadline=Deadline(0.3))
        assert gated.entered.wait(30)
        with pytest.raises(Overloaded, match=r"no answer within 0.2 seconds"):
            ask(service, [1], deadline=Deadline(0.2))
        with pytest.raises(Overloaded):
            first.result(30)
        gated.gate.set()
    wait_for(lambda: gated.batches, "the first batch")
    assert service.count_queued() in {0, 1}
    gated.entered.clear()
    assert ask(service, [2]) == [2]
    assert gated.batches == [1, 1]


def test_a_caller_that_hangs_up_frees_its_place(ready):
    service = ready("gated")
    hung_up = Deadline(60)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, service, [0])
        assert gated.entered.wait(30)
        second = pool.submit(ask, service, [1], deadline=hung_up)
        wait_for(lambda: service.count_queued() == 1, "a waiting request")
        hung_up.cancel()
        with pytest.raises(Overloaded, match="hung up"):
            second.result(30)
        gated.gate.set()
        assert first.result(30) == [0]
    assert ask(service, [2]) == [2]
    assert gated.batches == [1, 1]


def test_an_algorithm_reads_and_answers_custom_attributes(ready):
    service = ready("custom_attributes")
    caller = Caller(custom_attributes="colour=red", inference_id="7")
    assert ask(service, [1], caller=caller) == ["colour=red"]
    assert caller.custom_attributes == "read"


def test_a_dead_model_thread_is_told_and_nobody_is_left_waiting(ready):
    failures = []
    service = ready("poisoned_row", on_failure=failures.append)
    with pytest.raises(ModelError):
        ask(service, ["death"])
    wait_for(lambda: failures, "the failure")
    with pytest.raises(ModelError):
        service.check()
    with pytest.raises(TandemError):
        ask(service, ["a"])


def test_a_model_that_any_thread_may_use_is_used_by_the_thread_that_read(ready):
    """In parts of as many rows as pay."""
    service = ready("any_thread")
    assert service.max_concurrency > 1
    assert ask(service, ["a", "b", "c"]) == ["a", "b", "c"]
    own = threading.current_thread().name
    assert any_thread.computed == [(2, own), (1, own)]


def test_what_fails_in_the_requests_own_thread_is_told_like_every_failure(ready):
    failures = []
    service = ready("any_thread", on_failure=failures.append)
    with pytest.raises(ModelError, match="predict_fn raised RuntimeError") as caught:
        ask(service, ["poison"])
    assert "secret" not in str(caught.value)
    assert ask(service, ["a"]) == ["a"]
    with pytest.raises(ModelError):
        ask(service, ["death"])
    assert [type(failure) for failure in failures] == [SystemExit]
    with pytest.raises(ModelError):
        service.check()


def test_a_long_request_ends_between_its_parts_once_it_may_not_go_on(ready):
    service = ready("any_thread")
    with pytest.raises(Overloaded, match=r"no answer within 0.2 seconds"):
        ask(service, [0.3, 0, 9, 9], deadline=Deadline(0.2))
    hung_up = Deadline(60)
    threading.Timer(0.2, hung_up.cancel).start()
    with pytest.raises(Overloaded, match="hung up"):
        ask(service, [0.4, 0, 9, 9], deadline=hung_up)
    assert [rows for rows, _ in any_thread.computed] == [2, 2]


def test_a_request_that_waited_too_long_for_its_thread_is_not_computed(ready):
    service = ready("any_thread")
    late = Deadline(0)
    with pytest.raises(Overloaded, match="no answer within 0 seconds"):
        ask(service, ["a"], deadline=late)
    assert any_thread.computed == []


def test_only_the_model_thread_touches_another_model(ready, monkeypatch):
    seen = set()
    service = ready("echo")
    predict = service.algorithm.predict_fn

    def remember(*arguments):
        seen.add(threading.current_thread().name)
        return predict(*arguments)

    object.__setattr__(service.algorithm, "predict_fn", remember)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: ask(service, [number]), range(32))) == [[n] for n in range(32)]
    assert seen == {"model"}

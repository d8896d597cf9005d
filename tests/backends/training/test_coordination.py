"""What TensorFlow reports when a host is lost or fails, as a sentence."""

import inspect

import pytest

from backends.training import coordination

HOSTS = ("algo-1", "algo-2", "algo-3")

BROKEN = """Collective ops is aborted by: recvmsg:Connection reset by peer
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling /tensorflow:
:UNKNOWN:Error received from peer  {grpc_message:"recvmsg:Connection reset by peer", grpc_status:14}"""
SILENT = """Error reported from /job:worker/task:1: The tasks are unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
/job:worker/replica:0/task:2
The tasks have crashed. Check the task logs for an earlier error"""
LEADER_LOST = """Collective ops is aborted by: Deadline Exceeded

RPC: /tensorflow.CoordinationService/Heartbeat"""
FAILED = "Collective ops is aborted by: Error reported from /job:worker/task:2: no space left\nRestart."
OTHER = """Shape mismatch
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling /tensorflow:
:UNKNOWN:Error received from peer  {grpc_message:"Shape mismatch", grpc_status:13}"""


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (BROKEN, "host algo-2 was lost: its connections broke."),
        (SILENT, "host algo-2 and host algo-3 was lost: no heartbeat for 30 s."),
        (LEADER_LOST, "host algo-1 was lost: no heartbeat for 30 s."),
        (FAILED, "host algo-3 failed: no space left."),
        (OTHER, None),
        ("OOM when allocating tensor", None),
    ],
)
def test_tensorflows_error_becomes_a_sentence_with_the_hosts_name(message, cause):
    assert coordination.find_cause(message, HOSTS) == cause


def test_a_reported_failure_is_extracted_whole():
    """Quotes and line ends, which gRPC may escape, are replaced."""
    marked = coordination.mark('host algo-2 failed: the file "a\n>> b" is cut off.')
    message = f"Error reported from /job:worker/task:1: {marked}\n{BROKEN}"
    assert coordination.find_cause(message, HOSTS) == "host algo-2 failed: the file 'a > b' is cut off."


def test_tensorflow_still_has_the_internal_functions_that_this_module_calls():
    """They are not public, so any release may change them."""
    from tensorflow.python.eager import context

    configure = inspect.signature(context.context().configure_coordination_service)
    job = context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=2)
    configure.bind(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=1000,
        heartbeat_timeout_in_ms=1000,
        coordinated_jobs=[job],
    )
    inspect.signature(context.context().report_error_to_cluster).bind(14, "a message")

"""TensorFlow's coordination service: its time limits, and the host that an error is due to.

The one module that uses TensorFlow's internals: it has no public function for this service's limits nor for
reporting an error to all hosts, and its errors name hosts only in their text. test_coordination.py fails when
TensorFlow changes the functions, test_distribution.py when it changes the texts.
"""

import re
from collections.abc import Sequence
from contextlib import suppress

#: Seconds without a heartbeat after which a host counts as lost, though its connections stay open.
HEARTBEAT_SECONDS = 30

# What a host reports through `report_failure`, and TensorFlow's own messages: about a host without
# heartbeats, about one that failed, and about a broken connection (gRPC's 1, 4, 14: cancelled, deadline
# exceeded, unavailable).
_REPORTED = re.compile(r"tandem<<(.*?)>>", re.DOTALL)
_SILENT = re.compile(r"stopped sending heartbeats\):\s*((?:/job:\w+/replica:\d+/task:\d+\s*)+)")
_FAILED = re.compile(r"Error reported from /job:\w+(?:/replica:\d+)?/task:(\d+): (.*)")
_BROKEN = re.compile(
    r"from remote target /job:\w+/replica:\d+/task:(\d+)(?=.*grpc_status:(?:1|4|14)\b)", re.DOTALL
)
_LEADER_LOST = re.compile(r"RPC: /tensorflow\.CoordinationService/")  # the first host runs this service
_TASK = re.compile(r"task:(\d+)")


def configure(hosts: int, register_seconds: float) -> None:
    """Set the service's time limits; must be called before TensorFlow's strategy is created."""
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(register_seconds * 1000),
        heartbeat_timeout_in_ms=HEARTBEAT_SECONDS * 1000,
        coordinated_jobs=[context.coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=hosts)],
    )


def report_failure(sentence: str) -> None:
    """Fail the collective operations of all hosts with `sentence`, if they can still be reached."""
    import tensorflow as tf
    from tensorflow.python.eager import context

    with suppress(tf.errors.OpError):
        context.context().report_error_to_cluster(tf.errors.UNAVAILABLE, mark(sentence))


def mark(sentence: str) -> str:
    """Enclose a sentence so that `find_cause` can extract it from TensorFlow's error."""
    return f"tandem<<{' '.join(sentence.split()).replace(chr(34), chr(39)).replace('>>', '>')[:600]}>>"


def find_cause(message: str, hosts: Sequence[str]) -> str | None:
    """Return a sentence naming the host that caused one of TensorFlow's errors; None if no host did."""
    if reported := _REPORTED.search(message):
        return reported[1]
    if silent := _SILENT.search(message):
        names = [hosts[int(task)] for task in _TASK.findall(silent[1])]
        return f"host {' and host '.join(names)} was lost: no heartbeat for {HEARTBEAT_SECONDS} s."
    if failed := _FAILED.search(message):
        return f"host {hosts[int(failed[1])]} failed: {failed[2].rstrip('. ')}."
    if broken := _BROKEN.search(message):
        return f"host {hosts[int(broken[1])]} was lost: its connections broke."
    if _LEADER_LOST.search(message):
        return f"host {hosts[0]} was lost: no heartbeat for {HEARTBEAT_SECONDS} s."
    return None

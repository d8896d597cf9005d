"""Training one network on several GPUs and hosts, with TensorFlow's distribution strategies.

The same code trains on one CPU and on several hosts:

    tensorflow_engine.start(job.decision)
    context = create_context(job.decision, job.hosts, job.current_host)  # before any TensorFlow op
    with context.guard():                              # turns a lost host's error into a sentence
        with context.strategy.scope():                 # creates variables: network, optimizer
            network = build_network(...)
            optimizer = keras.optimizers.Adam(...)
            optimizer.build(network.trainable_variables)
            context.synchronize(network)               # BatchNormalization over the whole global batch

        def step(images, labels, weights):             # runs on one replica, with its rows of the batch
            total = context.sum(tf.reduce_sum(weights))    # the weight of the whole global batch
            with tf.GradientTape() as tape:
                losses = weights * crossentropy(labels, network(images, training=True))
                loss = tf.reduce_sum(losses) / total   # Keras's optimizer adds up the replicas' gradients
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
            return tf.stack([tf.reduce_sum(losses), correct, tf.reduce_sum(weights)])

        train_step = context.trace(step, dataset.element_spec)
        for batch in dataset:                          # this host's share; each host has as many batches
            sums = train_step(*batch)                  # the step's result, summed over all replicas
            if any(context.exchange(stop.is_set())):   # all hosts leave after the same step
                break
        counts = context.exchange({"unreadable": 3})   # every host's value, in rank order; also a barrier
        if context.rank == 0:
            write_bundle(...)
        context.exchange(None)                         # all hosts exit after rank 0 has written
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from backends.training import coordination, peers
from tandem.errors import TandemError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

#: The port that the platform's own toolkit uses for TensorFlow.
PORT = 8890
#: Seconds to wait for the other hosts to start; the platform's toolkit waits as long for their names.
PEER_SECONDS = 900.0


def make_tf_config(hosts: Sequence[str], current_host: str, port: int = PORT) -> dict[str, Any] | None:
    """Return TF_CONFIG's content, with all hosts as workers in the platform's order; None for one host."""
    if len(hosts) == 1:
        return None
    return {
        "cluster": {"worker": [f"{host}:{port}" for host in hosts]},
        "task": {"type": "worker", "index": list(hosts).index(current_host)},
    }


@dataclass(frozen=True)
class DistributedContext:
    """The replicas of a network on all hosts of a job, and the operations that involve all of them."""

    strategy: Any
    hosts: tuple[str, ...]
    rank: int

    @property
    def replicas(self) -> int:
        """The number of replicas on all hosts together."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """The number of replicas on this host, the same on every host."""
        return self.replicas // len(self.hosts)

    def trace(self, step: Callable[..., Any], signature: Sequence[Any], *, xla: bool = False) -> Any:
        """Return a graph that runs `step` on every replica and sums its results over all replicas.

        `signature` are the specs of this host's batch, whose rows are split among its replicas in order; a
        replica may get no rows. XLA is used for a single replica only.
        """
        import tensorflow as tf

        if self.replicas == 1:
            return tf.function(step, input_signature=signature, autograph=False, jit_compile=xla or None)

        def step_and_sum(*batch: Any) -> Any:
            return self.sum(step(*batch))

        def run_and_sum(*batch: Any) -> Any:
            results = self.strategy.run(step_and_sum, self._split(batch))
            return self.strategy.experimental_local_results(results)[0]

        return tf.function(run_and_sum, input_signature=signature, autograph=False)

    def sum(self, tensor: Any) -> Any:
        """Return the sum of a tensor over all replicas; may only be called inside a step."""
        import tensorflow as tf

        if self.replicas == 1:
            return tensor
        # A copy, as TensorFlow needs a tensor with a device and the graph's arguments have none.
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(tensor))

    def synchronize(self, network: Any) -> None:
        """Make BatchNormalization use the rows of all replicas; must be called before tracing."""
        import keras

        if self.replicas == 1:
            return
        for layer in network.layers:
            if isinstance(layer, keras.Model):
                self.synchronize(layer)
            elif isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def exchange(self, value: Any) -> list[Any]:
        """Return the JSON value that each host passed, in rank order; waits for all hosts."""
        text = json.dumps(value)
        if len(self.hosts) == 1:
            return [json.loads(text)]
        # Floats, because every collective implementation can sum them, on CPUs and on GPUs.
        payload = np.frombuffer(text.encode(), np.uint8).astype(np.float32)
        sizes, joined = (tensor.numpy() for tensor in self._gather(payload))
        texts = np.split(joined.astype(np.uint8), np.cumsum(sizes)[:-1])
        return [json.loads(each.tobytes()) for each in texts]

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise a `TandemError` naming the host that was lost or failed in place of TensorFlow's error.

        An error of this host is raised unchanged, and reported to the other hosts so that they stop too.
        """
        if len(self.hosts) == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            is_own = isinstance(error, TandemError)
            cause = None if is_own else coordination.find_cause(str(error), self.hosts)
            coordination.report_failure(cause or f"host {self.hosts[self.rank]} failed: {_first_line(error)}")
            if cause is None:
                raise
            raise TandemError(f"{cause} The training cannot continue without that host.") from error

    @cached_property
    def _gather(self) -> Any:
        """A graph from this host's floats (n,) to the sizes (hosts,) and the joined floats of all hosts."""
        import tensorflow as tf

        def gather(payload: Any) -> Any:
            context = tf.distribute.get_replica_context()
            # Only one replica of each host contributes.
            contributes = tf.cast(context.replica_id_in_sync_group % self.local_replicas == 0, tf.int32)
            payload = payload[: tf.size(payload) * contributes]
            own_size = tf.one_hot(self.rank, len(self.hosts)) * tf.cast(tf.size(payload), tf.float32)
            sizes = tf.cast(context.all_reduce("SUM", own_size), tf.int32)
            before = tf.reduce_sum(sizes[: self.rank])
            padded = tf.pad(payload, [[before, tf.reduce_sum(sizes) - before - tf.size(payload)]])
            return sizes, context.all_reduce("SUM", padded)

        def run(payload: Any) -> Any:
            results = self.strategy.run(gather, (payload,))
            return [self.strategy.experimental_local_results(result)[0] for result in results]

        return tf.function(run, input_signature=[tf.TensorSpec((None,), tf.float32)], autograph=False)

    def _split(self, batch: Sequence[Any]) -> tuple[Any, ...]:
        """Split the rows of this host's batch among its replicas."""
        import tensorflow as tf

        count = self.local_replicas
        if count == 1:
            return tuple(batch)
        with tf.device("/CPU:0"):
            rows = tf.shape(batch[0])[0]
            bounds = [rows * index // count for index in range(count + 1)]
            parts = [[each[a:b] for a, b in itertools.pairwise(bounds)] for each in batch]
        distribute = self.strategy.experimental_distribute_values_from_function
        return tuple(
            distribute(lambda context, part=part: part[context.replica_id_in_sync_group % count])
            for part in parts
        )


def create_context(
    decision: Decision,
    hosts: Sequence[str],
    current_host: str,
    interface: str | None = None,
    *,
    stop: threading.Event | None = None,
    port: int = PORT,
    seconds: float = PEER_SECONDS,
) -> DistributedContext:
    """Connect this host's GPUs and all hosts; must be called before any TensorFlow op.

    Waits for the other hosts. Raises `TandemError` naming the missing ones after `seconds`, or when `stop` is
    set.
    """
    config = make_tf_config(hosts, current_host, port)
    if config is None:
        return DistributedContext(_make_local_strategy(decision), (current_host,), 0)
    found = peers.find_interface(interface)
    if found:
        os.environ["NCCL_SOCKET_IFNAME"] = found
    os.environ["TF_CONFIG"] = json.dumps(config)
    peers.await_peers(hosts, current_host, port, seconds, stop or threading.Event())
    import tensorflow as tf

    tf.get_logger().setLevel(logging.WARNING)  # at INFO it logs every sum over the hosts
    coordination.configure(len(hosts), seconds)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    context = DistributedContext(strategy, tuple(hosts), int(config["task"]["index"]))
    logger.info(
        "Training on %s hosts with %s replica(s) each; this is host %s, on the network interface %s.",
        *(len(hosts), context.local_replicas, context.rank + 1, found or "that the system chooses"),
    )
    return context


def _make_local_strategy(decision: Decision) -> Any:
    """Return a strategy with one replica for each GPU that TensorFlow finds, or one for the CPU."""
    import tensorflow as tf

    # Of several MIG devices TensorFlow finds only one, so its list counts, not the decision's.
    if decision.device == "gpu" and len(tf.config.get_visible_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

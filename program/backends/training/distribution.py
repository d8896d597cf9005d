"""The hosts and GPUs that fit one network together, on TensorFlow's own strategies.

How a fit loop uses it (the same code for one CPU and for several hosts):

    tensorflow_backend.start(job.decision)
    team = form_team(job.decision, job.hosts, job.current_host, job.network_interface)  # before any op
    with team.guard():      # a lost host's error becomes a sentence; a failure here is told to the others
        with team.strategy.scope():                   # variables: network, optimizer
            network = build_network(...)
            optimizer = keras.optimizers.Adam(...)
            optimizer.build(network.trainable_variables)
            team.synchronize(network)                 # BatchNormalization over the whole global batch

        def step(images, labels, weights):            # written for one replica, on its rows of the batch
            total = team.sum(tf.reduce_sum(weights))  # the weight of the whole global batch, inside a step
            with tf.GradientTape() as tape:
                losses = weights * crossentropy(labels, network(images, training=True))
                loss = tf.reduce_sum(losses) / total  # Keras's optimizer adds up the replicas' gradients
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
            return tf.stack([tf.reduce_sum(losses), correct, tf.reduce_sum(weights)])

        train_step = team.trace(step, dataset.element_spec)
        for batch in dataset:                         # this host's share; each host has as many batches
            sums = train_step(*batch)                 # the step's result, summed over all replicas
            if any(team.exchange(stop.is_set())):     # all hosts leave after the same step
                break
        counts = team.exchange({"unreadable": 3})     # every host's value, in rank order; also a barrier
        if team.rank == 0:
            write_bundle(...)
        team.exchange(None)                           # all leave together, after rank 0 has written
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

from backends.training import peers
from tandem.errors import TandemError
from tandem.runtime.devices import Decision

logger = logging.getLogger(__name__)

#: The port that the platform's own toolkit gives TensorFlow.
PORT = 8890
#: Seconds that the other hosts may take to start: as long as the platform's toolkit waits for names.
PEER_SECONDS = 900.0


def make_tf_config(hosts: Sequence[str], current_host: str, port: int = PORT) -> dict[str, Any] | None:
    """Give the content of TF_CONFIG: every host a worker, in the platform's order; None for one host."""
    if len(hosts) == 1:
        return None
    return {
        "cluster": {"worker": [f"{host}:{port}" for host in hosts]},
        "task": {"type": "worker", "index": list(hosts).index(current_host)},
    }


@dataclass(frozen=True)
class Team:
    """The replicas of a network on all hosts, with what they have to agree on."""

    strategy: Any
    hosts: tuple[str, ...]
    rank: int

    @property
    def replicas(self) -> int:
        """How many copies of the network there are on all hosts together."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> int:
        """How many of them are on this host, the same on each."""
        return self.replicas // len(self.hosts)

    def trace(self, step: Callable[..., Any], signature: Sequence[Any], *, xla: bool = False) -> Any:
        """Give a graph of this host's batch that runs `step` on every replica, and adds up what it returns.

        `signature` are the specs of a batch, whose rows are dealt out to this host's replicas in order; a
        replica may get none. The sum is over all replicas of all hosts. XLA is for one replica alone.
        """
        import tensorflow as tf

        if self.replicas == 1:
            return tf.function(step, input_signature=signature, autograph=False, jit_compile=xla or None)

        def step_and_sum(*batch: Any) -> Any:
            return self.sum(step(*batch))

        def run_and_sum(*batch: Any) -> Any:
            results = self.strategy.run(step_and_sum, self._deal(batch))
            return self.strategy.experimental_local_results(results)[0]

        return tf.function(run_and_sum, input_signature=signature, autograph=False)

    def sum(self, tensor: Any) -> Any:
        """Add up a tensor over all replicas; called inside a step."""
        import tensorflow as tf

        if self.replicas == 1:
            return tensor
        # A copy: what came into the graph as an argument has no device yet, and TensorFlow wants one.
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(tensor))

    def synchronize(self, network: Any) -> None:
        """Make each BatchNormalization of `network` look at the rows of all replicas; before tracing."""
        import keras

        if self.replicas == 1:
            return
        for layer in network.layers:
            if isinstance(layer, keras.Model):
                self.synchronize(layer)
            elif isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def exchange(self, value: Any) -> list[Any]:
        """Give the JSON value that each host called this with, in rank order; waits for all of them."""
        text = json.dumps(value)
        if len(self.hosts) == 1:
            return [json.loads(text)]
        # As floats: a kind of number that every collective adds, on CPUs and on GPUs.
        payload = np.frombuffer(text.encode(), np.uint8).astype(np.float32)
        sizes, joined = (found.numpy() for found in self._join(payload))
        texts = np.split(joined.astype(np.uint8), np.cumsum(sizes)[:-1])
        return [json.loads(one.tobytes()) for one in texts]

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn the error that a lost or failed host causes here into a `TandemError` naming it.

        What fails on this host is raised as it is, and the other hosts are told, so that they end too.
        """
        if len(self.hosts) == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            ours = isinstance(error, TandemError)
            cause = None if ours else peers.find_cause(str(error), self.hosts)
            peers.tell(cause or f"host {self.hosts[self.rank]} failed: {_first_line(error)}")
            if cause is None:
                raise
            raise TandemError(f"{cause} The training cannot go on without that host.") from error

    @cached_property
    def _join(self) -> Any:
        """Give a graph from this host's floats (n,) to the sizes (hosts,) and the floats of all hosts."""
        import tensorflow as tf

        def join(payload: Any) -> Any:
            context = tf.distribute.get_replica_context()
            # One replica of each host speaks.
            speaks = tf.cast(context.replica_id_in_sync_group % self.local_replicas == 0, tf.int32)
            payload = payload[: tf.size(payload) * speaks]
            mine = tf.one_hot(self.rank, len(self.hosts)) * tf.cast(tf.size(payload), tf.float32)
            sizes = tf.cast(context.all_reduce("SUM", mine), tf.int32)
            before = tf.reduce_sum(sizes[: self.rank])
            whole = tf.pad(payload, [[before, tf.reduce_sum(sizes) - before - tf.size(payload)]])
            return sizes, context.all_reduce("SUM", whole)

        def run(payload: Any) -> Any:
            results = self.strategy.run(join, (payload,))
            return [self.strategy.experimental_local_results(result)[0] for result in results]

        return tf.function(run, input_signature=[tf.TensorSpec((None,), tf.float32)], autograph=False)

    def _deal(self, batch: Sequence[Any]) -> tuple[Any, ...]:
        """Deal the rows of this host's batch out to its replicas."""
        import tensorflow as tf

        count = self.local_replicas
        if count == 1:
            return tuple(batch)
        with tf.device("/CPU:0"):
            rows = tf.shape(batch[0])[0]
            cuts = [rows * place // count for place in range(count + 1)]
            parts = [[each[a:b] for a, b in itertools.pairwise(cuts)] for each in batch]
        distribute = self.strategy.experimental_distribute_values_from_function
        return tuple(
            distribute(lambda context, part=part: part[context.replica_id_in_sync_group % count])
            for part in parts
        )


def form_team(
    decision: Decision,
    hosts: Sequence[str],
    current_host: str,
    interface: str | None = None,
    *,
    stop: threading.Event | None = None,
    port: int = PORT,
    seconds: float = PEER_SECONDS,
) -> Team:
    """Bring together this host's GPUs, and all hosts; TensorFlow must have computed nothing before.

    Waits for the other hosts. Raises `TandemError` naming those that are missing after `seconds`, or when
    `stop` is set.
    """
    config = make_tf_config(hosts, current_host, port)
    if config is None:
        return Team(_make_local_strategy(decision), (current_host,), 0)
    found = peers.find_interface(interface)
    if found:
        os.environ["NCCL_SOCKET_IFNAME"] = found
    os.environ["TF_CONFIG"] = json.dumps(config)
    peers.await_peers(hosts, current_host, port, seconds, stop or threading.Event())
    import tensorflow as tf

    tf.get_logger().setLevel(logging.WARNING)  # else it has a line for each sum over the hosts
    peers.watch(len(hosts), seconds)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    team = Team(strategy, tuple(hosts), int(config["task"]["index"]))
    logger.info(
        "%s hosts of %s replica(s) each train together; this is %s of them, over the interface %s.",
        *(len(hosts), team.local_replicas, team.rank + 1, found or "that the system chooses"),
    )
    return team


def _make_local_strategy(decision: Decision) -> Any:
    """Give one replica for each GPU that TensorFlow has; one for the CPU."""
    import tensorflow as tf

    # Of several MIG devices TensorFlow sees one, so what it lists counts, not what was decided on.
    if decision.device == "gpu" and len(tf.config.get_visible_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

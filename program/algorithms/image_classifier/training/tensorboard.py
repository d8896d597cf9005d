"""Writes metrics as TensorBoard scalars with TensorFlow alone, without the package tensorboard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: How TensorBoard identifies scalars: the plugin's name, and DATA_CLASS_SCALAR of TensorFlow's summary.proto.
PLUGIN, DATA_CLASS = "scalars", 1


class Scalars:
    """Writes event files below `directory`, in the runs `training` and `validation`, which share charts.

    If the directory cannot be written it logs one warning and writes nothing more; the job goes on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, Any] = {}
        self._failed = False

    def observe(self, epoch: int, metrics: Mapping[str, float], network: Any) -> None:  # noqa: ARG002  # the signature
        """Write an epoch's metrics to disk; `val_loss` becomes `epoch_loss` of the run validation."""
        import tensorflow as tf

        if self._failed:
            return
        runs: dict[str, dict[str, float]] = {"training": {}, "validation": {}}
        for name, value in metrics.items():
            if name.startswith("val_"):
                runs["validation"][name.removeprefix("val_")] = value
            elif name != "epoch":
                runs["training"][name] = value
        try:
            for run, values in runs.items():
                self._write(run, epoch, values)
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            reason = getattr(error, "message", str(error))
            logger.warning(
                "TensorBoard scalars are no longer written, because %s cannot be written: %s",
                self.directory,
                reason,
            )

    def close(self) -> None:
        """Close the event files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _write(self, run: str, epoch: int, values: Mapping[str, float]) -> None:
        import tensorflow as tf

        if not values:
            return
        if run not in self._writers:
            self._writers[run] = tf.summary.create_file_writer(str(self.directory / run))
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=PLUGIN), data_class=DATA_CLASS
        )
        with self._writers[run].as_default():
            for name, value in values.items():
                # tf.summary.scalar would import the package tensorboard.
                tf.summary.write(
                    f"epoch_{name}", tf.constant(value, tf.float32), step=epoch, metadata=metadata
                )
        self._writers[run].flush()

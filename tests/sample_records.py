"""Records as other programs write them, and a process that feeds a job's FIFOs as SageMaker does."""

import io
import struct
import subprocess
import sys
from pathlib import Path

from tandem.records import recordio


def pack_image(label, image, number=0):
    """Return one record as MXNet's im2rec writes it."""
    return struct.pack("<IfQQ", 0, label, number, 0) + image


def frame(bodies):
    """Return RecordIO of these bodies."""
    file = io.BytesIO()
    for body in bodies:
        recordio.write_record(file, body)
    return file.getvalue()


def pack_images(pairs):
    """Return RecordIO of (label, image) pairs as im2rec writes a .rec file."""
    return frame(pack_image(label, image, number) for number, (label, image) in enumerate(pairs))


def pack_manifest(pairs):
    """Return the stream of an augmented manifest of (label, image) pairs: two records per entry."""
    return frame(part for label, image in pairs for part in (image, str(label).encode()))


def make_example(label, image, text=None):
    """Return a tf.train.Example with the feature names of TensorFlow Datasets."""
    import tensorflow as tf

    def values(*some):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=some))

    feature = {"image/encoded": values(image)}
    if label is not None:
        feature["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    if text is not None:
        feature["image/class/text"] = values(text.encode())
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_tfrecords(path, bodies, compression=""):
    """Write a TFRecord file with TensorFlow's own writer."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for body in bodies:
            writer.write(body)
    return path


def read_folder(folder, labels):
    """Return (label index, image) pairs of a folder of folders, with alternating labels."""
    found = [
        (place, number, path.read_bytes())
        for number, label in enumerate(labels)
        for place, path in enumerate(sorted((folder / label).iterdir()))
    ]
    return [(number, image) for _, number, image in sorted(found)]


#: Serves one FIFO after the other as SageMaker does: the next one appears when the last one is closed.
PLATFORM = """
import os, sys
channel, *contents = sys.argv[1:]
for number, content in enumerate(contents):
    os.mkfifo(f"{channel}_{number}")
    try:
        # Opening blocks until the FIFO is opened for reading.
        with open(f"{channel}_{number}", "wb") as fifo, open(content, "rb") as file:
            fifo.write(file.read())
    except BrokenPipeError:
        pass  # the reader closed the FIFO early
    os.unlink(f"{channel}_{number}")
    print(number, flush=True)
"""


class Feeder:
    """A process that writes each pass to its own FIFO, until the test ends or all are read."""

    def __init__(self, channel: Path, passes):
        self._channel = channel
        channel.parent.mkdir(parents=True, exist_ok=True)
        self._contents = []
        for number, content in enumerate(passes):
            self._contents.append(channel.with_name(f".{channel.name}-{number}"))
            self._contents[-1].write_bytes(content)

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", PLATFORM, self._channel, *self._contents], stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def finish(self):
        """Wait until all FIFOs are closed by the reader; return their number."""
        output, _ = self.process.communicate(timeout=30)
        return len(output.splitlines())

"""Records as other programs write them, and a platform that feeds a job's FIFOs."""

import io
import struct
import subprocess
import sys
from pathlib import Path

from tandem.records import recordio


def pack_image(label, picture, number=0):
    """Give one record as MXNet's im2rec packs it."""
    return struct.pack("<IfQQ", 0, label, number, 0) + picture


def frame(bodies):
    """Give RecordIO of these bodies."""
    file = io.BytesIO()
    for body in bodies:
        recordio.write_record(file, body)
    return file.getvalue()


def pack_images(pairs):
    """Give RecordIO of (label, picture) as im2rec writes a .rec file."""
    return frame(pack_image(label, picture, number) for number, (label, picture) in enumerate(pairs))


def pack_manifest(pairs):
    """Give the stream of an augmented manifest of (label, picture): two records an entry."""
    return frame(part for label, picture in pairs for part in (picture, str(label).encode()))


def make_example(label, picture, text=None):
    """Give a tf.train.Example with the names of features that TensorFlow's data sets have."""
    import tensorflow as tf

    def values(*some):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=some))

    feature = {"image/encoded": values(picture)}
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
    """Give (label's index, picture) of a folder of folders, the labels mixed."""
    found = [
        (place, number, path.read_bytes())
        for number, label in enumerate(labels)
        for place, path in enumerate(sorted((folder / label).iterdir()))
    ]
    return [(number, picture) for _, number, picture in sorted(found)]


#: Serves one FIFO after the other, as the platform does: the next appears when the last has been left.
PLATFORM = """
import os, sys
channel, *contents = sys.argv[1:]
for number, content in enumerate(contents):
    os.mkfifo(f"{channel}_{number}")
    try:
        with open(f"{channel}_{number}", "wb") as fifo, open(content, "rb") as file:  # waits for the reader
            fifo.write(file.read())
    except BrokenPipeError:
        pass  # the reader has had enough
    os.unlink(f"{channel}_{number}")
    print(number, flush=True)
"""


class Feeder:
    """A process that writes each pass into a FIFO of its own, until the test ends or all are read."""

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
        """Wait until all passes have been read or left; give how many there were."""
        said, _ = self.process.communicate(timeout=30)
        return len(said.splitlines())

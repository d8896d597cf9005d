"""Parse images with labels from records of MXNet, of TensorFlow, and of augmented manifests."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tandem.errors import ImageError, UserError
from tandem.images.headers import identify
from tandem.records import recordio, tfrecord

#: A channel's content type → its framing. With another content type the first bytes decide.
CONTENT_TYPES = {
    "application/x-recordio": "RecordIO",
    "application/x-tfrecord": "TFRecord",
    "application/tfrecord": "TFRecord",
}

#: Features of a tf.train.Example, of which the first present one is used; the names are TensorFlow Datasets'.
IMAGE_FEATURES = ("image/encoded", "image")
LABEL_FEATURES = ("image/class/label", "label")
TEXT_FEATURES = ("image/class/text", "label", "image/class/label")

#: The first bytes of a RecordIO record, which have its label; they also identify an image without a header.
LABEL_BYTES = 64

_IMAGE_RECORD = struct.Struct("<IfQQ")  # MXNet's IRHeader: flag, label, id, id2
_VALUE = struct.Struct("<f")


class Record(NamedTuple):
    """An encoded image and its label: a number from 0, or only a text and the number -1."""

    image: bytes
    label: int
    text: str = ""


def read_images(
    stream: io.BufferedReader, name: str, content_type: str = "", head: int | None = None
) -> Iterator[Record]:
    """Yield the images of a stream of RecordIO or TFRecord; `head` limits the bytes of RecordIO's records.

    Raises `UserError` naming the record if it has no image or no label, or if the content type and the first
    bytes disagree.
    """
    first = stream.peek(tfrecord.HEADER.size)[: tfrecord.HEADER.size]
    if not first:
        return
    framing = _find_framing(first, name, CONTENT_TYPES.get(content_type, ""))
    if framing == "TFRecord":
        for number, body in enumerate(tfrecord.read_records(stream, name)):
            yield _unpack_example(body, f"{name}: record {number}")
        return
    bodies = enumerate(recordio.read_records(stream, name, head=head))
    in_pairs = False
    for number, body in bodies:
        where = f"{name}: record {number}"
        in_pairs = in_pairs or (number == 0 and _is_image(body))
        if in_pairs:  # an augmented manifest: each attribute is a record
            _, label = next(bodies, (0, None))
            yield Record(body, _read_attribute(label, where))
        else:
            yield _unpack_image_record(body, where)


def count_images(stream: io.BufferedReader, name: str, content_type: str = "") -> int:
    """Count what `read_images` would yield from headers alone; raises as it does for what headers show."""
    if tfrecord.is_header(stream.peek(tfrecord.HEADER.size)[: tfrecord.HEADER.size]):
        return sum(1 for _ in tfrecord.read_records(stream, name, head=0))
    return sum(1 for _ in read_images(stream, name, content_type, head=LABEL_BYTES))


def _find_framing(first: bytes, name: str, declared: str) -> str:
    """Return the framing that the first bytes show; raise `UserError` if it is unknown or not as declared."""
    if first.startswith(recordio.MAGIC):
        found = "RecordIO"
    elif tfrecord.is_header(first):
        found = "TFRecord"
    elif _is_image(first):
        raise UserError(
            f"{name} is a series of images with nothing between them, so they cannot be separated; use an "
            "augmented manifest with RecordWrapperType RecordIO, pack them into RecordIO or TFRecord, or set "
            "TrainingInputMode to File or FastFile."
        )
    else:
        raise UserError(
            f"{name} begins with {first!r}, which is neither RecordIO nor TFRecord; expected images and "
            "labels packed by MXNet's im2rec, as tf.train.Example, or wrapped by an augmented manifest."
        )
    if declared and declared != found:
        raise UserError(f"{name} is {found}, but its channel's ContentType says {declared}; correct either.")
    return found


def _is_image(body: bytes) -> bool:
    try:
        identify(body)
    except ImageError:
        return False
    return True


def _unpack_image_record(body: bytes, where: str) -> Record:
    """Unpack a record of MXNet's im2rec: a header with the label, then the image."""
    if body.startswith(recordio.MAGIC) or tfrecord.is_header(body[: tfrecord.HEADER.size]):
        raise UserError(
            f"{where} contains records itself: the channel's RecordWrapperType wrapped a file that already "
            "has records; set it to None."
        )
    if len(body) < _IMAGE_RECORD.size:
        raise UserError(f"{where} has {len(body)} bytes, too few for the header that MXNet's im2rec writes.")
    flag, label, _, _ = _IMAGE_RECORD.unpack_from(body)
    start = _IMAGE_RECORD.size
    if flag == 1 and len(body) >= start + _VALUE.size:
        (label,) = _VALUE.unpack_from(body, start)
        start += _VALUE.size
    elif flag:
        raise UserError(
            f"{where} has {flag} labels according to its header, expected one; if MXNet's im2rec did not "
            "write it, pack the images with im2rec, as TFRecord, or wrap them by an augmented manifest."
        )
    return Record(body[start:], _to_label(label, where))


def _read_attribute(body: bytes | None, where: str) -> int:
    """Read the label that follows an image of an augmented manifest; JSON, as in the manifest."""
    expected = "expected its label after it, as AttributeNames [image, label] in this order gives"
    if body is None:
        raise UserError(f"{where} is an image, and nothing follows; {expected}.")
    try:
        value = json.loads(body)
        if isinstance(value, str):
            value = json.loads(value)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is an image, and {body[:40]!r} follows; {expected}, a number from 0.")
    return _to_label(value, where)


def _unpack_example(body: bytes, where: str) -> Record:
    """Unpack a tf.train.Example."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        features = tf.train.Example.FromString(body).features.feature
    except DecodeError as error:
        raise UserError(f"{where} is not a tf.train.Example: {error}.") from error
    image = _find_value(features, IMAGE_FEATURES, "bytes_list")
    if not isinstance(image, bytes):
        raise UserError(
            f"{where} has no image: expected its file's bytes in the feature "
            f"{' or '.join(IMAGE_FEATURES)}, found {', '.join(sorted(features)[:10]) or 'no feature'}."
        )
    number = _find_value(features, LABEL_FEATURES, "int64_list")
    if number is None:
        number = _find_value(features, LABEL_FEATURES, "float_list")
    text = _find_value(features, TEXT_FEATURES, "bytes_list") or b""
    if number is None and not text:
        raise UserError(
            f"{where} has no label: expected a number in the feature {' or '.join(LABEL_FEATURES)}, or a "
            f"text in {TEXT_FEATURES[0]}; found the features {', '.join(sorted(features)[:10])}."
        )
    label = -1 if number is None else _to_label(number, where)
    return Record(image, label, text.decode("utf-8", "replace"))


def _find_value(features: Mapping[str, Any], names: tuple[str, ...], kind: str) -> Any:
    """Return the value of the first feature that has exactly one value of this kind, or None."""
    for name in names:
        if name in features and len(values := getattr(features[name], kind).value) == 1:
            return values[0]
    return None


def _to_label(value: float, where: str) -> int:
    if not 0 <= value < 1 << 63 or value != int(value):  # JSON has integers of any length
        raise UserError(f"{where} has the label {str(value)[:40]}; expected an integer from 0.")
    return int(value)

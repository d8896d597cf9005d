"""Pictures with their labels in streams of records: MXNet's, TensorFlow's, and augmented manifests'."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tandem.errors import ImageError, UserError
from tandem.images.headers import identify
from tandem.records import recordio, tfrecord

#: A channel's content type → how its records are framed. Others say nothing of records; the first bytes do.
CONTENT_TYPES = {
    "application/x-recordio": "RecordIO",
    "application/x-tfrecord": "TFRecord",
    "application/tfrecord": "TFRecord",
}

#: Features of a tf.train.Example, the first that is there; names as TensorFlow's own data sets have them.
PICTURE_FEATURES = ("image/encoded", "image")
LABEL_FEATURES = ("image/class/label", "label")
TEXT_FEATURES = ("image/class/text", "label", "image/class/label")

#: Bytes of a RecordIO record in which its label stands; a picture alone says in as many what it is.
LABEL_BYTES = 64

_IMAGE_RECORD = struct.Struct("<IfQQ")  # MXNet's IRHeader: flag, label, id, id2
_VALUE = struct.Struct("<f")


class Record(NamedTuple):
    """A picture as it lay on disk, and its label: a number from 0, or only its text and the number -1."""

    picture: bytes
    label: int
    text: str = ""


def read_pictures(
    stream: io.BufferedReader, name: str, content_type: str = "", head: int | None = None
) -> Iterator[Record]:
    """Yield the pictures of a stream of RecordIO or TFRecord; with `head` only so many bytes of RecordIO's.

    Raises `UserError` naming the record where it has no picture or no label, and where the content type and
    the first bytes disagree.
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
        in_pairs = in_pairs or (number == 0 and _is_picture(body))
        if in_pairs:  # an augmented manifest's: each attribute is a record
            _, label = next(bodies, (0, None))
            yield Record(body, _read_attribute(label, where))
        else:
            yield _unpack_image_record(body, where)


def count_pictures(stream: io.BufferedReader, name: str, content_type: str = "") -> int:
    """Count what `read_pictures` would yield, by headers alone; raises as it does, for what they show."""
    if tfrecord.is_header(stream.peek(tfrecord.HEADER.size)[: tfrecord.HEADER.size]):
        return sum(1 for _ in tfrecord.read_records(stream, name, head=0))
    return sum(1 for _ in read_pictures(stream, name, content_type, head=LABEL_BYTES))


def _find_framing(first: bytes, name: str, declared: str) -> str:
    """Tell the framing from the first bytes, and refuse what is none or not the one declared."""
    if first.startswith(recordio.MAGIC):
        found = "RecordIO"
    elif tfrecord.is_header(first):
        found = "TFRecord"
    elif _is_picture(first):
        raise UserError(
            f"{name} is a row of pictures with nothing between them, so they cannot be told apart; use an "
            "augmented manifest with RecordWrapperType RecordIO, pack them into RecordIO or TFRecord, or set "
            "TrainingInputMode to File or FastFile."
        )
    else:
        raise UserError(
            f"{name} begins with {first!r}, which is neither RecordIO nor TFRecord; expected pictures and "
            "labels packed by MXNet's im2rec, as tf.train.Example, or wrapped by an augmented manifest."
        )
    if declared and declared != found:
        raise UserError(f"{name} is {found}, but its channel's ContentType says {declared}; correct either.")
    return found


def _is_picture(body: bytes) -> bool:
    try:
        identify(body)
    except ImageError:
        return False
    return True


def _unpack_image_record(body: bytes, where: str) -> Record:
    """Take apart what MXNet's im2rec packs: a header with the label, then the picture."""
    if body.startswith(recordio.MAGIC) or tfrecord.is_header(body[: tfrecord.HEADER.size]):
        raise UserError(
            f"{where} holds records itself: the channel's RecordWrapperType wrapped a file that is framed "
            "already; set it to None."
        )
    if len(body) < _IMAGE_RECORD.size:
        raise UserError(f"{where} has {len(body)} bytes, too few for MXNet's header of an image record.")
    flag, label, _, _ = _IMAGE_RECORD.unpack_from(body)
    start = _IMAGE_RECORD.size
    if flag == 1 and len(body) >= start + _VALUE.size:
        (label,) = _VALUE.unpack_from(body, start)
        start += _VALUE.size
    elif flag:
        raise UserError(
            f"{where} says it has {flag} labels, expected one; if it is no record of MXNet's im2rec, pack "
            "the pictures with that, as TFRecord, or wrap them by an augmented manifest."
        )
    return Record(body[start:], _to_label(label, where))


def _read_attribute(body: bytes | None, where: str) -> int:
    """Read the label that follows a picture of an augmented manifest, JSON as the manifest has it."""
    expected = "expected its label after it, as AttributeNames [picture, label] in this order gives"
    if body is None:
        raise UserError(f"{where} is a picture, and nothing follows; {expected}.")
    try:
        value = json.loads(body)
        if isinstance(value, str):
            value = json.loads(value)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is a picture, and {body[:40]!r} follows; {expected}, a number from 0.")
    return _to_label(value, where)


def _unpack_example(body: bytes, where: str) -> Record:
    """Take apart a tf.train.Example."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        features = tf.train.Example.FromString(body).features.feature
    except DecodeError as error:
        raise UserError(f"{where} is no tf.train.Example: {error}.") from error
    picture = _find_value(features, PICTURE_FEATURES, "bytes_list")
    if not isinstance(picture, bytes):
        raise UserError(
            f"{where} has no picture: expected its file's bytes in the feature "
            f"{' or '.join(PICTURE_FEATURES)}, found {', '.join(sorted(features)[:10]) or 'no feature'}."
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
    return Record(picture, label, text.decode("utf-8", "replace"))


def _find_value(features: Mapping[str, Any], names: tuple[str, ...], kind: str) -> Any:
    """Give the only value of the first feature that has one of this kind; None without one."""
    for name in names:
        if name in features and len(values := getattr(features[name], kind).value) == 1:
            return values[0]
    return None


def _to_label(value: float, where: str) -> int:
    if not 0 <= value < 1 << 63 or value != int(value):  # JSON has whole numbers of any length
        raise UserError(f"{where} has the label {str(value)[:40]}; expected a whole number from 0.")
    return int(value)

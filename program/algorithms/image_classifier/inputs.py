"""Request bodies become rows: pictures in any of the content types, read as in training."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tandem import formats
from tandem.errors import PayloadTooLarge, UnsupportedMediaType, UserError
from tandem.images import codec
from tandem.images.codec import Preprocessing

Pixels = np.ndarray[Any, np.dtype[Any]]

#: Names under which an instance may hold its base64 text.
KEYS = ("b64", "image")

#: What the rows of one request may take; however small a picture is, its row has the network's size.
MAX_BYTES = 1 << 28


def read_pictures(body: bytes, content_type: str, spec: Preprocessing) -> Pixels:
    """Give the rows (n, *spec.shape) of a request body in one of `CONTENT_TYPES`.

    Raises `UserError` naming the instance that cannot be read, and `UnsupportedMediaType`.
    """
    media_type = formats.name_media_type(content_type)
    read = READERS.get("image/*" if media_type.startswith("image/") else media_type)
    if read is None:
        raise UnsupportedMediaType(
            f"content type {media_type!r} cannot be read; expected one of: {', '.join(READERS)}."
        )
    return read(body, spec)


def _read_picture(body: bytes, spec: Preprocessing) -> Pixels:
    return codec.preprocess(codec.decode(body), spec)[np.newaxis]


def _read_json(body: bytes, spec: Preprocessing) -> Pixels:
    document = _parse(body, "the body")
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise UserError('the body is JSON without a list of instances; expected {"instances": [...]}.')
    return _read_instances(document["instances"], spec)


def _read_json_lines(body: bytes, spec: Preprocessing) -> Pixels:
    lines = [line for line in body.split(b"\n") if line.strip()]
    return _read_instances((_parse(line, f"line {number}") for number, line in enumerate(lines, 1)), spec)


def _read_npy(body: bytes, spec: Preprocessing) -> Pixels:
    array = np.asarray(formats.decode_rows(body, formats.NPY))
    if not 2 <= array.ndim <= 4:
        raise UserError(f"the array is {array.shape}; expected (h, w), (h, w, c), (n, h, w) or (n, h, w, c).")
    # (n, h, w) and (h, w, c) look alike: a last axis of 1 or 3 is color.
    one = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    return _read_instances([array] if one else list(array), spec)


def _read_instances(instances: Iterable[Any], spec: Preprocessing) -> Pixels:
    rows: list[Pixels] = []
    most = max(1, MAX_BYTES // (math.prod(spec.shape) * np.dtype(spec.dtype).itemsize))
    for index, instance in enumerate(instances):
        if index == most:
            raise PayloadTooLarge(f"the body holds more than {most} pictures; send them in several requests.")
        try:
            rows.append(codec.preprocess(_read_instance(instance), spec))
        except UserError as error:
            error.args = (f"instance {index}: {error}",)  # its kind and status stay as they are
            raise
    if not rows:
        raise UserError("the body holds no instance; expected one or more pictures.")
    return np.stack(rows)


def _read_instance(instance: Any) -> Pixels:
    if isinstance(instance, dict):
        instance = next((instance[key] for key in KEYS if key in instance), None)
        if not isinstance(instance, str):
            raise UserError('an object without a base64 text; expected {"b64": "…"} or {"image": "…"}.')
    if isinstance(instance, str):
        return codec.decode(_decode_base64(instance))
    if not isinstance(instance, list | np.ndarray):
        raise UserError(
            f"got {type(instance).__name__}; expected a base64 text, an object with one, or nested lists."
        )
    return codec.from_array(instance)


def _decode_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            f"a text that is not base64 ({error}); expected the picture's file in base64."
        ) from error


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}.") from error


READERS: dict[str, Callable[[bytes, Preprocessing], Pixels]] = {
    "image/*": _read_picture,
    "application/x-image": _read_picture,
    "application/octet-stream": _read_picture,
    formats.JSON: _read_json,
    formats.JSON_LINES: _read_json_lines,
    formats.NPY: _read_npy,
}

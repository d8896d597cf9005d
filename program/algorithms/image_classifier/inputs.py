"""Decodes request bodies to rows: images in any of the content types, preprocessed as in training."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tandem import formats
from tandem.errors import PayloadTooLarge, UnsupportedMediaType, UserError
from tandem.images import codec
from tandem.images.codec import Preprocessing

Pixels = np.ndarray[Any, np.dtype[Any]]

#: The content types whose body is one encoded image.
IMAGE_TYPES = ("image/*", "application/x-image", "application/octet-stream")

#: The content types of requests.
CONTENT_TYPES = (*IMAGE_TYPES, formats.JSON, formats.JSON_LINES, formats.NPY)

#: Keys under which an instance may have its base64 text.
BASE64_KEYS = ("b64", "image")

#: The maximum size of a request's rows; even the smallest image becomes a row of the network's input size.
MAX_BYTES = 1 << 28


def read_images(body: bytes, content_type: str, spec: Preprocessing) -> Pixels:
    """Return the rows (n, *spec.shape) of a request body in one of `CONTENT_TYPES`.

    Raises `UserError` naming the invalid instance, and `UnsupportedMediaType`.
    """
    media_type = formats.name_media_type(content_type)
    if media_type.startswith("image/") or media_type in IMAGE_TYPES:
        return codec.preprocess(codec.decode(body), spec)[np.newaxis]
    if media_type == formats.JSON:
        return _preprocess(_read_json(body), spec)
    if media_type == formats.JSON_LINES:
        lines = (line for line in body.split(b"\n") if line.strip())
        return _preprocess((_parse(line, f"line {number}") for number, line in enumerate(lines, 1)), spec)
    if media_type == formats.NPY:
        return _preprocess(_read_npy(body), spec)
    raise UnsupportedMediaType(
        f"content type {media_type!r} cannot be read; expected one of: {', '.join(CONTENT_TYPES)}."
    )


def _read_json(body: bytes) -> list[Any]:
    document = _parse(body, "the body")
    if not isinstance(document, dict) or not isinstance(document.get("instances"), list):
        raise UserError('the body is JSON without a list of instances; expected {"instances": [...]}.')
    return list(document["instances"])


def _read_npy(body: bytes) -> list[Pixels]:
    array = np.asarray(formats.decode_rows(body, formats.NPY))
    if not 2 <= array.ndim <= 4:
        raise UserError(f"the array is {array.shape}; expected (h, w), (h, w, c), (n, h, w) or (n, h, w, c).")
    # (n, h, w) and (h, w, c) look alike: a last axis of 1 or 3 is color.
    is_single = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    return [array] if is_single else list(array)


def _preprocess(instances: Iterable[Any], spec: Preprocessing) -> Pixels:
    rows: list[Pixels] = []
    max_rows = max(1, MAX_BYTES // (math.prod(spec.shape) * np.dtype(spec.dtype).itemsize))
    for index, instance in enumerate(instances):
        if index == max_rows:
            raise PayloadTooLarge(f"the body has more than {max_rows} images; send them in several requests.")
        try:
            rows.append(codec.preprocess(_decode_instance(instance), spec))
        except UserError as error:
            error.args = (f"instance {index}: {error}",)  # keeps the error's kind and status
            raise
    if not rows:
        raise UserError("the body has no instance; expected one or more images.")
    return np.stack(rows)


def _decode_instance(instance: Any) -> Pixels:
    if isinstance(instance, dict):
        instance = next((instance[key] for key in BASE64_KEYS if key in instance), None)
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
            f"a text that is not base64 ({error}); expected the image's file in base64."
        ) from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}.") from error

"""Media types, and the default formats of requests' and answers' rows.

Rows are an array whose first axis counts them, or a list with one item per row.
"""

import contextlib
import csv
import functools
import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import dump_options_header, parse_accept_header, parse_options_header

from tandem.errors import ModelError, NotAcceptable, UnsupportedMediaType, UserError

Rows = NDArray[Any] | Sequence[Any]

JSON = "application/json"
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
NPY = "application/x-npy"
SYNONYMS = dict.fromkeys(("application/x-jsonlines", "application/jsons", "application/x-ndjson"), JSON_LINES)
# A closed list, because some of Python's codecs take quadratic time.
CHARSETS = ("utf-8", "utf8", "us-ascii", "utf-16", "iso-8859-1", "iso-8859-15", "latin1", "windows-1252")
CACHED_HEADERS = 64  # callers send the same few headers again and again
NUMERIC = "biufc"  # NumPy's kinds of numbers
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
NPY_FAULTS = (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def parse_media_type(header: str | None) -> tuple[str, dict[str, str]]:
    """Return a header's media type, in lower case and by its usual name, and its parameters.

    The media type of an empty or missing header is "".
    """
    media_type, parameters = parse_options_header(header)
    media_type = media_type.strip().lower()
    return SYNONYMS.get(media_type, media_type), parameters


@functools.lru_cache(CACHED_HEADERS)
def canonical_media_type(header: str | None) -> str:
    """Return the header with its media type as `parse_media_type` spells it and its parameters."""
    return dump_options_header(*parse_media_type(header))


def name_media_type(header: str | None) -> str:
    """Return the header's media type as `parse_media_type` spells it, without parameters."""
    return canonical_media_type(header).partition(";")[0]


@functools.lru_cache(CACHED_HEADERS)
def negotiate(accept: str | None, offered: tuple[str, ...], default: str) -> str:
    """Return the offered media type that fits an `Accept` header best, as `offered` spells it.

    A missing header gets the default. Of types with the same quality, one named in full comes before one
    that a wildcard matches, then the default, then the order of `offered`. Parameters are ignored.
    Raises NotAcceptable if no type fits.
    """
    ordered = sorted(offered, key=lambda kind: name_media_type(kind) != name_media_type(default))
    accept = (accept or "").replace("q=.", "q=0.")  # Java's default header has the short form
    if not accept.strip(" ,"):
        return ordered[0]
    ranges = [(name_media_type(item), quality) for item, quality in parse_accept_header(accept, MIMEAccept)]
    fits = {kind: _find_fit(name_media_type(kind), ranges) for kind in ordered}
    best = max(ordered, key=fits.__getitem__)
    if fits[best][0] == 0:
        raise NotAcceptable(f"Accept is {accept!r:.200}; this model can answer with {', '.join(offered)}.")
    return best


def decode_rows(body: bytes, content_type: str) -> Rows:
    """Return the rows of a request's body: CSV of numbers and NPY as an array, anything else as a list.

    Raises UnsupportedMediaType for other types and unknown charsets, UserError for a body that is not of its
    type or has no rows.
    """
    media_type, parameters = parse_media_type(content_type)
    if media_type not in DECODERS:
        raise UnsupportedMediaType(
            f"the Content-Type {content_type!r:.200} cannot be read; expected one of {', '.join(DECODERS)}."
        )
    rows = DECODERS[media_type](body, parameters) if body else ()
    if len(rows) == 0:
        raise UserError(f"the request's body holds no rows; expected {media_type} with at least one.")
    return rows


def encode_rows(prediction: Any, accept: str) -> bytes:
    """Return the prediction's rows in the negotiated media type.

    Text does not end in a newline: batch transform's `AssembleWith: Line` adds it. NaN and infinities are
    null in JSON. Raises NotAcceptable for rows that the type cannot represent, ModelError if there are none.
    """
    encode = ENCODERS.get(name_media_type(accept))
    if encode is None:
        raise NotAcceptable(f"{accept!r:.200} cannot be written; expected one of {', '.join(ENCODERS)}.")
    if not isinstance(prediction, list | tuple) and hasattr(prediction, "__array__"):
        prediction = np.asarray(prediction)  # a framework's tensor, a data frame
    if not isinstance(prediction, list | tuple | np.ndarray) or getattr(prediction, "ndim", 1) == 0:
        raise ModelError(
            f"predict_fn returned a {type(prediction).__name__}; expected an array or list of rows."
        )
    return encode(prediction)


def _find_fit(media_type: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Return the quality and the specificity of the most specific range that matches a type."""
    patterns = {media_type: 2, f"{media_type.partition('/')[0]}/*": 1, "*/*": 0, "*": 0}
    specificity, quality = max(((patterns[n], q) for n, q in ranges if n in patterns), default=(0, 0.0))
    return quality, specificity


def _text(body: bytes, parameters: Mapping[str, str]) -> str:
    charset = parameters.get("charset", "utf-8").lower()
    if charset not in CHARSETS:
        raise UnsupportedMediaType(f"the charset {charset!r:.60} is not known; send UTF-8.")
    try:
        return body.decode(charset).removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")  # a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"the body is not text in {charset}: {error.reason} at byte {error.start}."
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where} is JSON that is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.") from error


def _decode_json(body: bytes, parameters: Mapping[str, str]) -> Rows:
    value = _parsed(_text(body, parameters), "the body")
    rows = value.get("instances") if isinstance(value, dict) else value
    if isinstance(rows, list):
        return rows
    found = f"an object with the keys {list(value)}" if isinstance(value, dict) else json.dumps(value)
    raise UserError(f'the JSON body is {found:.200}; expected {{"instances": [...]}} or a bare list of rows.')


def _decode_json_lines(body: bytes, parameters: Mapping[str, str]) -> Rows:
    lines = enumerate(_text(body, parameters).split("\n"), 1)  # strings in JSON may contain other line ends
    return [_parsed(line, f"line {number} of the body") for number, line in lines if line.strip()]


def _decode_csv(body: bytes, parameters: Mapping[str, str]) -> Rows:
    """Return a float64 array of (rows, columns), or lists of texts if a cell is not a number."""
    reader = csv.reader(io.StringIO(_text(body, parameters), newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        for row in filter(None, reader):
            rows.append(row)
            if len(row) != len(rows[0]):
                raise UserError(
                    f"line {reader.line_num} of the CSV has {len(row)} columns; "
                    f"expected {len(rows[0])}, as in the first row."
                )
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of the body is not CSV: {error}.") from error
    if parameters.get("header", "").lower() == "present":
        del rows[:1]
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        return rows


def _decode_npy(body: bytes, _parameters: Mapping[str, str]) -> Rows:
    """Return the array. Nothing is unpickled, and memory is allocated only if the header fits the body."""
    stream = io.BytesIO(body)
    try:
        shape, fortran, dtype = NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except NPY_FAULTS as error:
        raise UserError(f"the body is not an NPY file of version 1 or 2: {error!s:.200}.") from error
    if dtype.kind not in NUMERIC:
        raise UserError(f"the NPY body holds values of type {dtype!s:.60}; expected numbers.")
    if not 1 <= len(shape) <= 32 or min(shape) < 1:
        raise UserError(f"the NPY body has the shape {shape!s:.60}; expected (rows, ...), none of them 0.")
    given = len(body) - stream.tell()
    if math.prod(shape) * dtype.itemsize != given:
        raise UserError(
            f"the NPY body has the shape {shape!s:.60} of {dtype}, which its {given} bytes after the header "
            "do not match: the body is cut short, or data follows the array."
        )
    array = np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C")  # a copy: the body's own memory is read-only


def _dumped(value: Any) -> str:
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # most values are plain already
        return _ENCODER.encode(value)
    try:
        return _ENCODER.encode(_plain(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"predict_fn returned a value that JSON cannot hold: {error}.") from error


def _plain(value: Any) -> Any:
    """Return the value without NumPy's types, and with None for numbers that JSON does not have."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "biu" or (value.dtype.kind == "f" and np.isfinite(value).all()):
            return value.tolist()
        value = value.tolist()
    if isinstance(value, dict):
        return {key.item() if isinstance(key, np.generic) else key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _plain(np.asarray(value)) if hasattr(value, "__array__") else value


def _encode_csv(rows: Rows) -> bytes:
    echo: Any = SimpleNamespace(write=str)  # makes `writerow` return its line
    writer = csv.writer(echo)  # its lines end in \r\n: only then every version of Python quotes both
    return _encoded("\n".join(writer.writerow(_cells(row)).removesuffix("\r\n") for row in rows))


def _cells(row: Any) -> list[Any]:
    cells = np.atleast_1d(row).tolist() if isinstance(row, np.ndarray) else row
    cells = cells if isinstance(cells, list | tuple) else [cells]
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    if not all(cell is None or isinstance(cell, str | int | float) for cell in cells):
        raise NotAcceptable(f"a row of the prediction is not a flat list; ask for {JSON}, not {CSV}.")
    return cells


def _encode_npy(rows: Rows) -> bytes:
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise NotAcceptable(f"the prediction's rows differ in shape; ask for {JSON}, not {NPY}.") from error
    if array.dtype.kind not in NUMERIC:
        raise NotAcceptable(f"the prediction's rows are not all numbers; ask for {JSON}, not {NPY}.")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # writes a lone surrogate as JSON's own escape


DECODERS: dict[str, Callable[[bytes, Mapping[str, str]], Rows]] = {
    JSON: _decode_json,
    JSON_LINES: _decode_json_lines,
    CSV: _decode_csv,
    NPY: _decode_npy,
}
ENCODERS: dict[str, Callable[[Rows], bytes]] = {
    JSON: lambda rows: _encoded(_dumped({"predictions": rows})),
    JSON_LINES: lambda rows: _encoded("\n".join(map(_dumped, rows))),
    CSV: _encode_csv,
    NPY: _encode_npy,
}

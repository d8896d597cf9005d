"""Decoding of images, and the preprocessing that training and serving share as data."""

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.errors import ImageError, UserError
from tandem.images.headers import read_header
from tandem.images.limits import MAX_PIXELS, check_bytes, check_size

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

Pixels = npt.NDArray[np.uint8]

# OpenCV's methods for sides that shrink and for sides that grow, by name.
_INTERPOLATIONS = {
    "area_or_cubic": ("INTER_AREA", "INTER_CUBIC"),
    "area_or_linear": ("INTER_AREA", "INTER_LINEAR"),
    "nearest": ("INTER_NEAREST", "INTER_NEAREST"),
}
_COLOR_ORDERS = {"RGB": 3, "BGR": 3, "GRAY": 1}
_RESIZES = ("stretch", "pad", "crop")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a row, as data that is stored with the model.

    `resize`: "stretch" ignores the proportions, "pad" keeps them with black bars, "crop" keeps them and cuts
    the longer side; both center the image. `interpolation` names one method for sides that shrink and one
    for sides that grow. Then each value becomes value * scale + offset. Wrong values raise UserError.
    """

    height: int
    width: int
    channels: int = 3
    color_order: str = "RGB"
    resize: str = "stretch"
    interpolation: str = "area_or_cubic"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        colors = _COLOR_ORDERS.get(str(self.color_order))
        allowed: dict[str, tuple[bool, str]] = {
            "height": (_is_size(self.height), "a positive integer"),
            "width": (_is_size(self.width), "a positive integer"),
            "color_order": (colors is not None, "RGB, BGR or GRAY"),
            "channels": (
                _is_size(self.channels) and self.channels == colors,
                "3 for RGB and BGR, 1 for GRAY",
            ),
            "resize": (self.resize in _RESIZES, ", ".join(_RESIZES)),
            "interpolation": (str(self.interpolation) in _INTERPOLATIONS, ", ".join(_INTERPOLATIONS)),
            "scale": (_is_finite(self.scale) and self.scale != 0, "a number other than 0"),
            "offset": (_is_finite(self.offset), "a number"),
        }
        for name, (valid, expected) in allowed.items():
            if not valid:
                raise UserError(f"preprocessing: {name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a row: height, width, channels."""
        return self.height, self.width, self.channels

    @property
    def dtype(self) -> str:
        """The type of a row's values: uint8 if pixels stay unchanged, else float32."""
        return "uint8" if self.scale == 1 and self.offset == 0 else "float32"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON for the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """Read the output of `as_dict`; raise UserError for a missing, unknown or wrong entry."""
        known = {entry.name for entry in fields(cls)}
        if data.keys() != known:
            raise UserError(
                f"preprocessing has the entries {', '.join(sorted(map(str, data)))}; "
                f"expected {', '.join(sorted(known))}"
            )
        return cls(**data)


def decode(body: bytes) -> Pixels:
    """Decode an image file to RGB, uint8 (height, width, 3), upright by its EXIF orientation.

    Grey and palette images become RGB, 16 bits per channel become 8, CMYK is converted, an alpha channel is
    dropped, and only the first page or frame is read. Bytes after a complete image are ignored.
    Raises ImageError, whose `kind` is one of `IMAGE_REFUSALS`.
    """
    kind, width, height, needed = read_header(body)
    cv2 = _cv2()
    try:
        decoded = cv2.imdecode(np.frombuffer(needed, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        decoded = None
    if decoded is None or decoded.shape not in ((height, width, 3), (width, height, 3)):
        raise ImageError(
            "image_damaged",
            f"the {kind} image of {width} x {height} pixels is damaged or of an unsupported kind",
        )
    return np.asarray(decoded, dtype=np.uint8)


def read(path: Path) -> Pixels:
    """Decode the image in a file as `decode` does; a file that is too large is not read.

    The size comes from the open file: on a file system that streams from S3, a look-up by name is a request.
    """
    with path.open("rb", buffering=0) as file:
        check_bytes(os.fstat(file.fileno()).st_size)
        body = file.readall()
    return decode(body)


def from_array(array: npt.ArrayLike) -> Pixels:
    """Return an array of (h, w), (h, w, 1) or (h, w, 3), 0 to 255, as an RGB image: uint8 (h, w, 3).

    Values are rounded. Values scaled to 0..1 are rejected; as pixels they would be black.
    """
    try:
        values = np.asarray(array)
    except ValueError as error:  # rows of different lengths
        raise UserError("the rows of the array differ in length; expected (height, width, 3)") from error
    if values.ndim == 2:
        values = values[..., np.newaxis]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or not values.size:
        raise UserError(
            f"the array has the shape {np.shape(array)}; expected (height, width), (…, 1) or (…, 3)"
        )
    check_size("array's", values.shape[1], values.shape[0])
    if values.dtype != np.uint8:
        values = _to_bytes(values)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def preprocess(image: Pixels, spec: Preprocessing) -> npt.NDArray[Any]:
    """Return an RGB image, uint8 (h, w, 3), as a contiguous row of `spec.shape` and `spec.dtype`."""
    cv2 = _cv2()
    if spec.color_order == "GRAY":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    elif spec.color_order == "BGR":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    row = np.ascontiguousarray(_fit(image, spec)).reshape(spec.shape)
    if spec.dtype == "uint8":
        return row
    return row.astype(np.float32) * np.float32(spec.scale) + np.float32(spec.offset)


def _fit(image: Pixels, spec: Preprocessing) -> Pixels:
    """Return an image in the size and by the rule of `spec`."""
    height, width = image.shape[:2]
    if spec.resize == "stretch":
        return _resize(image, spec.height, spec.width, spec.interpolation)
    pick = min if spec.resize == "pad" else max
    factor = pick(spec.height / height, spec.width / width)
    tall, wide = max(1, round(height * factor)), max(1, round(width * factor))
    image = _resize(image, tall, wide, spec.interpolation)
    top, left = abs(spec.height - tall) // 2, abs(spec.width - wide) // 2
    if spec.resize == "crop":
        return image[top : top + spec.height, left : left + spec.width]
    canvas = np.zeros((spec.height, spec.width, *image.shape[2:]), np.uint8)
    canvas[top : top + tall, left : left + wide] = image
    return canvas


def _resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Resize in two steps: averaging areas is only right for sides that shrink."""
    cv2 = _cv2()
    shrink, grow = (getattr(cv2, name) for name in _INTERPOLATIONS[interpolation])
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    if smaller != image.shape[1::-1]:
        image = cv2.resize(image, smaller, interpolation=shrink)
    if smaller != (width, height):
        image = cv2.resize(image, (width, height), interpolation=grow)
    return image


def _to_bytes(values: npt.NDArray[Any]) -> Pixels:
    if values.dtype.kind not in "uif" or not (
        np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255
    ):
        raise UserError(f"the array's values of type {values.dtype} are not all numbers from 0 to 255")
    rounded = np.rint(values)
    if values.max() <= 1 and (rounded != values).any():
        raise UserError("the array's values are between 0 and 1; expected unscaled pixels from 0 to 255")
    pixels: Pixels = rounded.astype(np.uint8)
    return pixels


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


@functools.cache
def _cv2() -> Any:
    """Import OpenCV, without log lines and threads of its own: callers decode in parallel already."""
    os.environ.setdefault(
        "OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS)
    )  # the same limit where OpenCV allocates
    import cv2  # noqa: PLC0415 - it takes 0.15 s, and not every process decodes images

    cv2.setNumThreads(1)
    # The function's name differs in OpenCV 4, which the CUDA 11 image has; 0 is silent in both.
    (cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)
    return cv2

"""Limits on what one image may cost, checked against its header."""

from tandem.errors import ImageError

MAX_PIXELS = 100_000_000  # 300 MB decoded; twice what phones take
MAX_BYTES = 4 * MAX_PIXELS  # the largest image, uncompressed and with an alpha channel
MAX_SIDE = 65_500  # the maximum of JPEG
MAX_PROPORTION = 100  # "crop" scales the shorter side first: at 100:1, 1024 rows take 300 MB
MAX_FRAMES = 1000  # only the first is used; a file with more is a video sent by mistake
MAX_PARTS = 65_536  # each costs half a microsecond: 30 ms
MAX_SCANS = 100  # a progressive JPEG has about 10; each one passes over all pixels


def check_bytes(count: int) -> None:
    """Raise ImageError if a file has more bytes than an image within the limits needs."""
    if count > MAX_BYTES:
        raise ImageError(
            "image_too_large", f"the image has {count} bytes, the limit is {MAX_BYTES}: compress it"
        )


def check_size(kind: str, width: int, height: int) -> None:
    """Raise ImageError for an image without pixels, with too many, or with one side too long."""
    size = f"{width} x {height} pixels"
    if width <= 0 or height <= 0:
        raise ImageError("image_damaged", f"the {kind} image is damaged: its header says {size}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "image_too_large",
            f"the {kind} image has {size}, the limit is {MAX_PIXELS} in total: scale it down",
        )
    longer, shorter = max(width, height), min(width, height)
    if longer > MAX_SIDE or longer > MAX_PROPORTION * shorter:
        raise ImageError(
            "image_out_of_proportion",
            f"the {kind} image has {size}; the longer side may have at most {MAX_SIDE} pixels and "
            f"{MAX_PROPORTION} times the shorter side: cut it into pieces",
        )


def check_frames(kind: str, count: int) -> None:
    """Raise ImageError for a file with too many frames or pages."""
    if count > MAX_FRAMES:
        raise ImageError(
            "image_too_many_frames",
            f"the {kind} image has more than {MAX_FRAMES} frames or pages: send a single one",
        )


def check_parts(kind: str, count: int) -> None:
    """Raise ImageError for a file with more parts than any program writes."""
    if count > MAX_PARTS:
        raise ImageError(
            "image_too_complex", f"the {kind} image has more than {MAX_PARTS} parts: save it again"
        )


def check_scans(width: int, height: int, scans: int) -> None:
    """Raise ImageError for a JPEG with too many scans; the limit is lower for large images."""
    allowed = min(MAX_SCANS, 16 * MAX_PIXELS // (width * height))
    if scans > allowed:
        raise ImageError(
            "image_too_complex",
            f"the JPEG image has {scans} scans, the limit at {width} x {height} pixels is {allowed}: "
            "save it again",
        )

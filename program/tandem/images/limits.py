"""How much one picture may ask of the machine, judged by what its header says."""

from tandem.errors import ImageError

MAX_PIXELS = 100_000_000  # 300 MB once decoded; twice what telephones take
MAX_BYTES = 4 * MAX_PIXELS  # as many as the largest picture takes with an alpha channel and no compression
MAX_SIDE = 65_500  # what a JPEG can have
MAX_PROPORTION = 100  # "crop" first scales the shorter side: at 100:1, 1024 rows would take 300 MB
MAX_FRAMES = 1000  # the first is taken, so more than that is a film sent by mistake
MAX_PARTS = 65_536  # each costs half a microsecond here: 30 ms
MAX_SCANS = 100  # a progressive JPEG has about 10, and each passes over all pixels again


def check_bytes(count: int) -> None:
    """Raise ImageError for a file of more bytes than any picture within the limits needs."""
    if count > MAX_BYTES:
        raise ImageError(
            "image_too_large", f"the picture has {count} bytes, the limit is {MAX_BYTES}: store it compressed"
        )


def check_size(kind: str, width: int, height: int) -> None:
    """Raise ImageError for a picture without pixels, with too many, or with one side far too long."""
    size = f"{width} x {height} pixels"
    if width <= 0 or height <= 0:
        raise ImageError("image_damaged", f"the {kind} picture is damaged: its header says {size}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            "image_too_large",
            f"the {kind} picture has {size}, the limit is {MAX_PIXELS} in all: scale it down",
        )
    longer, shorter = max(width, height), min(width, height)
    if longer > MAX_SIDE or longer > MAX_PROPORTION * shorter:
        raise ImageError(
            "image_out_of_proportion",
            f"the {kind} picture has {size}; the longer side may have at most {MAX_SIDE} and "
            f"{MAX_PROPORTION} times those of the shorter: cut it into pieces",
        )


def check_frames(kind: str, count: int) -> None:
    """Raise ImageError for a file of more frames or pages than a picture has."""
    if count > MAX_FRAMES:
        raise ImageError(
            "image_too_many_frames",
            f"the {kind} picture has more than {MAX_FRAMES} frames or pages: send the one that is meant",
        )


def check_parts(kind: str, count: int) -> None:
    """Raise ImageError for a file in more parts than any program writes."""
    if count > MAX_PARTS:
        raise ImageError(
            "image_too_complex", f"the {kind} picture has more than {MAX_PARTS} parts: store it again"
        )


def check_scans(width: int, height: int, scans: int) -> None:
    """Raise ImageError for a JPEG in more scans than serve a viewer; a large one may have fewer."""
    allowed = min(MAX_SCANS, 16 * MAX_PIXELS // (width * height))
    if scans > allowed:
        raise ImageError(
            "image_too_complex",
            f"the JPEG picture comes in {scans} scans, the limit at {width} x {height} pixels is {allowed}: "
            "store it again",
        )

"""What a file is by its first bytes; its name and its `Content-Type` do not count."""

import re

from tandem.errors import ImageError

EXPECTED = "JPEG, PNG, BMP, WebP or TIFF"


def identify(body: bytes) -> str:
    """Give the kind of picture a file is; ImageError, by its name if known, for another."""
    for magic, kind in _PICTURES:
        if magic.match(body):
            return kind
    if not body:
        raise ImageError("image_empty", f"got no bytes at all, expected a picture: {EXPECTED}")
    for magic, name in _OTHER_PICTURES:
        if magic.match(body):
            raise ImageError("image_type_unsupported", f"this is {name}; expected {EXPECTED}")
    for magic, name in _NO_PICTURES:
        if magic.match(body):
            raise ImageError("not_an_image", f"this is {name}; expected {EXPECTED}")
    raise ImageError("not_an_image", f"not a picture: it begins with {body[:12]!r}, expected {EXPECTED}")


def _compile(*table: tuple[bytes, str]) -> tuple[tuple[re.Pattern[bytes], str], ...]:
    return tuple((re.compile(magic, re.DOTALL | re.IGNORECASE), name) for magic, name in table)


_PICTURES = tuple(
    (re.compile(magic, re.DOTALL), kind)
    for magic, kind in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
        (rb"RIFF.{4}WEBP", "WebP"),
        (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    )
)
_OTHER_PICTURES = _compile(
    (rb"GIF8[79]a", "a GIF"),
    (rb".{4}ftyp(avif|avis)", "an AVIF picture"),
    (rb".{4}ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)", "a HEIC picture, as telephones take"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture"),
    (rb"\s{0,64}(<\?xml.{0,1000}?)?<svg", "an SVG drawing"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\0\0\x01\0[^\0]\0", "an icon (ICO)"),
    (rb"v/1\x01", "an OpenEXR picture"),
    (rb"P[1-7]\s", "a PNM picture"),
    (rb".{128}DICM", "a DICOM file"),
)
_NO_PICTURES = _compile(
    (rb"%PDF-", "a PDF document"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a film"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf", "an archive"),
    (rb"\x93NUMPY", "a NumPy array, which application/x-npy is for"),
    (
        rb"(data:[^,]{0,100},)?(/9j/|iVBORw0KGgo|UklGR|Qk[0-3]|SUkqA|TU0AK)",
        "base64 text; send the bytes themselves",
    ),
    (rb"--[^\r\n]{1,100}\r?\nContent-", "a form (multipart/form-data); send the picture alone"),
    (rb"\s{0,64}<(!doctype html|html)", "a web page"),
    (rb"\s{0,64}[\[{]", "JSON, which application/json is for"),
)

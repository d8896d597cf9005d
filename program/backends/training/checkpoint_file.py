"""A checkpoint's file format: JSON and lists of arrays in an .npz file that ends with its own SHA-256."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: The archive's comment, the file's last bytes: the SHA-256 of all bytes before it, in hexadecimal.
_DIGEST_SIZE = 64
_HEAD = "head"
_COUNTS = "counts"
#: Bytes that each array needs besides its contents and its name.
_MARGIN = 512

Members = dict[str, npt.NDArray[Any]]


def pack(head: Mapping[str, Any], arrays: Mapping[str, Sequence[npt.NDArray[Any]]]) -> Members:
    """Return the archive's members by name, first `head` as JSON. Raises `ValueError` for object arrays."""
    members = {
        f"{name}/{index}": np.asarray(array)
        for name, listed in arrays.items()
        for index, array in enumerate(listed)
    }
    for name, array in members.items():
        if array.dtype.kind not in "biufc":
            raise ValueError(f"{name} is an array of {array.dtype}, expected numbers.")
    text = json.dumps({**head, _COUNTS: {name: len(listed) for name, listed in arrays.items()}})
    return {_HEAD: np.frombuffer(text.encode(), np.uint8), **members}


def count_bytes(members: Members) -> int:
    """Return the size of the file that `write` creates, or a little more."""
    return sum(array.nbytes + len(name) * 2 + _MARGIN for name, array in members.items())


def write(path: Path, members: Members) -> None:
    """Write the file with its hash at the end, and sync it to disk."""
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = bytes(_DIGEST_SIZE)
            for name, array in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        size = file.tell() - _DIGEST_SIZE
        file.seek(0)
        digest = _hash(file, size)
        file.seek(size)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def verify(path: Path) -> None:
    """Raise `ValueError` unless the file ends with the hash of its other bytes; nothing is parsed."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END) - _DIGEST_SIZE
        if size <= 0:
            raise ValueError(f"it has only {size + _DIGEST_SIZE} bytes")
        file.seek(0)
        digest = _hash(file, size)
        if file.read() != digest:
            raise ValueError("its SHA-256 is not the one stored in it")


def read_head(path: Path) -> dict[str, Any]:
    """Return the head of a file that `verify` has accepted."""
    with np.load(path, allow_pickle=False) as archive:
        head: dict[str, Any] = json.loads(archive[_HEAD].tobytes())
    return head


def read_arrays(path: Path) -> dict[str, list[npt.NDArray[Any]]]:
    """Return the arrays of a file that `verify` has accepted; nothing is unpickled."""
    counts = read_head(path)[_COUNTS]
    with np.load(path, allow_pickle=False) as archive:
        return {
            name: [archive[f"{name}/{index}"] for index in range(count)] for name, count in counts.items()
        }


def _hash(file: io.BufferedReader | io.BufferedRandom, size: int) -> bytes:
    """Return the SHA-256 of the next `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(min(size, 1 << 20)):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()

"""One name for each record that fails, in however many passes it does and wherever it stands in them."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path


class Names:
    """The names of a channel's unreadable records; threads may share them.

    With `steady` numbers a record has the same one in each pass, and that names it. Else it is the first, the
    second, … of its content that fails in a pass, and has the name of the first record that was so: there are
    as many names as records failed in the worst pass, also where several have the same bytes.
    """

    def __init__(self, channel: str, *, steady: bool) -> None:
        self._channel = channel
        self._steady = steady
        self._names: dict[tuple[int, int], Path] = {}
        self._failed: dict[int, dict[int, dict[int, int]]] = {}  # pass → content → number → which of these
        self._lock = threading.Lock()

    def find(self, number: int, picture: bytes, turn: int | None) -> Path:
        """Name the record of this number in pass `turn`, from 0; without one it may be any of its content."""
        if self._steady:
            return Path(self._channel, f"record {number}")
        content = zlib.crc32(picture)
        with self._lock:
            which = 0
            if turn is not None:
                alike = self._failed.setdefault(turn, {}).setdefault(content, {})
                which = alike.setdefault(number, len(alike))  # one that fills up a batch fails repeatedly
                self._failed = {kept: some for kept, some in self._failed.items() if kept >= turn - 1}
            where = f" of pass {turn + 1}" if turn else ""
            return self._names.setdefault((content, which), Path(self._channel, f"record {number}{where}"))

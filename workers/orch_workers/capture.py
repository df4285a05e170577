"""What a run prints, as lines of its log."""

from __future__ import annotations

LINE_BYTES = 64 * 1024
"""A longer line is cut here; the rest of it is read and dropped."""


class Lines:
    """Cuts a stream of bytes into lines of text.

    A carriage return starts its line anew, as on a terminal, so a progress bar leaves its last state and not a thousand.
    """

    def __init__(self, limit: int = LINE_BYTES) -> None:
        self._limit = limit
        self._partial = b""
        self._dropped = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes."""
        *complete, rest = data.split(b"\n")
        lines = []
        for part in complete:
            self._append(part)
            lines.append(self._take())
        self._append(rest)
        return lines

    def flush(self) -> list[str]:
        """The last line, if it did not end with a newline."""
        return [self._take()] if self._partial or self._dropped else []

    def _append(self, part: bytes) -> None:
        if b"\r" in part:
            kept = part.rstrip(b"\r")
            _, returned, after = kept.rpartition(b"\r")
            if returned or self._partial.endswith(b"\r"):
                self._partial, self._dropped = b"", 0
            part = after + part[len(kept) :][:1]
        elif part and self._partial.endswith(b"\r"):
            self._partial, self._dropped = b"", 0
        room = self._limit - len(self._partial)
        if len(part) > room:
            self._dropped += len(part) - room
            part = part[:room]
        self._partial += part

    def _take(self) -> str:
        text = self._partial.rstrip(b"\r").decode("utf-8", "replace")
        if self._dropped:
            text = f"{text} [cut: {self._dropped} more bytes]"
        self._partial, self._dropped = b"", 0
        return text

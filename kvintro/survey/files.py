# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of a survey: what identifies a dump, and files that appear under their name only when complete."""

from __future__ import annotations

import hashlib
import io
from typing import Any, Tuple

from kvintro.convert.target import Target
from kvintro.errors import SourceError
from kvintro.model import Size
from kvintro.source.files import open_file

_PIECE = 1 << 20


def digest(path: str) -> Tuple[str, Size]:
    """SHA-256 and size of a file.

    :raises SourceError: it cannot be read.
    """
    found, size = hashlib.sha256(), 0
    with open_file(path, dump=True) as file:
        try:
            for piece in iter(lambda: file.read(_PIECE), b""):
                found.update(piece)
                size += len(piece)
        except OSError as error:
            raise SourceError(
                f"{path}: {(error.strerror or str(error)).lower()}", "check the disk"
            ) from error
    return found.hexdigest(), Size(size)


class Sink(io.RawIOBase):
    """Writes from front to back to a target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._at = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self._at

    def write(self, data: Any) -> int:
        """Write all of it.

        :raises NotWritten: there is no room.
        """
        part = memoryview(data).cast("B")
        self._target.write_at(self._at, part)
        self._at += len(part)
        return len(part)


def new_file(path: str) -> Target:
    """A file that replaces one of this name when it is committed."""
    return Target(path, force=True, mode=0o666)


def write_text(path: str, text: str) -> None:
    """Write a whole file.

    :raises NotWritten: it cannot be written.
    """
    with new_file(path) as target:
        target.write_at(0, text.encode("utf-8", "backslashreplace"))
        target.commit()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files beside the one that a user names.

Some programs write a machine's memory to one file, and its addresses to another. Only names show which files
belong together, as nothing else connects them. The format of a file is detected from its content.
"""

from __future__ import annotations

import os
from typing import Callable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from kvintro.errors import SourceError
from kvintro.source.content import Content, FileContent
from kvintro.source.files import open_file

_MAX_ENTRIES = 5000
_MAX_OPENED = 64
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzo")


#: Unpacks a content, if it is packed; the path is for messages.
Plain = Callable[[Content, str], Content]


def _as_it_is(content: Content, path: str) -> Content:
    return content


class Neighbour(NamedTuple):
    """A file beside another one.

    :ivar same: whether it has the same name except for the ending, or the user named it.
    """

    path: str
    content: Content
    same: bool


class Beside:
    """Finds files that may belong to a file.

    :param path: path of the file; None for standard input, which has no files beside it.
    :param given: the other files that the user named.
    :param plain: unpacks packed files.
    :ivar refused: errors for files that exist but could not be opened.
    """

    def __init__(
        self, path: Optional[str] = None, given: Mapping[str, Content] = {}, plain: Plain = _as_it_is
    ) -> None:
        self._path = path
        self._given = given
        self._plain = plain
        self.refused: List[SourceError] = []

    def ending(self, *endings: str) -> Iterator[Neighbour]:
        """Files with one of the endings: first those the user named, then that of the same name, then others.

        :param endings: endings in lower case, in order of preference.
        """
        for path, content in self._given.items():
            yield Neighbour(path, content, True)
        if self._path is None:
            return
        directory, name = os.path.split(self._path)
        stem = os.path.splitext(_unpacked(name))[0]
        found: List[Tuple[bool, int, str]] = []
        for other in _names(directory or "."):
            base = _unpacked(other)
            rank = _rank(base, endings)
            if rank is not None and other != name:
                same = base == stem + endings[rank]
                found.append((not same, rank, os.path.join(directory, other)))
        for different, _, path in sorted(found)[:_MAX_OPENED]:
            if any(_same(path, named) for named in self._given):
                continue
            try:
                with open_file(path) as file:
                    content = self._plain(FileContent(file), path)
                yield Neighbour(path, content, not different)
            except SourceError as error:
                if not different:
                    self.refused.append(error)

    def named(self, *names: str) -> Iterator[Neighbour]:
        """Files with these names in the same directory."""
        for neighbour in self.ending(*(f"{name}" for name in names)):
            if _unpacked(os.path.basename(neighbour.path)) in names:
                yield neighbour


def _unpacked(name: str) -> str:
    """A name in lower case, without the ending of a packed file."""
    base, ending = os.path.splitext(name.lower())
    return base if ending in _PACKED else name.lower()


def _same(one: str, two: str) -> bool:
    try:
        return os.path.samefile(one, two)
    except OSError:
        return False


def _names(directory: str) -> Sequence[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for _, entry in zip(range(_MAX_ENTRIES), entries)]
    except OSError:
        return []


def _rank(name: str, endings: Sequence[str]) -> Optional[int]:
    return next((number for number, ending in enumerate(endings) if name.endswith(ending)), None)

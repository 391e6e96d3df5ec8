# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies dumps from pipes to an unnamed file, as dumps are not read sequentially."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import BinaryIO, Callable, Iterable, Tuple

from kvintro.errors import NoSuchSource, SourceError
from kvintro.source.content import Content, FileContent
from kvintro.text import size_text

_PIECE = 1 << 20
_LOOK = 128 << 10  # enough to recognise any format
_KEEP_FREE = 20  # keep one twentieth of the file system free


def spool_directory() -> str:
    """The directory for large temporary files: ``$TMPDIR``, else /var/tmp, as /tmp may be in memory."""
    wanted = os.environ.get("TMPDIR") or "/var/tmp"
    return wanted if os.access(wanted, os.W_OK | os.X_OK) else tempfile.gettempdir()


def room_in(directory: str) -> int:
    """Number of bytes that may be written to a directory."""
    status = os.statvfs(directory)
    return max(0, status.f_bavail - status.f_blocks // _KEEP_FREE) * status.f_frsize


def copy_stretches(source: int, target: int, stretches: Iterable[Tuple[int, int, int]]) -> None:
    """Copy parts of a file.

    :param stretches: start and end (exclusive) offset in the target, and the offset in the source.
    :raises OSError: the target is full or cannot be written.
    """
    for start, end, source_at in stretches:
        done = 0
        while done < end - start:
            data = os.pread(source, min(_PIECE, end - start - done), source_at + done)
            if not data:
                break
            os.pwrite(target, data, start + done)
            done += len(data)


def copied(content: Content, path: str) -> FileContent:
    """Copy a content to an unnamed file, for code that can only read files.

    :raises SourceError: there is no room for it.
    """
    directory = spool_directory()
    if content.real > room_in(directory):
        raise SourceError(f"{path} needs {size_text(content.real)} in {directory}", "set TMPDIR")
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            at = 0
            while at < content.size:
                data = content.at(at, _PIECE)
                if not data:
                    break
                if data.count(0) != len(data):
                    os.pwrite(file.fileno(), data, at)
                at += len(data)
            os.truncate(file.fileno(), at)
            return FileContent(file)
    except OSError as error:
        raise SourceError(f"{path} cannot be copied to {directory}: {error.strerror}", "set TMPDIR") from None


def spooled(stream: int, check: Callable[[BinaryIO], None]) -> BinaryIO:
    """The content of a descriptor, as a file that can be read in any order.

    A regular file at its beginning is used directly. Everything else is copied to an unnamed file in
    :func:`spool_directory`, with zeros as holes, until that file system is 95% full.

    :param check: receives a file with the first bytes, and raises if the rest is not wanted.
    :raises SourceError: there is no room for it.
    :raises NoSuchSource: the descriptor cannot be read, or is a terminal.
    """
    try:
        if stat.S_ISREG(os.fstat(stream).st_mode) and os.lseek(stream, 0, os.SEEK_CUR) == 0:
            return os.fdopen(os.dup(stream), "rb")
        if os.isatty(stream):
            raise NoSuchSource("standard input is a terminal", "pipe a dump into it, or name a file with -c")
        directory = spool_directory()
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
    except OSError as error:
        raise NoSuchSource(
            f"standard input cannot be read: {error.strerror}", "name a file with -c"
        ) from None
    try:
        size = _copy(stream, file.fileno(), 0, _LOOK)
        os.truncate(file.fileno(), size)
        check(file)
        room = room_in(directory)
        most = size + room
        size = _copy(stream, file.fileno(), size, most)
        if size == most and os.read(stream, 1):
            raise SourceError(
                f"standard input has more than {size_text(most)}, which is the free space in {directory}",
                "save it to a file and name that with -c, or set TMPDIR",
            )
        os.truncate(file.fileno(), size)
    except OSError as error:
        file.close()
        raise SourceError(
            f"standard input cannot be kept in {directory}: {error.strerror}",
            "save it to a file and name that with -c, or set TMPDIR",
        ) from None
    except BaseException:
        file.close()
        raise
    return file


def _copy(source: int, target: int, at: int, end: int) -> int:
    """Copy a stream to a file from an offset on, with zeros as holes, up to an end offset.

    :return: the offset after the last byte.
    """
    while at < end:
        data = os.read(source, min(_PIECE, end - at))
        if not data:
            break
        if data.count(0) != len(data):
            os.pwrite(target, data, at)
        at += len(data)
    return at

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens the files that a user names: dumps, debuginfo, BTF, VMCOREINFO, saved reports.

Only regular files are read. A pipe would block, a terminal would consume key presses, opening a device may
have side effects (a watchdog starts, a tape rewinds), and none of them has an end or can be read twice. A
dump that kdump wrote to a raw partition has to be copied to a file first.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, NamedTuple

from kvintro.errors import NoSuchSource, NotADump, NotPermitted

SMALL_FILE = 64 << 20
"""The size limit of files that are read as a whole."""

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: str, *, dump: bool = False) -> BinaryIO:
    """Open a regular file for reading.

    The type of the file is checked on the descriptor, so the file cannot be replaced in between. Opening
    never blocks or has side effects: the file is first opened with O_PATH, and for reading only if it is a
    regular file.

    :param dump: whether it is an argument of ``-c``, which can also read standard input.
    :raises NoSuchSource: it does not exist, is not a regular file, or is empty.
    :raises NotPermitted: this user may not read it.
    """
    try:
        descriptor = _open(path, dump)
    except FileNotFoundError:
        raise NoSuchSource(f"{path}: no such file", "check the path") from None
    except PermissionError:
        # Under sudo, root opens dumps only.
        how, by = ("read it as its owner, or with sudo", "sudo") if dump else ("read it as its owner", "")
        raise NotPermitted(f"{path}: permission denied", how, by) from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise NoSuchSource(f"{path}: {reason}", "check the path") from None
    return open(descriptor, "rb")


def _open(path: str, dump: bool) -> int:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(place), dump)
        try:
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            pass  # /proc is not mounted here
    finally:
        os.close(place)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(path, os.fstat(descriptor), dump)
    except NoSuchSource:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: str, found: os.stat_result, dump: bool) -> None:
    if stat.S_ISREG(found.st_mode):
        if not found.st_size:
            # Files of /proc with generated content also claim to be empty, and may have no end.
            raise NoSuchSource(f"{path} is empty", "take or copy it again; check the disk it was written to")
        return
    if stat.S_ISDIR(found.st_mode):
        raise NoSuchSource(f"{path} is a directory", "name the file in it")
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "not a regular file")
    remedy = "write its content to a file and name that"
    if dump and stat.S_ISFIFO(found.st_mode):
        remedy += " or pass it on standard input (-c -)"
    raise NoSuchSource(f"{path} is {kind}", remedy)


def read_small_file(path: str, option: str) -> bytes:
    """The content of a file given with an option.

    :raises NoSuchSource: it cannot be read, or has more than :data:`SMALL_FILE` bytes.
    :raises NotPermitted: this user may not read it.
    """
    with open_file(path) as file:
        return read_bounded(file, path, option)


def read_bounded(file: BinaryIO, path: str, what: str, limit: int = SMALL_FILE) -> bytes:
    """The rest of a file, regardless of the size that it claims.

    :param what: use of the file, for the message.
    :raises NoSuchSource: it cannot be read, or has more bytes than the limit.
    """
    too_large = NoSuchSource(f"{path} is too large for {what}", "is it the right file?")
    if os.fstat(file.fileno()).st_size > limit:
        raise too_large
    try:
        data = file.read(limit + 1) or b""  # None if there is no content yet, as in a pipe of tracefs
    except OSError as error:
        raise NoSuchSource(f"{path}: {(error.strerror or str(error)).lower()}", "check the path") from None
    if len(data) > limit:
        raise too_large
    return data


class Kept(NamedTuple):
    """An open file and the size that it had when it was opened.

    :ivar size: that size in bytes.
    """

    path: str
    file: BinaryIO
    size: int

    @property
    def real(self) -> int:
        """Bytes that it occupies on disk; its size if the file system does not say."""
        found = os.fstat(self.file.fileno())
        return min(found.st_size, found.st_blocks * 512 or found.st_size)

    def check(self) -> None:
        """:raises NotADump: the file has become shorter."""
        size = os.fstat(self.file.fileno()).st_size
        if size < self.size:
            raise NotADump(
                f"{self.path} has become shorter since it was opened: from {self.size} to {size} bytes",
                "copy it again whole, and open it again",
            )


def keep(descriptor: int, path: str) -> Kept:
    """Record a file's size, with a duplicate of its descriptor."""
    copy = os.fdopen(os.dup(descriptor), "rb")
    return Kept(path, copy, os.fstat(copy.fileno()).st_size)

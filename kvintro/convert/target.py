# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output file of a dump: private, complete or absent, and never over another file by mistake."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
import threading
from types import TracebackType
from typing import Any, Dict, Iterable, Optional, Tuple, Type, Union

from kvintro.errors import NotWritten, UsageError
from kvintro.source.files import Kept

_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
PRIVATE = 0o600  # memory contains secrets of all users


class Target:
    """A new file, unnamed until :meth:`commit` if the file system supports that, else under another name.

    :param force: whether it may replace an existing file.
    :param sources: files that it must not replace.
    :param mode: permissions of the file, less the user's mask.
    :raises NotWritten: the file exists, or cannot be created.
    :raises UsageError: the file is one of the sources.
    """

    def __init__(self, path: str, *, force: bool, sources: Iterable[Kept] = (), mode: int = PRIVATE) -> None:
        self._path = path
        self._force = force
        self._mode = mode
        found = check_target(path, force)
        for source in sources if found is not None else ():
            status = os.fstat(source.file.fileno())
            if found is not None and (status.st_dev, status.st_ino) == (found.st_dev, found.st_ino):
                raise UsageError(f"{path} is {source.path}, which is being read", "choose another file")
        directory, self._name = os.path.split(path)
        self._temporary: Optional[str] = None
        self._handlers: Dict[int, Any] = {}
        try:
            self._directory = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(path, error) from error
        try:
            self._file = self._opened()
        except BaseException:
            self._forget()
            raise

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            if os.path.exists("/proc/self/fd"):  # needed to link it to its name later
                return os.open(".", flags | os.O_TMPFILE, self._mode, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise _failed(self._path, error) from error
        self._end_on_signals()
        self._temporary = _private_name()
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            return os.open(self._temporary, flags, self._mode, dir_fd=self._directory)
        except OSError as error:
            raise _failed(self._path, error) from error

    def _end_on_signals(self) -> None:
        """Make the usual signals raise an exception that ends the process, so that no file remains."""
        if threading.current_thread() is not threading.main_thread():
            return

        def end(number: int, _: object) -> None:
            sys.exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, end)

    def write_at(self, offset: int, data: Union[bytes, bytearray, memoryview]) -> None:
        """Write bytes at an offset.

        :raises NotWritten: they cannot be written.
        """
        left = memoryview(data)
        while len(left):
            try:
                count = os.pwrite(self._file, left, offset)
            except OSError as error:
                raise _failed(self._path, error) from error
            left, offset = left[count:], offset + count

    def end_at(self, size: int) -> None:
        """Set the size of the file. Parts that were not written are holes.

        :raises NotWritten: the file system does not support files of this size.
        """
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            raise _failed(self._path, error) from error

    def commit(self) -> Tuple[int, int]:
        """Give the file its name, and return its size and the number of bytes that it takes on the disk.

        :raises NotWritten: that failed.
        """
        try:
            os.fsync(self._file)
            if self._force:
                if self._temporary is None:
                    self._temporary = _private_name()
                    self._link(None, self._temporary)
                os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._temporary = None
            else:
                self._link(self._temporary, self._name)  # fails if a file was created meanwhile
            status = os.fstat(self._file)
        except OSError as error:
            raise _failed(self._path, error) from error
        return status.st_size, status.st_blocks * 512

    def _link(self, old: Optional[str], new: str) -> None:
        """Give the file another name.

        :param old: a name that it already has; None if it has none.
        """
        source, place = (f"/proc/self/fd/{self._file}", None) if old is None else (old, self._directory)
        os.link(source, new, src_dir_fd=place, dst_dir_fd=self._directory, follow_symlinks=old is None)

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        os.close(self._file)
        self._forget()

    def _forget(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        os.close(self._directory)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _private_name() -> str:
    return f".kvintro-{os.urandom(8).hex()}"


def check_target(path: str, force: bool) -> Optional[os.stat_result]:
    """Check that a file can be written there, and return the status of the file to be replaced, if any.

    :raises NotWritten: the file must not be written.
    """
    if not os.path.basename(path):
        raise NotWritten(f"{path} is not the name of a file", "name a file in it")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _failed(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "not a regular file")
        raise NotWritten(f"{path} is {kind}", "choose a new file: a dump is not written from front to back")
    if not force:
        raise NotWritten(f"{path} exists", "choose another name, or replace it with --force")
    return found


def _failed(path: str, error: Exception) -> NotWritten:
    if not isinstance(error, OSError):  # the name contains a NUL
        return NotWritten(f"{path}: {error}", "choose another file")
    if error.errno == errno.EEXIST:
        return NotWritten(
            f"{path} was created in the meantime", "choose another name, or replace it with --force"
        )
    remedy = {
        errno.ENOSPC: "make room there, or choose another file",
        errno.EDQUOT: "make room there, or choose another file",
        errno.ENOENT: "name a file in a directory that exists",
        errno.ENOTDIR: "name a file in a directory that exists",
        errno.EFBIG: "choose another file system, or write a kdump: --to kdump",
    }.get(error.errno or 0, "choose another file; under sudo it is written as the user who called sudo")
    return NotWritten(f"{path}: {(error.strerror or str(error)).lower()}", remedy)

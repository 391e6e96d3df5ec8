# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writing output: never over a file that the run reads, and either a complete file or none."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import io
import os
import signal
import stat
import sys
import tempfile
import threading
from typing import Any, BinaryIO, Dict, Iterator, Optional, Set, TextIO, Tuple

from kvintro.commands import InputPath
from kvintro.errors import NotWritten, UsageError

#: Device and inode: identify a file whatever its path.
FileId = Tuple[int, int]

_MOST_LINKS = 40  # the kernel's MAXSYMLINKS
# Errors of a file system without O_TMPFILE.
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
# Errors of replacing a file that is itself writable: a sticky or read-only directory, a mount point.
_IN_PLACE = (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EROFS, errno.EXDEV, errno.EOPNOTSUPP)
# write_through, so that no buffer holds data when writing the file below fails.
_FORM: Dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "backslashreplace",
    "newline": "\n",
    "write_through": True,
}


def refuse_inputs(args: argparse.Namespace) -> None:
    """Refuse a command line whose output would overwrite a file that it reads. Opens nothing.

    :raises UsageError: the file of ``-o``, standard output or standard error is such a file.
    """
    if args.output == "":
        raise UsageError("-o needs the name of a file", "give it a path, or omit -o")
    target, out, err = _stat(args.output), _fstat(sys.stdout), _fstat(sys.stderr)
    inputs: Dict[FileId, str] = {}
    if any(status is not None and stat.S_ISREG(status.st_mode) for status in (target, out, err)):
        inputs = {**_open_files(), **_named_files(args)}
    if target is not None and _id(target) in inputs:
        raise UsageError(
            f"-o {args.output} would overwrite {inputs[_id(target)]}, which is being read",
            "choose another file; nothing was written",
        )
    if target is not None and stat.S_ISREG(target.st_mode) and target.st_dev in _kernel_devices():
        raise UsageError(f"-o {args.output} is a file of the kernel", "choose another file")
    if err is not None and _id(err) in inputs:
        # The error message must not go there either.
        to = os.open(os.devnull, os.O_WRONLY) if out is None or _id(out) in inputs else sys.stdout.fileno()
        os.dup2(to, sys.stderr.fileno())
    for name, status in (("standard output", out), ("standard error", err)):
        if status is not None and _id(status) in inputs:
            raise UsageError(
                f"{name} is {inputs[_id(status)]}, which is being read",
                "the shell emptied the file before kvintro started: restore it from a copy"
                if status.st_size == 0
                else "send it to another file; nothing was written",
            )


def _id(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino


def _named_files(args: argparse.Namespace) -> Dict[FileId, str]:
    """Input files named on the command line."""
    found: Dict[FileId, str] = {}
    for value in vars(args).values():
        for path in value if isinstance(value, list) else [value]:
            status = _stat(path) if isinstance(path, InputPath) else None
            if status is not None and stat.S_ISREG(status.st_mode):
                found.setdefault(_id(status), path)
    return found


def _open_files() -> Dict[FileId, str]:
    """Files that this process has mapped or open for reading, including those not named by the user."""
    found: Dict[FileId, str] = {}
    for name in _listed("/proc/self/fd"):
        with contextlib.suppress(OSError):  # descriptor of the listing itself, closed by now
            flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH:
                status = os.fstat(int(name))
                if stat.S_ISREG(status.st_mode):
                    found[_id(status)] = os.readlink(f"/proc/self/fd/{name}")
    for path in _mapped_paths():
        mapped = _stat(path)
        if mapped is not None:
            found[_id(mapped)] = path
    return found


def _listed(directory: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(directory)


def _mapped_paths() -> Iterator[str]:
    with (
        contextlib.suppress(OSError),
        open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file,
    ):
        lines = {line.rstrip("\n").split(maxsplit=5)[-1] for line in file}
        yield from (line.replace("\\012", "\n") for line in lines if line.startswith("/"))


def _stat(path: Optional[str]) -> Optional[os.stat_result]:
    try:
        return None if path is None else os.stat(path)
    except (OSError, ValueError):
        return None


def _fstat(stream: Optional[TextIO]) -> Optional[os.stat_result]:
    """Status of a stream; None if it is closed or is not a file (as in a notebook)."""
    try:
        return None if stream is None else os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None


def _kernel_devices() -> Set[int]:
    return {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.ismount(path)}


@contextlib.contextmanager
def written_file(path: str) -> Iterator[TextIO]:
    """Open a UTF-8 text file that replaces ``path`` when the block ends without an error.

    Until then the old file stays unchanged. Anything but a regular file (a pipe, a device, a descriptor such
    as ``/dev/fd/3``) is written directly.

    :raises OSError: the file cannot be written.
    :raises NotWritten: the file is a block device.
    """
    if not path or path.endswith("/"):
        number = errno.EISDIR if path else errno.ENOENT
        raise OSError(number, os.strerror(number))
    direct = _direct(path)
    if direct is not None:
        with direct, io.TextIOWrapper(direct, **_FORM) as file:
            yield file
        return
    with _Replacement(path) as replacement:
        file = io.TextIOWrapper(replacement.content, **_FORM)
        try:
            yield file
        finally:
            file.detach()
        replacement.commit()


def _direct(path: str) -> Optional[BinaryIO]:
    """Open a file that can only be written in place; None for a regular or missing file."""
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "wb")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISBLK(mode):
        raise NotWritten(f"{path} is a block device", "choose a file")
    if stat.S_ISREG(mode):
        return None
    return open(path, "wb")


def _own_descriptor(path: str) -> Optional[int]:
    """The descriptor of this process that a path such as ``/dev/stdout`` refers to."""
    descriptors = os.path.realpath("/proc/self/fd")
    for _ in range(_MOST_LINKS):
        directory, name = os.path.split(path)
        directory = os.path.realpath(directory)
        if directory == descriptors and name.isdigit():
            return int(name)
        path = os.path.join(directory, name)
        if not os.path.islink(path):
            return None
        path = os.path.join(directory, os.readlink(path))
    return None


class _Replacement:
    """New content of a regular file. It has no name until the commit, if the file system supports that.

    :ivar content: write it here, then call :meth:`commit`.
    """

    content: BinaryIO

    def __init__(self, path: str) -> None:
        self._temporary: Optional[str] = None
        self._spooled = False
        self._handlers: Dict[int, Any] = {}
        self._created, self._old = _opened(path)
        self._directory: Optional[int] = None
        try:
            directory, self._name = os.path.split(path if self._old is None else _place(path, self._old))
            self._directory = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self._forget()
            raise

    def __enter__(self) -> _Replacement:
        try:
            self.content = os.fdopen(self._beside(), "w+b")
        except OSError as error:
            if self._old is None or error.errno not in _IN_PLACE:
                self._forget()
                raise
            self._spooled = True
            self.content = tempfile.TemporaryFile()
        return self

    def _beside(self) -> int:
        """Open a temporary file in the target's directory, unnamed if possible."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            if os.path.exists("/proc/self/fd"):  # needed to link it to its name later
                return os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
        self._end_on_signals()
        self._temporary = _private_name()
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(self._temporary, flags, 0o666, dir_fd=self._directory)

    def _end_on_signals(self) -> None:
        """Make the usual signals raise an exception that ends the process, so that no file remains."""
        if threading.current_thread() is not threading.main_thread():
            return

        def end(number: int, _: object) -> None:
            sys.exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, end)

    def commit(self) -> None:
        """Replace the old content with the new.

        :raises OSError: the content cannot be replaced; the old content is still there.
        """
        self.content.flush()
        os.fsync(self.content.fileno())
        try:
            self._keep_attributes()
            self._rename()
        except OSError as error:
            if self._old is None or error.errno not in _IN_PLACE:
                raise
            _copy(self.content, self._old)
        self._created = False

    def _keep_attributes(self) -> None:
        """Give the new file the owner, mode and access list of the old one.

        :raises OSError: this user may not. Then the old file itself must be overwritten.
        """
        if self._old is None or self._created:
            return
        old, new = os.fstat(self._old), os.fstat(self.content.fileno())
        if self._spooled or not self._is_named(old) or old.st_dev != new.st_dev:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(self.content.fileno(), old.st_uid, old.st_gid)
        os.fchmod(self.content.fileno(), stat.S_IMODE(old.st_mode))
        for attribute in _attributes(self._old):
            os.setxattr(self.content.fileno(), attribute, os.getxattr(self._old, attribute))

    def _is_named(self, old: os.stat_result) -> bool:
        """Whether the name still refers to the old file."""
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (old.st_dev, old.st_ino) == (found.st_dev, found.st_ino)

    def _rename(self) -> None:
        if self._temporary is None:
            self._temporary = _private_name()
            source = f"/proc/self/fd/{self.content.fileno()}"
            os.link(source, self._temporary, dst_dir_fd=self._directory, follow_symlinks=True)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = None

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # after a failed write, flushing fails as well
            self.content.close()
        self._forget()

    def _forget(self) -> None:
        for name in (self._temporary, self._name if self._created else None):
            if name is not None:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
        for descriptor in (self._old, self._directory):
            if descriptor is not None:
                os.close(descriptor)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _place(path: str, descriptor: int) -> str:
    """Path of an open file with all links resolved. The new file goes there."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # /proc is not mounted
        return os.path.realpath(path)


def _private_name() -> str:
    return f".kvintro-{os.urandom(8).hex()}"


def _opened(path: str) -> Tuple[bool, Optional[int]]:
    """Whether the target was created, and its descriptor; None if it does not exist yet.

    The kernel follows links here, under its rules for links of other users. If a link is dangling, this
    creates an empty file at its target; it is removed again if the output fails.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return False, os.open(path, flags)
    except FileNotFoundError:
        if not os.path.islink(path):
            return False, None
    return True, os.open(path, flags | os.O_CREAT, 0o666)


def _attributes(descriptor: int) -> Iterator[str]:
    """Extended attributes except those that only the system sets."""
    with contextlib.suppress(OSError):  # the file system has no attributes
        yield from (name for name in os.listxattr(descriptor) if not name.startswith("security."))


def _copy(content: BinaryIO, descriptor: int) -> None:
    """Overwrite a file with new content. Space is allocated first, so that a full disk does no harm.

    :raises OSError: there is not enough space.
    """
    size, old = content.seek(0, os.SEEK_END), os.fstat(descriptor).st_size
    try:
        if size > old:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.ftruncate(descriptor, old)
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    content.seek(0)
    while True:
        part = content.read(1 << 20)
        if not part:
            break
        while part:
            part = part[os.write(descriptor, part) :]
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)

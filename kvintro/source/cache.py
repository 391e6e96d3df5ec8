# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cache of unpacked dumps, so that the next command does not have to unpack them again.

The files contain a machine's memory. So only this user can access the directory, files that were not used for
a week are removed, and all files together take at most a quarter of their file system.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO, List, Optional, Tuple

_PART = 4  # of the file system
_UNUSED = 7 * 24 * 3600  # seconds
_UNFINISHED = 24 * 3600
_ENDING, _PARTIAL = ".memory", ".partial"


class Cache:
    """A directory of unpacked files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def entry(self, descriptor: int, form: str) -> Entry:
        """The entry for the unpacked content of a file. If the file changes, it gets another entry."""
        import hashlib

        found = os.fstat(descriptor)
        key = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {form}"
        return Entry(self, hashlib.sha256(key.encode()).hexdigest()[:32])

    def clean(self, kept: str = "") -> None:
        """Remove files that are too old, and the least recently used ones if all take too much space.

        :param kept: name of a file to keep.
        """
        files: List[Tuple[float, int, Path]] = []
        now = time.time()
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError):
                found = path.lstat()
                age = now - found.st_mtime
                most = {_PARTIAL: _UNFINISHED, _ENDING: _UNUSED}.get(path.suffix)
                if most is not None and age > most:
                    path.unlink()
                elif path.suffix == _ENDING:
                    files.append((found.st_mtime, found.st_blocks * 512, path))
        system = os.statvfs(self.directory)
        left = sum(size for _, size, _ in files) - system.f_blocks * system.f_frsize // _PART
        for _, size, path in sorted(files):
            if left <= 0:
                break
            if path.name != kept:
                with contextlib.suppress(OSError):
                    path.unlink()
                left -= size


class Entry:
    """An entry for one unpacked file."""

    def __init__(self, cache: Cache, key: str) -> None:
        self._cache = cache
        self._path = cache.directory / (key + _ENDING)
        self._partial = cache.directory / f"{key}.{os.getpid()}{_PARTIAL}"
        self.directory = str(cache.directory)

    def open(self) -> Optional[BinaryIO]:
        """The file; None if it is not cached."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):
            os.utime(descriptor)
            self._cache.clean(self._path.name)
        return os.fdopen(descriptor, "rb")

    def create(self) -> BinaryIO:
        """Create a temporary file; :meth:`keep` makes it the entry's file."""
        self._cache.clean()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError):
            self._partial.unlink()
        descriptor = os.open(self._partial, flags, 0o600)
        return open(descriptor, "r+b", buffering=0)

    def keep(self) -> None:
        """Make the created file, which is now complete, the entry's file."""
        with contextlib.suppress(OSError):
            os.rename(self._partial, self._path)
            self._cache.clean(self._path.name)

    def drop(self) -> None:
        """Remove a file that was created but not kept. Open descriptors of it stay valid."""
        with contextlib.suppress(OSError):
            self._partial.unlink()


def user_cache() -> Optional[Cache]:
    """This user's cache, ``kvintro/unpacked`` in ``$XDG_CACHE_HOME`` or ~/.cache; None if it cannot be used.

    Under sudo the home directory may belong to another user; root does not write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = Path(base) / "kvintro" / "unpacked"
    if not directory.is_absolute():
        return None
    try:
        above = next(path for path in directory.parents if path.exists())
        if above.stat().st_uid != os.geteuid():
            return None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return Cache(directory) if private and os.access(directory, os.W_OK) else None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root opens files, and nothing more: whoever called sudo does the rest.

A dump is whatever its sender made it, and even what a running kernel says is written by its processes. So the
command line opens what needs root, gives root up for good, and parses as the user who invoked sudo; the files
that it writes then are that user's by themselves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO, Dict, Optional

import drgn

from kvintro.errors import NotPermitted, SourceError

#: Files of the running kernel that tell more to who opened them as root, whoever reads them then.
KERNEL_FILES = ("/proc/kallsyms", "/proc/iomem", "/proc/modules", "/proc/vmallocinfo")

_held: Dict[str, int] = {}


@dataclass(frozen=True)
class Invoker:
    """The user who became root to run this."""

    uid: int
    gid: int
    name: Optional[str]
    home: str


def invoker() -> Optional[Invoker]:
    """Who called sudo, doas or pkexec; None if this is not root, or is root without them.

    :raises NotPermitted: their variables make no sense.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    environ = os.environ
    try:
        if "DOAS_USER" in environ and "SUDO_UID" not in environ:
            entry = pwd.getpwnam(environ["DOAS_USER"])
            uid, gid = entry.pw_uid, entry.pw_gid
        else:
            text = environ.get("SUDO_UID", environ.get("PKEXEC_UID"))
            if text is None:
                return None
            uid = int(text)
            gid = int(environ["SUDO_GID"]) if "SUDO_GID" in environ else pwd.getpwuid(uid).pw_gid
        if not 0 <= uid < (1 << 32) - 1 or not 0 <= gid < (1 << 32) - 1:
            raise ValueError("out of range")
    except (KeyError, ValueError) as error:
        raise NotPermitted(
            f"sudo's variables do not name a user to go on as: {error}",
            "--keep-root to go on as root",
        ) from None
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Invoker(uid, gid, None, "/")
    return Invoker(uid, gid, entry.pw_name, entry.pw_dir)


def become_invoker() -> None:
    """Give up root for good, for the user who called sudo. Does nothing where there is none.

    :raises NotPermitted: that user cannot go on: kvintro is installed where they may not read.
    :raises SourceError: the kernel did not let go of root.
    """
    user = invoker()
    if user is None:
        return
    try:
        if user.name is None:
            os.setgroups([])
        else:
            os.initgroups(user.name, user.gid)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise SourceError(
            f"root cannot be given up: {error.strerror}", "--keep-root to go on as root"
        ) from None
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3 or _has_capabilities():
        raise SourceError("root could not be given up", "--keep-root to go on as root")
    _check_installation(user)
    # What is written to by default (the history of the prompt) is found by these.
    os.environ["HOME"] = user.home
    if user.name is not None:
        os.environ["USER"] = os.environ["LOGNAME"] = user.name


def _check_installation(user: Invoker) -> None:
    """From here on modules are imported as that user, which fails in unhelpful ways where it does."""
    for path in (os.__file__, drgn.__file__, __file__):
        if not os.access(path, os.R_OK):
            raise NotPermitted(
                f"{user.name or user.uid} may not read {os.path.dirname(path)}, "
                "and kvintro goes on as the user who called sudo",
                "install Python, drgn and kvintro where everyone may read them, or use --keep-root",
            )


def _has_capabilities() -> bool:
    """Whether the process may still do some of what root may."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
        return any(int(lines[key], 16) for key in (b"CapPrm", b"CapEff"))
    except (OSError, KeyError, ValueError):
        return False


def hold_kernel_files() -> None:
    """Open :data:`KERNEL_FILES` while that is possible, for :func:`open_kernel_file`."""
    for path in KERNEL_FILES:
        if path not in _held:
            try:
                _held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue


def open_kernel_file(path: str) -> BinaryIO:
    """A file of the running kernel from its beginning, as root opened it if it did.

    :raises OSError: it cannot be opened.
    """
    descriptor = _held.get(path)
    if descriptor is None:
        return open(path, "rb")
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.fdopen(os.dup(descriptor), "rb")

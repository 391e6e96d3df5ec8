# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root opens files, and nothing more: whoever called sudo does the rest.

A dump is whatever its sender made it, and even what a running kernel says is written by its processes. So
the command line opens what needs root, gives root up for good, and parses as the user who invoked sudo; the
files that it writes then are that user's by themselves. Capabilities that came without root are given up in
the same way.

The process then holds descriptors that its user could not open. So that no other process of that user takes
them (pidfd_getfd(2), ptrace(2), /proc/PID/fd), the process is made one that nobody may trace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import BinaryIO, Dict, List, Optional

import drgn

from kvintro.errors import NotPermitted, SourceError

#: Files of the running kernel that tell more to who opened them as root, whoever reads them then.
KERNEL_FILES = ("/proc/kallsyms", "/proc/iomem", "/proc/modules", "/proc/vmallocinfo")

_held: Dict[str, int] = {}

# include/uapi/linux/prctl.h, include/uapi/linux/capability.h
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_CAPABILITY_VERSION_3 = 0x20080522
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

# What sudo runs: it opens one file, hands it to the process that is named, and ends.
_OPEN_AS_ROOT = """
import os, socket, struct, sys
path, name, pid = sys.argv[1:]
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect(b"\\0" + bytes.fromhex(name))
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if struct.unpack("3i", peer)[0] != int(pid):
        sys.exit("not the process that asked")
    try:
        descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC)]
        number = 0
    except OSError as error:
        descriptors = []
        number = error.errno
    socket.send_fds(connection, [struct.pack("i", number)], descriptors)
"""


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


def give_up_rights() -> None:
    """Give up for good what this process may do beyond its user.

    Root becomes the user who called sudo, and stays root where there is none. Capabilities of an ordinary
    user (a file's, or ambient ones) are dropped.

    :raises NotPermitted: the user who called sudo cannot go on: kvintro is installed where they may not read.
    :raises SourceError: the kernel did not let go of root or of the capabilities.
    """
    if os.geteuid() != 0:
        if _has_capabilities():
            shield()
            _drop_capabilities()
        return
    user = invoker()
    if user is None:
        return
    _become(user)
    shield()
    _check_installation(user)
    # What is written to by default (the history of the prompt) is found by these.
    os.environ["HOME"] = user.home
    if user.name is not None:
        os.environ["USER"] = os.environ["LOGNAME"] = user.name


def _become(user: Invoker) -> None:
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
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise SourceError("root could not be given up", "--keep-root to go on as root")
    # A process may be set up to keep them when its user changes (SECBIT_KEEP_CAPS, SECBIT_NO_SETUID_FIXUP).
    if _has_capabilities():
        _drop_capabilities()


def shield() -> None:
    """Let no process of this user trace this one: take its descriptors, read its memory, or see its
    /proc/PID/fd.

    It writes no core dumps either. Root can still do all of that. The kernel does this by itself for a
    process that changed its user, but not where fs.suid_dumpable is 1. It ends with execve(2), so programs
    that are started from here (a pager) are ordinary ones; they get none of our descriptors.

    :raises SourceError: the kernel did not do it.
    """
    if _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) or _libc().prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0):
        raise SourceError("the kernel does not protect this process from others", "run kvintro as root")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _capabilities() -> "ctypes.Array[ctypes.c_uint32]":
    """Effective, permitted and inheritable ones, the lower 32 of each and then the upper ones."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if _libc().capget(header, sets):
        raise SourceError(
            f"the capabilities cannot be read: {os.strerror(ctypes.get_errno())}", "--keep-root to keep them"
        )
    return sets


def _has_capabilities() -> bool:
    """Whether the process may do some of what root may (ambient capabilities are permitted ones, too)."""
    sets = _capabilities()
    return any(sets[index] for index in (0, 1, 3, 4))


def _drop_capabilities() -> None:
    """:raises SourceError: some are left."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _libc().capset(header, (ctypes.c_uint32 * 6)())
    if any(_capabilities()):
        raise SourceError("the capabilities could not be given up", "--keep-root to keep them")


def _check_installation(user: Invoker) -> None:
    """From here on modules are imported as that user, which fails in unhelpful ways where it does."""
    for path in (os.__file__, drgn.__file__, __file__):
        if not os.access(path, os.R_OK):
            raise NotPermitted(
                f"{user.name or user.uid} may not read {os.path.dirname(path)}, "
                "and kvintro goes on as the user who called sudo",
                "install Python, drgn and kvintro where everyone may read them, or use --keep-root",
            )


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


def open_by_sudo(path: str) -> BinaryIO:
    """A file that a process of root's opened, which sudo runs and which does nothing else.

    Both sides ask the kernel who is at the other end of their socket, so that no other process can give us
    something else, or get what is ours. Its name is one that the kernel chose, in no directory.

    :raises OSError: root may not open it either.
    :raises NotPermitted: sudo was not allowed, or is not there.
    """
    shield()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("")
        listener.listen(8)
        name = listener.getsockname()[1:].hex()
        command = ["sudo", "-p", f"[sudo] password for %p to open {path}: ", sys.executable, "-I", "-B", "-c"]
        try:
            done = subprocess.run([*command, _OPEN_AS_ROOT, path, name, str(os.getpid())], check=False)
        except OSError as error:
            raise NotPermitted(
                f"sudo cannot be run: {(error.strerror or '').lower()}", "run kvintro as root"
            ) from None
        descriptor = _received(listener) if done.returncode == 0 else None
    if descriptor is None:
        raise NotPermitted(
            f"sudo did not open {path}", "its own message above says why, or run kvintro as root"
        )
    return open(descriptor, "rb")


def _received(listener: socket.socket) -> Optional[int]:
    """The descriptor that root sent; None if nothing came of root.

    :raises OSError: root could not open the file.
    """
    listener.setblocking(False)  # who sent something has ended
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        with connection:
            connection.setblocking(False)
            if peer_uid(connection) != 0:
                continue
            descriptors: List[int] = []
            try:
                data, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                continue
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors += struct.unpack(f"{len(content) // 4}i", content)
            if descriptors:
                return descriptors[0]
            number = struct.unpack("i", data)[0] if len(data) == 4 else 0
            raise OSError(number, os.strerror(number))


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket: who connected, or who listened, at the time of that."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(credentials)[1]
    return uid

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens files as root, and does everything else as the user who called sudo.

A dump cannot be trusted, and even data of a running kernel is under the influence of its processes. So the
command line opens the files that need root, gives up root for good, and parses as the user who called sudo.
The files that it writes therefore belong to that user. Capabilities without root are given up in the same
way.

The process then holds descriptors that its user could not open. Other processes of that user could take them
(pidfd_getfd(2), ptrace(2), /proc/PID/fd), so the process makes itself untraceable.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from typing import BinaryIO, Dict, List, NamedTuple, Optional, Tuple

import drgn

from kvintro.errors import NotPermitted, SourceError

#: Files of the running kernel that show more if they were opened as root, whichever user reads them.
KERNEL_FILES = ("/proc/kallsyms", "/proc/iomem", "/proc/modules", "/proc/vmallocinfo")

_held: Dict[str, int] = {}

# include/uapi/linux/prctl.h, include/uapi/linux/capability.h
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_CAPABILITY_VERSION_3 = 0x20080522
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

# Run by sudo: opens one file, passes it to the given process, and exits.
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


class Invoker(NamedTuple):
    """The user who became root to run this."""

    uid: int
    gid: int
    name: Optional[str]
    home: str


def invoker() -> Optional[Invoker]:
    """The user who called sudo, doas or pkexec; None if this is not root, or is root without them.

    :raises NotPermitted: their variables are invalid.
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
            f"sudo's variables do not name a user to continue as: {error}",
            "use --keep-root to continue as root",
        ) from None
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Invoker(uid, gid, None, "/")
    return Invoker(uid, gid, entry.pw_name, entry.pw_dir)


def give_up_rights() -> None:
    """Permanently give up all rights beyond those of the user.

    Root becomes the user who called sudo, and stays root if there is none. Capabilities of an ordinary user
    (a file's, or ambient ones) are dropped.

    :raises NotPermitted: the user who called sudo may not read the directory where kvintro is installed.
    :raises SourceError: root or the capabilities could not be given up.
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
    # These determine the default files to write to (the history of the prompt).
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
            f"root cannot be given up: {error.strerror}", "use --keep-root to continue as root"
        ) from None
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise SourceError("root could not be given up", "use --keep-root to continue as root")
    # A process may be set up to keep capabilities if its user changes (SECBIT_KEEP_CAPS,
    # SECBIT_NO_SETUID_FIXUP).
    if _has_capabilities():
        _drop_capabilities()


def shield() -> None:
    """Prevent other processes of this user from tracing this one: from taking its descriptors, reading its
    memory, or opening its /proc/PID/fd.

    This also disables core dumps. Root can still do all of that. The kernel does this by itself for a process
    that changed its user, unless fs.suid_dumpable is 1. The effect ends with execve(2), so programs that are
    started from here (a pager) are not affected; they do not inherit our descriptors.

    :raises SourceError: the kernel refused.
    """
    if _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) or _libc().prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0):
        raise SourceError("the kernel does not protect this process from others", "run kvintro as root")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _capabilities() -> "ctypes.Array[ctypes.c_uint32]":
    """Effective, permitted and inheritable capabilities: the lower 32 bits of each, then the upper ones."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if _libc().capget(header, sets):
        raise SourceError(
            f"the capabilities cannot be read: {os.strerror(ctypes.get_errno())}",
            "use --keep-root to keep them",
        )
    return sets


def _has_capabilities() -> bool:
    """Whether the process has effective or permitted capabilities (which include ambient ones)."""
    sets = _capabilities()
    return any(sets[index] for index in (0, 1, 3, 4))


def _drop_capabilities() -> None:
    """:raises SourceError: some are left."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _libc().capset(header, (ctypes.c_uint32 * 6)())
    if any(_capabilities()):
        raise SourceError("the capabilities could not be given up", "use --keep-root to keep them")


def _check_installation(user: Invoker) -> None:
    """Check that the user can read the installed modules. Otherwise later imports fail without a clear error.

    :raises NotPermitted: the user cannot.
    """
    archive = getattr(globals().get("__loader__"), "archive", None)  # modules in a zip file have no files
    for path in (os.__file__, drgn.__file__, archive or __file__):
        if not os.access(path, os.R_OK):
            raise NotPermitted(
                f"{user.name or user.uid} may not read {os.path.dirname(path)}, "
                "and kvintro continues as the user who called sudo",
                "install Python, drgn and kvintro where everyone may read them, or use --keep-root",
            )


def hold_kernel_files() -> None:
    """Open :data:`KERNEL_FILES` while it is still possible, for :func:`open_kernel_file`."""
    for path in KERNEL_FILES:
        if path not in _held:
            try:
                _held[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue


def open_kernel_file(path: str) -> BinaryIO:
    """Open a file of the running kernel. If root opened it already, use that descriptor, from its beginning.

    :raises OSError: it cannot be opened.
    """
    descriptor = _held.get(path)
    if descriptor is None:
        return open(path, "rb")
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.fdopen(os.dup(descriptor), "rb")


def open_by_sudo(path: str) -> BinaryIO:
    """Open a file as root: sudo runs a process that opens the file, passes it on and exits.

    Both sides ask the kernel for the peer of their socket, so that no other process can send us another file
    or receive ours. The socket has an abstract name chosen by the kernel.

    :raises OSError: root may not open it either.
    :raises NotPermitted: sudo was denied, or is missing.
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
    """The descriptor that root sent; None if root sent nothing.

    :raises OSError: root could not open the file.
    """
    listener.setblocking(False)  # the sender has already exited
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
    """The user at the other end of a Unix socket, at the time when it connected or began to listen."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end of a Unix socket; 0 if it cannot be seen from here."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> Tuple[int, int, int]:
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits what this process can do before it parses a dump.

C libraries parse parts of a dump, and a flaw in one of them could let a dump run code. Such code can then
read files, but not change files outside a few directories, open sockets, or type commands into the terminal.
The limits are permanent, and apply to programs that this process starts, too.

Landlock limits files, a seccomp filter limits system calls. Both are the kernel's, and need no rights.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from typing import Iterable, Sequence, Tuple

# include/uapi/linux/prctl.h, seccomp.h
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
# The same on all architectures since 5.1.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
# include/uapi/linux/landlock.h
_VERSION, _RULE_PATH_BENEATH = 1, 1
_WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _REFER, _TRUNCATE = 1 << 1, 1 << 5, 1 << 8, 1 << 13, 1 << 14
_REMOVE_DIR, _MAKE_OTHERS = 1 << 4, 0x1FC0 & ~_MAKE_REG  # bits 6 to 12: devices, directories, links ...
#: What output and temporary files need in their directory.
_OF_DIRECTORY = _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _REFER | _TRUNCATE
#: Without REFER, which came with this version, no file can get its name from another directory.
_FIRST_VERSION, _VERSION_OF_TRUNCATE = 2, 3
# include/uapi/linux/bpf_common.h, filter.h, seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_X32 = 0x40000000
_IO_URING_SETUP = 425
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
#: By machine: AUDIT_ARCH_*, and the numbers of socket(2) and ioctl(2).
_CALLS = {"x86_64": (0xC000003E, 41, 16), "aarch64": (0xC00000B7, 198, 29)}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def enter(directories: Iterable[str]) -> None:
    """Limit this process permanently.

    A kernel without Landlock or seccomp, or a container that forbids them, limits less or nothing. A process
    with other threads is not limited, because Landlock would leave these out.

    :param directories: where regular files may be made, changed and removed. Missing ones are skipped.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not _has_one_thread() or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return
    with contextlib.suppress(OSError):
        _limit_files(libc, directories)
    _limit_calls(libc)


def _has_one_thread() -> bool:
    """False if that is unknown. Libraries may have threads that Python does not know."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _limit_files(libc: ctypes.CDLL, directories: Iterable[str]) -> None:
    """:raises OSError: the kernel has no Landlock, or refused."""
    version = _checked(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION))
    if version < _FIRST_VERSION:
        return
    known = _OF_DIRECTORY if version >= _VERSION_OF_TRUNCATE else _OF_DIRECTORY & ~_TRUNCATE
    handled = struct.pack("Q", known | _REMOVE_DIR | _MAKE_OTHERS)
    rules = _checked(libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0))
    try:
        for path, allowed in (*((each, known) for each in directories), (os.devnull, _WRITE_FILE)):
            with contextlib.suppress(OSError):  # then nothing may be written there
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    rule = struct.pack("=Qi", allowed, place)  # struct landlock_path_beneath_attr is packed
                    _checked(libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0))
                finally:
                    os.close(place)
        _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _limit_calls(libc: ctypes.CDLL) -> None:
    """Refuse sockets, io_uring (which can make sockets), and typing into a terminal."""
    if platform.machine() not in _CALLS:
        return
    architecture, socket, ioctl = _CALLS[platform.machine()]
    code = b"".join(struct.pack("=HBBI", *each) for each in _instructions(architecture, socket, ioctl))
    program = _Program(len(code) // 8, code)
    libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0)


def _instructions(architecture: int, socket: int, ioctl: int) -> Sequence[Tuple[int, int, int, int]]:
    """A filter of system calls: code, instructions to skip if true and if false, and operand.

    Calls of another architecture (32-bit and x32 programs) are refused, as their numbers differ.
    """
    return (
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 8, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 6, 0, _X32),
        (_EQUAL, 5, 0, socket),
        (_EQUAL, 4, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 4, ioctl),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, 1, 0, _TIOCSTI),
        (_EQUAL, 0, 1, _TIOCLINUX),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )

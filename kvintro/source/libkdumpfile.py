# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens kdumps with libkdumpfile, each in a child process first.

libkdumpfile maps the file, so data that begins before the end of the file and extends into the page after it
kills the process (SIGBUS). When libkdumpfile rejects a file because of its notes, it uses freed memory:
src/kdumpfile/diskdump.c:open_common frees an attribute's override, which attr.c:attr_dict_free removes later.
So this process opens only files that a child process has opened.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Callable

import drgn

from kvintro.errors import SourceError
from kvintro.source.program import one_line, without_advice

_DONE = b"\0"
_MOST = 1000  # bytes of an error message


class Killed(ValueError):
    """A signal killed the child process."""


def set_core_dump(prog: drgn.Program, descriptor: int) -> None:
    """Make a program read a kdump.

    :param descriptor: it stays open.
    :raises ValueError: libkdumpfile cannot read it, with its message.
    :raises Killed: it was killed trying.
    :raises SourceError: there cannot be another process.
    """

    def attempt() -> None:
        with without_advice():
            os.lseek(descriptor, 0, os.SEEK_SET)
            prog.set_core_dump(os.dup(descriptor))  # the program closes it

    try_in_child(attempt)
    attempt()


def try_in_child(attempt: Callable[[], None]) -> None:
    """Run a function in a child process.

    :raises ValueError: it raised an exception, with its text in one line.
    :raises Killed: a signal killed it.
    :raises SourceError: there cannot be another process.
    """
    output, into = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(output)
        os.close(into)
        what = f"the dump cannot be opened, because no process can be started: {error.strerror}"
        raise SourceError(what, "raise the limits of processes and memory (ulimit -u, ulimit -v)") from error
    if child == 0:
        try:
            # Messages of libraries will be printed by the second attempt.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            signal.signal(signal.SIGBUS, signal.SIG_DFL)  # kvintro.bus_error would hide the signal
            attempt()
            os.write(into, _DONE)
        except BaseException as error:
            os.write(into, one_line(error).encode()[:_MOST])
        finally:
            os._exit(0)
    os.close(into)
    with open(output, "rb") as file:
        said = file.read(_MOST)
    status = 0
    with contextlib.suppress(ChildProcessError):  # if this program ignores SIGCHLD
        _, status = os.waitpid(child, 0)
    if said == _DONE:
        return
    if said:
        raise ValueError(said.decode(errors="replace"))
    by = f" by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""
    raise Killed(f"libkdumpfile was killed{by}")

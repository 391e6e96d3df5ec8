# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handling of a file that shrinks while it is read.

libkdumpfile maps kdump files, and drgn maps debuginfo (``-s``). Reading a mapped page beyond the end of the
file raises SIGBUS, which kills a process that does not handle it. ELF files, raw memory, LiME, AVML, BTF and
VMCOREINFO are read instead of mapped, so the end of such a file is an ordinary error.
"""

from __future__ import annotations

import os
import signal
from typing import Callable, List

_MESSAGE = """\
kvintro: a file was truncated while it was read
  hint: copy it again whole, or wait until it is complete
"""

_handlers: List[object] = []  # keeps handlers that may still be called from being collected


def end_on_bus_error(
    message: str = _MESSAGE, code: int = 3, *, before: Callable[[], object] = lambda: None
) -> None:
    """Make SIGBUS end this process with a message on standard error instead of the signal.

    The command line calls this at its start. The Python API does not, because the process and its signals
    belong to the caller; a program that wants this calls the function once.

    :param code: exit status of the process.
    :param before: called before the message is written.
    """
    # A Python handler would never run: when the signal's own handler returns, the failing instruction is
    # tried again. So the signal calls this one directly, and it does not return.
    import ctypes

    @ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
    def handler(_: int) -> None:
        before()
        os.write(2, message.encode())
        os._exit(code)

    _handlers.append(handler)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGBUS), handler)

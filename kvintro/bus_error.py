# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happens when a file shrinks while it is read.

libkdumpfile maps kdump files, and drgn maps debuginfo (``-s``). Reading a page of a map that the file no
longer has sends SIGBUS, which kills a process that does not handle it. ELF files, raw memory, LiME, AVML,
BTF and VMCOREINFO are read and not mapped, so there the end of a file is an error like any other.
"""

from __future__ import annotations

import os
import signal
from typing import List

_MESSAGE = """\
kvintro: a file ended where it was being read
  hint: copy it again whole, or wait until it is
"""

_handlers: List[object] = []  # what the process may still call must not be collected


def end_on_bus_error(message: str = _MESSAGE, code: int = 3) -> None:
    """Make SIGBUS end this process with a message on standard error, and not by the signal.

    The command line does this at its start, whatever it opens. The Python API does not, as the process and
    its signals are the caller's; a program that wants it calls this function once.

    :param code: the exit status of the process.
    """
    # A handler in Python would never run, as the instruction that fails is tried again when the signal's own
    # handler returns. So this one is what the signal calls, and does not return.
    import ctypes

    @ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
    def handler(_: int) -> None:
        os.write(2, message.encode())
        os._exit(code)

    _handlers.append(handler)
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGBUS), handler)

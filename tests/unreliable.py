# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sample core as a running kernel, whose memory can become unreadable after it was opened."""

from __future__ import annotations

import random
from typing import Callable, Dict

import drgn

from kvintro.kernels import Kernel
from kvintro.opening import kernel_of
from kvintro.source import Request, Source, debuginfo, parse_vmcoreinfo
from kvintro.source.elf import Segment
from kvintro.source.program import hide_null
from tests.conftest import Core

#: Kinds of damage, and the result of a read.
_WAYS: Dict[str, Callable[[random.Random, bytes], bytes]] = {
    # /proc/kcore gives zeros for what it does not show.
    "zeros": lambda chosen, data: bytes(len(data)),
    # No two reads agree.
    "noise": lambda chosen, data: chosen.randbytes(len(data)),
}
WAYS = ("faults", *_WAYS)


class Unreliable:
    """Memory of a core, with symbols, types and VMCOREINFO that were read before the damage.

    :ivar way: the current damage, one of :data:`WAYS`, or "" for none.
    """

    def __init__(self, core: Core, *, symbols: bool = True, types: str = "auto") -> None:
        self.way = ""
        #: Bytes that the kernel has written since the core was taken, by physical address.
        self.written: Dict[int, bytes] = {}
        self.arch = core.arch
        self._chosen = random.Random(core.name)
        platform = drgn.Platform(drgn.Architecture[core.arch.drgn_name])
        self._base = drgn.Program(platform)
        self._base.set_core_dump(str(core.path))
        hide_null(self._base)
        prog = drgn.Program(platform)
        prog.add_memory_segment(0, 1 << 52, self._read, True)
        prog.set_linux_kernel_custom(self._base["VMCOREINFO"].string_().decode(), False)
        self.source = Source(
            prog,
            "live",
            "sample",
            "kcore",
            0,
            True,
            vmcoreinfo=parse_vmcoreinfo(prog),
            segments=_segments(core),
        )
        if symbols:
            debuginfo.load(self.source, Request(types=types))

    def kernel(self) -> Kernel:
        """The kernel, of which nothing has been read yet."""
        return kernel_of(self.source)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        if self.way == "faults":
            raise drgn.FaultError("no such memory", address)
        data: bytes = self._base.read(address, count, True)
        for at, new in self.written.items():
            if address < at + len(new) and at < address + count:
                changed = bytearray(data)
                for number, byte in enumerate(new, at - address):
                    if 0 <= number < count:
                        changed[number] = byte
                data = bytes(changed)
        return _WAYS[self.way](self._chosen, data) if self.way else data


def _segments(core: Core) -> "tuple[Segment, ...]":
    """The segments that /proc/kcore had in the boot of the core."""
    if not core.has_truth("kcore-phdrs"):
        return ()
    lines = (line.split() for line in core.truth("kcore-phdrs").splitlines())
    return tuple(Segment(*(int(w, 16) for w in words[1:6])) for words in lines if words[:1] == ["LOAD"])

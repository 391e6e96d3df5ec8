# SPDX-License-Identifier: LGPL-2.1-or-later
"""Base of formats with physical memory only: raw memory, LiME, AVML and others.

They have no note that identifies the kernel, and only the kernel itself says where its memory ends.
"""

from __future__ import annotations

from typing import Sequence, Tuple

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import TRUNCATED_REMEDY, Dump, outside
from kvintro.source.elf import Segment
from kvintro.source.kallsyms import READ_ERRORS, Kallsyms, KallsymsError, vmcoreinfo_symbols
from kvintro.source.opened import Source, parse_vmcoreinfo
from kvintro.source.physical import PhysicalMemory
from kvintro.source.program import program_of
from kvintro.source.scan import find_kallsyms
from kvintro.source.translation import prepare, space_of
from kvintro.source.vmcoreinfo import Chosen, Encrypted, NotBelieved, found_at

_GAP = (
    "it is not known whether this file has the gap below 4 GB, because its kernel has no symbol max_pfn: "
    "memory above the gap may be at other addresses; convert the file to LiME or ELF, which contain addresses"
)


class MemoryDump(Dump):
    """A file of physical memory.

    :param layouts: see :attr:`~kvintro.source.dump.Dump.layouts`.
    """

    called = "it"

    def __init__(self, content: Content, path: str, form: str, layouts: Sequence[PhysicalMemory]) -> None:
        super().__init__(content, path, form)
        self.layouts = layouts
        # Only the kernel knows whether more should follow: see verify.check_end().
        self.complete = None if layouts[0].complete else False
        ranges = [(extent.address, extent.address + extent.size) for extent in layouts[0].extents]
        self._outside = outside(ranges)

    def lacks(self, address: int) -> bool:
        return self.complete is not False and self._outside(address)

    def opened(self, chosen: Chosen) -> Source:
        right, guessed = by_max_pfn(chosen.layouts, chosen.text)
        if chosen.address is not None:
            # The address is that in the first of the layouts; convert it to the right one.
            chosen = chosen._replace(origin=found_at(right.moved(chosen.layouts[0], chosen.address)))
        extents = right.extents
        self.memory = sum(extent.size for extent in extents)
        self.segments = tuple(Segment(e.offset, 0, e.address, e.size, e.size) for e in extents)
        source = self.source(program_of(right, chosen.text), chosen)
        source.warnings += [_GAP] if guessed else []
        return source

    def refusal(self, error: NotADump) -> NotADump:
        what, remedy = f"{self.path}: {error.what}", error.remedy
        if isinstance(error, Encrypted):
            what = error.what
        elif self.complete is False:
            remedy = TRUNCATED_REMEDY
        elif isinstance(error, NotBelieved):
            remedy = "copy or take it again whole"
        return NotADump(what, remedy)


def by_max_pfn(layouts: Sequence[PhysicalMemory], vmcoreinfo: bytes) -> Tuple[PhysicalMemory, bool]:
    """The layout of a file that ends where the kernel's memory ends.

    All layouts are equal below the gap, where the image usually is, so VMCOREINFO cannot decide.

    :return: the layout, and whether it is a guess because there is no symbol ``max_pfn``.
    """
    nameless = False
    symbols = vmcoreinfo_symbols(vmcoreinfo.decode("ascii", "replace"))
    for layout in layouts if len(layouts) > 1 else ():
        prog = program_of(layout, vmcoreinfo)
        source = Source(prog, "core", "", "raw memory", vmcoreinfo=parse_vmcoreinfo(prog))
        prepare(source)
        space = space_of(source)
        try:
            if "kallsyms_names" in symbols:
                table = Kallsyms.from_memory(prog.read, symbols)
            else:
                table = find_kallsyms(prog.read, symbols)
            address = table.lookup("max_pfn")
            nameless |= address is None
            if address is None or space is None:
                continue
            if prog.read_u64(address) << space.form.page_shift == layout.end:
                return layout, False
        except (KallsymsError, *READ_ERRORS):
            continue
    return layouts[0], nameless

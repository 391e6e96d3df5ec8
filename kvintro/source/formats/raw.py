# SPDX-License-Identifier: LGPL-2.1-or-later
"""Raw memory: byte 0 of the file is byte 0 of memory, as in files by QEMU's pmemsave and LiME's "padded".

QEMU's own memory file (memory-backend-file) omits the gap that the machine has below 4 GB. If RAM does not
begin at 0, such a file begins with RAM.
"""

from __future__ import annotations

from typing import List, Sequence

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import RAW, READS, Format
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.physical import Extent, MemoryFile, PhysicalMemory
from kvintro.source.ram_start import RamStart
from kvintro.source.vmcoreinfo import Encrypted

# A file without any header is treated as memory only if it has at least this size.
LEAST = 8 << 20
FOUR_GB = 1 << 32
# End of RAM below 4 GB on machines that have more RAM: QEMU's q35 (2 GB; 2.75 GB before it aligned to
# gigabytes), pc, Cloud Hypervisor and VMware (3 GB), Firecracker and crosvm (3.25 GB; Firecracker 3 GB since
# 1.12), pc before 1.7 (3.5 GB), Xen (3.75 GB).
LOW_ENDS = tuple(int(gigabytes * (1 << 30)) for gigabytes in (3, 2, 3.25, 3.5, 2.75, 3.75))
# Since 1.12 Firecracker has another gap, for devices with 64-bit addresses.
_HIGH_GAP, _BEHIND_IT = 0x4000000000, 0x8000000000  # 256 GB, 512 GB
# A snapshot of changes has holes instead of the other pages, and nothing else shows that it is one.
_CHANGES_ONLY = (
    "if it has only the changes since another snapshot (Firecracker's diff), merge it with that one: "
    "snapshot-editor edit-memory rebase"
)


class RawDump(MemoryDump):
    """Memory without any header.

    :param forced: whether the user says that it is memory.
    """

    def __init__(self, content: Content, path: str, *, forced: bool = False) -> None:
        super().__init__(content, path, RAW, raw_layouts(content))
        self.left_out = 0
        self._forced = forced
        self._ram_start = RamStart(self.layouts[0])

    def more_layouts(self, text: bytes) -> Sequence[PhysicalMemory]:
        size = self.content.size
        starts = self._ram_start.candidates(text)
        return [MemoryFile(self.content, [Extent(start, size, 0)]) for start in starts]

    def lacks(self, address: int) -> bool:
        return False  # the intended size is unknown

    def refusal(self, error: NotADump) -> NotADump:
        if self._forced:
            return super().refusal(error)
        if isinstance(error, Encrypted):
            reason = error.what[len(self.path) + 2 :]
            return NotADump(f"{self.path} is not a kernel dump, or {reason}", error.remedy)
        remedy = _CHANGES_ONLY if self.content.real < self.content.size else READS
        return NotADump(f"{self.path} is not a kernel dump: as raw memory, {error.what}", remedy)


def raw_layouts(content: Content) -> List[PhysicalMemory]:
    """Possible layouts of a file without any header, the most likely first.

    PCs have no RAM in the last gigabyte or two below 4 GB; RAM that does not fit below is above 4 GB. A file
    that is the machine's RAM (of QEMU's memory-backend-file, Cloud Hypervisor, Firecracker) has no gap.
    """
    size = content.size
    layouts: List[PhysicalMemory] = [MemoryFile(content, [Extent(0, size, 0)])]
    for low in LOW_ENDS:
        if low < size:
            layouts.append(MemoryFile(content, [Extent(0, low, 0), Extent(FOUR_GB, size - low, low)]))
    rest = size - LOW_ENDS[0] - (_HIGH_GAP - FOUR_GB)
    if rest > 0:
        below, above = layouts[1].extents
        high = Extent(_BEHIND_IT, rest, size - rest)
        layouts.append(MemoryFile(content, [below, above._replace(size=above.size - rest), high]))
    return layouts


FORMAT = Format(RAW, lambda content, head: content.size >= LEAST, form="raw", read=RawDump)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A page-table tree as the kernel's own ptdump prints it.

Follows ``mm/ptdump.c`` and ``arch/x86/mm/dump_pagetables.c`` to the letter, oddities included, so that the
text can be compared with /sys/kernel/debug/page_tables line by line: what is printed is what
``note_page()`` would have been called with, one call for each entry, reduced to the calls that matter.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import (
    ALL,
    CPU_ENTRY_AREA_BASE,
    EFI_VA_END,
    ESPFIX_BASE,
    FIXADDR_TOP,
    PAGE_SHIFT,
    PRESENT,
    PSE,
    START_KERNEL_MAP,
)
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernel import Kernel
from kvintro.model import AddressRange, Placement
from kvintro.paging import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    PRUNED,
    REPEATED,
    STALE_NX,
    UNREADABLE,
    Tree,
)
from kvintro.regions import Root
from kvintro.regions.fixmap import REGION as FIXMAP
from kvintro.regions.ldt_remap import table_of
from kvintro.types import KASAN

_EFFECTIVE = EFFECTIVE_RW | EFFECTIVE_USER | EFFECTIVE_NX
# PAT_LARGE lies within the kernel's PTE_PFN_MASK, so its ptdump neither shows it nor cuts there.
_NOT_COMPARED = MAPPED | REPEATED | PRUNED | NONZERO | STALE_NX | 1 << 12


class Line(NamedTuple):
    """One line of the dump.

    :ivar end: the address behind the last one; 0 at the top of the address space.
    :ivar key: see :mod:`kvintro.paging.tree`; without what does not tell lines apart.
    :ivar marker: the heading under which it stands.
    """

    start: int
    end: int
    key: int
    marker: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start & ALL

    @property
    def writable_and_executable(self) -> bool:
        """Whether both hold with all levels taken together."""
        return self.key & (PRESENT | EFFECTIVE_RW | EFFECTIVE_NX) == PRESENT | EFFECTIVE_RW


class Markers:
    """The headings: ``address_markers[]`` of this kernel's build.

    :ivar missing: those whose address this source does not tell, with the reason.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.missing: List[str] = []
        self.found: List[Tuple[int, str]] = [(0, "User Space"), (1 << 63, "Kernel Space")]
        self._kernel = kernel
        if self._built_with("ldt_dup_context", "LDT remap"):
            self.found.append((kernel.geometry.ldt_remap.start, "LDT remap"))
        self._region("direct_map", "Low Kernel Mapping")
        self._region("vmalloc", "vmalloc() Area")
        self._region("vmemmap", "Vmemmap")
        if self._built_with(KASAN, "KASAN shadow"):
            shadow = kernel.geometry.kasan_shadow
            self.found += [(shadow.start, "KASAN shadow"), (shadow.end + 1, "KASAN shadow end")]
        self.found.append((CPU_ENTRY_AREA_BASE, "CPU entry Area"))
        if self._built_with("init_espfix_ap", "ESPfix Area"):
            self.found.append((ESPFIX_BASE, "ESPfix Area"))
        if self._built_with("efi_alloc_page_tables", "EFI Runtime Services"):
            self.found.append((EFI_VA_END, "EFI Runtime Services"))
        self.found.append((START_KERNEL_MAP, "High Kernel Mapping"))
        modules = self._region("modules", "Modules")
        if modules is not None:
            self.found.append((modules.end + 1, "End Modules"))
        try:
            slots = FIXMAP.permanent_slots(kernel)
            self.found.append((FIXADDR_TOP - (slots << PAGE_SHIFT), "Fixmap Area"))
        except Unavailable as error:
            self.missing.append(f"Fixmap Area: {error.what}")

    def _built_with(self, symbol: str, name: str) -> bool:
        try:
            return self._kernel.has_symbol(symbol, code=True)
        except Unavailable as error:
            self.missing.append(f"{name}: {error.what}")
            return False

    def _region(self, key: str, name: str) -> Optional[AddressRange]:
        found = self._kernel.locate(key)
        if not isinstance(found, Placement):
            self.missing.append(f"{name}: {found.reason}")
            return None
        self.found.append((found.range.start, name))
        return found.range


def pruned_tree(kernel: Kernel, root: Root) -> Tree:
    """A tree in which KASAN's early shadow tables are leaves (``mm/ptdump.c:note_kasan_page_table``)."""
    prune: Dict[int, int] = {}
    prune_as = 0
    for level, name in ((2, "pte"), (3, "pmd"), (4, "pud"), (5, "p4d")):
        address = kernel.find_symbol(f"kasan_early_shadow_{name}")
        if address is not None and address >= START_KERNEL_MAP:
            prune[level] = table_of(kernel, address)
    if 2 in prune:
        try:
            prune_as = int.from_bytes(kernel.read_physical(prune[2], 8), "little")
        except NotInDump:
            prune = {}
    return kernel.new_tree(root.table, prune=prune, prune_as=prune_as)


def stretches(kernel: Kernel, wanted: Optional[AddressRange] = None) -> Sequence[AddressRange]:
    """What the kernel's ptdump walks: all but the non-canonical hole and what is left to hypervisors."""
    geometry = kernel.geometry
    whole = (geometry.user, AddressRange(geometry.guard_hole.end + 1, ALL))
    if wanted is None:
        return whole
    return [
        AddressRange(max(part.start, wanted.start), min(part.end, wanted.end))
        for part in whole
        if part.overlaps(wanted)
    ]


def lines(tree: Tree, markers: Markers, parts: Sequence[AddressRange]) -> Iterator[Line]:
    """The dump's lines, ascending.

    :param parts: from :func:`stretches`.
    """
    if not parts:
        return
    state = _State(markers.found, parts[0].start)
    stale = 0
    for part in parts:
        for start, end, key in tree.ranges(part.start, part.end):
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            step = 1 << 12 + 9 * (level - 1)
            noted = key & ~_NOT_COMPARED
            if key & PRUNED:
                # Pruned entries are noted without asking for their rights: those of the last real one stick.
                noted = noted & ~_EFFECTIVE | stale
            elif level == 1:
                if not key & (UNREADABLE | OVER_LIMIT):
                    stale = key & _EFFECTIVE if key & NONZERO else EFFECTIVE_NX if key & STALE_NX else 0
            elif key & NONZERO:
                if level >= 4:
                    # No page is that large: p4d_none_or_clear_bad() makes a hole of it.
                    noted &= LEVEL_MASK
                elif not key & (PRESENT | PSE):
                    # Neither a page nor a table, and not empty either: passed over without a word.
                    continue
            yield from state.note(start, end, step, noted)
    yield from state.flush(parts[-1].end + 1 & ALL)


class _State:
    """``struct pg_state``."""

    def __init__(self, markers: Sequence[Tuple[int, str]], start: int) -> None:
        self._markers = markers
        self._at = -1
        self._advance()
        # A dump that starts in the middle starts under the heading it would stand under.
        while start and self._next <= start:
            self._advance()
        self._start = start
        self._key: Optional[int] = None

    def _advance(self) -> None:
        self._at += 1
        self._name = self._markers[self._at][1]
        last = self._at + 1 == len(self._markers)
        # END_OF_SPACE_NR: an address that no entry has.
        self._next = ALL if last else self._markers[self._at + 1][0]

    def note(self, start: int, end: int, step: int, key: int) -> List[Line]:
        """``note_page()`` for every entry of a range; entries lie ``step`` apart."""
        out = []
        if self._key is None:
            self._key = key
        elif key != self._key or start >= self._next:
            out.append(Line(self._start, start, self._key, self._name))
            if start >= self._next:
                self._advance()
            self._start, self._key = start, key
        # The next heading comes with the first entry at or above its address, and only one with each entry.
        call = start
        while self._next <= end:
            call = max(call + step, call + -(-(self._next - call) // step) * step)
            if call > end:
                break
            out.append(Line(self._start, call, key, self._name))
            self._advance()
            self._start = call
        return out

    def flush(self, end: int) -> Iterator[Line]:
        """``note_page_flush()``."""
        if self._key is not None:
            yield Line(self._start, end, self._key, self._name)

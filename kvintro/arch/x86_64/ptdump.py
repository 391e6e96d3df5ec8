# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: output of the kernel's own ptdump.

Follows ``mm/ptdump.c`` and ``arch/x86/mm/dump_pagetables.c`` exactly, including oddities, so that the text
can be compared with /sys/kernel/debug/page_tables line by line.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, Tuple

from kvintro.arch.x86_64.facts import x86_form
from kvintro.arch.x86_64.form import (
    CPU_ENTRY_AREA_BASE,
    EFI_VA_END,
    ESPFIX_BASE,
    FIXADDR_TOP,
    GLOBAL,
    NX,
    PAGE_SHIFT,
    PAT,
    PAT_LARGE,
    PCD,
    PRESENT,
    PSE,
    PWT,
    RW,
    START_KERNEL_MAP,
    USER,
)
from kvintro.errors import NotInDump, Unavailable
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_READ,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    LEVEL_MASK,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    PRUNED,
    REPEATED,
    TABLES_EXEC,
    UNREADABLE,
    Tree,
)
from kvintro.queries.ptdump import Dump, Shown
from kvintro.readers.processes import physical_of
from kvintro.source.variables import KASAN_FUNCTION

#: In the key of a line, as in the kernel's ptdump, this bit means that execution is forbidden.
_LINE_NX = EFFECTIVE_EXEC
_EFFECTIVE = EFFECTIVE_WRITE | EFFECTIVE_USER | _LINE_NX
# PAT_LARGE is within the kernel's PTE_PFN_MASK, so its ptdump does not show it or begin a new line for it.
_NOT_COMPARED = (
    *(MAPPED, REPEATED, PRUNED, NONZERO, TABLES_EXEC, EFFECTIVE_READ, EFFECTIVE_USER_EXEC),
    PAT_LARGE,
)
_COMPARED = ~sum(_NOT_COMPARED)
_FLAGS = (
    *((USER, "USR"), (RW, "RW"), (PWT, "PWT"), (PCD, "PCD")),
    *((PSE, "PSE"), (PAT, "PAT"), (GLOBAL, "GLB"), (NX, "NX")),
)
_RIGHTS = ((EFFECTIVE_USER, "USR"), (EFFECTIVE_WRITE, "RW"), (_LINE_NX, "NX"))


class X86Dump(Dump):
    """See :class:`kvintro.queries.ptdump.Dump`."""

    def find_headings(self) -> None:
        """``address_markers[]``."""
        kernel, found, form = self.kernel, self.headings, x86_form(self.kernel)
        found += [(0, "User Space"), (1 << 63, "Kernel Space")]
        if self.built_with("ldt_dup_context", "LDT remap"):
            found.append((form.ldt_remap.start, "LDT remap"))
        self.head_region("direct_map", "Low Kernel Mapping")
        self.head_region("vmalloc", "vmalloc() Area")
        self.head_region("vmemmap", "Vmemmap")
        if self.built_with(KASAN_FUNCTION, "KASAN shadow"):
            shadow = form.kasan_shadow
            found += [(shadow.start, "KASAN shadow"), (shadow.end + 1, "KASAN shadow end")]
        found.append((CPU_ENTRY_AREA_BASE, "CPU entry Area"))
        if self.built_with("init_espfix_ap", "ESPfix Area"):
            found.append((ESPFIX_BASE, "ESPfix Area"))
        if self.built_with("efi_alloc_page_tables", "EFI Runtime Services"):
            found.append((EFI_VA_END, "EFI Runtime Services"))
        found.append((START_KERNEL_MAP, "High Kernel Mapping"))
        modules = self.head_region("modules", "Modules")
        if modules is not None:
            found.append((modules.end + 1, "End Modules"))
        try:
            slots = kernel.fixmap_slots
            found.append((FIXADDR_TOP - (slots << PAGE_SHIFT), "Fixmap Area"))
        except Unavailable as error:
            self.missing.append(f"Fixmap Area: {error.what}")

    def tree(self) -> Tree:
        """A tree in which KASAN's early shadow tables are leaves (``mm/ptdump.c:note_kasan_page_table``)."""
        kernel = self.kernel
        prune: Dict[int, int] = {}
        prune_as = 0
        for level, name in ((2, "pte"), (3, "pmd"), (4, "pud"), (5, "p4d")):
            address = kernel.find_symbol(f"kasan_early_shadow_{name}")
            if address is not None and address >= START_KERNEL_MAP:
                prune[level] = physical_of(kernel, address)
        if 2 in prune:
            try:
                prune_as = int.from_bytes(kernel.read_physical(prune[2], 8), "little")
            except NotInDump:
                prune = {}
        return kernel.new_tree(self.root.table, prune=prune, prune_as=prune_as)

    def noted(self, ranges: Iterable[Tuple[int, int, int]]) -> Iterator[Tuple[int, int, int]]:
        """Keys as modified by ``effective_prot()`` and ``ptdump_p4d_entry()`` to ``ptdump_pte_entry()``."""
        stale = 0
        for start, end, key in ranges:
            level = self.level(key)
            noted = key & _COMPARED
            if key & NONZERO:
                noted ^= _LINE_NX
            if key & PRUNED:
                # Rights of pruned entries are not computed; they keep those of the last real entry.
                noted = noted & ~_EFFECTIVE | stale
            elif level == 1:
                if not key & (UNREADABLE | OVER_LIMIT):
                    stale = noted & _EFFECTIVE if key & NONZERO else 0 if key & TABLES_EXEC else _LINE_NX
            elif key & NONZERO:
                if level >= 4:
                    # No page is that large: p4d_none_or_clear_bad() turns it into a hole.
                    noted &= LEVEL_MASK
                elif not key & (PRESENT | PSE):
                    # Neither a page nor a table, and not empty either: silently skipped.
                    continue
            yield start, end, noted

    def shown(self, key: int) -> Shown:
        """See :meth:`kvintro.queries.ptdump.Dump.shown`."""
        unread = self.unread(key)
        if unread is not None:
            return unread
        level = self.level(key)
        name = self.kernel.form.level_name(level)
        if not key & PRESENT:
            return Shown(name, "not-present")
        wrong = "PSE" if level == 1 else "PAT"  # they are the same bit
        flags = tuple(text for mask, text in _FLAGS if key & mask and text != wrong)
        return Shown(name, "present", flags, tuple(text for mask, text in _RIGHTS if key & mask))

    def writable_and_executable(self, key: int) -> bool:
        """See :meth:`kvintro.queries.ptdump.Dump.writable_and_executable`."""
        return key & (PRESENT | EFFECTIVE_WRITE | _LINE_NX) == PRESENT | EFFECTIVE_WRITE


DUMP = X86Dump

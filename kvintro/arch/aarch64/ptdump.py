# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: output of the kernel's own ptdump.

Follows ``arch/arm64/mm/ptdump.c`` exactly, so that the text can be compared with
/sys/kernel/debug/kernel_page_tables line by line.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Iterable, Iterator, Sequence, Tuple

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.arch.aarch64.form import (
    AF,
    ATTR_INDEX_SHIFT,
    CONT,
    GP,
    NG,
    PXN,
    RDONLY,
    SHARED,
    TABLE_BIT,
    USER_BIT,
    UXN,
    VALID,
)
from kvintro.errors import Unavailable
from kvintro.model import AddressRange
from kvintro.paging import (
    EFFECTIVE_EXEC,
    EFFECTIVE_USER,
    EFFECTIVE_WRITE,
    LEVEL_MASK,
    OVER_LIMIT,
    UNREADABLE,
)
from kvintro.queries.ptdump import Dump, Shown

_ATTRIBUTES = 7 << ATTR_INDEX_SHIFT
_EFFECTIVE = EFFECTIVE_WRITE | EFFECTIVE_USER | EFFECTIVE_EXEC
#: All masks of ``pte_bits[]``.
_SHOWN = VALID | TABLE_BIT | USER_BIT | RDONLY | PXN | SHARED | AF | NG | CONT | UXN | GP | _ATTRIBUTES
_COMPARED = _SHOWN | LEVEL_MASK | OVER_LIMIT | UNREADABLE
_FLAGS = (
    *((USER_BIT, USER_BIT, "USR"), (RDONLY, RDONLY, "ro"), (PXN, PXN, "NX"), (SHARED, SHARED, "SHD")),
    *((AF, AF, "AF"), (NG, NG, "NG"), (CONT, CONT, "CON"), (UXN, UXN, "UXN"), (GP, GP, "GP")),
)
#: ``pte_bits[]``: its names of memory types.
_NAMES = {
    "DEVICE/nGnRnE": "DEVICE/nGnRnE",
    "DEVICE/nGnRE": "DEVICE/nGnRE",
    "DEVICE/GRE": "DEVICE/GRE",
    "NORMAL": "MEM/NORMAL",
    "NORMAL-NC": "MEM/NORMAL-NC",
    "NORMAL-TAGGED": "MEM/NORMAL-TAGGED",
}
_MOST_BITS = 32  # entries of pte_bits[]
_PROT_BITS = struct.Struct("<QQQQ")
_BLOCK = b"BLK\0"
#: FIX_FDT_SIZE when the fixmap mapped the device tree in blocks of 2M.
_DEVICE_TREE_BLOCKS = 4 << 20


class Arm64Dump(Dump):
    """See :class:`kvintro.queries.ptdump.Dump`."""

    most_headings = 2

    def find_headings(self) -> None:
        """``address_markers[]``."""
        kernel, form, found = self.kernel, self.kernel.form, self.headings
        if not self._is_kernels:
            if self.root.owner == "efi_mm":
                # efi_page_tables: DEFAULT_MAP_WINDOW_64
                end = 1 << arm64_facts(kernel).form.least_bits
                found += [(0, "UEFI runtime start"), (end, "UEFI runtime end")]
            else:
                found.append((0, self.root.owner if self.root.table in kernel.forms else "user"))
            return
        try:
            space = arm64_facts(kernel).space
        except Unavailable as error:
            self.missing.append(f"the kernel's regions: {error.what}")
            found.append((form.kernel.start, "Linear Mapping start"))
            return
        facts = arm64_facts(kernel)
        # Before 6.9 the walk begins at PAGE_OFFSET.
        first = form.upper.start if space.from_actual else facts.form.page_offset
        found += [(first, "Linear Mapping start"), (facts.linear_end.value, "Linear Mapping end")]
        if facts.shadow is not None:
            found.append((facts.shadow.start, "Kasan shadow start"))
            found.append((facts.shadow.end + 1, "Kasan shadow end"))
        if facts.bpf is not None:
            found += [(facts.bpf.start, "BPF start"), (facts.bpf.end + 1, "BPF end")]
        found += [
            (facts.modules.start, "Modules start"),
            (facts.modules.end + 1, "Modules end"),
            (facts.vmalloc.start, "vmalloc() area"),
            (facts.vmalloc.end + 1, "vmalloc() end"),
            (space.vmemmap.start, "vmemmap start"),
            (space.vmemmap.end + 1, "vmemmap end"),
            (space.pci_io.start, "PCI I/O start"),
            (space.pci_io.end + 1, "PCI I/O end"),
        ]
        try:
            # 414c109bdf49 "arm64: mm: always map fixmap at page granularity" also moved this heading.
            whole = facts.device_tree.size < _DEVICE_TREE_BLOCKS
            found.append((facts.fixmap(whole=whole).start, "Fixmap start"))
            found.append((space.fixaddr_top, "Fixmap end"))
        except Unavailable as error:
            self.missing.append(f"Fixmap: {error.what}")
        found.sort(key=lambda heading: heading[0])

    @property
    def _is_kernels(self) -> bool:
        """Whether the root translates the kernel's addresses."""
        kernel = self.kernel
        if self.root.table == kernel.root.value:
            return True
        try:
            return self.root.table == kernel.facts.user_root(kernel.root.value)
        except Unavailable:
            return False

    def parts(self) -> Sequence[AddressRange]:
        """The addresses that the root translates."""
        if self._is_kernels:
            return (self.kernel.form.kernel,)
        return (self.kernel.form_at(self.root.table).user,)

    def noted(self, ranges: Iterable[Tuple[int, int, int]]) -> Iterator[Tuple[int, int, int]]:
        """Reduce keys to the level and the bits that are shown, which decide where a new line begins."""
        for start, end, key in ranges:
            # The rights of all levels together depend on the tables above, which ptdump ignores.
            yield start, end, key & _COMPARED

    def shown(self, key: int) -> Shown:
        """See :meth:`kvintro.queries.ptdump.Dump.shown`."""
        unread = self.unread(key)
        if unread is not None:
            return unread
        level = self.level(key)
        name = self.kernel.form.level_name(level)
        if not key & _SHOWN:
            return Shown(name, "not-present")
        flags = [] if key & VALID else ["F"]
        flags += [text for mask, value, text in _FLAGS if key & mask == value]
        mask, value, equal = self._block
        if (key & mask == value) is equal:
            flags.append("BLK")
        kind = _NAMES.get(self.kernel.form.memory_type(key, level))
        if kind is not None:
            flags.append(kind)
        return Shown(name, "present" if key & VALID else "not-present", tuple(flags))

    @cached_property
    def _block(self) -> Tuple[int, int, bool]:
        """(mask, value, whether an entry is a block if the masked bits equal the value or if they differ).

        Kernels differ in which invalid entries they call blocks, so the kernel's own table is read. Each
        element has a mask, a value, and the strings to print if they match and if they do not.
        """
        kernel = self.kernel
        try:
            at = kernel.symbol("pte_bits")
            for offset in range(0, _PROT_BITS.size * _MOST_BITS, _PROT_BITS.size):
                mask, value, *names = _PROT_BITS.unpack(kernel.read(at + offset, _PROT_BITS.size))
                for name, equal in zip(names, (True, False)):
                    if name and kernel.read(name, len(_BLOCK)) == _BLOCK:
                        return mask, value, equal
        except Unavailable:
            pass
        return TABLE_BIT, TABLE_BIT, False

    def writable_and_executable(self, key: int) -> bool:
        """Whether the entries themselves let kernel mode both write and execute."""
        return key & (VALID | RDONLY | PXN) == VALID


DUMP = Arm64Dump

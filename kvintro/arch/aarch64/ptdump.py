# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: output of the kernel's own ptdump.

Follows ``arch/arm64/mm/ptdump.c`` exactly, so that the text can be compared with
/sys/kernel/debug/kernel_page_tables line by line.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Sequence, Tuple

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
)
from kvintro.queries.ptdump import Dump, Shown

_ATTRIBUTES = 7 << ATTR_INDEX_SHIFT
_EFFECTIVE = EFFECTIVE_WRITE | EFFECTIVE_USER | EFFECTIVE_EXEC
#: All masks of ``pte_bits[]``.
_SHOWN = VALID | TABLE_BIT | USER_BIT | RDONLY | PXN | SHARED | AF | NG | CONT | UXN | GP | _ATTRIBUTES
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
    compared = _SHOWN

    def find_headings(self) -> None:
        """``address_markers[]``."""
        kernel, form, found = self.kernel, self.kernel.form, self.headings
        if not self._is_kernels:
            if self.root.owner == "efi_mm":
                # efi_page_tables: DEFAULT_MAP_WINDOW_64
                end = 1 << arm64_facts(kernel).form.least_bits
                self.head(AddressRange(0, end - 1), "UEFI runtime")
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
            self.head(facts.shadow, "Kasan shadow")
        if facts.bpf is not None:
            self.head(facts.bpf, "BPF")
        self.head(facts.modules, "Modules")
        self.head(facts.vmalloc, "vmalloc()", "area")
        self.head(space.vmemmap, "vmemmap")
        self.head(space.pci_io, "PCI I/O")
        try:
            # 414c109bdf49 "arm64: mm: always map fixmap at page granularity" also moved this heading.
            whole = facts.device_tree.size < _DEVICE_TREE_BLOCKS
            self.head(facts.fixmap(whole=whole), "Fixmap")
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

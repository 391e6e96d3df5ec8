# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: output of the kernel's own ptdump.

Follows ``arch/riscv/mm/ptdump.c`` exactly, so that the text can be compared with
/sys/kernel/debug/kernel_page_tables line by line. The kernel prints only entries that have a flag.
"""

from __future__ import annotations

from typing import Optional, Sequence

from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.arch.riscv64.form import EXEC_BIT, MEMORY_TYPE_SHIFT, NAPOT, PRESENT, SPECIAL, WRITE_BIT
from kvintro.errors import Unavailable
from kvintro.model import AddressRange
from kvintro.queries.ptdump import Dump, Line, Shown

#: The bits of ``pte_bits[]``: those below 10, the memory type and N.
_TYPE = 3 << MEMORY_TYPE_SHIFT
_SHOWN = (1 << 10) - 1 | _TYPE | NAPOT
_TYPES = ("", "MT(NC)", "MT(IO)", "MT(??)")
_SOFT_SHIFT = SPECIAL.bit_length() - 1
_EFI_RUNTIME, _EFI_WALK = AddressRange(0, (1 << 30) - 1), AddressRange(0, (2 << 30) - 1)


class RiscvDump(Dump):
    """See :class:`kvintro.queries.ptdump.Dump`."""

    most_headings = 16
    compared = _SHOWN

    def find_headings(self) -> None:
        """``address_markers[]``."""
        kernel, found = self.kernel, self.headings
        if self.root.owner == "efi_mm":
            self.head(_EFI_RUNTIME, "UEFI runtime")
            return
        facts = riscv_facts(kernel)
        if self.root.table != kernel.root.value:
            found.append((0, "user"))
        try:
            self.head(facts.fixmap, "Fixmap")
        except Unavailable as error:
            self.missing.append(f"Fixmap start: {error.what}")
            found.append((facts.fixmap_top, "Fixmap end"))
        self.head(facts.pci_io, "PCI I/O")
        self.head(facts.vmemmap, "vmemmap")
        self.head(facts.vmalloc, "vmalloc()", "area")
        found.append((facts.linear_window.start, "Linear mapping"))
        if facts.shadow is not None:
            self.head(facts.shadow, "Kasan shadow")
        found.append((facts.modules.start, "Modules/BPF mapping"))
        found.append((facts.address_space.image.start, "Kernel mapping"))

    def parts(self) -> Sequence[AddressRange]:
        """The kernel's file begins at KERN_VIRT_START."""
        if self.root.owner == "efi_mm":
            return (_EFI_WALK,)
        form = self.kernel.form
        return (form.kernel,) if self.root.table == self.kernel.root.value else (form.user, form.kernel)

    def shown(self, key: int) -> Shown:
        """See :meth:`kvintro.queries.ptdump.Dump.shown`."""
        unread = self.unread(key)
        if unread is not None:
            return unread
        name = self.kernel.form.level_name(self.level(key))
        soft, kind = key >> _SOFT_SHIFT & 3, _TYPES[key >> MEMORY_TYPE_SHIFT & 3]
        flags = ["N"] if key & NAPOT else []
        flags += [kind] if kind else []
        flags += [f"RSW({soft})"] if soft else []
        flags += [letter for bit, letter in zip(range(7, -1, -1), "DAGUXWRV") if key >> bit & 1]
        return Shown(name, "present" if key & PRESENT else "not-present", tuple(flags))

    def physical(self, lines: Sequence[Line]) -> Sequence[Optional[int]]:
        """``start_pa``: the page frame of each line's first entry."""
        import numpy

        form = self.kernel.form
        starts = numpy.array([line.start for line in lines], numpy.uint64)
        found = self.kernel.walk_array(starts, self.root.table)
        last = numpy.maximum(found.depths.astype(numpy.int64), 1) - 1
        entries = found.values[numpy.arange(len(lines)), last].tolist()
        return [form.page_address(entry, 1) for entry in entries]

    def writable_and_executable(self, key: int) -> bool:
        """note_prot_wx()."""
        wanted = PRESENT | WRITE_BIT | EXEC_BIT
        return key & wanted == wanted


DUMP = RiscvDump

# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: decodes a page-table entry bit by bit, with the kernel's own names. Pure arithmetic.

Mirrors ``arch/riscv/include/asm/pgtable-bits.h``, ``pgtable-64.h`` and ``pgtable.h`` (swap entries).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Optional

from kvintro.arch.entry import Decoder, Entry, UserRange, mapping, pointing, swapped
from kvintro.arch.riscv64.form import (
    ACCESSED,
    LEAF,
    LEVELS,
    MEMORY_TYPE_SHIFT,
    NAPOT,
    NAPOT_SIZE,
    PHYSICAL_BITS,
    PRESENT,
    PROT_NONE,
    SPECIAL,
    SWAP_TYPE_SHIFT,
    USER_BIT,
    RiscvForm,
)
from kvintro.arch.swap import SWP_TYPE_BITS, SpecialSwapTypes, SwapFields
from kvintro.model import ALL

_NAMES = ("PRESENT", "READ", "WRITE", "EXEC", "USER", "GLOBAL", "ACCESSED", "DIRTY", "SPECIAL")
#: An entry that points to a table has no rights, so nothing tells whose it is.
_EITHER = "an entry that points to a table may belong to either half"
SWP_EXCLUSIVE = ACCESSED
_OFFSET_SHIFT = SWAP_TYPE_SHIFT + SWP_TYPE_BITS


@dataclass(frozen=True)
class Dialect:
    """Differences between builds of the kernel in the meaning of an entry.

    :ivar swap_types: special swap types; None if unknown.
    :ivar devmap: whether bit 9 of a page means DEVMAP (6.12).
    """

    swap_types: Optional[SpecialSwapTypes] = None
    devmap: bool = False


class RiscvEntries(Decoder[RiscvForm, Dialect]):
    """See :class:`kvintro.arch.entry.EntryFormat`."""

    def of_range(self, key: int, level: int) -> UserRange:
        """A range keeps SPECIAL and the swap type, and no bits of an offset."""
        types = self.dialect.swap_types
        if types is None:
            return UserRange(bool(key & SPECIAL), "swap")
        kind = types.names.get(key >> SWAP_TYPE_SHIFT & (1 << SWP_TYPE_BITS) - 1, "swap")
        return UserRange(bool(key & SPECIAL), kind, None if kind == "marker" else ())

    def decode(self, value: int, level: int, *, half: Optional[str] = None) -> Entry:
        """See :meth:`kvintro.arch.entry.EntryFormat.decode`."""
        value &= ALL
        form, note = self.form, ""
        present, rights = value & PRESENT, value & LEAF
        if half is None:
            # The kernel's pages have no USER, and only user mode's entries are swapped out.
            half = "user" if value & USER_BIT or not present else "kernel"
            note = _EITHER if present and not rights else ""
        bits = self._bits(value)
        if value == 0:
            return Entry(value, level, half, "empty")
        if level > 1 and form.is_table(value, level):
            table = pointing(value, level, half, "table", form.table_address(value), bits)
            return replace(table, half_note=note)
        if form.is_leaf(value, level):
            return self._page(value, level, half, "page")
        if present:
            return replace(pointing(value, level, half, "reserved", None, bits), reserved=rights or PRESENT)
        if half == "user":
            if form.holds_page(value, level):
                return self._page(value, level, half, "protnone" if value & PROT_NONE else "invalid")
            if level <= 2 and not rights:
                types = self.dialect.swap_types
                number, offset = value >> SWAP_TYPE_SHIFT & (1 << SWP_TYPE_BITS) - 1, value >> _OFFSET_SHIFT
                fields = SwapFields(number, offset, {6: "SWP_EXCLUSIVE"} if value & SWP_EXCLUSIVE else {})
                return swapped(value, level, half, fields, form, types, PHYSICAL_BITS)
        # set_memory_valid(), KFENCE and debug_pagealloc clear PRESENT and keep the rest.
        return pointing(value, level, half, "not-present", form.page_address(value, level), bits)

    def _page(self, value: int, level: int, half: str, kind: str) -> Entry:
        source = f"Svpbmt {value >> MEMORY_TYPE_SHIFT & 3}"
        contiguous = NAPOT_SIZE if value & NAPOT and level == 1 else 0
        return mapping(value, level, half, kind, self.form, self._bits(value), source, contiguous)

    def _bits(self, value: int) -> Dict[int, str]:
        """Name of each bit that is set, except those of the address."""
        names = dict(enumerate(_NAMES))
        names[9] = "DEVMAP" if self.dialect.devmap else "bit 9"
        names.update({bit: f"bit {bit}" for bit in range(54, 61)})
        names.update({61: "NOCACHE", 62: "IO", 63: "NAPOT"})
        if not value & PRESENT:
            names[5] = "PROT_NONE"
        return {bit: name for bit, name in names.items() if value >> bit & 1}


def of_any(level: str) -> RiscvEntries:
    """A decoder for what most kernels have in common.

    :param level: the level of the tables, by name or number. Four levels are assumed unless it is higher.
    """
    bits = max(LEVELS) if level in ("p4d", "5") else 48
    return RiscvEntries(
        RiscvForm.of(bits),
        Dialect(),
        (f"no source was named: sv{bits} is assumed; swap entries and software bit 9 are not named",),
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: decodes a page-table entry bit by bit, with the kernel's own names. Pure arithmetic.

Mirrors ``arch/riscv/include/asm/pgtable-bits.h``, ``pgtable-64.h`` and ``pgtable.h`` (swap entries).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

from kvintro.arch.entry import Entry, UserRange, name_bits
from kvintro.arch.riscv64.form import (
    ACCESSED,
    LEAF,
    LEVELS,
    MEMORY_TYPE_SHIFT,
    NAPOT,
    NAPOT_PAGES,
    PRESENT,
    PROT_NONE,
    SPECIAL,
    SWAP_TYPE_SHIFT,
    USER_BIT,
    RiscvForm,
)
from kvintro.arch.swap import MOST_SPECIAL, SWP_TYPE_BITS, SpecialSwapTypes, Swap, marker_names
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
    :ivar physical_bits: MAX_PHYSMEM_BITS; None if unknown.
    :ivar devmap: whether bit 9 of a page means DEVMAP (6.12).
    """

    swap_types: Optional[SpecialSwapTypes] = None
    physical_bits: Optional[int] = None
    devmap: bool = False


class RiscvEntries:
    """See :class:`kvintro.arch.entry.EntryFormat`.

    :param dialect: properties of the kernel's build.
    :param notes: remarks for the reader of decoded entries.
    """

    def __init__(self, form: RiscvForm, dialect: Dialect, notes: Sequence[str] = ()) -> None:
        self.form = form
        self.dialect = dialect
        self.notes = notes

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
        if value == 0:
            return Entry(value, level, half, "empty")
        if level > 1 and form.is_table(value, level):
            bits = self._bits(value)
            physical = form.table_address(value)
            return Entry(
                value, level, half, "table", physical, flags=name_bits(bits), bits=bits, half_note=note
            )
        if form.is_leaf(value, level):
            return self._page(value, level, half, "page")
        if present:
            bits = self._bits(value)
            wrong = rights or PRESENT
            return Entry(value, level, half, "reserved", flags=name_bits(bits), reserved=wrong, bits=bits)
        if half == "user":
            if form.holds_page(value, level):
                return self._page(value, level, half, "protnone" if value & PROT_NONE else "invalid")
            if level <= 2 and not rights:
                return self._swapped(value, level, half)
        # set_memory_valid(), KFENCE and debug_pagealloc clear PRESENT and keep the rest.
        bits = self._bits(value)
        physical = form.page_address(value, level)
        return Entry(value, level, half, "not-present", physical, flags=name_bits(bits), bits=bits)

    def _page(self, value: int, level: int, half: str, kind: str) -> Entry:
        bits, form = self._bits(value), self.form
        size = 1 << form.shift(level)
        return Entry(
            value,
            level,
            half,
            kind,
            form.page_address(value, level),
            size,
            name_bits(bits),
            memory_type=form.memory_type(value, level),
            memory_source=f"Svpbmt {value >> MEMORY_TYPE_SHIFT & 3}",
            contiguous=NAPOT_PAGES * size if value & NAPOT and level == 1 else 0,
            bits=bits,
        )

    def _swapped(self, value: int, level: int, half: str) -> Entry:
        types, form = self.dialect.swap_types, self.form
        number = value >> SWAP_TYPE_SHIFT & (1 << SWP_TYPE_BITS) - 1
        offset = value >> _OFFSET_SHIFT
        bits = {6: "SWP_EXCLUSIVE"} if value & SWP_EXCLUSIVE else {}
        flags = [*bits.values()]
        kind: Optional[str] = None
        if types is not None:
            kind = types.names.get(number, "swap")
        elif number < (1 << SWP_TYPE_BITS) - MOST_SPECIAL:
            kind = "swap"
        markers: Tuple[str, ...] = ()
        pfn: Optional[int] = None
        if kind == "marker" and types is not None:
            markers = marker_names(offset, types.markers)
        elif kind not in (None, "swap") and self.dialect.physical_bits is not None:
            pfn_bits = self.dialect.physical_bits - form.page_shift
            pfn = offset & (1 << pfn_bits) - 1
            if kind is not None and kind.startswith("migration"):
                # include/linux/swapops.h: SWP_MIG_YOUNG_BIT, SWP_MIG_DIRTY_BIT.
                flags += [name for i, name in enumerate(("YOUNG", "DIRTY")) if offset >> pfn_bits + i & 1]
        swap = Swap(number, kind, offset, pfn, tuple(flags), markers)
        physical = None if pfn is None else pfn << form.page_shift
        return Entry(value, level, half, "swap", physical, 0, tuple(flags), swap=swap, bits=bits)

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

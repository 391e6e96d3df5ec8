# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: decodes a page-table entry bit by bit, with the kernel's own names. Pure arithmetic.

Mirrors ``arch/x86/include/asm/pgtable_types.h``, ``pgtable_64.h`` (swap entries), ``pgtable-invert.h`` and
``include/linux/swap.h`` (special swap types).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

from kvintro.arch.entry import Decoder, Entry, UserRange, name_bits, swapped
from kvintro.arch.swap import SWP_TYPE_BITS, SpecialSwapTypes, SwapFields, marker_names
from kvintro.arch.x86_64.form import (
    ACCESSED,
    DIRTY,
    GLOBAL,
    MEMORY_TYPES,
    NX,
    PAGE_SHIFT,
    PAT_LARGE,
    PCD,
    PRESENT,
    PROTNONE,
    PSE,
    PWT,
    RW,
    USER,
    X86Form,
)
from kvintro.model import ALL

SOFTW1 = 1 << 9
SOFTW2 = 1 << 10
SOFTW3 = 1 << 11
PKEY_SHIFT = 59

#: Bits of an entry that is not present (arch/x86/include/asm/pgtable_64.h, pgtable_types.h).
SWP_SOFT_DIRTY = RW
SWP_UFFD_WP = USER
SWP_EXCLUSIVE = PWT
SWP_OFFSET_FIRST_BIT = 9

_EITHER = (
    "an entry that points to a table may belong to either half, since upper levels of the kernel half have "
    "the USER bit too"
)


@dataclass(frozen=True)
class Dialect:
    """Differences between builds of the kernel in the meaning of an entry.

    :ivar softw4_bit: 57, or 58 before shadow stacks took that bit (6.6); None if unknown.
    :ivar swap_types: special swap types; None if unknown.
    :ivar devmap: whether SOFTW4 of a user page means DEVMAP (before 6.17).
    :ivar kernel_4k: whether SOFTW3 of a kernel page means that it must not become part of a large one (7.x).
    :ivar uffd: name of userfaultfd's bit, SOFTW2 of a user page: UFFD if it also marks pages that may not be
        read (7.x).
    """

    softw4_bit: Optional[int] = None
    swap_types: Optional[SpecialSwapTypes] = None
    devmap: bool = False
    kernel_4k: bool = False
    uffd: str = "UFFD_WP"


class X86Entries(Decoder[X86Form, Dialect]):
    """See :class:`kvintro.arch.entry.EntryFormat`."""

    def decode(self, value: int, level: int, *, half: Optional[str] = None) -> Entry:
        """See :func:`decode`."""
        return decode(value, level, self.form, half=half, dialect=self.dialect)

    def of_range(self, key: int, level: int) -> UserRange:
        """A range keeps SPECIAL, the swap type, and of a swap entry's offset the bits below the address."""
        types = self.dialect.swap_types or SpecialSwapTypes({}, 0)
        kind = types.names.get(key >> (64 - SWP_TYPE_BITS), "swap")
        offset = ~key >> SWP_OFFSET_FIRST_BIT & 7
        markers = marker_names(offset, types.markers) if kind == "marker" else ()
        return UserRange(bool(key & SOFTW1), kind, markers)


def of_any(level: str) -> X86Entries:
    """A decoder for what all kernels have in common.

    :param level: the level of the tables, by name or number. Four levels are assumed unless it is higher.
    """
    # For a single entry, the number of levels only affects the name of the root.
    return X86Entries(
        X86Form(5 if level in ("p4d", "5") else 4, (1 << 52) - 1),
        Dialect(),
        (
            "no source was named: physical addresses are assumed to have 52 bits (memory encryption uses "
            "some of them), and software bits 57 and 58 and special swap types are not named",
        ),
    )


def decode(
    value: int,
    level: int,
    form: X86Form,
    *,
    half: Optional[str] = None,
    dialect: Optional[Dialect] = None,
) -> Entry:
    """Decode an entry of a table.

    :param level: 1 for entries of 4K pages, ``form.levels`` for the root's.
    :param half: ``user`` or ``kernel``: whose addresses the entry translates. By default this is inferred
        from the USER bit for present entries (although upper levels of the kernel's tables have it too).
        Other entries are assumed to be user mode's (swapped out).
    """
    value &= ALL
    half_note = ""
    if half is None:
        half = "user" if not value & PRESENT or value & USER else "kernel"
        # arch/x86/kernel/head_64.S: entries of init_top_pgt are _PAGE_TABLE, with USER.
        half_note = _EITHER if half == "user" else ""
    dialect = dialect or Dialect()
    if value == 0:
        return Entry(value, level, half, "empty")
    large = level in form.leaf_levels() and bool(value & PSE)
    size = 1 << form.shift(level)
    if value & PRESENT:
        if level == 1 or large:
            return _page(value, level, form, half, dialect, "page")
        bits = _bits(value, level, form, half, dialect, leaf=False)
        reserved = value & PSE  # an entry that points to a table has this bit clear
        physical = value & form.pfn_mask
        return Entry(
            *(value, level, half, "table", physical, 0, name_bits(bits), bits),
            half_note=half_note,
            reserved=reserved,
        )
    if half == "user" and (level == 1 or level in form.leaf_levels()):
        # pte_present, pmd_present: to mm/, these are still mapped, although the processor faults on them.
        if value & PROTNONE and (level == 1 or large):
            return _page(value, level, form, half, dialect, "protnone")
        if level > 1 and large:
            return _page(value, level, form, half, dialect, "invalid")
        if not value & PROTNONE:
            return _swapped(value, level, form, half, dialect)
    # set_memory_np(), KFENCE and debug_pagealloc clear PRESENT and keep the rest, with the frame inverted.
    bits = _bits(value, level, form, half, dialect, leaf=True)
    physical = ~value & form.pfn_mask & ~((size if large or level == 1 else 1 << PAGE_SHIFT) - 1)
    return Entry(value, level, half, "not-present", physical, 0, name_bits(bits), inverted=True, bits=bits)


def _page(value: int, level: int, form: X86Form, half: str, dialect: Dialect, kind: str) -> Entry:
    size = 1 << form.shift(level)
    inverted = not value & PRESENT
    frame = (~value if inverted else value) & form.pfn_mask & ~(size - 1)
    bits = _bits(value, level, form, half, dialect, leaf=True)
    pat_bit = PSE if level == 1 else PAT_LARGE
    pat = bool(value & PWT) | bool(value & PCD) << 1 | bool(value & pat_bit) << 2
    reserved = 0 if inverted else value & form.reserved_bits(level)
    return Entry(
        value,
        level,
        half,
        kind,
        frame,
        size,
        name_bits(bits),
        bits,
        memory_type=MEMORY_TYPES[pat],
        memory_source=f"PAT index {pat}",
        pat=pat,
        pkey=value >> PKEY_SHIFT & 15,
        inverted=inverted,
        reserved=reserved,
    )


def _swapped(value: int, level: int, form: X86Form, half: str, dialect: Dialect) -> Entry:
    """A swap entry: ``TYPE (59-63) | ~OFFSET (9-58) | ... | EXCLUSIVE UFFD_WP SOFT_DIRTY | 0``."""
    kind_number = value >> (64 - SWP_TYPE_BITS)
    offset = (~value & ALL) << SWP_TYPE_BITS & ALL
    offset >>= SWP_OFFSET_FIRST_BIT + SWP_TYPE_BITS
    bits: Dict[int, str] = {}
    for bit, name in ((1, "SWP_SOFT_DIRTY"), (2, f"SWP_{dialect.uffd}"), (3, "SWP_EXCLUSIVE")):
        if value >> bit & 1:
            bits[bit] = name
    for bit in (*range(4, SWP_OFFSET_FIRST_BIT),):
        if value >> bit & 1:
            bits[bit] = f"bit {bit}"
    fields = SwapFields(kind_number, offset, bits, inverted=True)
    return swapped(value, level, half, fields, form, dialect.swap_types, form.max_physmem_bits)


def _bits(
    value: int, level: int, form: X86Form, half: str, dialect: Dialect, *, leaf: bool
) -> Dict[int, str]:
    """Name of each bit that is set, except those of the address."""
    names = {
        PRESENT: "PRESENT",
        RW: "RW",
        USER: "USER",
        PWT: "PWT",
        PCD: "PCD",
        ACCESSED: "ACCESSED",
        DIRTY: "DIRTY",
        PSE: "PAT" if level == 1 else "PSE",
        GLOBAL: "GLOBAL" if value & PRESENT else "PROTNONE",
        NX: "NX",
    }
    soft = ("SOFTW1", "SOFTW2", "SOFTW3")
    if leaf and half == "user":
        soft = ("SPECIAL", dialect.uffd, "SOFT_DIRTY")
    elif leaf and dialect.kernel_4k:
        soft = ("SOFTW1", "SOFTW2", "KERNEL_4K")
    names.update(zip((SOFTW1, SOFTW2, SOFTW3), soft))
    if leaf and level > 1:
        names[PAT_LARGE] = "PAT_LARGE"
    names.update({1 << bit: f"bit {bit}" for bit in range(52, 59)})
    names.update(_software_4_and_5(level, form, half, dialect, leaf=leaf))
    if leaf:
        names.update({1 << bit: f"PKEY_BIT{bit - PKEY_SHIFT}" for bit in range(PKEY_SHIFT, 63)})
    else:
        names.update({1 << bit: f"bit {bit}" for bit in range(PKEY_SHIFT, 63)})
    # Memory encryption uses bits missing from the kernel's address mask: SME's C bit, TDX's shared bit.
    taken = ((1 << 52) - 1) & ~0xFFF & ~form.pfn_mask
    names.update({1 << bit: "ENC" for bit in range(12, 52) if taken >> bit & 1})
    found: Dict[int, str] = {}
    for mask, name in names.items():
        if value & mask:
            found[mask.bit_length() - 1] = name
    return found


def _software_4_and_5(
    level: int, form: X86Form, half: str, dialect: Dialect, *, leaf: bool
) -> Dict[int, str]:
    user_page = leaf and half == "user"
    fourth = "DEVMAP" if user_page and dialect.devmap else "SOFTW4"
    if dialect.softw4_bit == 58:
        return {1 << 58: fourth}
    fifth = "SOFTW5"
    if dialect.softw4_bit == 57:
        if user_page:
            fifth = "SAVED_DIRTY"
        elif level == form.levels:
            fifth = "NOPTISHADOW"
    return {1 << 57: fourth, 1 << 58: fifth}

# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: decodes a page-table entry bit by bit, with the kernel's own names. Pure arithmetic.

Mirrors ``arch/arm64/include/asm/pgtable-hwdef.h``, ``pgtable-prot.h`` and ``pgtable.h`` (swap entries).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, Mapping, Optional, Tuple

from kvintro.arch.aarch64.form import (
    AF,
    ATTR_INDEX_SHIFT,
    CONT,
    DBM,
    DIRTY,
    GP,
    NG,
    PMD_INVALID_59,
    PROT_NONE_58,
    PXN,
    PXN_TABLE,
    RDONLY,
    SPECIAL,
    TABLE_NO_USER,
    TABLE_RDONLY,
    USER_BIT,
    UXN,
    UXN_TABLE,
    VALID,
    Arm64Form,
)
from kvintro.arch.entry import Decoder, Entry, UserRange, mapping, pointing, swapped
from kvintro.arch.swap import SWP_TYPE_BITS, SpecialSwapTypes, SwapFields, marker_names
from kvintro.model import ALL

#: Remark on entries of tables that do not restrict user mode.
_EITHER = "an entry that points to a table may belong to either half"
POE_SHIFT = 60
SWP_EXCLUSIVE = 1 << 2
SWP_UFFD_WP = 1 << 3
UFFD_WP = 1 << 58
DEVMAP = 1 << 57
_TABLE_FLAGS = {
    VALID: "VALID",
    1 << 1: "TABLE",
    PXN_TABLE: "PXNTABLE",
    UXN_TABLE: "UXNTABLE",
    TABLE_NO_USER: "APTABLE_NO_USER",
    TABLE_RDONLY: "APTABLE_RDONLY",
    1 << 63: "NSTABLE",
}


@dataclass(frozen=True)
class SwapFormat:
    """Layout of a swap entry (``__SWP_TYPE_SHIFT`` and similar).

    :ivar type_shift: lowest bit of the type, which has :data:`~kvintro.arch.swap.SWP_TYPE_BITS`.
    :ivar offset_shift: lowest bit of the offset.
    :ivar offset_bits: number of bits of the offset.
    :ivar flags: names of the bits below the type.
    """

    type_shift: int
    offset_shift: int
    offset_bits: int
    flags: Mapping[int, str] = field(default_factory=dict)


#: Since 55564814a838 "arm64/mm: Move PTE_PRESENT_INVALID to overlay PTE_NG" (6.11).
SWAP_6_11 = SwapFormat(6, 12, 50, {SWP_EXCLUSIVE: "SWP_EXCLUSIVE", SWP_UFFD_WP: "SWP_UFFD_WP"})
#: Since 570ef363509b "arm64/pgtable: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE" (5.19).
SWAP_5_19 = SwapFormat(3, 8, 50, {SWP_EXCLUSIVE: "SWP_EXCLUSIVE"})
#: Before that. The type had six bits, of which MAX_SWAPFILES_SHIFT uses five.
SWAP_OLD = SwapFormat(2, 8, 50)


@dataclass(frozen=True)
class Dialect:
    """Differences between builds of the kernel in the meaning of an entry.

    :ivar swap: layout of swap entries; None if unknown.
    :ivar swap_types: special swap types; None if unknown.
    :ivar physical_bits: MAX_PHYSMEM_BITS; None if unknown.
    :ivar devmap: whether bit 57 of a page means DEVMAP (before 6.17).
    :ivar uffd: whether bit 58 of a user page means UFFD_WP (since 6.11).
    :ivar keys: whether bits 60 to 62 of a user page are its protection key (CONFIG_ARM64_POE).
    """

    swap: Optional[SwapFormat] = None
    swap_types: Optional[SpecialSwapTypes] = None
    physical_bits: Optional[int] = None
    devmap: bool = False
    uffd: bool = False
    keys: bool = False


class Arm64Entries(Decoder[Arm64Form, Dialect]):
    """See :class:`kvintro.arch.entry.EntryFormat`."""

    def of_range(self, key: int, level: int) -> UserRange:
        """A range keeps SPECIAL and the swap type; of a swap entry's offset it keeps only bits below 12."""
        where, types = self.dialect.swap, self.dialect.swap_types
        if where is None or types is None:
            return UserRange(bool(key & SPECIAL), "swap")
        kind = types.names.get(key >> where.type_shift & (1 << SWP_TYPE_BITS) - 1, "swap")
        markers: Optional[Tuple[str, ...]] = ()
        if kind == "marker":
            low = where.offset_shift
            markers = marker_names(key >> low & 7, types.markers) if low + 3 <= 12 else None
        return UserRange(bool(key & SPECIAL), kind, markers)

    def decode(self, value: int, level: int, *, half: Optional[str] = None) -> Entry:
        """See :func:`decode`."""
        return decode(value, level, self.form, half=half, dialect=self.dialect)


def of_any(level: str) -> Arm64Entries:
    """A decoder for what most kernels have in common.

    :param level: the level of the tables, by name or number. Four levels are assumed unless it is higher.
    """
    bits = 52 if level in ("p4d", "5") else 48
    return Arm64Entries(
        Arm64Form.of(12, bits, bits),
        Dialect(),
        (
            f"no source was named: pages are assumed to have 4 KB and addresses {bits} bits; swap entries "
            "and software bits 57 to 62 are not named",
        ),
    )


def likely_half(value: int, level: int, form: Arm64Form) -> str:
    """Whose addresses an entry probably translates. If user mode may access or execute it, it is user mode's.

    The kernel's tables do not let user mode execute, except those of the fixmap. An entry that is not valid
    is assumed to be user mode's (swapped out).
    """
    if not value & VALID:
        return "user"
    if form.is_leaf(value, level):
        return "user" if value & USER_BIT or not value & UXN else "kernel"
    return "kernel" if value & UXN_TABLE else "user"


def decode(
    value: int,
    level: int,
    form: Arm64Form,
    *,
    half: Optional[str] = None,
    dialect: Optional[Dialect] = None,
) -> Entry:
    """Decode an entry of a table.

    :param level: 1 for entries of the smallest pages, ``form.levels`` for the root's.
    :param half: ``user`` or ``kernel``: whose addresses the entry translates; by default :func:`likely_half`.
    """
    value &= ALL
    half_note = ""
    if half is None:
        half = likely_half(value, level, form)
        if value & VALID and half == "user" and not form.is_leaf(value, level):
            half_note = _EITHER
    dialect = dialect or Dialect()
    if value == 0:
        return Entry(value, level, half, "empty")
    if value & VALID:
        if form.is_leaf(value, level):
            return _page(value, level, form, half, dialect, "page")
        if level > 1 and form.is_table(value, level):
            bits = {mask.bit_length() - 1: name for mask, name in _TABLE_FLAGS.items() if value & mask}
            table = pointing(value, level, half, "table", form.table_address(value), bits)
            return replace(table, half_note=half_note)
        bits = {0: "VALID"}
        return Entry(value, level, half, "reserved", flags=("VALID",), reserved=VALID, bits=bits)
    if half == "user":
        if form.holds_page(value, level):
            # pte_protnone(): if it is not PROT_NONE, pmd_mkinvalid() made it.
            told_apart = form.kept & PROT_NONE_58
            protnone = value & PROT_NONE_58 if told_apart else not value & USER_BIT and value & UXN
            return _page(value, level, form, half, dialect, "protnone" if protnone else "invalid")
        if level == 1 or level in form.leaf_levels():
            return _swapped(value, level, form, half, dialect)
    # set_memory_valid(), KFENCE and debug_pagealloc clear VALID and keep the rest.
    bits = _bits(value, level, form, half, dialect)
    return pointing(value, level, half, "not-present", form.page_address(value, level), bits)


def _page(value: int, level: int, form: Arm64Form, half: str, dialect: Dialect, kind: str) -> Entry:
    bits = _bits(value, level, form, half, dialect)
    source = f"AttrIndx {value >> ATTR_INDEX_SHIFT & 7}"
    contiguous = form.contiguous(level) << form.shift(level) if value & CONT and level < 3 else 0
    found = mapping(value, level, half, kind, form, bits, source, contiguous)
    return replace(found, pkey=value >> POE_SHIFT & 7) if dialect.keys and half == "user" else found


def _swapped(value: int, level: int, form: Arm64Form, half: str, dialect: Dialect) -> Entry:
    where = dialect.swap
    if where is None:
        # The layout depends on the kernel's version.
        return Entry(value, level, half, "swap")
    number = value >> where.type_shift & (1 << SWP_TYPE_BITS) - 1
    offset = value >> where.offset_shift & (1 << where.offset_bits) - 1
    bits = {mask.bit_length() - 1: name for mask, name in where.flags.items() if value & mask}
    fields = SwapFields(number, offset, bits)
    return swapped(value, level, half, fields, form, dialect.swap_types, dialect.physical_bits)


def _bits(value: int, level: int, form: Arm64Form, half: str, dialect: Dialect) -> Dict[int, str]:
    """Name of each bit that is set in a page's entry, except those of the address and AttrIndx."""
    names = {
        VALID: "VALID",
        1 << 5: "NS",
        USER_BIT: "USER",
        RDONLY: "RDONLY",
        AF: "AF",
        NG: "NG",
        GP: "GP",
        DBM: "DBM",
        CONT: "CONT",
        PXN: "PXN",
        UXN: "UXN",
        DIRTY: "DIRTY",
        SPECIAL: "SPECIAL",
        DEVMAP: "DEVMAP" if dialect.devmap else "bit 57",
        1 << 58: "bit 58",
        1 << 59: "bit 59",
    }
    names.update({1 << bit: f"bit {bit}" for bit in range(POE_SHIFT, 64)})
    if level == 1:
        names[1 << 1] = "PAGE"
    if not form.large_addresses:
        names.update({1 << 8: "SH0", 1 << 9: "SH1"})
    if half == "user":
        if dialect.uffd:
            names[UFFD_WP] = "UFFD_WP"
        elif form.kept & PROT_NONE_58:
            names[PROT_NONE_58] = "PROT_NONE"
        if dialect.keys:
            names.update({1 << bit: f"PO_IDX_{bit - POE_SHIFT}" for bit in range(POE_SHIFT, 63)})
    if form.kept & PMD_INVALID_59:
        names[PMD_INVALID_59] = "PRESENT_INVALID"
    elif form.kept & NG and not value & VALID:
        names[NG] = "PRESENT_INVALID"
    return {mask.bit_length() - 1: name for mask, name in names.items() if value & mask}

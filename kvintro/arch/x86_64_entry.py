# SPDX-License-Identifier: LGPL-2.1-or-later
"""x86-64: what one page-table entry says, bit by bit, by the kernel's own names. Pure arithmetic.

Mirrors ``arch/x86/include/asm/pgtable_types.h``, ``pgtable_64.h`` (swap entries), ``pgtable-invert.h`` and
``include/linux/swap.h`` (special swap types).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple

from kvintro.arch.x86_64 import (
    ACCESSED,
    ALL,
    DIRTY,
    GLOBAL,
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
    X86Geometry,
)

SOFTW1 = 1 << 9
SOFTW2 = 1 << 10
SOFTW3 = 1 << 11
PKEY_SHIFT = 59
PKEY_MASK = 15 << PKEY_SHIFT

#: Of an entry that is not present (arch/x86/include/asm/pgtable_64.h, pgtable_types.h).
SWP_SOFT_DIRTY = RW
SWP_UFFD_WP = USER
SWP_EXCLUSIVE = PWT
SWP_TYPE_BITS = 5
SWP_OFFSET_FIRST_BIT = 9

#: What the kernel programs the eight PAT entries with (arch/x86/mm/pat/memtype.c:pat_bp_init), full PAT.
MEMORY_TYPES = ("WB", "WC", "UC-", "UC", "WB", "WP", "UC-", "WT")

LEVEL_NAMES = {1: "pte", 2: "pmd", 3: "pud", 4: "p4d", 5: "pgd"}


def level_name(level: int, levels: int) -> str:
    """The kernel's name of a level: the root's entries are ``pgd`` whatever the number of levels."""
    return "pgd" if level == levels else LEVEL_NAMES[level]


#: Bits of a marker's offset (include/linux/swapops.h). What bit 1 says was a type of its own at first.
MARKERS = ("uffd-wp", "poisoned", "guard")
_MIGRATION = {
    0: (),
    2: ("migration (read)", "migration (write)"),
    3: ("migration (read)", "migration (read, exclusive)", "migration (write)"),
}
_DEVICE = {
    0: (),
    2: ("device private (write)", "device private (read)"),
    3: ("device private (write)", "device private (read)", "device exclusive"),
    4: (
        "device private (write)",
        "device private (read)",
        "device exclusive (write)",
        "device exclusive (read)",
    ),
}
_MOST_SPECIAL = 10  # 5.19 to 6.1 with everything built in


@dataclass(frozen=True)
class SpecialSwapTypes:
    """Swap types that are no swap files, by number; which there are follows from the kernel's build.

    :ivar markers: how many bits of a marker have a meaning, see :data:`MARKERS`.
    """

    names: Mapping[int, str]
    markers: int = len(MARKERS)

    @classmethod
    def of(
        cls, *, markers: int, device: int, migration: int, hwpoison: bool, swapin_error: bool = False
    ) -> SpecialSwapTypes:
        """The types from the top (31) down, in the order of ``include/linux/swap.h``.

        :param markers: how many bits of a marker have a meaning; 0 if there is no SWP_PTE_MARKER.
        :param device: SWP_DEVICE_NUM.
        :param migration: SWP_MIGRATION_NUM.
        :param hwpoison: SWP_HWPOISON exists.
        :param swapin_error: SWP_SWAPIN_ERROR exists.
        """
        # From the lowest: what swap.h adds to MAX_SWAPFILES.
        order: List[str] = ["hwpoison"] if hwpoison else []
        order += (*_MIGRATION[migration], *_DEVICE[device])
        order += ["marker"] if markers else []
        order += ["swap-in error"] if swapin_error else []
        first = (1 << SWP_TYPE_BITS) - len(order)
        return cls({first + i: name for i, name in enumerate(order)}, markers)

    @classmethod
    def fitting(
        cls,
        count: Optional[int],
        *,
        hwpoison: bool,
        migration: bool,
        exclusive: int,
        guard: bool,
        least: int = 0,
        most: int = 3,
    ) -> Optional[SpecialSwapTypes]:
        """The types of the one generation of ``swap.h`` that fits what is known of a kernel.

        :param count: how many special types there are, by the length of swap_info; None if not known.
        :param hwpoison: CONFIG_MEMORY_FAILURE.
        :param migration: CONFIG_MIGRATION.
        :param exclusive: device types of a kernel with make_device_exclusive() and its like; 0 without.
        :param guard: markers of guard regions exist.
        :param least: the first of the generations below that it can be.
        :param most: the last one.
        :return: None if none fits, or several that differ.
        """
        found = []
        for number, (first_markers, swapin_error, kinds) in enumerate(_GENERATIONS):
            if not least <= number <= most or (guard and number < len(_GENERATIONS) - 1):
                continue
            devices = {exclusive} if exclusive else {d for d in (0, 2) if d == 0 or number == 0}
            for device in devices:
                types = cls.of(
                    markers=len(MARKERS) if guard else first_markers,
                    device=device,
                    migration=kinds if migration else 0,
                    hwpoison=hwpoison,
                    swapin_error=swapin_error,
                )
                if count in (None, len(types.names)) and types not in found:
                    found.append(types)
        return found[0] if len(found) == 1 else None


#: Generations of include/linux/swap.h: bits of markers, SWP_SWAPIN_ERROR, SWP_MIGRATION_NUM.
_GENERATIONS = (
    (0, False, 2),
    # 9f186f9e5fa9 "mm/swapfile: unuse_pte can map random data if swap read fails" and 6c287605fd56 "mm:
    # remember exclusively mapped anonymous pages with PG_anon_exclusive" (5.19), without CONFIG_PTE_MARKER
    (0, True, 3),
    # 679d10331910 "mm: introduce PTE_MARKER swap entry" (5.19)
    (1, True, 3),
    # 15520a3f0469 "mm: use pte markers for swap errors" (6.2); 7c53dfbdb024 "mm: add PTE_MARKER_GUARD PTE
    # marker" (6.13) gave a meaning to the third bit
    (2, False, 3),
)


@dataclass(frozen=True)
class Dialect:
    """What differs between builds of the kernel in the meaning of an entry.

    :ivar softw4_bit: 57, or 58 before shadow stacks took that bit (6.6); None if not known.
    :ivar swap_types: special swap types; None if not known.
    :ivar devmap: whether SOFTW4 of a user page says DEVMAP (before 6.17).
    :ivar kernel_4k: whether SOFTW3 of a kernel page says that it must not become part of a large one (7.x).
    :ivar uffd: what userfaultfd's bit, SOFTW2 of a user page, is called: UFFD where it also marks pages that
        may not be read either (7.x).
    """

    softw4_bit: Optional[int] = None
    swap_types: Optional[SpecialSwapTypes] = None
    devmap: bool = False
    kernel_4k: bool = False
    uffd: str = "UFFD_WP"


@dataclass(frozen=True)
class Swap:
    """The swap entry that an entry holds which is not present.

    :ivar type: number of the swap file, or of a special type.
    :ivar kind: ``swap``, a special type's name, or None where the kernel's build decides and is not known.
    :ivar offset: page in the swap file; for special types what they keep.
    :ivar pfn: page frame, of types that keep one.
    :ivar flags: EXCLUSIVE, SOFT_DIRTY, UFFD_WP or UFFD; YOUNG and DIRTY of migration entries.
    :ivar markers: what a marker says, of :data:`MARKERS`; ``bit N`` for what this kernel has no name for.
    """

    type: int
    kind: Optional[str]
    offset: int
    pfn: Optional[int]
    flags: Tuple[str, ...]
    markers: Tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The entry in words."""
        if self.markers:
            return f"marker: {', '.join(self.markers)} (swap type {self.type}, offset {self.offset:#x})"
        kind = f" ({self.kind})" if self.kind and self.kind != "swap" else ""
        frame = "" if self.pfn is None else f", page frame {self.pfn:#x}"
        return f"swap type {self.type}{kind}, offset {self.offset:#x}{frame}"


@dataclass(frozen=True)
class Entry:
    """One entry decoded.

    :ivar kind: ``empty``, ``table`` (points to the next level's table), ``page`` (maps one), ``protnone``
        (keeps a page that nobody may touch now: PROT_NONE, NUMA hints), ``invalid`` (a huge page that is just
        being split), ``swap`` (see ``swap``), ``not-present`` (nothing the processor or the kernel's swap
        code would use; ``physical`` is what it last mapped).
    :ivar physical: address of the table or page; inversion against L1TF undone. None if it keeps none.
    :ivar page_size: bytes mapped if kind is ``page``, ``protnone`` or ``invalid``, else 0.
    :ivar flags: names of the bits set, from bit 0 up.
    :ivar pkey: protection key, of pages.
    :ivar pat: index into the PAT, of pages.
    :ivar inverted: whether the address is kept inverted.
    :ivar reserved: bits set that the processor faults on.
    """

    value: int
    level: int
    half: str
    kind: str
    physical: Optional[int] = None
    page_size: int = 0
    flags: Tuple[str, ...] = ()
    pkey: Optional[int] = None
    pat: Optional[int] = None
    inverted: bool = False
    swap: Optional[Swap] = None
    reserved: int = 0
    bits: Mapping[int, str] = field(default_factory=dict)

    @property
    def memory_type(self) -> Optional[str]:
        """The caching that the PAT gives, as the kernel programs it."""
        return None if self.pat is None else MEMORY_TYPES[self.pat]


def decode(
    value: int,
    level: int,
    geometry: X86Geometry,
    *,
    half: Optional[str] = None,
    dialect: Optional[Dialect] = None,
) -> Entry:
    """Decode an entry of a table.

    :param level: 1 for entries of 4K pages, ``geometry.levels`` for the root's.
    :param half: ``user`` or ``kernel``: whose addresses the entry translates. By default what it looks like:
        the USER bit tells for present ones (though upper levels of the kernel's tables have it, too), and
        others are taken for user mode's (swapped out).
    """
    value &= ALL
    if half is None:
        half = "user" if not value & PRESENT or value & USER else "kernel"
    dialect = dialect or Dialect()
    if value == 0:
        return Entry(value, level, half, "empty")
    large = level in geometry.large_levels() and bool(value & PSE)
    size = 1 << geometry.shift(level)
    if value & PRESENT:
        if level == 1 or large:
            return _page(value, level, geometry, half, dialect, "page")
        bits = _bits(value, level, geometry, half, dialect, leaf=False)
        reserved = value & PSE  # of a table's entry it is clear, or makes a large page
        physical = value & geometry.pfn_mask
        return Entry(value, level, half, "table", physical, 0, _names(bits), reserved=reserved, bits=bits)
    if half == "user" and (level == 1 or level in geometry.large_levels()):
        # pte_present, pmd_present: what the processor refuses is still mapped as far as mm/ is concerned.
        if value & PROTNONE and (level == 1 or large):
            return _page(value, level, geometry, half, dialect, "protnone")
        if level > 1 and large:
            return _page(value, level, geometry, half, dialect, "invalid")
        if not value & PROTNONE:
            return _swapped(value, level, geometry, half, dialect)
    # set_memory_np(), KFENCE and debug_pagealloc take PRESENT away and keep the rest, the frame inverted.
    bits = _bits(value, level, geometry, half, dialect, leaf=True)
    physical = ~value & geometry.pfn_mask & ~((size if large or level == 1 else 1 << PAGE_SHIFT) - 1)
    return Entry(value, level, half, "not-present", physical, 0, _names(bits), inverted=True, bits=bits)


def _page(value: int, level: int, geometry: X86Geometry, half: str, dialect: Dialect, kind: str) -> Entry:
    size = 1 << geometry.shift(level)
    inverted = not value & PRESENT
    frame = (~value if inverted else value) & geometry.pfn_mask & ~(size - 1)
    bits = _bits(value, level, geometry, half, dialect, leaf=True)
    pat_bit = PSE if level == 1 else PAT_LARGE
    pat = bool(value & PWT) | bool(value & PCD) << 1 | bool(value & pat_bit) << 2
    reserved = 0 if inverted else value & geometry.reserved_bits(level)
    return Entry(
        value,
        level,
        half,
        kind,
        frame,
        size,
        _names(bits),
        pkey=value >> PKEY_SHIFT & 15,
        pat=pat,
        inverted=inverted,
        reserved=reserved,
        bits=bits,
    )


def _swapped(value: int, level: int, geometry: X86Geometry, half: str, dialect: Dialect) -> Entry:
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
    flags = list(bits.values())
    kind: Optional[str] = None
    pfn: Optional[int] = None
    if dialect.swap_types is not None:
        kind = dialect.swap_types.names.get(kind_number, "swap")
    elif kind_number < (1 << SWP_TYPE_BITS) - _MOST_SPECIAL:
        # Below the special types only swap files are left.
        kind = "swap"
    markers: Tuple[str, ...] = ()
    if kind == "marker" and dialect.swap_types is not None:
        markers = marker_names(offset, dialect.swap_types.markers)
    elif kind is not None and kind != "swap":
        pfn_bits = geometry.max_physmem_bits - PAGE_SHIFT
        pfn = offset & (1 << pfn_bits) - 1
        if kind.startswith("migration"):
            # include/linux/swapops.h: SWP_MIG_YOUNG_BIT, SWP_MIG_DIRTY_BIT.
            flags += [n for i, n in enumerate(("YOUNG", "DIRTY")) if offset >> pfn_bits + i & 1]
    swap = Swap(kind_number, kind, offset, pfn, tuple(flags), markers)
    physical = None if pfn is None else pfn << PAGE_SHIFT
    return Entry(value, level, half, "swap", physical, 0, tuple(flags), swap=swap, bits=bits, inverted=True)


def marker_names(offset: int, known: int) -> Tuple[str, ...]:
    """What a marker says.

    :param offset: of its swap entry.
    :param known: how many bits have a meaning.
    """
    return tuple(
        MARKERS[bit] if bit < known else f"bit {bit}"
        for bit in range(offset.bit_length())
        if offset >> bit & 1
    )


def _names(bits: Mapping[int, str]) -> Tuple[str, ...]:
    return tuple(dict.fromkeys(bits[bit] for bit in sorted(bits)))


def _bits(
    value: int, level: int, geometry: X86Geometry, half: str, dialect: Dialect, *, leaf: bool
) -> Dict[int, str]:
    """Name of each bit that is set and holds no address."""
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
    names.update(_software_4_and_5(level, geometry, half, dialect, leaf=leaf))
    if leaf:
        names.update({1 << bit: f"PKEY_BIT{bit - PKEY_SHIFT}" for bit in range(PKEY_SHIFT, 63)})
    else:
        names.update({1 << bit: f"bit {bit}" for bit in range(PKEY_SHIFT, 63)})
    # What the kernel took out of its address mask, memory encryption uses: SME's C bit, TDX's shared bit.
    taken = ((1 << 52) - 1) & ~0xFFF & ~geometry.pfn_mask
    names.update({1 << bit: "ENC" for bit in range(12, 52) if taken >> bit & 1})
    found: Dict[int, str] = {}
    for mask, name in names.items():
        if value & mask:
            found[mask.bit_length() - 1] = name
    return found


def _software_4_and_5(
    level: int, geometry: X86Geometry, half: str, dialect: Dialect, *, leaf: bool
) -> Dict[int, str]:
    user_page = leaf and half == "user"
    fourth = "DEVMAP" if user_page and dialect.devmap else "SOFTW4"
    if dialect.softw4_bit == 58:
        return {1 << 58: fourth}
    fifth = "SOFTW5"
    if dialect.softw4_bit == 57:
        if user_page:
            fifth = "SAVED_DIRTY"
        elif level == geometry.levels:
            fifth = "NOPTISHADOW"
    return {1 << 57: fourth, 1 << 58: fifth}

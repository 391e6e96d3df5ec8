# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decoded entries, against values derived by hand from the kernel's headers.

Swap entries follow the diagram in arch/x86/include/asm/pgtable_64.h, numbers of special types
include/linux/swap.h, and inverted bits arch/x86/include/asm/pgtable-invert.h.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.arch.swap import SpecialSwapTypes
from kvintro.arch.x86_64 import ALL, ARCHITECTURE
from kvintro.arch.x86_64.entries import Dialect, decode

MASK = (1 << 52) - 1
FOUR = ARCHITECTURE.form(4, MASK)
FIVE = ARCHITECTURE.form(5, MASK)
# 6.12 with MIGRATION, MEMORY_FAILURE and DEVICE_PRIVATE.
FULL = SpecialSwapTypes.of(markers=3, device=4, migration=3, hwpoison=True)


@pytest.mark.parametrize(
    ("value", "level", "kind", "physical", "size", "flags"),
    [
        (0, 1, "empty", None, 0, ()),
        (0x8000000003A12163, 1, "page", 0x3A12000, 4096, "PRESENT RW ACCESSED DIRTY GLOBAL NX"),
        (0x80000000076000E3, 2, "page", 0x7600000, 2 << 20, "PRESENT RW ACCESSED DIRTY PSE NX"),
        (0x80000001400010E3, 3, "page", 0x140000000, 1 << 30, "PRESENT RW ACCESSED DIRTY PSE PAT_LARGE NX"),
        (0x1E3 | 0x5000, 1, "page", 0x5000, 4096, "PRESENT RW ACCESSED DIRTY PAT GLOBAL"),
        (0x6E27067, 4, "table", 0x6E27000, 0, "PRESENT RW USER ACCESSED DIRTY"),
        (0x2176067 | 1 << 63, 4, "table", 0x2176000, 0, "PRESENT RW USER ACCESSED DIRTY NX"),
    ],
)
def test_present_entries(value: int, level: int, kind: str, physical: int, size: int, flags: str) -> None:
    entry = decode(value, level, FOUR)
    assert (entry.kind, entry.physical, entry.page_size) == (kind, physical, size)
    assert entry.flags == (tuple(flags.split()) if flags else ())


@pytest.mark.parametrize(
    ("bits", "level", "index", "name"),
    [
        (0, 1, 0, "WB"),
        (1 << 3, 1, 1, "WC"),
        (1 << 4, 1, 2, "UC-"),
        (1 << 3 | 1 << 4, 1, 3, "UC"),
        (1 << 7, 1, 4, "WB"),
        (1 << 7 | 1 << 3, 1, 5, "WP"),
        (1 << 7 | 1 << 4 | 1 << 3, 1, 7, "WT"),
        # In a large page's entry bit 7 is PSE, and PAT is bit 12.
        (1 << 7, 2, 0, "WB"),
        (1 << 7 | 1 << 12 | 1 << 3, 2, 5, "WP"),
        (1 << 7 | 1 << 12, 3, 4, "WB"),
    ],
)
def test_caching_by_pat(bits: int, level: int, index: int, name: str) -> None:
    entry = decode(bits | 1, level, FOUR)
    assert (entry.pat, entry.memory_type) == (index, name)


def test_protection_key() -> None:
    entry = decode(0x25 | 0xB << 59 | 0x5000, 1, FOUR)
    assert entry.pkey == 0xB
    assert {"PKEY_BIT0", "PKEY_BIT1", "PKEY_BIT3"} <= set(entry.flags)


def test_software_bits_have_the_names_of_their_half() -> None:
    value = 0x5000 | 1 | 7 << 9
    assert {"SPECIAL", "UFFD_WP", "SOFT_DIRTY"} <= set(decode(value | 4, 1, FOUR).flags)
    assert {"SOFTW1", "SOFTW2", "SOFTW3"} <= set(decode(value, 1, FOUR).flags)


@pytest.mark.parametrize(
    ("dialect", "bit", "level", "name"),
    [
        (Dialect(57, devmap=True), 57, 1, "DEVMAP"),
        (Dialect(57), 57, 1, "SOFTW4"),
        (Dialect(57), 10, 1, "UFFD_WP"),
        (Dialect(57, uffd="UFFD"), 10, 1, "UFFD"),
        (Dialect(57), 58, 1, "SAVED_DIRTY"),
        (Dialect(57), 58, 4, "NOPTISHADOW"),
        (Dialect(57), 58, 3, "SOFTW5"),
        (Dialect(58, devmap=True), 58, 1, "DEVMAP"),
        (Dialect(58), 57, 1, "bit 57"),
        (Dialect(), 57, 1, "SOFTW4"),
        (Dialect(), 58, 1, "SOFTW5"),
    ],
)
def test_bits_that_moved(dialect: Dialect, bit: int, level: int, name: str) -> None:
    assert name in decode(0x5000 | 5 | 1 << bit, level, FOUR, dialect=dialect).flags


def test_pages_that_stay_small() -> None:
    """_PAGE_KERNEL_4K has the same bit as user mode's SOFT_DIRTY."""
    dialect = Dialect(57, kernel_4k=True)
    assert "KERNEL_4K" in decode(0x5863, 1, FOUR, dialect=dialect).flags
    assert "SOFT_DIRTY" in decode(0x5867, 1, FOUR, dialect=dialect).flags
    assert "SOFTW3" in decode(0x5863, 2, FOUR, dialect=dialect).flags
    assert "SOFTW3" in decode(0x5863, 1, FOUR).flags


def test_encryption_bit_is_a_flag() -> None:
    geometry = ARCHITECTURE.form(4, MASK & ~(1 << 47))
    entry = decode(0x5063 | 1 << 47, 1, geometry)
    assert entry.physical == 0x5000
    assert "ENC" in entry.flags
    assert decode(0x5063 | 1 << 47, 1, FOUR).physical == 0x5000 | 1 << 47


@pytest.mark.parametrize(
    ("value", "level", "reserved"),
    [
        (0x76020E3, 2, 1 << 13),
        (0x161 | 1 << 7, 4, 1 << 7),
        (1 << 29 | 0xE3, 3, 1 << 29),
        (0x7600063 | 1 << 7, 2, 0),
    ],
)
def test_reserved_bits(value: int, level: int, reserved: int) -> None:
    assert decode(value, level, FOUR).reserved == reserved


def test_prot_none_keeps_the_frame_inverted() -> None:
    # A real entry: its process's pagemap shows page frame 0x7607.
    entry = decode(0x000FFFFFF89F8960, 1, FOUR)
    assert (entry.kind, entry.physical, entry.inverted) == ("protnone", 0x7607000, True)
    assert "PROTNONE" in entry.flags
    assert "GLOBAL" not in entry.flags


def test_prot_none_of_a_huge_page() -> None:
    # pmd_modify() inverts what PHYSICAL_PMD_PAGE_MASK covers; PAT_LARGE stays as it is.
    value = ~0x7600000 & MASK & ~0x1FFFFF | 0x1E0
    entry = decode(value, 2, FOUR)
    assert (entry.kind, entry.physical, entry.page_size) == ("protnone", 0x7600000, 2 << 20)


def test_a_huge_page_being_split_keeps_its_frame() -> None:
    value = ~0x7600000 & MASK & ~0x1FFFFF | 0xE6
    assert decode(value, 2, FOUR).kind == "invalid"
    assert decode(value, 2, FOUR).physical == 0x7600000


def swap(kind: int, offset: int, low: int = 0) -> int:
    """An entry as __swp_entry() makes it."""
    return kind << 59 | (~offset & (1 << 50) - 1) << 9 | low


@pytest.mark.parametrize(
    ("value", "kind", "number", "offset", "flags"),
    [
        (0x07FFFFFFFFFFFC00, "swap", 0, 1, ()),
        (swap(3, 0x12345), "swap", 3, 0x12345, ()),
        (swap(1, 7, 0b1110), "swap", 1, 7, ("SWP_SOFT_DIRTY", "SWP_UFFD_WP", "SWP_EXCLUSIVE")),
    ],
)
def test_swapped_pages(value: int, kind: str, number: int, offset: int, flags: Tuple[str, ...]) -> None:
    entry = decode(value, 1, FOUR, dialect=Dialect(57, FULL))
    assert entry.kind == "swap"
    assert entry.physical is None
    assert entry.swap is not None
    assert (entry.swap.kind, entry.swap.type, entry.swap.offset) == (kind, number, offset)
    assert entry.swap.flags == flags


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (22, "swap"),
        (23, "hwpoison"),
        (24, "migration (read)"),
        (25, "migration (read, exclusive)"),
        (26, "migration (write)"),
        (27, "device private (write)"),
        (28, "device private (read)"),
        (29, "device exclusive (write)"),
        (30, "device exclusive (read)"),
        (31, "marker"),
    ],
)
def test_special_swap_types_of_a_full_build(number: int, name: str) -> None:
    entry = decode(swap(number, 0x4D2), 1, FOUR, dialect=Dialect(57, FULL))
    assert entry.swap is not None
    assert entry.swap.kind == name
    assert entry.swap.pfn == (None if name in ("swap", "marker") else 0x4D2)


def test_special_swap_types_without_device_memory() -> None:
    # MAX_SWAPFILES is 27: 1 for poison, 3 for migration, 1 for markers.
    names = SpecialSwapTypes.of(markers=3, device=0, migration=3, hwpoison=True).names
    assert sorted(names) == [27, 28, 29, 30, 31]
    assert names[27] == "hwpoison"
    assert names[30] == "migration (write)"


@pytest.mark.parametrize(("geometry", "bits"), [(FOUR, 34), (FIVE, 40)])
def test_migration_entries_keep_frame_and_two_bits(geometry: object, bits: int) -> None:
    value = swap(26, 0x1234 | 1 << bits | 1 << bits + 1)
    entry = decode(value, 1, geometry, dialect=Dialect(57, FULL))  # type: ignore[arg-type]
    assert entry.swap is not None
    assert (entry.swap.pfn, entry.swap.flags) == (0x1234, ("YOUNG", "DIRTY"))
    assert entry.physical == 0x1234000


def test_what_only_the_build_knows_has_no_name_without_it() -> None:
    for number, kind in ((0, "swap"), (21, "swap"), (22, None), (31, None)):
        entry = decode(swap(number, 5), 1, FOUR)
        assert entry.swap is not None
        assert entry.swap.kind == kind


def test_an_entry_of_the_kernel_that_lost_present() -> None:
    # A freed __init page: set_memory_np() keeps the frame, inverted.
    entry = decode(0x800FFFFFF8B22062, 1, FOUR, half="kernel")
    assert (entry.kind, entry.physical, entry.swap) == ("not-present", 0x74DD000, None)


@pytest.mark.parametrize(
    ("level", "levels", "name"), [(1, 4, "pte"), (4, 4, "pgd"), (4, 5, "p4d"), (5, 5, "pgd"), (3, 5, "pud")]
)
def test_level_names(level: int, levels: int, name: str) -> None:
    assert ARCHITECTURE.form(levels, MASK).level_name(level) == name


@given(st.integers(0, ALL), st.integers(1, 5), st.sampled_from(["user", "kernel", None]), st.booleans())
def test_any_entry_decodes(value: int, level: int, half: "str | None", full: bool) -> None:
    entry = decode(value, level, FIVE, half=half, dialect=Dialect(57, FULL) if full else None)
    assert (entry.physical or 0) >> 52 == 0
    assert (entry.page_size > 0) == (entry.kind in ("page", "protnone", "invalid"))
    assert (entry.swap is not None) == (entry.kind == "swap")
    if value & 1:
        assert entry.kind in ("page", "table")
    # Every set bit outside the address has a name, and no clear bit has one.
    for bit in entry.bits:
        assert value >> bit & 1


@pytest.mark.parametrize(
    ("offset", "known", "names"),
    [
        (0b001, 3, ("uffd-wp",)),
        (0b010, 3, ("poisoned",)),
        (0b100, 3, ("guard",)),
        (0b101, 3, ("uffd-wp", "guard")),
        # Debian's 6.12 has no guard regions; 6.1 has its own type for pages that cannot be read back from
        # swap.
        (0b100, 2, ("bit 2",)),
        (0b010, 1, ("bit 1",)),
        (1 << 9 | 1, 3, ("uffd-wp", "bit 9")),
        (0, 3, ()),
    ],
)
def test_markers(offset: int, known: int, names: Tuple[str, ...]) -> None:
    """include/linux/swapops.h: PTE_MARKER_UFFD_WP is bit 0, PTE_MARKER_POISONED 1, PTE_MARKER_GUARD 2."""
    types = SpecialSwapTypes.of(markers=known, device=0, migration=3, hwpoison=True)
    entry = decode(swap(31, offset), 1, FOUR, dialect=Dialect(57, types))
    assert entry.swap is not None
    assert (entry.swap.kind, entry.swap.markers, entry.swap.pfn) == ("marker", names, None)
    assert entry.swap.text.startswith(
        f"marker: {', '.join(names)} (swap type 31" if names else "swap type 31"
    )


#: From include/linux/swap.h of each kernel: how many special types, and the names from 31 down.
GENERATIONS: Dict[str, Tuple[Dict[str, Any], List[str]]] = {
    "5.10": (
        {"count": 5, "hwpoison": True, "migration": True, "exclusive": 0, "guard": False, "most": 0},
        [
            "device private (read)",
            "device private (write)",
            "migration (write)",
            "migration (read)",
            "hwpoison",
        ],
    ),
    "5.10 without device memory": (
        {"count": 3, "hwpoison": True, "migration": True, "exclusive": 0, "guard": False, "most": 0},
        ["migration (write)", "migration (read)", "hwpoison"],
    ),
    "5.15": (
        {"count": 7, "hwpoison": True, "migration": True, "exclusive": 4, "guard": False},
        ["device exclusive (read)", "device exclusive (write)", "device private (read)"],
    ),
    "6.1": (
        {"count": 5, "hwpoison": False, "migration": True, "exclusive": 0, "guard": False, "least": 1},
        ["swap-in error", "marker", "migration (write)", "migration (read, exclusive)", "migration (read)"],
    ),
    "6.1 with everything": (
        {"count": 10, "hwpoison": True, "migration": True, "exclusive": 4, "guard": False, "least": 1},
        ["swap-in error", "marker", "device exclusive (read)"],
    ),
    "6.2": (
        {"count": 5, "hwpoison": True, "migration": True, "exclusive": 0, "guard": False, "least": 3},
        ["marker", "migration (write)", "migration (read, exclusive)", "migration (read)", "hwpoison"],
    ),
    "6.12": (
        {"count": None, "hwpoison": True, "migration": True, "exclusive": 0, "guard": False, "least": 3},
        ["marker", "migration (write)"],
    ),
    "7.3": (
        {"count": 8, "hwpoison": True, "migration": True, "exclusive": 3, "guard": True, "least": 3},
        ["marker", "device exclusive", "device private (read)", "device private (write)"],
    ),
}


@pytest.mark.parametrize("name", GENERATIONS)
def test_special_swap_types_by_what_a_kernel_has(name: str) -> None:
    known, wanted = GENERATIONS[name]
    types = SpecialSwapTypes.fitting(**known)
    assert types is not None
    assert [types.names[31 - i] for i in range(len(wanted))] == wanted
    assert known["count"] in (None, len(types.names))


@pytest.mark.parametrize("count", [None, 2, 11])
def test_special_swap_types_stay_unknown(count: Optional[int]) -> None:
    """Several generations fit, or none."""
    known: Any = {"hwpoison": True, "migration": True, "exclusive": 0, "guard": False, "least": 0}
    assert SpecialSwapTypes.fitting(count, **known) is None

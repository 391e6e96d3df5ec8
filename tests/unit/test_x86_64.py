# SPDX-License-Identifier: LGPL-2.1-or-later
"""Constant bounds against the table in the kernel's Documentation/arch/x86/x86_64/mm.rst.

The numbers are the table's own, copied by hand; where the kernel's code and the table differ, the code wins
and the comment says which.
"""

from __future__ import annotations

from typing import Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.arch import x86_64
from kvintro.arch.x86_64 import ALL, ARCHITECTURE

MASK = (1 << 52) - 1
FOUR = ARCHITECTURE.form(4, MASK)
FIVE = ARCHITECTURE.form(5, MASK)

MM_RST = [
    (FOUR, "user", 0x0, 0x00007FFFFFFFFFFF),
    (FOUR, "non_canonical", 0x0000800000000000, 0xFFFF7FFFFFFFFFFF),
    (FOUR, "guard_hole", 0xFFFF800000000000, 0xFFFF87FFFFFFFFFF),
    (FOUR, "ldt_remap", 0xFFFF880000000000, 0xFFFF887FFFFFFFFF),
    (FOUR, "kasan_shadow", 0xFFFFEC0000000000, 0xFFFFFBFFFFFFFFFF),
    (FIVE, "user", 0x0, 0x00FFFFFFFFFFFFFF),
    (FIVE, "non_canonical", 0x0100000000000000, 0xFEFFFFFFFFFFFFFF),
    (FIVE, "guard_hole", 0xFF00000000000000, 0xFF0FFFFFFFFFFFFF),
    (FIVE, "ldt_remap", 0xFF10000000000000, 0xFF10FFFFFFFFFFFF),
    # The table starts the shadow at ffdf000000000000, the first address of the root's entry; the code
    # (KASAN_SHADOW_START) where the shadow of the first kernel address lies.
    (FIVE, "kasan_shadow", 0xFFDFFC0000000000, 0xFFFFFBFFFFFFFFFF),
]


@pytest.mark.parametrize(("geometry", "name", "start", "end"), MM_RST)
def test_ranges_of_mm_rst(geometry: x86_64.X86Form, name: str, start: int, end: int) -> None:
    found = getattr(geometry, name)
    assert (found.start, found.end) == (start, end)


@pytest.mark.parametrize(
    ("geometry", "bases"),
    [
        (FOUR, (0xFFFF888000000000, 0xFFFFC90000000000, 0xFFFFEA0000000000)),
        (FIVE, (0xFF11000000000000, 0xFFA0000000000000, 0xFFD4000000000000)),
    ],
)
def test_default_bases_of_mm_rst(geometry: x86_64.X86Form, bases: Tuple[int, int, int]) -> None:
    assert (geometry.page_offset_base, geometry.vmalloc_base, geometry.vmemmap_base) == bases


def test_what_is_the_same_with_4_and_5_levels() -> None:
    assert x86_64.CPU_ENTRY_AREA_BASE == 0xFFFFFE0000000000
    assert x86_64.ESPFIX_BASE == 0xFFFFFF0000000000
    assert x86_64.EFI_VA_END == 0xFFFFFFEF00000000
    assert x86_64.EFI_VA_START == 0xFFFFFFFF00000000
    assert x86_64.VSYSCALL_ADDR == 0xFFFFFFFFFF600000
    assert x86_64.TOP_HOLE == 0xFFFFFFFFFFE00000


@given(st.sampled_from([FOUR, FIVE]), st.integers(0, ALL))
def test_an_address_is_canonical_or_in_the_hole(geometry: x86_64.X86Form, address: int) -> None:
    assert geometry.is_canonical(address) != (address in geometry.non_canonical)


def test_only_4_and_5_levels() -> None:
    with pytest.raises(ValueError, match="3"):
        ARCHITECTURE.form(3, MASK)

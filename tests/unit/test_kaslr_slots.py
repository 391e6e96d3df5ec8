# SPDX-License-Identifier: LGPL-2.1-or-later
"""The number of places that KASLR chooses from: the arithmetic, against the kernel's steps repeated here."""

from __future__ import annotations

from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.arch.x86_64 import ARCHITECTURE, CPU_ENTRY_AREA_BASE
from kvintro.arch.x86_64.slots import (
    REGION_ALIGN,
    bits,
    image_slots,
    module_slots,
    physical_places,
    region_draws,
    region_sizes,
    unpacked_at_most,
)
from tests import kaslr_simulation as sim

MB = 1 << 20
TB = 1 << 40
ALIGN = 2 * MB


def randomize_memory(levels: int, direct_tb: int, page: int, rands: List[int]) -> Tuple[List[int], List[int]]:
    """kernel_randomize_memory() with a direct map of this many TB: (sizes, bases)."""
    memory = sim.Memory(levels, direct_tb << (40 - 12), page, zone_device=False, padding=0)
    source = iter(rands)
    bases, _ = sim.kernel_randomize_memory(memory, lambda: next(source))
    return [size << 40 for size in memory.size_tb], bases


@given(
    st.sampled_from((4, 5)),
    st.integers(1, 64),
    st.sampled_from((64, 72)),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=3, max_size=3),
)
def test_every_draw_of_the_kernel_is_possible(
    levels: int, direct_tb: int, page: int, rands: List[int]
) -> None:
    geometry = ARCHITECTURE.form(levels, (1 << 52) - 1)
    sizes, bases = randomize_memory(levels, direct_tb, page, rands)
    assert list(region_sizes(geometry, direct_tb << 40, page)) == sizes
    draws = region_draws(geometry, sizes, bases)
    assert all(draw.possible for draw in draws)
    for draw in draws:
        assert draw.earliest <= draw.base <= draw.earliest + (draw.slots - 1) * REGION_ALIGN
    # Nothing overlaps, and everything lies below cpu_entry_area, except for the two gaps that are not
    # counted.
    assert all(a.base + a.size + REGION_ALIGN <= b.base for a, b in zip(draws, draws[1:]))
    assert draws[-1].base + draws[-1].size <= CPU_ENTRY_AREA_BASE + 2 * REGION_ALIGN


def test_the_last_region_may_pass_its_bound() -> None:
    """The gaps after the first two are not subtracted from the space that is shared."""
    top = CPU_ENTRY_AREA_BASE - 0xFFFF_8880_0000_0000 - 97 * TB
    sizes, bases = randomize_memory(4, 64, 64, [0, 0, top])
    assert bases[2] + sizes[2] == CPU_ENTRY_AREA_BASE + 2 * REGION_ALIGN


@pytest.mark.parametrize(
    ("zone_device", "padding", "ram", "direct"),
    [(True, 10, 1, 64), (False, 10, 1, 11), (False, 0, 1, 1), (False, 10, 60, 64), (False, 0, 3, 3)],
)
def test_how_much_is_reserved(zone_device: bool, padding: int, ram: int, direct: int) -> None:
    """In TB, with and without room for devices and for hot-plugged memory; vmemmap in whole TB."""
    memory = sim.Memory(4, (ram << 28) - 5, 64, zone_device, padding)
    assert memory.size_tb == [direct, 32, 1]
    geometry = ARCHITECTURE.form(4, (1 << 52) - 1)
    assert [size >> 40 for size in region_sizes(geometry, direct << 40, 64)] == memory.size_tb


@given(st.integers(0, 2), st.integers(1, REGION_ALIGN - 1))
def test_a_base_that_was_not_drawn_is_told(which: int, off: int) -> None:
    geometry = ARCHITECTURE.form(4, (1 << 52) - 1)
    sizes, bases = randomize_memory(4, 64, 64, [1 << 41, 1 << 41, 1 << 41])
    bases[which] += off
    assert not region_draws(geometry, sizes, bases)[which].possible


def test_the_most_and_the_least_draw() -> None:
    """4 levels, all 64 TB reserved: 20.5 TB are free, and the first region gets a third of them."""
    geometry = ARCHITECTURE.form(4, (1 << 52) - 1)
    sizes, bases = randomize_memory(4, 64, 64, [0, 0, 0])
    draws = region_draws(geometry, sizes, bases)
    spare = CPU_ENTRY_AREA_BASE - 0xFFFF_8880_0000_0000 - 97 * TB
    assert spare == 20.5 * TB
    assert [draw.slots for draw in draws] == [spare // n // REGION_ALIGN + 1 for n in (3, 2, 1)]
    assert bits(draws[0].slots) == 12.77


# From real boot images: the header's init_size, and the unpacked size in the packed kernel (output_len, the
# last four bytes of its payload).
IMAGES = [
    ("5.10.262-1", 0x2D5E000, 0x2CB9658),
    ("6.1.192-2", 0x3378000, 0x32C6E34),
    ("6.12.117-1", 0x37DC000, 0x36E87EC),
    ("7.3.4-1", 0x3C39000, 0x3B38430),
    ("6.12.117 small", 0x156C000, 0x14B4BB4),
]


@pytest.mark.parametrize(("release", "init_size", "output_len"), IMAGES)
def test_the_size_of_real_images(release: str, init_size: int, output_len: int) -> None:
    most = unpacked_at_most(init_size)
    assert output_len <= most
    # Close enough to give the same number of slots.
    assert image_slots(1 << 30, 16 * MB, most, ALIGN) == image_slots(1 << 30, 16 * MB, output_len, ALIGN)


@pytest.mark.parametrize(
    ("init_size", "payload_length", "output_len", "end"),
    [
        (0x2D5E000, 0xB881DF, 0x2CB9658, 0xBDF000),
        (0x3378000, 0xD696CC, 0x32C6E34, 0xDC7000),
        (0x37DC000, 0xAE1992, 0x36E87EC, 0xB7E000),
        (0x3C39000, 0xD12FB7, 0x3B38430, 0xDB8000),
    ],
    ids=["5.10.251", "6.1.192", "6.12.117", "7.3.4"],
)
def test_the_simulation_knows_where_the_packed_kernel_ends(
    init_size: int, payload_length: int, output_len: int, end: int
) -> None:
    """As in startup_64 of real boot images, in the instruction that subtracts _end from init_size."""
    boot = sim.Boot([], MB, init_size, 0x2CC, payload_length, output_len, 0, [])
    assert boot.zo_end == end
    assert boot.output + init_size - payload_length >= boot.input


@given(st.integers(1, 900 * MB))
def test_image_slots(size: int) -> None:
    """Every slot has space for the image, and one more would not."""
    slots = image_slots(1 << 30, 16 * MB, size, ALIGN)
    rounded = -(-size // ALIGN) * ALIGN
    assert 16 * MB + (slots - 1) * ALIGN + rounded <= 1 << 30
    assert 16 * MB + slots * ALIGN + rounded > 1 << 30


areas = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=4)


@given(areas, areas, st.integers(1, 40))
def test_physical_places(ram: List[Tuple[int, int]], taken: List[Tuple[int, int]], size: int) -> None:
    """Against trying every address, in RAM without overlaps."""
    used: List[Tuple[int, int]] = []
    cursor = 0
    for gap, length in ram:
        used.append((cursor + gap, cursor + gap + length))
        cursor += gap + length + 1
    spared = [(start, start + length) for start, length in taken]

    def fits(at: int) -> bool:
        inside = any(start <= at and at + size <= end for start, end in used)
        return inside and all(at + size <= low or high <= at for low, high in spared)

    expected = [at * ALIGN for at in range(16, 2000) if fits(at)]
    found = physical_places(
        [(a * ALIGN, b * ALIGN) for a, b in used],
        [(a * ALIGN, b * ALIGN) for a, b in spared],
        16 * ALIGN,
        size * ALIGN,
        ALIGN,
    )
    assert [at for area in found for at in area] == expected


@pytest.mark.parametrize(("align", "slots"), [(4 << 10, 1024), (32 << 10, 128), (2 * MB, 2)])
def test_module_slots(align: int, slots: int) -> None:
    """Pages, KASAN's pieces, and huge pages."""
    assert module_slots(align) == slots


def test_bits() -> None:
    assert bits(1) == 0 and bits(1024) == 10 and bits(0) == 0

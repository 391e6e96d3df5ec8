# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64's tables, entries and bounds, against values computed by hand.

Shapes follow the tables of D8.2 in Arm's manual (DDI 0487) and ``arch/arm64/include/asm/pgtable-hwdef.h``,
entries ``pgtable-prot.h``, and bounds the values that Debian's kernels 5.10, 6.1, 6.12 and 7.3 report.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Optional, Tuple

import numpy
import pytest

from kvintro.arch.aarch64 import ARCHITECTURE, space
from kvintro.arch.aarch64.entries import SWAP_5_19, SWAP_6_11, SWAP_OLD, Dialect, SwapFormat, decode
from kvintro.arch.aarch64.form import INVALID_NG, OLD_MEMORY_TYPES, Arm64Form
from kvintro.arch.aarch64.nameless import addresses_read
from kvintro.arch.aarch64.slots import image_window, linear_slots, module_window, old_module_window
from kvintro.arch.rights import EXEC, READ, USER, USER_EXEC, WRITE
from kvintro.arch.swap import SpecialSwapTypes
from kvintro.paging import walk
from kvintro.queries.placements import HOLE
from kvintro.regions import regions_of
from kvintro.regions.explained import explanation, explanation_of

NEW, OLD = INVALID_NG, 1 << 58 | 1 << 59
FORM = Arm64Form.of(12, 48, 48, kept=NEW)
LPA2 = Arm64Form.of(12, 52, 52, kept=NEW)
OLDER = Arm64Form.of(12, 48, 48, kept=OLD)
# 6.12 with MIGRATION and MEMORY_FAILURE, without DEVICE_PRIVATE.
TYPES = SpecialSwapTypes.of(markers=3, device=0, migration=3, hwpoison=True)


@pytest.mark.parametrize(
    ("granule", "built", "actual", "levels", "root", "top_shift", "blocks"),
    [
        (12, 39, 39, 3, 512, 30, (2, 3)),
        (12, 48, 48, 4, 512, 39, (2, 3)),
        (12, 52, 52, 5, 16, 48, (2, 3, 4)),
        (12, 52, 48, 4, 512, 39, (2, 3)),
        (14, 36, 36, 2, 2048, 25, (2,)),
        (14, 47, 47, 3, 2048, 36, (2,)),
        (14, 48, 48, 4, 2, 47, (2,)),
        (14, 52, 52, 4, 32, 47, (2, 3)),
        (14, 52, 47, 3, 2048, 36, (2,)),
        (16, 42, 42, 2, 8192, 29, (2,)),
        (16, 48, 48, 3, 64, 42, (2,)),
        (16, 52, 52, 3, 1024, 42, (2,)),
        # The tables remain those of 52 bits.
        (16, 52, 48, 3, 1024, 42, (2,)),
    ],
)
def test_shape(
    granule: int,
    built: int,
    actual: int,
    levels: int,
    root: int,
    top_shift: int,
    blocks: Tuple[int, ...],
) -> None:
    form = Arm64Form.of(granule, built, actual)
    assert (form.levels, form.entries(levels), form.shift(levels)) == (levels, root, top_shift)
    assert tuple(form.leaf_levels()) == blocks
    assert form.entries(1) == 1 << granule - 3
    assert form.table_size(levels) == 8 * root
    assert form.user.end == (1 << actual) - 1
    assert form.upper.start == (1 << 64) - (1 << actual)
    last = form.index((1 << 64) - 1, levels)
    assert last == root - 1
    # 48 bits use the highest 64 entries of a root for 52 bits in one half, and the lowest in the other.
    few = 64 if (granule, actual) == (16, 48) else root
    assert form.kernel_entries() == slice(root - few, root)
    assert form.user_entries() == slice(0, few)


@pytest.mark.parametrize(("granule", "bits"), [(13, 48), (12, 53), (12, 35)])
def test_shapes_that_no_kernel_has(granule: int, bits: int) -> None:
    with pytest.raises(ValueError, match="aarch64 has no pages"):
        Arm64Form.of(granule, bits, bits)


@pytest.mark.parametrize(
    ("granule", "ptes", "pmds"), [(12, 64 << 10, 32 << 20), (14, 2 << 20, 1 << 30), (16, 2 << 20, 16 << 30)]
)
def test_contiguous_sizes(granule: int, ptes: int, pmds: int) -> None:
    """CONT_PTE_SIZE and CONT_PMD_SIZE; Documentation/arch/arm64/hugetlbpage.rst has the same table."""
    form = Arm64Form.of(granule, 48, 48)
    page = decode(1 << 52 | 0x743, 1, form)
    block = decode(1 << 52 | 0x741, 2, form)
    assert (page.contiguous, block.contiguous) == (ptes, pmds)
    assert "CONT" in page.flags and "CONT" not in decode(0x743, 1, form).flags
    assert decode(0x743, 1, form).contiguous == 0


@pytest.mark.parametrize(
    ("form", "level", "entry", "address"),
    [
        (FORM, 1, 0x0060_1234_5678_9743, 0x1234_5678_9000),
        (FORM, 2, 0x0060_1234_5660_0741, 0x1234_5660_0000),
        (FORM, 3, 0x0060_1234_4000_0741, 0x1234_4000_0000),
        # LPA2: bits 49:48 stay, 9:8 are bits 51:50.
        (LPA2, 1, 0x0063_1234_5678_9743, 0xF_1234_5678_9000),
        (LPA2, 1, 0x0061_1234_5678_9543, 0x5_1234_5678_9000),
        (LPA2, 2, 0x0062_1234_5660_0641, 0xA_1234_5660_0000),
        # 64K: bits 15:12 are bits 51:48.
        (Arm64Form.of(16, 52, 52), 1, 0x0060_1234_5678_C743, 0xC_1234_5678_0000),
        (Arm64Form.of(16, 52, 52), 2, 0x0060_1234_4000_1741, 0x1_1234_4000_0000),
        (Arm64Form.of(14, 47, 47), 1, 0x0060_1234_5678_8743, 0x1234_5678_8000),
        (Arm64Form.of(14, 52, 52), 2, 0x0063_1234_4400_0741, 0xF_1234_4400_0000),
    ],
)
def test_output_addresses(form: Arm64Form, level: int, entry: int, address: int) -> None:
    assert form.page_address(entry, level) == address
    assert form.is_leaf(entry, level)
    assert decode(entry, level, form).physical == address
    table = entry & ~3 | 3
    if level > 1:
        return
    assert form.table_address(table) == address


def test_entry_types_by_level() -> None:
    """D8.3: 3 is a table or a page, 1 a block if the level has blocks, else reserved; even is invalid."""
    assert [FORM.is_leaf(0x743, level) for level in (1, 2, 3, 4)] == [True, False, False, False]
    assert [FORM.is_leaf(0x741, level) for level in (1, 2, 3, 4)] == [False, True, True, False]
    assert [FORM.is_table(0x743, level) for level in (2, 3, 4)] == [True, True, True]
    assert [decode(0x741, level, FORM).kind for level in (1, 4)] == ["reserved", "reserved"]
    assert not FORM.is_present(0x742, 1)


@pytest.mark.parametrize(
    ("entry", "rights"),
    [
        # PAGE_KERNEL, PAGE_KERNEL_RO, PAGE_KERNEL_ROX
        (0x00F8_0000_4000_0F03, READ | WRITE),
        (0x0060_0000_4000_0F83, READ),
        (0x0040_0000_4000_0F83, READ | EXEC),
        # PAGE_SHARED not written yet, and written; PAGE_READONLY_EXEC; execute-only with FEAT_PAN3
        (0x0068_0000_4000_0FC3, READ | WRITE | USER),
        (0x00E8_0000_4000_0F43, READ | WRITE | USER),
        (0x0020_0000_4000_0FC3, READ | USER | USER_EXEC),
        (0x0020_0000_4000_0F83, READ | USER_EXEC),
    ],
)
def test_rights(entry: int, rights: int) -> None:
    assert FORM.rights(entry, 1) == rights
    assert FORM.rights(numpy.array([entry, 0], numpy.uint64), 1).tolist()[0] == rights


@pytest.mark.parametrize(
    ("bit", "lost"), [(59, EXEC), (60, USER_EXEC), (61, USER), (62, WRITE), (63, 0), (54, 0), (53, 0)]
)
def test_rights_that_tables_take(bit: int, lost: int) -> None:
    every = READ | WRITE | USER | EXEC | USER_EXEC
    assert FORM.table_rights(0x4000_0003 | 1 << bit) == every & ~lost


def test_a_page_of_the_linear_map() -> None:
    """As 6.12 maps it: NORMAL_TAGGED, dirty, not executable."""
    entry = decode(0x00F8_0000_4000_0F07, 1, FORM)
    assert (entry.kind, entry.half, entry.physical, entry.page_size) == ("page", "kernel", 0x4000_0000, 4096)
    assert entry.flags == ("VALID", "PAGE", "SH0", "SH1", "AF", "NG", "DBM", "CONT", "PXN", "UXN", "DIRTY")
    assert (entry.memory_source, entry.memory_type) == ("AttrIndx 1", "NORMAL-TAGGED")


@pytest.mark.parametrize(
    ("types", "index", "name"),
    [
        (None, 0, "NORMAL"),
        (None, 2, "NORMAL-NC"),
        (None, 3, "DEVICE/nGnRnE"),
        (None, 4, "DEVICE/nGnRE"),
        (None, 6, "AttrIndx 6"),
        (OLD_MEMORY_TYPES, 4, "DEVICE/nGnRnE"),
        (OLD_MEMORY_TYPES, 5, "DEVICE/nGnRE"),
    ],
)
def test_memory_types(types: Optional[Tuple[str, ...]], index: int, name: str) -> None:
    form = Arm64Form.of(12, 48, 48, types=types) if types else FORM
    assert decode(0x0068_0000_0900_0703 | index << 2, 1, form).memory_type == name


def test_a_table_of_the_kernel() -> None:
    entry = decode(0x1800_0000_41B7_9003, 3, FORM)
    assert (entry.kind, entry.half, entry.physical) == ("table", "kernel", 0x41B7_9000)
    assert entry.flags == ("VALID", "TABLE", "PXNTABLE", "UXNTABLE")
    assert decode(0x0800_0000_41B7_9003, 3, FORM).half == "user"


@pytest.mark.parametrize(
    ("form", "entry", "level", "kind"),
    [
        # PAGE_NONE: 6.1 and 6.12, a page and a huge page; bit 55 means that it was written
        (OLDER, 0x0460_0000_4567_8F82, 1, "protnone"),
        (OLDER, 0x04E0_0000_4560_0F80, 2, "protnone"),
        (FORM, 0x0060_0000_4567_8F82, 1, "protnone"),
        (FORM, 0x00E0_0000_4560_0F80, 2, "protnone"),
        # pmd_mkinvalid() of a huge page that user mode may write
        (OLDER, 0x08E8_0000_4560_0F40, 2, "invalid"),
        (FORM, 0x00E8_0000_4560_0F40, 2, "invalid"),
    ],
)
def test_entries_that_keep_a_page(form: Arm64Form, entry: int, level: int, kind: str) -> None:
    found = decode(entry, level, form, half="user")
    size = 4096 if level == 1 else 2 << 20
    assert (found.kind, found.page_size, found.physical) == (kind, size, entry & 0xFFFF_FFFF_F000)
    assert form.holds_page(entry, level) and not form.is_leaf(entry, level)
    assert form.holds_page(numpy.array([entry, 0], numpy.uint64), level).tolist() == [True, False]


@pytest.mark.parametrize(
    ("form", "swap", "entry", "kind", "number", "offset", "flags"),
    [
        # type << 3 | offset << 8, type << 6 | offset << 12, type << 2 | offset << 8
        (OLDER, SWAP_5_19, 1 << 3 | 0x1234 << 8 | 4, "swap", 1, 0x1234, ("SWP_EXCLUSIVE",)),
        (FORM, SWAP_6_11, 1 << 6 | 0x1234 << 12, "swap", 1, 0x1234, ()),
        (FORM, SWAP_6_11, 0x1235 << 12 | 12, "swap", 0, 0x1235, ("SWP_EXCLUSIVE", "SWP_UFFD_WP")),
        (OLDER, SWAP_OLD, 1 << 2 | 0x1234 << 8, "swap", 1, 0x1234, ()),
        (OLDER, SWAP_OLD, 2 << 2 | 0x800 << 8, "swap", 2, 0x800, ()),
    ],
)
def test_swap(
    form: Arm64Form,
    swap: SwapFormat,
    entry: int,
    kind: str,
    number: int,
    offset: int,
    flags: Tuple[str, ...],
) -> None:
    found = decode(entry, 1, form, dialect=Dialect(swap, TYPES, 48)).swap
    assert found is not None
    assert (found.kind, found.type, found.offset, found.pfn, found.flags) == (
        kind,
        number,
        offset,
        None,
        flags,
    )


def test_special_swap_types() -> None:
    """With 48 bits of physical addresses and pages of 4K, A and D of migration entries are bits 36 and 37."""
    # hwpoison, three of migration, marker: 27 to 31.
    dialect = Dialect(SWAP_6_11, TYPES, 48)
    migration = decode(30 << 6 | (0x45678 | 1 << 36 | 1 << 37) << 12, 1, FORM, dialect=dialect)
    assert migration.swap is not None
    assert (migration.swap.kind, migration.swap.pfn) == ("migration (write)", 0x45678)
    assert migration.swap.flags == ("YOUNG", "DIRTY")
    assert migration.physical == 0x4567_8000
    poison = decode(27 << 6 | 0x45678 << 12, 1, FORM, dialect=dialect)
    assert poison.swap is not None and (poison.swap.kind, poison.swap.pfn) == ("hwpoison", 0x45678)
    marker = decode(31 << 6 | 4 << 12, 1, FORM, dialect=dialect)
    assert marker.swap is not None and marker.swap.markers == ("guard",)


def test_what_the_version_would_tell_is_not_guessed() -> None:
    found = decode(1 << 6 | 0x1234 << 12, 1, FORM)
    assert (found.kind, found.swap, found.physical) == ("swap", None, None)
    unnamed = decode(25 << 6 | 0x1234 << 12, 1, FORM, dialect=Dialect(SWAP_6_11)).swap
    assert unnamed is not None and unnamed.kind is None


def test_a_kernel_page_that_was_made_invalid() -> None:
    """set_memory_valid(): the linear map's entry for a page of memfd_secret."""
    found = decode(0x0068_0000_45F1_0706, 1, FORM, half="kernel")
    assert (found.kind, found.physical, found.page_size) == ("not-present", 0x45F1_0000, 0)


@pytest.mark.parametrize(
    ("dialect", "form", "bit", "name"),
    [
        (Dialect(uffd=True), FORM, 58, "UFFD_WP"),
        (Dialect(), FORM, 58, "bit 58"),
        (Dialect(devmap=True), FORM, 57, "DEVMAP"),
        (Dialect(), FORM, 57, "bit 57"),
        (Dialect(), FORM, 56, "SPECIAL"),
        (Dialect(keys=True), FORM, 61, "PO_IDX_1"),
        (Dialect(), FORM, 61, "bit 61"),
        (Dialect(), FORM, 50, "GP"),
        (Dialect(), FORM, 8, "SH0"),
    ],
)
def test_names_of_bits(dialect: Dialect, form: Arm64Form, bit: int, name: str) -> None:
    entry = decode(0x0020_0000_4000_0CC3 | 1 << bit, 1, form, dialect=dialect)
    assert entry.bits[bit] == name
    assert decode(0x0020_0000_4000_0CC3 | 6 << 60, 1, FORM, dialect=Dialect(keys=True)).pkey == 6


def test_lpa2_has_no_shareability() -> None:
    assert not {"SH0", "SH1"} & set(decode(0x0060_0000_4000_0F03, 1, LPA2).flags)
    assert decode(0x0060_0000_4000_0F03, 1, LPA2).physical == 0xC_0000_4000_0000


def test_tags_of_pointers() -> None:
    assert FORM.untagged(0xAB00_FFFF_8123_4567) == 0x0000_FFFF_8123_4567
    assert FORM.untagged(0xF4FF_8000_8123_4567) == 0xFFFF_8000_8123_4567
    assert not FORM.is_canonical(0xAB00_FFFF_8123_4567)
    assert FORM.plain(0xAB00_FFFF_8123_4567) == (0x0000_FFFF_8123_4567, "without its tag, 0xab")
    assert FORM.plain(0xF4FF_8000_8123_4567) is None
    assert FORM.plain(0xFFFF_8000_8123_4567) is None


@pytest.mark.parametrize(
    "form, pointer, expected",
    # The upper bits are a signature, except bit 55; in user mode, the tag is part of it.
    [
        (FORM, 0x2EBC_8000_8123_4567, 0xFFFF_8000_8123_4567),
        (FORM, 0x0051_FFFF_8123_4567, 0x0000_FFFF_8123_4567),
        (FORM, 0xAB51_FFFF_8123_4567, 0x0000_FFFF_8123_4567),
        (LPA2, 0xA2FF_AE07_B641_0000, 0xFFFF_AE07_B641_0000),
        (LPA2, 0x003F_AE07_B641_0000, 0x000F_AE07_B641_0000),
    ],
)
def test_signed_pointers(form: Arm64Form, pointer: int, expected: int) -> None:
    assert form.plain(pointer) is None
    assert replace(form, signed=True).plain(pointer) == (expected, "without its signature (PAC)")


def test_walk_of_a_root_with_sixteen_entries() -> None:
    """Five levels, the root 64 bytes into a page, and a page above 2^48."""
    memory = {
        0x1040 + 8 * 15: 0x2003,
        0x2000 + 8 * 511: 0x3003,
        0x3000 + 8 * 510: 0x4003,
        0x4000 + 8 * 1: 0x5003,
        0x5000 + 8 * 5: 0x0061_0000_0070_0703,
    }
    address = 15 << 48 | 511 << 39 | 510 << 30 | 1 << 21 | 5 << 12 | 0x123 | 0xFFF << 52
    found = walk(lambda at, size: memory[at].to_bytes(size, "little"), LPA2, 0x1040, address)
    assert (found.state, found.physical) == ("mapped", 0xD_0000_0070_0123)
    assert [step.level for step in found.steps] == [5, 4, 3, 2, 1]


# Values of these kernels' own macros, printed by a module in each.
@pytest.mark.parametrize(
    ("form", "made", "vmalloc_end", "vmemmap", "vmemmap_end", "pci_io", "fixaddr_top"),
    [
        (
            Arm64Form.of(12, 52, 52),
            space.since_6_9,
            0xFFFF_C1FF_BF80_0000,
            0xFFFF_C1FF_C000_0000,
            0xFFFF_FFFF_C000_0000,
            0xFFFF_FFFF_C080_0000,
            0xFFFF_FFFF_FF80_0000,
        ),
        (
            # 52 bits on a processor with 48: VMALLOC_END is higher, VMEMMAP_START is the same.
            Arm64Form.of(12, 52, 48),
            space.since_6_9,
            0xFFFF_FDFF_BF80_0000,
            0xFFFF_FDFF_C000_0000,
            0xFFFF_FFFF_C000_0000,
            0xFFFF_FFFF_C080_0000,
            0xFFFF_FFFF_FF80_0000,
        ),
        (
            Arm64Form.of(12, 48, 48),
            space.since_5_11,
            0xFFFF_FBFF_F000_0000,
            0xFFFF_FC00_0000_0000,
            0xFFFF_FE00_0000_0000,
            0xFFFF_FBFF_FE80_0000,
            0xFFFF_FBFF_FE00_0000,
        ),
    ],
)
def test_bounds(
    form: Arm64Form,
    made: Callable[[Arm64Form, int], space.Space],
    vmalloc_end: int,
    vmemmap: int,
    vmemmap_end: int,
    pci_io: int,
    fixaddr_top: int,
) -> None:
    found = made(form, 64)
    assert found.vmalloc_end == vmalloc_end
    assert (found.vmemmap.start, found.vmemmap.end + 1) == (vmemmap, vmemmap_end)
    assert (found.pci_io.start, found.pci_io.end + 1 - pci_io) == (pci_io, 16 << 20)
    assert found.fixaddr_top == fixaddr_top
    assert space.with_vmalloc_end(form, 64, vmalloc_end) == found
    assert space.with_vmalloc_end(form, 64, vmalloc_end + 4096) is None


def test_linear_map_begins_where_the_processor_does() -> None:
    assert Arm64Form.of(12, 52, 48).linear_map.start == 0xFFFF_0000_0000_0000
    assert Arm64Form.of(12, 52, 48).page_offset == 0xFFF0_0000_0000_0000
    assert Arm64Form.of(12, 52, 52).linear_map.end == 0xFFFF_7FFF_FFFF_FFFF
    assert Arm64Form.of(14, 52, 52).linear_map.end == 0xFFFF_BFFF_FFFF_FFFF
    assert Arm64Form.of(12, 39, 39).linear_map.end == 0xFFFF_FFBF_FFFF_FFFF


def test_places_of_kaslr() -> None:
    """6.1: a quarter of 2^48 in steps of 2M: 2^25 places, from 2^45 on."""
    window = image_window(OLDER, 0, 0, halves=False)
    assert (len(window), window[0], window.step) == (1 << 25, 1 << 45, 2 << 20)
    # 6.12: the middle half of [KIMAGE_VADDR, VMALLOC_END).
    window = image_window(LPA2, 0x1000_0000, 0x1000_0000 + (64 << 30), halves=True)
    assert (window[0], window.stop, len(window)) == (16 << 30, 48 << 30, 1 << 14)
    # A cortex-a72 has 44 bits of physical addresses: 114,688 steps of 1G, and a seed of 16 bits.
    assert linear_slots(FORM, 44) == 1 << 16
    # With 39 bits of addresses and 36 of physical ones: (2^38 - 2^36) / 1G.
    assert linear_slots(Arm64Form.of(12, 39, 39), 36) == 192
    assert linear_slots(FORM, 48) == 1


@pytest.mark.parametrize("least", [0, 0xFFFF_8000_4000_0000])
def test_places_of_modules_before_6_5(least: int) -> None:
    """Against every seed (arch/arm64/kernel/kaslr.c:kaslr_init)."""
    import numpy

    stext, end = 0xFFFF_8000_9001_0000, 0xFFFF_8000_91A0_0000
    seeds = numpy.arange(1 << 21, dtype=numpy.uint64)
    offsets = (seeds * numpy.uint64((2 << 30) - (end - stext))) >> numpy.uint64(21)
    bases = numpy.uint64(max(end - (2 << 30), least)) + offsets & ~numpy.uint64(0xFFF)
    assert numpy.unique(bases).tolist() == list(old_module_window(stext, end, least, 1 << 12))


def test_places_of_modules() -> None:
    """The window contains the image, and one page lower or higher it would not (random_bounding_box())."""
    start, end, size = 0xFFFF_8000_9000_0000, 0xFFFF_8000_91A1_0000, 2 << 30
    for page in (1 << 12, 1 << 16):
        window = module_window(start, end, size, page)
        assert window[-1] == start and window[0] + size >= end > window[0] - page + size
        assert all(base % page == 0 for base in window[:: 1 << 12])


def test_every_region_is_explained() -> None:
    for key in (*(region.key for region in regions_of(ARCHITECTURE)), HOLE):
        region = next((r for r in regions_of(ARCHITECTURE) if r.key == key), None)
        text = explanation(key, ARCHITECTURE) if region is None else explanation_of(region, ARCHITECTURE)
        assert text is not None and text.purpose, key


def test_variables_that_code_reads() -> None:
    """GNU as made the words, and objdump printed the addresses of ADRP: 7fffc000 and 92346000."""
    words = (
        0xF0FFFFC1,  # adrp x1, . - 0x5000
        0x91004021,  # add x1, x1, #0x10
        0x39402023,  # ldrb w3, [x1, #8]
        0xF9408022,  # ldr x2, [x1, #256]
        0xB0091A24,  # adrp x4, . + 0x12345000
        0xF947D084,  # ldr x4, [x4, #4000]
        0xF9400485,  # ldr x5, [x4, #8]
        0xD65F03C0,  # ret
        0xB0000006,  # adrp x6, . + 0x1000
        0xF94000C6,  # ldr x6, [x6]
    )
    code = b"".join(word.to_bytes(4, "little") for word in words)
    assert list(addresses_read(0x8000_1000, code)) == [0x7FFF_C110, 0x9234_6FA0]

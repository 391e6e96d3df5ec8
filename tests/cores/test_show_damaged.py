# SPDX-License-Identifier: LGPL-2.1-or-later
"""`show` on damaged structures, if the tests of a region do not damage them: it shows the readable part, a
note says what is missing, the exit status is 4, and it ends."""

from __future__ import annotations

import time
from typing import Callable, Dict, Iterator, Tuple

import pytest

from kvintro.delivery import exit_code
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Asked
from kvintro.readers.cpus import per_cpu_address
from kvintro.readers.structures import offset_of, pointer_at, size_of
from kvintro.reports.show import Selection, show
from tests.conftest import Core
from tests.cores.showing import WILD, fresh, overlay
from tests.timing import allowed

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

#: (region, address of the eight bytes to overwrite, value that makes a loop or, if there can be none, is
#: invalid)
Place = Tuple[str, int, int]


def resources(kernel: Kernel) -> Place:
    """The second entry of /proc/iomem points back to the first."""
    offset = {name: offset_of(kernel, "struct resource", name) for name in ("child", "sibling")}
    first = pointer_at(kernel, kernel.symbol("iomem_resource") + offset["child"])
    second = pointer_at(kernel, first + offset["sibling"])
    return "direct_map", second + offset["sibling"], first


def _vmap(kernel: Kernel, old: str, *members: str) -> Iterator[int]:
    """Heads of lists of areas."""
    if kernel.find_symbol("vmap_nodes") is None:
        yield kernel.symbol(old)
        return
    offset = offset_of(kernel, "struct vmap_node", members[0]) + offset_of(kernel, "struct rb_list", "head")
    base, size = kernel.value("vmap_nodes").value, size_of(kernel, "struct vmap_node")
    for index in range(kernel.value("nr_vmap_nodes", 4).value):
        yield base + index * size + offset


def _of_a_list(kernel: Kernel, heads: Iterator[int]) -> Place:
    for head in heads:
        first = pointer_at(kernel, head)
        second = pointer_at(kernel, first)
        if head not in (first, second):
            return "vmalloc", second, first
    pytest.skip("no list of two areas here")


def lazily_freed(kernel: Kernel) -> Place:
    """Freed areas; before 5.11 they were linked differently."""
    if kernel.find_symbol("vmap_purge_list") is not None and kernel.find_symbol("vmap_nodes") is None:
        first = pointer_at(kernel, kernel.symbol("vmap_purge_list"))
        if not first:
            pytest.skip("nothing was freed here")
        return "vmalloc", first, first
    return _of_a_list(kernel, _vmap(kernel, "purge_vmap_area_list", "lazy"))


def free_areas(kernel: Kernel) -> Place:
    return _of_a_list(kernel, iter([kernel.symbol("free_vmap_area_list")]))


def efi_map(kernel: Kernel) -> Place:
    """The address of EFI's descriptors."""
    if kernel.find_symbol("efi") is None:
        pytest.skip("CONFIG_EFI is off")
    at = kernel.symbol("efi") + offset_of(kernel, "struct efi", "memmap")
    return "efi", at + offset_of(kernel, "struct efi_memory_map", "map"), 0xFFFF_FFFF_FFFF_F000


def efi_count(kernel: Kernel) -> Place:
    """The number of descriptors; the two words are an int and the size of each."""
    _, at, _ = efi_map(kernel)
    at += offset_of(kernel, "struct efi_memory_map", "nr_map") - offset_of(
        kernel, "struct efi_memory_map", "map"
    )
    return "efi", at & ~7, (1 << 64) - 1


def espfix_stack(kernel: Kernel) -> Place:
    if kernel.find_symbol("espfix_stack") is None:
        pytest.skip("CONFIG_X86_ESPFIX64 is off")
    return "espfix", per_cpu_address(kernel, "espfix_stack", 1), 0x1234_5678


def node_data(kernel: Kernel) -> Place:
    """The zones of the first node."""
    if kernel.find_symbol("node_data") is None:
        pytest.skip("without CONFIG_NUMA zones are in a variable, which nothing points to")
    return "vmemmap", kernel.symbol("node_data"), 0xFFFF_FFFF_FFFF_F000


PLACES: Dict[str, Callable[[Kernel], Place]] = {
    "resources": resources,
    "lazily freed": lazily_freed,
    "free areas": free_areas,
    "EFI's map": efi_map,
    "EFI's count": efi_count,
    "espfix stack": espfix_stack,
    "zones": node_data,
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_left_is_shown(core: Core, place: str) -> None:
    meta = core.meta
    if meta["levels"] != 4 or not (meta["kaslr"] and meta["pti"]) or meta.get("furnished"):
        pytest.skip("the same structures of this kernel are spoiled in its simplest core")
    for spoiled in ("a loop", "a wild pointer"):
        kernel = fresh(core)
        try:
            region, address, loop = PLACES[place](kernel)
        except Unavailable as error:
            pytest.skip(error.what)
        whole = show(kernel, region, Asked(), Selection())
        if whole.negative:
            pytest.skip(f"no {region} here: {whole.extra['region'].reason}")
        assert exit_code(whole) == 0
        overlay(kernel, address, loop if spoiled == "a loop" else WILD[spoiled])
        started = time.process_time()
        report = show(kernel, region, Asked(), Selection())
        assert time.process_time() - started < allowed(10)
        assert exit_code(report) == 4
        assert report.notes and set(report.notes) - set(whole.notes)
        assert [table.key for table in report.tables] == [table.key for table in whole.tables]
        assert any(table.rows for table in report.tables)

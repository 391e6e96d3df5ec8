# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of the toy architecture's kernels, which are all constant."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple, Union

from kvintro.kernels import Kernel
from kvintro.model import ALL, Absent, AddressRange, Fact, Located, Placement, Root
from tests.toy.entries import ToyEntries
from tests.toy.form import ToyForm

START = (1 << 64) - (1 << 39)
GB = 1 << 30
#: Physical address of the first RAM, at which the direct map begins.
RAM = 3 * GB
IMAGE_PHYSICAL = RAM + GB
PLACES: Dict[str, Placement] = {
    "direct_map": Placement(AddressRange(START, START + 64 * GB - 1), "made up"),
    "vmalloc": Placement(AddressRange(START + 64 * GB, START + 128 * GB - 1), "made up"),
    "modules": Placement(AddressRange(START + 72 * GB, START + 74 * GB - 1), "made up", parent="vmalloc"),
    "kernel_image": Placement(
        AddressRange(START + 73 * GB, START + 73 * GB + (GB >> 2) - 1), "made up", parent="modules"
    ),
    "vmemmap": Placement(AddressRange(START + 130 * GB, START + 131 * GB - 1), "made up"),
    "fixmap": Placement(AddressRange(ALL - GB + 1, ALL - GB + (1 << 24)), "made up"),
}


class ToyFacts:
    """See :class:`kvintro.kernels.Facts`."""

    form = ToyForm(3)
    levels = Fact(3, "made up")
    root_name = "swapper_pg_dir"
    image = PLACES["kernel_image"].range
    image_offset = Fact(image.start - IMAGE_PHYSICAL & ALL, "made up")
    image_slide = Fact(0, "made up")
    linear_offset = Fact(START - RAM & ALL, "made up")
    linear_window = PLACES["direct_map"].range
    isolation = Fact(False, "made up")
    section_size_bits = Fact(30, "made up")
    kaslr = Fact(False, "made up")
    max_physmem_bits = Fact(40, "made up")
    memory_map = Fact(PLACES["vmemmap"].range.start - (RAM >> 14) * 64 & ALL, "made up")
    fixmap_top = PLACES["fixmap"].range.end + 1 - (1 << 14)
    kasan_shadow_offset = 0

    def __init__(self, kernel: Kernel) -> None:
        self.root = Fact(int(kernel.source.vmcoreinfo["ROOT"], 16), "made up")

    @property
    def entries(self) -> ToyEntries:
        """By the form."""
        return ToyEntries(self.form)

    def firmware_root(self) -> Union[Root, Absent]:
        """There is no firmware."""
        return Absent("no toy has firmware")

    def user_root(self, table: int) -> Optional[int]:
        """The user half has its own roots."""
        return None

    def initrd(self) -> List[Tuple[int, int]]:
        """There was none."""
        return []

    def place(self, key: str) -> Located:
        """From :data:`PLACES`."""
        return PLACES.get(key, Absent("no toy has it"))


FACTS = ToyFacts

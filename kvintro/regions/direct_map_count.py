# SPDX-License-Identifier: LGPL-2.1-or-later
"""Comparison of the kernel's own count of the direct map's pages with the page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Mapping, NamedTuple, Set

from kvintro.errors import Unavailable
from kvintro.model import Placement
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, NONZERO
from kvintro.readers.mapped import View

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


class KernelCount(NamedTuple):
    """The content of ``direct_pages_count[]``, and its difference from the page tables.

    :ivar counts: by page size; empty if they cannot be read.
    :ivar in_image: split blocks of 2 MB in the image, which the kernel also counts here.
    :ivar by_hwpoison: blocks split for a poisoned page, which are not counted; 0 if unknown.
    :ivar disagreement: how the counts differ from the page tables; empty if they do not.
    """

    counts: Mapping[str, int]
    in_image: int
    by_hwpoison: int = 0
    disagreement: str = ""


def kernel_count(kernel: Kernel, counted: Mapping[str, int], poisoned: int) -> KernelCount:
    """Compare the kernel's counts with the page tables.

    :param counted: number of entries by page size.
    :param poisoned: blocks of 2 MB that are split for a poisoned page.
    """
    counts = _direct_pages_count(kernel)
    # mm/pat/set_memory.c:__split_large_page counts a split of the image's own mapping as one of the direct
    # map, as long as there are large pages to count down (split_page_count).
    names = kernel.form.page_names
    small, large, entries = names[1], kernel.form.page_name(2), kernel.form.entries(1)
    in_image = min(_blocks_split_in_image(kernel), counted.get(large, 0))
    if not counts:
        return KernelCount(counts, in_image)
    expected = {name: counted.get(name, 0) for name in names.values()}
    expected[small] += entries * in_image
    expected[large] -= in_image
    # set_mce_nospec() removes a poisoned page through a non-canonical address, which __split_large_page does
    # not recognise as an address of the direct map.
    by_hwpoison = (expected[small] - counts[small]) // entries
    if poisoned and 0 < by_hwpoison <= poisoned:
        expected[small] -= entries * by_hwpoison
        expected[large] += by_hwpoison
    else:
        by_hwpoison = 0
    differing = {name: count for name, count in counts.items() if expected[name] != count}
    if not differing:
        return KernelCount(counts, in_image, by_hwpoison)
    told = ", ".join(f"{name}: {expected[name]}, not {count}" for name, count in differing.items())
    # If RAM ends within a large page, two ranges that are mapped at boot include the page, and phys_pud_init
    # and phys_pmd_init count it twice.
    twice = all(count > expected[name] and name != small for name, count in differing.items())
    why = "; the kernel counts a large page twice if it meets it twice while booting" if twice else ""
    return KernelCount(counts, in_image, by_hwpoison, f"{told}{why}")


def _direct_pages_count(kernel: Kernel) -> Dict[str, int]:
    """``direct_pages_count[]`` by page size, empty if it cannot be read. PG_LEVEL_4K is 1."""
    try:
        data = kernel.read(kernel.symbol("direct_pages_count"), 32)
    except Unavailable:
        return {}
    return {
        name: int.from_bytes(data[8 * level : 8 * level + 8], "little")
        for level, name in kernel.form.page_names.items()
    }


def _blocks_split_in_image(kernel: Kernel) -> int:
    """Number of blocks of 2 MB of the kernel image that are mapped page by page."""
    image = kernel.locate("kernel_image")
    if not isinstance(image, Placement) or image.used is None:
        return 0
    view = View.of(kernel, image.used.start, image.used.end)
    blocks: Set[int] = set()
    shift = kernel.form.shift(2)
    for low, high, key in view.parts(image.used.start, image.used.end):
        if key & (MAPPED | NONZERO) and (key & LEVEL_MASK) >> LEVEL_SHIFT == 1:
            blocks.update(range(low >> shift, (high >> shift) + 1))
    return len(blocks)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which swap types of a kernel do not mean a swap file, derived from its symbols and types.

:mod:`kvintro.arch.swap` lists the generations of ``include/linux/swap.h``.
"""

from __future__ import annotations

from typing import Optional, Tuple

from kvintro.arch.swap import SWP_TYPE_BITS, SpecialSwapTypes
from kvintro.kernels import Kernel

#: Arrays of pointers with an entry for each swap type of a file or device.
_BY_SWAP_TYPE = ("swap_info", "swapper_spaces")


def special_swap_types(kernel: Kernel, *, newest: bool) -> Optional[SpecialSwapTypes]:
    """Return the special types; None if this kernel's generation is unknown.

    :param newest: whether the architecture implies the last generation.
    :raises Unavailable: the source has no symbols.
    """
    exclusive = 0
    if kernel.has_symbol("make_device_exclusive_range", code=True):
        exclusive = 4
    elif kernel.has_symbol("make_device_exclusive", code=True):
        exclusive = 3
    count = _count(kernel)
    if not newest and count is None:
        return None
    least, most = (3, 3) if newest else _generations(kernel)
    return SpecialSwapTypes.fitting(
        count,
        hwpoison=kernel.has_symbol("memory_failure", code=True),
        migration=kernel.has_symbol("remove_migration_ptes", code=True),
        exclusive=exclusive,
        guard=kernel.has_symbol("guard_remove_pte_entry", code=True),
        least=least,
        most=most,
    )


def _count(kernel: Kernel) -> Optional[int]:
    """Number of swap types that are not swap files, from the length of ``swap_info`` (mm/swapfile.c).

    None if it is unknown: there is no swap, or the array may end before the next symbol.
    """
    table = kernel.source.kallsyms
    sizes = [] if table is None else [s.size for name in _BY_SWAP_TYPE for s in table.lookup_all(name)]
    rooms = [size // 8 for size in sizes if size]
    count = (1 << SWP_TYPE_BITS) - min(rooms) if rooms else 0
    return count if 0 < count < 16 else None


def _generations(kernel: Kernel) -> Tuple[int, int]:
    """First and last generation that a kernel can have, from what was added with them or later."""
    if kernel.source.types != "none":
        try:
            # 78fbe906cc90 "mm/page-flags: reuse PG_mappedtodisk as PG_anon_exclusive for PageAnon() pages"
            # came with the second generation.
            kernel.prog.constant("PG_anon_exclusive")
        except LookupError:
            return 0, 0
        try:
            kernel.prog.type("struct mm_rss_stat")
        except LookupError:
            # f1a7941243c1 "mm: convert mm's rss stats into percpu_counter" came with the last one.
            return 3, 3
        return 1, 2
    # A and D bits of migration entries were added after the second generation.
    return int(kernel.find_symbol("swap_migration_ad_supported") is not None), 3

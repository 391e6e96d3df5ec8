# SPDX-License-Identifier: LGPL-2.1-or-later
"""What zones say of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

from kvintro.arch.x86_64 import ALL
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.queries.pages.format import PageFormat
from kvintro.readers.structures import TROUBLE, offset_of, pointer_at, size_of

_MOST_ZONES = 8  # MAX_NR_ZONES is at most 6
_ORDERS = 11  # include/linux/mmzone.h:NR_PAGE_ORDERS, MAX_ORDER before 6.8


@dataclass(frozen=True)
class ZoneFacts:
    """A ``struct zone``.

    :ivar start: its first page frame.
    :ivar spanned: page frames from its first to its last.
    :ivar present: those of them that are memory.
    :ivar managed: those of them that the allocator was given.
    """

    start: int
    spanned: int
    present: int
    managed: int


def zone_facts(kernel: Kernel, form: PageFormat) -> Dict[Tuple[int, str], ZoneFacts]:
    """Every zone that spans anything, by node and name, in the order of the kernel.

    :raises Unavailable: the source does not tell.
    """
    out: Dict[Tuple[int, str], ZoneFacts] = {}
    try:
        size = size_of(kernel, "struct zone")
        zones = offset_of(kernel, "struct pglist_data", "node_zones")
        node_id = offset_of(kernel, "struct pglist_data", "node_id")
        members = [
            offset_of(kernel, "struct zone", member)
            for member in ("zone_start_pfn", "spanned_pages", "present_pages", "managed_pages")
        ]
        for node in kernel.node_addresses():
            nid = int.from_bytes(kernel.read(node + node_id & ALL, 4), "little")
            for i, name in enumerate(form.zones):
                zone = node + zones + i * size
                start, spanned, present, managed = (pointer_at(kernel, zone + at) for at in members)
                if spanned:
                    out[nid, name] = ZoneFacts(start, spanned, present, managed)
    except TROUBLE as error:
        raise Unavailable(f"what zones say of themselves cannot be read: {error}") from error
    return out


def free_pages(kernel: Kernel) -> int:
    """Free pages by what zones say of their free lists (``free_area[].nr_free``), of all zones together.

    :raises Unavailable: the source does not tell.
    """
    try:
        size, zones = size_of(kernel, "struct zone"), offset_of(kernel, "struct pglist_data", "node_zones")
        count = offset_of(kernel, "struct pglist_data", "node_zonelists") - zones
        area, each = offset_of(kernel, "struct zone", "free_area"), size_of(kernel, "struct free_area")
        free = offset_of(kernel, "struct free_area", "nr_free")
        return sum(
            pointer_at(kernel, node + zones + zone * size + area + order * each + free) << order
            for node in kernel.node_addresses()
            for zone in range(min(count // max(size, 1), _MOST_ZONES))
            for order in range(_ORDERS)
        )
    except TROUBLE as error:
        raise Unavailable(f"what zones say of their free pages cannot be read: {error}") from error

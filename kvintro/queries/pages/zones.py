# SPDX-License-Identifier: LGPL-2.1-or-later
"""Size and free pages of zones, by the kernel's own counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.queries.pages.format import PageFormat
from kvintro.readers.structures import TROUBLE, offset_of, pointer_at, size_of

_MOST_ZONES = 8  # MAX_NR_ZONES is at most 6
_MOST_ORDERS = 32


@dataclass(frozen=True)
class ZoneFacts:
    """A ``struct zone``.

    :ivar start: first page frame.
    :ivar spanned: number of page frames from the first to the last.
    :ivar present: number of those that are memory.
    :ivar managed: number of those that the allocator was given.
    """

    start: int
    spanned: int
    present: int
    managed: int


def zone_facts(kernel: Kernel, form: PageFormat) -> Dict[Tuple[int, str], ZoneFacts]:
    """Read every zone that is not empty, by node and name, in the kernel's order.

    :raises Unavailable: the source does not contain it.
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
        raise Unavailable(f"the zones cannot be read: {error}") from error
    return out


def free_pages(kernel: Kernel) -> int:
    """Sum of the free pages on all zones' free lists (``free_area[].nr_free``).

    :raises Unavailable: the source does not contain it.
    """
    try:
        size, zones = size_of(kernel, "struct zone"), offset_of(kernel, "struct pglist_data", "node_zones")
        count = offset_of(kernel, "struct pglist_data", "node_zonelists") - zones
        area, each = offset_of(kernel, "struct zone", "free_area"), size_of(kernel, "struct free_area")
        free = offset_of(kernel, "struct free_area", "nr_free")
        # include/linux/mmzone.h:NR_PAGE_ORDERS; MAX_ORDER before 6.8
        orders = kernel.number("LENGTH(zone.free_area)").value
        if not 0 < orders <= _MOST_ORDERS:
            raise Unavailable(f"invalid number of orders of free pages: {orders}")
        return sum(
            pointer_at(kernel, node + zones + zone * size + area + order * each + free) << order
            for node in kernel.node_addresses()
            for zone in range(min(count // max(size, 1), _MOST_ZONES))
            for order in range(orders)
        )
    except TROUBLE as error:
        raise Unavailable(f"the zones' free pages cannot be read: {error}") from error

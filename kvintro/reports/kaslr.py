# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every randomised base: its value, and the number of places where it could be."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple, TypedDict

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Column, Randomised, Report, Table
from kvintro.queries.placements import only_image_moved
from kvintro.readers.randomness import NO_PLACE, kaslr_enabled, not_known


class _Always(TypedDict):
    enabled: Optional[bool]
    memory_bits: Optional[float]


class KaslrExtra(_Always, total=False):
    """Further values of the report.

    :ivar enabled: None if unknown; then :ivar:`enabled_reason` says why, else
        :ivar:`enabled_provenance` says where it was read.
    :ivar image_only: whether KASLR moved only the image (KASAN needs the regions at fixed addresses).
    :ivar memory_bits: entropy of the direct map, vmalloc and vmemmap together; None if unknown.
    """

    enabled_provenance: str
    enabled_reason: str
    image_only: bool


KaslrReport = Report[Tuple[Table[Randomised]], KaslrExtra]

COLUMNS = (
    Column("what", "what"),
    Column("default", "default", spare=2),
    Column("actual", "actual"),
    Column("displacement", "moved by", "right"),
    Column("granularity", "steps of", "right", 3),
    Column("slots", "slots", "right", 1),
    Column("bits", "bits", "right", 1),
    Column("provenance", "read from", spare=4),
)


def kaslr(kernel: Kernel) -> KaslrReport:
    """The randomised bases of all regions, in order of address."""
    rows: List[Randomised] = []
    for region in kernel.regions:
        try:
            rows += region.randomised(kernel)
        except Unavailable as error:
            rows.append(not_known(region.key, region.name, error.what))
    rows.sort(key=lambda row: (row.actual is None, row.actual or 0))
    # The physical base comes last, because its addresses cannot be compared with the others.
    rows.sort(key=lambda row: row.key == "image_physical")
    regions = kernel.regions
    keys = {region.key for region in (regions.direct_map, regions.vmalloc, regions.vmemmap)}
    memory = [row.slots for row in rows if row.key in keys]
    bits = None if None in memory else round(sum(math.log2(slots) for slots in memory if slots), 2)
    extra: KaslrExtra
    try:
        enabled, provenance = kaslr_enabled(kernel)
        extra = {
            "enabled": enabled,
            "enabled_provenance": provenance,
            "image_only": bool(enabled) and only_image_moved(kernel),
            "memory_bits": bits,
        }
    except Unavailable as error:
        extra = {"enabled": None, "enabled_reason": error.what, "memory_bits": bits}
    notes = [f"{row.what}: {row.note}" for row in rows if row.note == NO_PLACE]
    return Report(
        command="kaslr",
        kernel=kernel.identity,
        tables=(Table("bases", COLUMNS, rows),),
        notes=tuple(dict.fromkeys((*kernel.source.warnings, *notes))),
        partial=any(row.state == "unknown" for row in rows),
        extra=extra,
    )

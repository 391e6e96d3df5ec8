# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every base that is drawn at random: where it is, and from how many places it was drawn."""

from __future__ import annotations

from typing import Any, Dict, List

from kvintro.arch.x86_64_kaslr import joint_bits
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Column, Report, Table
from kvintro.readers.randomness import NO_PLACE, Randomised, kaslr_enabled, not_known

COLUMNS = (
    Column("what", "what"),
    Column("default", "default"),
    Column("actual", "actual"),
    Column("displacement", "moved by", "right"),
    Column("granularity", "steps of", "right"),
    Column("slots", "slots", "right"),
    Column("bits", "bits", "right"),
    Column("provenance", "read from"),
)


def kaslr(kernel: Kernel) -> Report:
    """All regions' draws, in the order of what they moved."""
    rows: List[Randomised] = []
    for region in kernel.regions:
        try:
            rows += region.randomised(kernel)
        except Unavailable as error:
            rows.append(not_known(region.key, region.name, error.what))
    rows.sort(key=lambda row: (row.actual is None, row.actual or 0))
    # Physical memory is another space than all the rest.
    rows.sort(key=lambda row: row.key == "image_physical")
    extra: Dict[str, Any] = {}
    try:
        enabled, provenance = kaslr_enabled(kernel)
        extra["enabled"] = enabled
        extra["enabled_provenance"] = provenance
    except Unavailable as error:
        extra["enabled"] = None
        extra["enabled_reason"] = error.what
    memory = [row.slots for row in rows if row.key in ("direct_map", "vmalloc", "vmemmap")]
    extra["memory_bits"] = None if None in memory else joint_bits(memory)
    notes = [f"{row.what}: {row.note}" for row in rows if row.note == NO_PLACE]
    return Report(
        command="kaslr",
        kernel=kernel.identity,
        tables=(Table("bases", COLUMNS, rows),),
        notes=tuple(dict.fromkeys((*kernel.source.warnings, *notes))),
        partial=any(row.state == "unknown" for row in rows),
        extra=extra,
    )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page tables: one address step by step, many addresses at once, or a whole tree as ranges.

drgn's own x86-64 walker masks entries with a constant and keeps only the address; memory encryption takes
bits from the address, and every report here is about the other bits, so these walkers are ours.

Nothing in a dump can be trusted. A walk of one address takes at most ``levels`` reads, and so does each of
many. A walk of a whole tree expands each distinct table once however often it is referred to, and gives up
(with a range that says so) past limits that no real kernel comes near; tables that refer to themselves cost
no more than others.
"""

from __future__ import annotations

from kvintro.paging.bulk import Bulk, BulkResult, BulkWalk
from kvintro.paging.step import TABLE_SIZE, ReadPhysical, Step, Walk, walk
from kvintro.paging.tree import (
    EFFECTIVE_NX,
    EFFECTIVE_RW,
    EFFECTIVE_USER,
    FLAG_BITS,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    PRUNED,
    REPEATED,
    STALE_NX,
    UNREADABLE,
    FrameTree,
    Ranges,
    Tree,
    coalesce,
)

__all__ = (
    "EFFECTIVE_NX",
    "EFFECTIVE_RW",
    "EFFECTIVE_USER",
    "FLAG_BITS",
    "LEVEL_MASK",
    "LEVEL_SHIFT",
    "MAPPED",
    "NONZERO",
    "OVER_LIMIT",
    "PRUNED",
    "REPEATED",
    "STALE_NX",
    "TABLE_SIZE",
    "UNREADABLE",
    "Bulk",
    "BulkResult",
    "BulkWalk",
    "FrameTree",
    "Ranges",
    "ReadPhysical",
    "Step",
    "Tree",
    "Walk",
    "coalesce",
    "walk",
)

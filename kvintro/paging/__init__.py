# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page-table walkers: for one address step by step, many addresses at once, or a whole tree as ranges.

kvintro does not use drgn's x86-64 walker, which masks entries with a constant and keeps only the address.
Memory encryption takes bits from the address, and the reports here are about the other bits.

A dump is not trusted. A walk of an address takes at most ``levels`` reads. A walk of a whole tree expands
each table once, no matter how many entries refer to it, so tables that refer to themselves cost no more than
others. It stops at limits that no real kernel reaches; a range then says so.
"""

from __future__ import annotations

from kvintro.paging.bulk import Bulk, BulkResult, BulkWalk
from kvintro.paging.step import ReadPhysical, Step, Walk, walk
from kvintro.paging.tree import (
    EFFECTIVE_EXEC,
    EFFECTIVE_READ,
    EFFECTIVE_SHIFT,
    EFFECTIVE_USER,
    EFFECTIVE_USER_EXEC,
    EFFECTIVE_WRITE,
    LEVEL_MASK,
    LEVEL_SHIFT,
    MAPPED,
    NONZERO,
    OVER_LIMIT,
    PRUNED,
    REPEATED,
    TABLES_EXEC,
    UNREADABLE,
    FrameTree,
    Ranges,
    Tree,
    coalesce,
)

__all__ = (
    "EFFECTIVE_EXEC",
    "EFFECTIVE_READ",
    "EFFECTIVE_SHIFT",
    "EFFECTIVE_USER",
    "EFFECTIVE_USER_EXEC",
    "EFFECTIVE_WRITE",
    "LEVEL_MASK",
    "LEVEL_SHIFT",
    "MAPPED",
    "NONZERO",
    "OVER_LIMIT",
    "PRUNED",
    "REPEATED",
    "TABLES_EXEC",
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

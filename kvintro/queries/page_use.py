# SPDX-License-Identifier: LGPL-2.1-or-later
"""The use of a page frame in one line: its type, its file, the processes that map it, and its allocator."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Thing
from kvintro.queries.pages.meaning import TYPES
from kvintro.queries.pages.one import PageLookup
from kvintro.queries.rmap import ReverseMap

_MOST_PROCESSES = 3  # maximum number of processes named


class PageUse:
    """Describes page use in one kernel, and caches the last pages.

    :ivar lacks: why the use of pages is unknown, empty if it is known.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: Dict[int, Optional[Thing]] = {}
        self._rmap = ReverseMap(kernel)
        self.lacks: Sequence[str] = ()
        self._lookup: Optional[PageLookup] = None
        try:
            self._lookup = PageLookup(kernel)
        except Unavailable as error:
            self.lacks = (f"the use of pages is not known: {error.what}",)

    def of(self, physical: int) -> Optional[Thing]:
        """The use of the page of a physical address; None if unknown."""
        pfn = physical >> self._kernel.page_shift
        if pfn not in self._known:
            self._known[pfn] = self._of(pfn)
        return self._known[pfn]

    def _of(self, pfn: int) -> Optional[Thing]:
        lookup = self._lookup
        if lookup is None:
            return None
        try:
            page = lookup.state(pfn)
            kind = lookup.kind(page)
            details: Dict[str, Any] = {
                "pfn": pfn,
                "type": kind,
                "file": None,
                "pids": [],
                "allocated_by": None,
            }
            parts = [f"page {pfn:#x}: {TYPES[kind]}"]
            file = lookup.file(page)
            if file is not None and file.path:
                details["file"] = file.path
                parts.append(file.path)
            maps = self._rmap.mappings(page)
            named: List[str] = []
            for mapping in maps.found:
                if mapping.pid not in details["pids"]:
                    details["pids"].append(mapping.pid)
                    named.append(f"pid {mapping.pid} ({mapping.comm}) at {mapping.address:x}")
            if named:
                more = len(named) - _MOST_PROCESSES
                parts.append("mapped by " + ", ".join(named[:_MOST_PROCESSES]))
                parts += [f"and {more} more"] if more > 0 else []
            owner = lookup.owner(page)
            if owner is not None and owner.allocated:
                who = f"pid {owner.pid}" + (f" ({owner.comm})" if owner.comm else "")
                by = next((frame.symbol for frame in owner.stack if frame.symbol), None)
                details["allocated_by"] = who
                parts.append(f"allocated by {who}" + (f" in {by}" if by else ""))
        except Unavailable:
            return None
        return Thing("page", "; ".join(parts), details=details)

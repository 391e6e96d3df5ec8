# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a filter left out of a dump, as rows and sentences."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import List, Optional

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Size
from kvintro.queries.pages.excluded import (
    NO_STRUCT_PAGE,
    NONE,
    STRUCT_PAGES,
    UNKNOWN,
    ZEROS,
    Excluded,
    Use,
    excluded_from,
)
from kvintro.text import size_text

#: What leaves out pages, by the reason.
_BY = {
    "free": "-d 16",
    "cache": "-d 2 or 4",
    "cache_private": "-d 4",
    "user": "-d 8",
    "hwpoison": "-d 2 to 31",
    "offline": "-d 2 to 31",
    ZEROS: "-d 1 if it is zeros",
    STRUCT_PAGES: "-e",
    NONE: "no level",
    NO_STRUCT_PAGE: "no struct page",
    UNKNOWN: "not known",
}
_NAMES = {
    "cache_private": "private cache",
    "hwpoison": "broken",
    ZEROS: "zeros or excluded by mistake",
    STRUCT_PAGES: "struct pages",
    NO_STRUCT_PAGE: "without struct pages",
    UNKNOWN: "of unknown use",
}


@dataclass(frozen=True)
class ExcludedRow:
    """Pages of one type that are missing from the dump.

    :ivar type: as in the census, or ``no_struct_page``.
    :ivar reason: ``free``, ``cache``, ``cache_private``, ``user``, ``hwpoison`` or ``offline`` if a level
        leaves them out; ``zero`` if they are zero pages or were excluded by mistake; ``none`` if no level
        leaves them out; ``struct_pages`` if struct pages were in them; ``unknown`` if their own struct pages
        are missing; ``no_struct_page``.
    :ivar pages: pages that were excluded.
    :ivar lost: pages that are missing because the dump is truncated; None if that is unknown.
    :ivar kept: pages of the same kind that are in the dump.
    :ivar by: the option of makedumpfile that leaves them out.
    """

    type: str
    reason: str
    pages: int
    size: Size
    lost: Optional[int]
    kept: int
    by: str


def excluded_rows(found: Excluded, shift: int) -> List[ExcludedRow]:
    """A row for each kind, the most excluded pages first.

    :param shift: log2 of the size of a page.
    """
    uses = {*found.excluded, *(found.lost or ())}
    return [
        ExcludedRow(
            use.type,
            use.reason,
            found.excluded[use],
            Size(found.excluded[use] << shift),
            None if found.lost is None else found.lost[use],
            found.kept[use],
            _BY[use.reason],
        )
        for use in sorted(uses, key=lambda use: (-found.excluded[use], use))
    ]


def by_type(counts: Counter[Use], pages: int, shift: int) -> str:
    """Sizes by reason, the largest first, as "900 MB free, 250 MB cache; no level excludes 12 KB slab".

    :param pages: number of pages that the counts stand for, more than their sum if they are a sample.
    :param shift: log2 of the size of a page.
    """
    explained: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for use, number in counts.items():
        if use.reason == NONE:
            others[use.type] += number
        else:
            explained[_NAMES.get(use.reason, use.reason)] += number
    total = sum(counts.values())

    def listed(sums: Counter[str]) -> str:
        sizes = ((name, number * pages // total << shift) for name, number in sums.most_common())
        return ", ".join(f"{size_text(size)} {name}" for name, size in sizes)

    parts = [listed(explained), f"no level excludes {listed(others)}" if others else ""]
    return "; ".join(filter(None, parts))


def no_level(found: Excluded) -> str:
    """Why :attr:`~kvintro.queries.pages.excluded.Excluded.level` is None."""
    said = f"; the file says -d {found.recorded}" if found.recorded is not None else ""
    types = sorted({use.type for use in found.excluded if use.reason == NONE})
    if types:
        return f"no level excludes pages of type {', '.join(types)}{said}"
    return f"struct pages are missing{said}"


def mistake_of(kernel: Kernel) -> str:
    """See :func:`mistake`; for commands that do not count what was excluded."""
    try:
        found = excluded_from(kernel)
    except Unavailable:
        return ""  # info says why this is not known
    return "" if found is None else mistake(kernel, found)


def mistake(kernel: Kernel, found: Excluded) -> str:
    """One line that says that the filter excluded pages by mistake, and the remedy; "" if it did not."""
    if not found.mistake:
        return ""
    release = re.match(r"\d+\.\d+", kernel.identity.release or "")
    that = f"supports Linux {release[0]}" if release else "is as new as the kernel"
    about = "" if found.whole else "at least "
    return (
        f"the dump lacks {about}{found.mistake}, which no level of makedumpfile excludes: it did not know "
        f"this kernel, so lists end early; next time, use a makedumpfile that {that}, or -d 1"
    )

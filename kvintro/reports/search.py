# SPDX-License-Identifier: LGPL-2.1-or-later
"""Matches of a value, a string or a pointer, and what they are in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import AbstractSet, List, Optional, Sequence, Tuple, TypedDict

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Address, Column, Report, Size, Table, Thing
from kvintro.queries.identify import Identifier
from kvintro.queries.memory import WORD, Space, ascii_text
from kvintro.queries.names import region_named
from kvintro.queries.page_use import PageUse
from kvintro.queries.search import (
    Match,
    Pattern,
    Search,
    Watch,
    pointer_pattern,
    regex_pattern,
    runs_of,
    string_pattern,
    unseen,
    value_pattern,
)
from kvintro.queries.translate import Input, Translator
from kvintro.text import size_text

_SHOWN = 64  # maximum number of bytes shown of a match
_LESS_SPECIFIC = ("memory_area", "init_section", "freed_init", "region")  # than the use of the page
_NAMES = ("symbol", "alias")  # of the image
#: Types of pages of the image that the kernel has not freed. Memory that it has freed keeps its names.
_NOT_FREED = ("reserved", "kernel_or_reserved", "zero", "hwpoison", "broken", "not_in_dump", "uninitialised")


@dataclass(frozen=True)
class HitRow:
    """One match.

    :ivar address: address in the space that was searched.
    :ivar physical: its physical address; null if unknown.
    :ivar region: key of its region; null for physical memory that no region maps.
    :ivar size: size of the match in bytes.
    :ivar value: the match as a number, if it is a word.
    :ivar text: its first bytes as ASCII, with dots for those that are not printable.
    :ivar identities: what the match is in, most specific first.
    """

    address: Address
    physical: Optional[Address]
    region: Optional[str]
    size: Size
    value: Optional[Address]
    text: str
    identities: Tuple[Thing, ...]


class SearchExtra(TypedDict):
    """Values for the whole report.

    :ivar pattern: what was searched for.
    :ivar space: ``kernel``, ``physical`` or ``pid N``.
    :ivar regions: keys of the regions that were searched, empty for all.
    :ivar total: number of bytes to search.
    :ivar searched: number of bytes that were searched.
    :ivar missing: number of bytes that are not in the source.
    :ivar stretches: number of ranges that these are in.
    :ivar first_missing: first address of the first of them.
    :ivar complete: whether the search reached its end instead of the limit.
    """

    pattern: str
    space: str
    regions: Sequence[str]
    total: Size
    searched: Size
    missing: Size
    stretches: int
    first_missing: Optional[Address]
    complete: bool


SearchReport = Report[Tuple[Table[HitRow]], SearchExtra]

COLUMNS = (
    Column("address", "address"),
    Column("match", "match"),
    Column("identities", "what it is in"),
)


@dataclass(frozen=True)
class Question:
    """What to search for: exactly one of the first four.

    :ivar value: a number or symbol.
    :ivar string: text.
    :ivar regex: a regular expression.
    :ivar to: an address; the search finds pointers to it.
    :ivar size: number of bytes from that address on that pointers may point to; None for one.
    :ivar aligned: whether to search only at addresses that are multiples of eight.
    """

    value: Optional[str] = None
    string: Optional[str] = None
    regex: Optional[str] = None
    to: Optional[str] = None
    size: Optional[int] = None
    aligned: bool = False


def search(
    kernel: Kernel,
    question: Question,
    *,
    regions: Sequence[str] = (),
    pid: Optional[int] = None,
    physical: bool = False,
    limit: int = 100,
    watch: Watch = unseen,
) -> SearchReport:
    """Search memory.

    :param regions: names of the regions to search; empty for all memory.
    :param pid: process whose memory is searched.
    :param physical: search physical memory.
    :param limit: maximum number of matches.
    :param watch: passes on the chunks of memory that are searched.
    :raises UsageError: the question is invalid.
    """
    if regions and (physical or pid is not None):
        raise UsageError("regions are in the kernel's own address space", "omit --in, --phys or --pid")
    space = Space(kernel, pid=pid, physical=physical)
    pattern = pattern_of(kernel, question)
    keys = [region_named(kernel, name).key for name in regions]
    runs, gaps, notes = runs_of(space, keys)
    asked = Search(space, pattern, runs, gaps)
    found = list(islice(asked.matches(watch), limit + 1))
    describe = Describer(space)
    rows = [describe.row(match) for match in found[:limit]]
    done, stopped = asked.searched, len(found) > limit
    return Report(
        command="search",
        kernel=kernel.identity,
        tables=(Table("hits", COLUMNS, rows),),
        notes=(*kernel.source.warnings, *notes, *_said(asked, limit if stopped else None), *describe.lacks),
        partial=done.missing > 0,
        negative=not rows,
        extra={
            "pattern": pattern.text,
            "space": space.name,
            "regions": keys,
            "total": Size(asked.total),
            "searched": Size(done.done),
            "missing": Size(done.missing),
            "stretches": done.stretches,
            "first_missing": None if done.first is None else Address(done.first),
            "complete": not stopped,
        },
    )


def pattern_of(kernel: Kernel, question: Question) -> Pattern:
    """Make the pattern of a question.

    :raises UsageError: the question asks for nothing, or for more than one thing.
    """
    asked = (question.value, question.string, question.regex, question.to)
    if sum(one is not None for one in asked) != 1:
        raise UsageError("search needs one thing to look for", "give VALUE, --string, --regex or --to")
    if question.size is not None and question.to is None:
        raise UsageError("--size needs --to", "add --to ADDR, or omit --size")
    if question.string is not None:
        return string_pattern(question.string, question.aligned)
    if question.regex is not None:
        return regex_pattern(kernel.prog, question.regex, question.aligned)
    translator = Translator(kernel, form="virtual", plain_virtual=True)
    value = translator.parse(str(question.to if question.value is None else question.value)).value
    if question.to is not None:
        return pointer_pattern(value, question.size or 1)
    return value_pattern(kernel, value, question.aligned)


def _said(asked: Search, limit: Optional[int]) -> List[str]:
    """Notes on how far the search came, and on what could not be searched."""
    done, out = asked.searched, []
    if limit is not None:
        out.append(f"stopped after {limit} places; --limit N shows more")
    if done.missing:
        many = "1 stretch" if done.stretches == 1 else f"{done.stretches} stretches"
        size = f"{size_text(done.missing)} of {size_text(asked.total)}"
        out.append(f"{size} are not in this source: {many}, the first from {done.first:016x} on")
    if asked.live:
        out.append("kvintro's own memory is searched too, and contains the pattern")
    return out


class Describer:
    """Describes matches.

    :ivar lacks: what is unknown for every match, one sentence each.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._identifier = Identifier(space.kernel, space.translator)
        self._pages = PageUse(space.kernel)

    @property
    def lacks(self) -> Sequence[str]:
        """What is unknown about pages."""
        return self._pages.lacks

    def row(self, match: Match) -> HitRow:
        """Make the row of a match."""
        form = "physical" if self._space.physical else "virtual"
        found = self._identifier.identify(Input(f"{match.address:x}", match.address, form))
        where = found.translation
        things = list(found.identities)
        use = None if where.physical is None else self._pages.of(where.physical)
        # Kinds are in order, and what a page holds now says more than where it is and what it was.
        if use is not None and self._says_more(use, where.region, {thing.kind for thing in things}):
            at = next((n for n, thing in enumerate(things) if thing.kind != "memory_area"), len(things))
            things.insert(at, use)
        data, order = match.data, self._space.kernel.form.byte_order
        return HitRow(
            Address(match.address),
            where.physical,
            where.region,
            Size(len(data)),
            Address(int.from_bytes(data, order)) if len(data) == WORD else None,
            ascii_text(data[:_SHOWN]),
            tuple(things),
        )

    def _says_more(self, use: Thing, region: Optional[str], kinds: AbstractSet[str]) -> bool:
        """Whether the use of a page says more than everything else that is known about an address."""
        in_image = region == self._space.kernel.regions.kernel_image.key or "alias" in kinds
        freed = in_image and use.details["type"] not in _NOT_FREED
        return kinds <= {*_LESS_SPECIFIC, *(_NAMES if freed else ())}

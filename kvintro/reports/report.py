# SPDX-License-Identifier: LGPL-2.1-or-later
"""A full report about one kernel, composed of the other reports. If one fails, the report continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, List, Optional, Sequence, Tuple, TypedDict

from kvintro.entry_points import unforeseen
from kvintro.errors import KvintroError, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Address, Asked, Column, NoExtra, Placement, Report, Section, Size, Table
from kvintro.queries.mapped_by_rights import rights_of
from kvintro.readers.command_line import command_line
from kvintro.reports.layout import head, layout


@dataclass(frozen=True)
class RightsRow:
    """The part of a region that is mapped with one page size, one set of rights and one memory type.

    :ivar rights: effective rights over all levels of page tables.
    :ivar ranges: number of ranges that it consists of.
    """

    region: str
    page_size: str
    rights: str
    caching: str
    ranges: int
    size: Size


_RIGHTS = (
    Column("region", "region"),
    Column("page_size", "pages"),
    Column("rights", "rights"),
    Column("caching", "caching"),
    Column("ranges", "ranges", "right"),
    Column("size", "mapped", "right"),
)


def rights(kernel: Kernel) -> Report[Tuple[Table[RightsRow]], NoExtra]:
    """Mapped bytes of every region by page size and rights."""
    found, problems = rights_of(kernel)
    rows = [RightsRow(m.region, m.page_size, m.rights, m.caching, m.ranges, Size(m.size)) for m in found]
    return Report(
        "rights",
        kernel.identity,
        (Table("rights", _RIGHTS, rows),),
        notes=tuple(problems),
        partial=bool(problems),
    )


@dataclass(frozen=True)
class _Part:
    """A section and how to make it.

    :ivar make: makes the report. It imports what it needs, so that a broken part does not break the others.
    """

    key: str
    title: str
    make: Callable[[Kernel], Report]
    text: Tuple[str, ...] = ()
    tables: Optional[Tuple[str, ...]] = None


def _explain(kernel: Kernel) -> Report:
    from kvintro.reports.explain import explain

    return explain(kernel, everything=True)


def _check(kernel: Kernel) -> Report:
    from kvintro.reports.check import check

    return check(kernel)


def _kaslr(kernel: Kernel) -> Report:
    from kvintro.reports.kaslr import kaslr

    return kaslr(kernel)


def _pages(kernel: Kernel) -> Report:
    from kvintro.reports.pages import pages_report

    return pages_report(kernel)


def _info(kernel: Kernel) -> Report:
    from kvintro.reports.info import info

    return info(kernel)


def _show(key: str) -> Callable[[Kernel], Report]:
    def make(kernel: Kernel) -> Report:
        from kvintro.reports.show import Selection, show

        return show(kernel, key, Asked(), Selection())

    return make


_PARTS = (
    _Part("layout", "The address space", layout),
    _Part(
        "check",
        "Findings",
        _check,
        (
            "Contradictions within the kernel, and protections that are off. A defect should not exist; "
            "warnings and notices may be intended.",
        ),
    ),
    _Part(
        "kaslr",
        "Randomised places",
        _kaslr,
        ("Every base that is randomised at boot: its default, its place, and the number of places.",),
    ),
    _Part(
        "rights",
        "Page sizes and rights",
        rights,
        (
            "What each region maps, by page size and rights. Rights are what all levels of page tables "
            "together allow: r read, w write, x execute, u by user mode, too.",
        ),
    ),
    _Part(
        "vmalloc",
        "vmalloc by caller",
        _show("vmalloc"),
        ("How much each caller mapped in the vmalloc area, and how much guard pages take.",),
        ("by_caller", "by_kind", "areas"),
    ),
    _Part(
        "pages",
        "Physical memory by type",
        _pages,
        ("The use of each page frame, counted in the struct pages.",),
        ("types", "zones", "orders", "caches"),
    ),
    _Part(
        "modules",
        "Modules",
        _show("modules"),
        ("Loaded modules, and the pieces of memory that each one is made of.",),
        ("modules", "memory", "code"),
    ),
    _Part(
        "info",
        "Kernel and dump",
        _info,
        ("Facts about the kernel and the source that it was read from, and what that source lacks.",),
    ),
    _Part("explain", "The regions one by one", _explain),
)


class FullExtra(TypedDict):
    """Further values of the report.

    :ivar command_line: the kernel's command line; None if it cannot be read.
    :ivar linear_offset: virtual minus physical address in the direct map, modulo 2^64; None if unknown.
    """

    command_line: Optional[str]
    linear_offset: Optional[Address]
    sections: Sequence[Section]


FullReport = Report[Tuple[()], FullExtra]


def _linear_offset(kernel: Kernel) -> Optional[Address]:
    try:
        return Address(kernel.linear_offset.value)
    except Unavailable:
        return None


def full(
    kernel: Kernel, *, progress: Callable[[Sequence[str]], Iterable[str]] = lambda titles: titles
) -> FullReport:
    """Make all sections.

    :param progress: gets the titles of the sections and yields them again while these are made.
    """
    contents = [
        _Part(f"show_{region.key}", region.name, _show(region.key))
        for region in kernel.regions
        if region.kind == "region" and isinstance(kernel.locate(region), Placement)
        and region.key not in {part.key for part in _PARTS}
    ]  # fmt: skip
    parts = (*_PARTS, *contents)
    sections: List[Section] = []
    for part, _ in zip(parts, progress([part.title for part in parts])):
        sections.append(_section(kernel, part))
    return Report(
        command="report",
        kernel=kernel.identity,
        tables=(),
        head=head(kernel),
        notes=tuple(kernel.source.warnings),
        partial=any(s.problem or (s.report is not None and s.report.partial) for s in sections),
        extra={
            "command_line": _command_line(kernel),
            "linear_offset": _linear_offset(kernel),
            "sections": sections,
        },
    )


def _command_line(kernel: Kernel) -> Optional[str]:
    try:
        return command_line(kernel).value
    except KvintroError:
        return None


def _section(kernel: Kernel, part: _Part) -> Section:
    try:
        return Section(part.key, part.title, part.text, part.make(kernel), part.tables)
    except KvintroError as error:
        problem = error.what
    except Exception as error:
        # A bug, or unforeseen damage: the other sections are still useful.
        problem = unforeseen(error)
    return Section(part.key, part.title, part.text, problem=problem)

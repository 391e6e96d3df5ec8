# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything about one kernel in one report, made of the other reports. A part that fails does not end it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, List, Optional, Sequence, Tuple

from kvintro.errors import KvintroError
from kvintro.kernel import Kernel
from kvintro.model import Column, Placement, Report, Section, Size, Table
from kvintro.queries.command_line import command_line
from kvintro.queries.rights import rights_of
from kvintro.reports.layout import head, layout


@dataclass(frozen=True)
class RightsRow:
    """What a region maps with one page size, one set of rights and one memory type.

    :ivar rights: those of all levels of page tables together.
    :ivar ranges: number of stretches that are mapped alike.
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


def rights(kernel: Kernel) -> Report:
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
    """How a section is made.

    :ivar make: from the kernel to its report; loads what it needs, so that one broken part breaks no other.
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
        from kvintro.regions import Asked
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
            "The kernel against itself: what contradicts what, and which protections are off. A defect "
            "should not be; a warning or a notice is somebody's choice.",
        ),
    ),
    _Part(
        "kaslr",
        "Randomised places",
        _kaslr,
        ("Every base that is drawn at boot: where it would be, where it is, and out of how many places.",),
    ),
    _Part(
        "rights",
        "Page sizes and rights",
        rights,
        (
            "What each region maps, by page size and by what may be done there with the rights of all levels "
            "taken together: r read, w write, x execute, u by user mode too.",
        ),
    ),
    _Part(
        "vmalloc",
        "vmalloc by caller",
        _show("vmalloc"),
        ("Who mapped how much in the vmalloc area, and how much of it was lost to guard pages.",),
        ("by_caller", "by_kind", "areas"),
    ),
    _Part(
        "pages",
        "Physical memory by type",
        _pages,
        ("What each page frame is used for, counted in the struct pages.",),
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
        ("What is known of the kernel as a whole and of where it was read, and what that leaves out.",),
    ),
    _Part("explain", "The regions one by one", _explain),
)


def full(
    kernel: Kernel, *, progress: Callable[[Sequence[str]], Iterable[str]] = lambda titles: titles
) -> Report:
    """All sections.

    :param progress: given the titles of what is to be done, in order; is iterated over while that is done.
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
        extra={"command_line": _command_line(kernel), "sections": sections},
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
        # A bug, or a structure damaged in a way nobody thought of: the other sections are still worth having.
        problem = f"internal error: {' '.join(repr(error).split())[:300]}"
    return Section(part.key, part.title, part.text, problem=problem)

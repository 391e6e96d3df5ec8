# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads one side of a comparison from a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Mapping, Sequence, Tuple

from kvintro.errors import KvintroError, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Absent, Asked, Row
from kvintro.queries.mapped_by_rights import rights_of
from kvintro.readers.command_line import options
from kvintro.reports.diff.sides import PARTS, RegionFacts, Side, identity_fields, why
from kvintro.reports.explain import explain
from kvintro.reports.layout import RegionRow, layout

if TYPE_CHECKING:
    from kvintro.regions.modules import ModuleRow
    from kvintro.regions.vmalloc import SumRow


def side_of_kernel(
    kernel: Kernel,
    label: str,
    *,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda parts: parts,
) -> Side:
    """Read the current state of a kernel.

    :param progress: gets the names of the parts and yields them again while they are read.
    """
    missing: Dict[str, str] = {}
    incomplete: Dict[str, str] = {}
    regions = {row.key: _facts(row) for row in layout(kernel, holes=False).tables[0].rows}
    side = Side(label, identity_fields(kernel.identity), regions)
    for key in progress(list(PARTS)):
        try:
            side, lack = _READERS[key](kernel, side)
            if lack:
                incomplete[key] = lack
        except KvintroError as error:
            missing[key] = error.what
    return replace(side, missing=missing, incomplete=incomplete)


def _facts(row: RegionRow) -> RegionFacts:
    used = row.used_start if row.key == "kernel_image" else None
    return RegionFacts(
        row.key,
        row.name,
        row.state,
        row.start,
        row.size,
        row.slide,
        used if used is not None else row.start,
        row.mapped,
        row.reason or "",
    )


def _rights(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    found, problems = rights_of(kernel)
    rights = {(m.region, m.page_size, m.rights, m.caching): m.size for m in found}
    return replace(side, rights=rights), "; ".join(problems)


def _contents(kernel: Kernel, key: str, table: str) -> Tuple[Sequence[Row], str]:
    region = next((r for r in kernel.regions if r.key == key), None)
    if region is None:
        raise Unavailable(f"this architecture does not have {key}")
    found = region.contents(kernel, Asked())
    lack = why(found.notes) if found.partial else ""
    rows = next((t.rows for t in found.tables if t.key == table), None)
    if rows is None:
        raise Unavailable(lack or f"the contents of {key} cannot be read")
    return rows, lack


def _callers(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    rows: Sequence[SumRow]
    rows, lack = _contents(kernel, "vmalloc", "by_caller")  # type: ignore[assignment]
    return replace(side, callers={row.name: (row.areas, row.size) for row in rows}), lack


def _modules(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    if isinstance(kernel.locate("modules"), Absent):
        return replace(side, modules={}), ""
    rows: Sequence[ModuleRow]
    rows, lack = _contents(kernel, "modules", "modules")  # type: ignore[assignment]
    return replace(side, modules={row.name: row.size for row in rows}), lack


def _types(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    from kvintro.reports.pages import pages_report

    report = pages_report(kernel)
    own = [note for note in report.notes if note not in kernel.source.warnings]
    return replace(side, types=dict(report.extra["by_type"])), why(own) if report.partial else ""


def _options(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    return replace(side, options=options(kernel)), ""


def _rules(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    from kvintro.reports.check import check

    return replace(side, rules={row.key: (row.state, row.title) for row in check(kernel).tables[1].rows}), ""


def _config(kernel: Kernel, side: Side) -> Tuple[Side, str]:
    rows = explain(kernel, everything=True).tables[0].rows
    config = {d.name: d.here for row in rows for d in row.definitions if d.kind == "config" and d.here}
    return replace(side, config=config), ""


#: Functions by part. Each adds its part to a side and returns why it is incomplete, "" if it is not.
_READERS: Mapping[str, Callable[[Kernel, Side], Tuple[Side, str]]] = {
    "rights": _rights,
    "callers": _callers,
    "modules": _modules,
    "types": _types,
    "options": _options,
    "rules": _rules,
    "config": _config,
}

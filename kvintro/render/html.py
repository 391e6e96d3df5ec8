# SPDX-License-Identifier: LGPL-2.1-or-later
"""One self-contained page: any report as tables, ``kvintro report`` with the drawing and a search.

Strings of a dump are never trusted: they come here inert (:mod:`kvintro.render.inert`), Jinja2 escapes all of
them, and the page's own policy forbids any script but its own, whose hash it
has, and any request at all.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kvintro import __version__
from kvintro.model import Address, Column, Displacement, Report, Section, Size, Table
from kvintro.render.svg import color_of, layout_svg
from kvintro.render.values import value_text
from kvintro.text import size_text

_MOST_ROWS = 1000  # of a table: a browser sorts and filters so many at once
_MOST_PARTS = 20000  # that the address box knows
_TYPE_COLORS = (
    "#9fb3c4",
    "#4d79a8",
    "#e0a13a",
    "#5aa873",
    "#c0604f",
    "#8a68b8",
    "#3f9d9d",
    "#d07fae",
    "#7f8f3a",
    "#b58563",
    "#6670c8",
    "#a8a8a8",
)
_HEADINGS = (
    ("users", "Who uses it"),
    ("translation", "How addresses in it translate"),
    ("attacker", "What an attacker looks for"),
    ("debugger", "What a debugger looks for"),
    ("changed", "Where kernels differ"),
)


@dataclass(frozen=True)
class _Cell:
    text: str
    value: Optional[str] = None
    style: str = ""
    link: str = ""
    share: str = ""


@dataclass(frozen=True)
class _Row:
    cells: Sequence[_Cell]
    style: str = ""
    state: str = ""


@dataclass(frozen=True)
class _Column:
    title: str
    kind: str
    right: bool


@dataclass(frozen=True)
class _Table:
    id: str
    title: str
    columns: Sequence[_Column]
    rows: Sequence[_Row]
    more: int = 0
    command: str = ""


@dataclass(frozen=True)
class _Link:
    id: str
    title: str


@dataclass(frozen=True)
class _Region:
    id: str
    name: str
    color: str
    place: str = ""
    also: str = ""
    absent: bool = False
    purpose: Sequence[str] = ()
    here: Sequence[str] = ()
    texts: Sequence[Tuple[str, Sequence[str]]] = ()
    definitions: Optional[_Table] = None
    contents: Sequence[_Table] = ()
    notes: Sequence[str] = ()
    problem: str = ""
    links: Sequence[_Link] = ()
    open: bool = False


@dataclass(frozen=True)
class _Share:
    name: str
    text: str
    color: str
    share: int


@dataclass(frozen=True)
class _Square:
    color: str
    text: str


@dataclass(frozen=True)
class _Missing:
    name: str
    reason: str
    link: str


@dataclass
class _Section:
    id: str
    title: str
    short: str
    text: Sequence[str] = ()
    problem: str = ""
    drawing: Optional[Markup] = None
    regions: Sequence[_Region] = ()
    tables: Sequence[_Table] = ()
    notes: Sequence[str] = ()
    stack: Sequence[_Share] = ()
    stack_label: str = ""
    cells: Sequence[_Square] = ()
    cell_size: str = ""
    absent: Sequence[_Missing] = ()
    absent_title: str = ""


@dataclass(frozen=True)
class _Fact:
    name: str
    value: str
    style: str = ""


@dataclass(frozen=True)
class _Page:
    title: str
    subtitle: str = ""
    command_line: str = ""
    facts: Sequence[_Fact] = ()
    notes: Sequence[str] = ()
    sections: Sequence[_Section] = field(default_factory=list)


def render_html(report: Report) -> str:
    """A report as a page."""
    sections: Sequence[Section] = report.extra.get("sections", ())
    if report.command != "report":
        sections = (Section(report.command, report.command.capitalize(), report=report),)
    by_key = {section.key: section for section in sections}
    layout = by_key["layout"].report if "layout" in by_key else None
    page = _Page(
        title=_title(report),
        subtitle=_subtitle(report),
        command_line=_clean(report.extra.get("command_line") or ""),
        facts=_facts(report, by_key),
        notes=_lines(report.notes) if report.command == "report" else (),
        sections=_sections(sections),
    )
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text: str = _template().render(
        page=page,
        css=Markup(_file("page.css")),
        script=Markup(script),
        policy=policy,
        version=__version__,
        addresses=_addresses(layout, by_key),
    )
    return text + "\n"


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=False
    )
    return environment.from_string(_file("page.html.j2"))


@cache
def _file(name: str) -> str:
    return (resources.files("kvintro.render") / "web" / name).read_text(encoding="utf-8")


def _clean(text: Any) -> str:
    return str(text)


def _lines(texts: Sequence[str]) -> Tuple[str, ...]:
    return tuple(_clean(text) for text in texts)


def _title(report: Report) -> str:
    release = report.kernel.release if report.kernel else None
    what = "the address space" if report.command == "report" else report.command
    return _clean(f"Linux {release}: {what}" if release else f"kvintro: {what}")


def _subtitle(report: Report) -> str:
    # With a kernel the first line says what the title does; without one (diff) each line is a kernel's.
    lines = report.head[1:2] if report.kernel is not None else report.head
    parts = [part.strip() for line in lines for part in line.split("   ") if part.strip()]
    if report.kernel is not None and report.kernel.build_id:
        parts.append(f"build id {report.kernel.build_id}")
    return " \u00b7 ".join(_clean(part) for part in parts)


def _facts(report: Report, sections: Mapping[str, Section]) -> List[_Fact]:
    who = report.kernel
    if who is None:
        return []

    def switch(name: str, value: Optional[bool]) -> _Fact:
        if value is None:
            return _Fact(name, "unknown", "warn")
        return _Fact(name, "on" if value else "off", "good" if value else "bad")

    facts = [
        _Fact("architecture", _clean(f"{who.arch}, {who.paging_levels} levels")),
        switch("KASLR", who.kaslr),
        switch("page-table isolation", who.pti),
    ]
    check = sections["check"].report if "check" in sections else None
    if check is not None and check.tables:
        counts = {name: int(count) for name, count in check.extra.get("counts", {}).items() if count}
        told = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items()]
        style = "bad" if "defect" in counts else "warn" if "warning" in counts else "good"
        if check.partial:
            told.append("not all known")
            style = "warn" if style == "good" else style
        facts.append(_Fact("findings", ", ".join(told) or "none", style))
    elif check is None and "check" in sections:
        facts.append(_Fact("findings", "unknown", "warn"))
    pages = sections["pages"].report if "pages" in sections else None
    if pages is not None and "total" in pages.extra:
        facts.append(_Fact("page frames", size_text(int(pages.extra["total"]) << 12)))
    facts.append(_Fact("types and symbols", _clean(f"{who.types}, {who.symbols}")))
    return facts


_SHORT = {
    "layout": "Map",
    "explain": "Regions",
    "check": "Findings",
    "kaslr": "KASLR",
    "rights": "Rights",
    "vmalloc": "vmalloc",
    "pages": "Memory",
    "modules": "Modules",
    "info": "Dump",
}


def _sections(sections: Sequence[Section]) -> List[_Section]:
    by_key = {section.key: section for section in sections}
    out: List[_Section] = []
    for section in sections:
        # Contents of a region stand under the region, where there are regions.
        if section.key.startswith("show_") and "explain" in by_key:
            continue
        made = _Section(
            section.key,
            _clean(section.title),
            _SHORT.get(section.key, _clean(section.title)),
            _lines(section.text),
            _clean(section.problem),
        )
        out.append(made)
        report = section.report
        if report is None:
            continue
        # What is wrong with the source as a whole is said once, at the top.
        made.notes = _lines(report.notes) if len(sections) == 1 else _lines(_own_notes(report, by_key))
        if report.command == "layout":
            _layout(made, report, linked="explain" in by_key)
        elif report.command == "explain":
            made.text = _lines(report.extra.get("introduction", ()))
            made.regions = [_region(row, by_key) for row in report.tables[0].rows]
        else:
            made.tables = _tables(section, report, by_key)
        if report.command == "check" and not report.tables[0].rows:
            said = "Nothing was found in what could be checked" if report.partial else "Nothing was found"
            made.text = [*made.text, f"{said}; these are the rules that were applied."]
        if report.command == "pages":
            _memory(made, report)
    return out


def _own_notes(report: Report, sections: Mapping[str, Section]) -> List[str]:
    layout = sections["layout"].report if "layout" in sections else None
    if layout is None or report is layout:
        return list(report.notes)
    return [note for note in report.notes if note not in layout.notes]


def _layout(made: _Section, report: Report, *, linked: bool) -> None:
    made.drawing = Markup(layout_svg(report, links="#region-" if linked else ""))
    table = report.tables[0]
    present = [row for row in table.rows if row.state == "present"]
    links = {id(row): f"region-{row.key}" for row in present} if linked else {}
    found = _table("layout-regions", "", table.columns, present, links=links, linked_column="name")
    made.tables = [found]
    made.absent_title = "Not on this kernel"
    made.absent = [
        _Missing(_clean(row.name), _clean(row.reason or ""), f"region-{row.key}" if linked else "")
        for row in table.rows
        if row.state != "present"
    ]


def _region(row: Any, sections: Mapping[str, Section]) -> _Region:
    contents: List[_Table] = []
    notes: Sequence[str] = ()
    problem = ""
    inside = sections.get(f"show_{row.key}")
    if inside is not None:
        problem = _clean(inside.problem)
        if inside.report is not None:
            contents = _tables(inside, inside.report, sections)
            notes = _lines(_own_notes(inside.report, sections))
            head = inside.report.extra.get("region")
            if head is not None and getattr(head, "reason", None):
                problem = problem or _clean(head.reason)
    place = ""
    if row.start is not None:
        place = f"{row.start:016x}\u2013{row.end:016x}  {size_text(row.size)}"
    columns = (
        Column("kind", "kind"),
        Column("name", "name"),
        Column("what", "what it does"),
        Column("here", "on this kernel"),
    )
    definitions = None
    if row.definitions:
        definitions = _table(f"defs-{row.key}", "", columns, row.definitions)
    # A section of its own has the same rows and more.
    links = [
        _Link(key, title)
        for key, title in (("vmalloc", "vmalloc by caller"), ("modules", "the modules"))
        if key == row.key and key in sections
    ]
    return _Region(
        id=f"region-{row.key}",
        name=_clean(row.name),
        color=color_of(row.key),
        place=place,
        also=_clean(", ".join(row.also)),
        absent=row.state == "absent",
        purpose=_lines(row.purpose),
        here=_lines(row.here),
        texts=[(title, _lines(getattr(row, key))) for key, title in _HEADINGS if getattr(row, key)],
        definitions=definitions,
        contents=contents,
        notes=notes,
        problem=problem,
        links=links,
    )


def _tables(section: Section, report: Report, sections: Mapping[str, Section]) -> List[_Table]:
    wanted = section.tables
    found = [table for table in report.tables if table.rows and (wanted is None or table.key in wanted)]
    if wanted is not None:
        found.sort(key=lambda table: list(wanted).index(table.key))
    regions = "explain" in sections
    command = f"kvintro {report.command}"
    if report.command == "show":
        command += f" {getattr(report.extra.get('region'), 'key', '')}"
    out: List[_Table] = []
    for table in found:
        title = _clean(table.title) or (table.key.replace("_", " ") if len(found) > 1 else "")
        links = (
            {id(row): f"region-{row.region}" for row in table.rows}
            if regions and _names_region(table)
            else {}
        )
        name = f"{section.key}-{table.key}"
        out.append(_table(name, title, table.columns, table.rows, links=links, command=command))
    return out


def _names_region(table: Table) -> bool:
    return any(column.key == "region" for column in table.columns)


def _table(
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Any],
    *,
    links: Optional[Mapping[int, str]] = None,
    linked_column: str = "region",
    command: str = "",
) -> _Table:
    shown = rows[:_MOST_ROWS]
    # A column in which nothing stands says nothing.
    columns = [c for c in columns if any(getattr(r, c.key, None) not in (None, "", (), {}) for r in shown)]
    kinds = {column.key: _kind(column.key, shown) for column in columns}
    sums = _shares(columns, shown)
    made: List[_Row] = []
    for row in shown:
        cells = []
        for column in columns:
            value = getattr(row, column.key, None)
            link = (links or {}).get(id(row), "") if column.key == linked_column else ""
            share = ""
            if column.key in sums and value:
                share = f"{100 * int(value) / sums[column.key]:.1f}"
            cells.append(
                _cell(value, key=column.key, link=link, share=share, right=kinds[column.key] == "number")
            )
        style = "hole" if getattr(row, "kind", "") == "hole" else ""
        state = getattr(row, "state", None) or getattr(row, "severity", None) or ""
        made.append(_Row(cells, style, _clean(state)))
    heads = [
        _Column(_clean(c.title or c.key.replace("_", " ")), kinds[c.key], kinds[c.key] == "number")
        for c in columns
    ]
    return _Table(_clean(name), title, heads, made, len(rows) - len(shown), command)


def _kind(key: str, rows: Sequence[Any]) -> str:
    values = [v for v in (getattr(row, key, None) for row in rows) if v is not None]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, (bool, Address))]
    return "number" if numbers and len(numbers) == len(values) else "text"


def _shares(columns: Sequence[Column], rows: Sequence[Any]) -> Dict[str, int]:
    """Columns of sizes in tables that sum things up, with their largest value: bars show them."""
    if len(rows) < 2 or any(column.key in ("start", "end") for column in columns):
        return {}
    out: Dict[str, int] = {}
    for column in columns:
        values = [getattr(row, column.key, None) for row in rows]
        if column.key == "size" and all(isinstance(v, Size) for v in values):
            out[column.key] = max(int(v or 0) for v in values) or 1
    return out


def _cell(value: Any, *, key: str = "", link: str = "", share: str = "", right: bool = False) -> _Cell:
    if isinstance(value, Address):
        return _Cell(f"{value:016x}", style="mono", link=link)
    if isinstance(value, bool):
        return _Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        exact = str(int(value)) if isinstance(value, (Size, Displacement, int)) else repr(value)
        style = "right" if right else "tight"
        return _Cell(value_text(value), exact, f"{style} share" if share else style, link, share)
    if value is None:
        return _Cell("", "" if right else None)
    text = value_text(value)
    if isinstance(value, Mapping):
        text = ", ".join(f"{value_text(v)} \u00d7 {k}" for k, v in value.items())
    style = ""
    if key in ("rights", "expected"):
        style = "mono rights-wx" if text.startswith("rwx") else "mono"
    elif key in ("rule", "key"):
        style = "mono"
    return _Cell(text, style=style, link=link)


def _memory(made: _Section, report: Report) -> None:
    """Shares of page types as one bar, and physical memory as squares."""
    tables = {table.key: table for table in report.tables}
    types = tables.get("types")
    if types is None or not types.rows:
        return
    colors = {row.type: _TYPE_COLORS[n % len(_TYPE_COLORS)] for n, row in enumerate(types.rows)}
    total = sum(int(row.pages) for row in types.rows) or 1
    made.stack = [
        _Share(
            _clean(row.type),
            f"{size_text(int(row.pages) << 12)}, {100 * row.pages / total:.1f} %",
            colors[row.type],
            int(row.pages),
        )
        for row in types.rows
    ]
    largest = ", ".join(f"{share.name} {share.text}" for share in made.stack[:4])
    made.stack_label = f"Shares of page types: {largest}"
    cells = tables.get("map")
    if cells is None:
        return
    made.cell_size = size_text(int(report.extra.get("cell_size", 0)))
    squares: List[_Square] = []
    for row in cells.rows:
        if not row.types:
            continue
        most = max(row.types, key=lambda name: int(row.types[name]))
        held = ", ".join(f"{_clean(name)} {count}" for name, count in row.types.items())
        squares.append(_Square(colors.get(most, "#888888"), f"{row.start:x}: {held}"))
    made.cells = squares


def _addresses(layout: Optional[Report], sections: Mapping[str, Section]) -> Dict[str, Any]:
    """What the address box knows: regions, what lies in them, and how they translate."""
    if layout is None:
        return {"regions": [], "parts": [], "linear": []}
    linked = "explain" in sections
    regions: List[Tuple[str, str, str, str]] = []
    linear: List[Tuple[str, str, str]] = []
    for row in layout.tables[0].rows:
        if row.state != "present":
            continue
        link = f"region-{row.key}" if linked else ""
        regions.append((f"{row.start:x}", f"{row.end:x}", _clean(row.name), link))
        if row.key == "direct_map":
            linear.append((f"{row.start:x}", f"{row.end:x}", f"{row.start:x}"))
    parts: List[Tuple[str, str, str, str]] = []
    for section in sections.values():
        if section.report is None or section.report.command != "show":
            continue
        where = section.key if section.key in ("vmalloc", "modules") else f"region-{section.key[5:]}"
        for table in section.report.tables:
            if len(parts) >= _MOST_PARTS:
                break
            if table.key not in ("gaps", "slots", "holes", "ranges", "splits"):
                parts += [
                    (f"{r.start:x}", f"{_end(r):x}", _name(r, table), where)
                    for r in table.rows[: _MOST_PARTS - len(parts)]
                    if isinstance(getattr(r, "start", None), Address) and r.start >> 63
                ]
    return {"regions": regions, "parts": parts, "linear": linear}


def _end(row: Any) -> int:
    end = getattr(row, "end", None)
    if isinstance(end, Address) and end >= row.start:
        return int(end)
    # A slot of the fixmap is a page; of anything else only the start is known.
    return int(row.start) + (4095 if hasattr(row, "slot") else 0)


def _name(row: Any, table: Table) -> str:
    words: List[str] = []
    for key in ("module", "cpu", "member", "name", "section", "kind", "caller", "comm", "pid"):
        value = getattr(row, key, None)
        if value is not None and value != "" and not isinstance(value, (tuple, list, dict)):
            words.append(
                f"CPU {value}" if key == "cpu" else f"pid {value}" if key == "pid" else _clean(value)
            )
    return " ".join(words[:3]) or _clean(table.title or table.key)

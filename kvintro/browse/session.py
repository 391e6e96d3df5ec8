# SPDX-License-Identifier: LGPL-2.1-or-later
"""The browser's queries of a kernel. They run in the worker's thread unless stated otherwise."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple, Union, cast

from kvintro.browse import places, sheets, stretches
from kvintro.browse.lines import Link, Sheet
from kvintro.browse.places import Place, Tab
from kvintro.commands import ALIASES, run_command
from kvintro.delivery import deliver
from kvintro.errors import KvintroError, Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL, Placement, Report, Stream, Table
from kvintro.parser import parse
from kvintro.queries.names import region_key
from kvintro.queries.placements import HOLE, Places
from kvintro.queries.translate import Translator
from kvintro.readers.damage import Damage
from kvintro.readers.processes import processes
from kvintro.regions.user import ProcessRow
from kvintro.render import render, render_stream
from kvintro.render.inert import inert
from kvintro.reports.layout import LayoutReport, layout
from kvintro.reports.show import Selection, select
from kvintro.text import printable

if TYPE_CHECKING:
    from kvintro.reports.pages import PagesReport

#: Number of cells in the picture of physical memory.
CELLS = 512
_KEPT = 64  # reports to keep
_TITLE = 40  # maximum number of characters in a title
_MOST_PIECES = 64  # maximum number of pieces of a stream's output
_SOURCE_OPTIONS = ("core", "qemu", "symbols", "btf", "vmcoreinfo", "vmcoreinfo_at", "snapshot")
_NEED_A_TERMINAL = ("shell", "browse")
_NUMBER = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}")
_KINDS = {"pfn": "pfn", "phys": "physical", "physical": "physical", "virt": "virtual", "virtual": "virtual"}


@dataclass(frozen=True)
class View:
    """How to show a tab.

    :ivar match: rows must contain this text.
    :ivar sort: key of the column to sort by.
    :ivar width: width in columns for wrapping prose.
    """

    match: str = ""
    sort: str = ""
    reverse: bool = False
    width: int = 80


@dataclass(frozen=True)
class Found:
    """A possible meaning of a text."""

    text: str
    place: Place


class Session:
    """Queries one kernel and caches the reports.

    :param source: words of the command line that name the source.
    """

    def __init__(self, kernel: Kernel, source: Sequence[str] = ()) -> None:
        self.kernel = kernel
        #: Which kernel it is, and the name of its source: read once, because the screen shows them.
        self.identity, self.label = kernel.identity, kernel.source.label
        self.source = tuple(source)
        #: Called with the share of the current work that is done.
        self.say: Callable[[str], None] = lambda text: None
        self._kept: Dict[Tuple[str, ...], Report] = {}

    @property
    def live(self) -> bool:
        """Whether the kernel is running, so that it can be read again."""
        return self.kernel.source.live

    def refresh(self) -> None:
        """Discard everything read from a running kernel."""
        if self.live:
            self.kernel = self.kernel.fresh()
            self._kept.clear()

    def command_line(self, words: Sequence[str], view: Optional[View] = None) -> str:
        """The command line with the same output. May be called in any thread."""
        more: List[str] = []
        if view is not None and words[:1] in (("show",), ("user",)):
            more += ["--match", f"(?i){re.escape(view.match)}"] if view.match else []
            more += ["--sort", view.sort] if view.sort else []
            more += ["--reverse"] if view.reverse else []
        return printable(shlex.join(["kvintro", *self.source, *words, *more]))

    # The map

    def layout(self) -> LayoutReport:
        """The whole address space."""
        return layout(self.kernel)

    def stretch(self, where: stretches.Stretch) -> List[stretches.Box]:
        """The boxes of a part of the map."""
        return stretches.boxes_of_stretch(self.kernel, where)

    def physical(self, where: Optional[Tuple[int, int]]) -> PagesReport:
        """Census of all page frames, or of those between two inclusive physical addresses.

        :raises KvintroError: the census cannot be made.
        """
        from kvintro.reports.pages import pages_report

        shift = self.kernel.page_shift
        frames = None if where is None else (where[0] >> shift, (where[1] >> shift) + 1)
        return pages_report(self.kernel, where=frames, cells=CELLS, progress=self._counting)

    def _counting(self, total: int) -> Callable[[int], None]:
        """Report the progress of a census."""
        done = 0

        def counted(more: int) -> None:
            nonlocal done
            done += more
            self.say(f"{100 * done // max(total, 1)}%")

        return counted

    def processes(self) -> Sequence[ProcessRow]:
        """All processes with their own memory.

        :raises Unavailable: the processes cannot be found.
        """
        report = self._report(Tab("", ("user",)), Place("", ()))
        if not report.tables:
            raise Unavailable(report.notes[-1])
        return [row for table in report.tables for row in table.rows if table.key == "processes"]

    # Tabs

    def sheet(self, tab: Tab, place: Place, view: View) -> Sheet:
        """The contents of a tab.

        :raises KvintroError: the contents cannot be shown.
        """
        if tab.typed:
            return self.run(tab.typed, view)
        report = self._report(tab, place)
        if tab.within is not None:
            report = _findings_within(report, *tab.within)
        return self._sheet(report, tab, place, view)

    def _sheet(self, report: Report, tab: Tab, place: Place, view: View) -> Sheet:
        if report.command not in sheets.PROSE and (view.match or view.sort or view.reverse):
            report = replace(report, tables=_selected(report.tables, view))
        return sheets.sheet(tab.command, report, self._context(tab, place), view.width, view.match)

    def _report(self, tab: Tab, place: Place) -> Report:
        key = (*tab.command, "entries" if tab.entries else "")
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._asked(tab, place)
        return self._kept[key]

    def _asked(self, tab: Tab, place: Place) -> Report:
        if tab.entries and place.start is not None and place.end is not None:
            table, notes = stretches.pages_of(self.kernel, place.start, place.end, place.pid)
            return Report("ptdump", self.kernel.identity, (table,), notes=notes)
        return self._whole(run_command(self.kernel, parse(tab.command)))

    def _whole(self, result: Union[Report, Stream]) -> Report:
        """Convert a stream to a report with everything that is shown of it."""
        if isinstance(result, Report):
            return result
        table, notes, partial = sheets.table_of(result)
        return Report(result.command, result.kernel, (table,), notes=notes, partial=partial)

    def _context(self, tab: Tab, place: Place) -> sheets.Context:
        command, *words = tab.command
        region = words[0] if command == "show" and words else ""
        keys = tuple(region.key for region in self.kernel.regions)
        return sheets.Context(place.pid, region, keys)

    def run(self, line: str, view: View) -> Sheet:
        """The output of any command.

        :raises KvintroError: the command line is wrong, or the command fails.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"{printable(line)}: {error}", "close the quotation marks") from None
        if words[:1] == ["kvintro"]:
            del words[0]
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                args = parse(words)
        except SystemExit:
            return _written(words, printed.getvalue())
        if any(getattr(args, name, None) for name in _SOURCE_OPTIONS):
            raise UsageError("another source cannot be opened here", "run kvintro from the shell for it")
        name = ALIASES.get(args.command, args.command)
        if name in _NEED_A_TERMINAL:
            raise UsageError(f"{name} needs a terminal of its own", f"run kvintro {name} from the shell")
        result = run_command(self.kernel, args)
        if args.output is not None:
            deliver(result, args)
            return _written(words, f"written to {printable(args.output)}")
        if args.format == "text":
            return self._sheet(self._whole(result), Tab("", tuple(words)), Place("", ()), view)
        if isinstance(result, Stream):
            return _written(words, "".join(islice(render_stream(result, args.format), _MOST_PIECES)))
        return _written(words, render(result, args.format, color=True, width=view.width))

    # Where things are

    def place(self, link: Link) -> Place:
        """The target of a link, with what this kernel knows about it."""
        if link.kind == "region":
            return self._region(str(link.value))
        if link.kind == "pid":
            return self._process(link)
        if link.kind == "range" and link.pid is None and not link.region:
            key = self.region_at(int(link.value))
            link = replace(link, region="" if key in (None, HOLE) else str(key))
        found = places.follow(link, self.kernel.page_shift)
        if link.kind in ("virtual", "symbol", "range"):
            return self._identified(found, link)
        if link.kind in ("pfn", "physical"):
            return self._with_page_pointers(found, link)
        return found

    def _process(self, link: Link) -> Place:
        place = places.follow(link)
        with contextlib.suppress(KvintroError):
            for process in processes(self.kernel, Damage()):
                if process.pid == link.value:
                    return places.with_task(place, process.task, memory=process.mm != 0)
        return place

    def _identified(self, place: Place, link: Link) -> Place:
        """Set a place's title to the identity of its address, and add what points to the object."""
        start = place.start
        size = 1 if start is None or place.end is None else place.end - start + 1
        tab = next(tab for tab in place.tabs if tab.command[0] == "identify")
        with contextlib.suppress(KvintroError):
            row = self._report(tab, place).tables[0].rows[0]
            start = row.address if start is None else start
            things = [thing for thing in row.identities if thing.kind != "region"]
            if things and link.kind != "symbol" and not link.name:
                place = replace(place, title=inert(things[0].text)[:_TITLE])
            for thing in things[::-1] if link.kind != "range" else ():
                if thing.start is not None and thing.size:
                    start, size = thing.start, thing.size
        return place if start is None else _with(place, places.pointers(start, size, place.pid))

    def _with_page_pointers(self, place: Place, link: Link) -> Place:
        """Add what points to a page's address in the direct map."""
        shift = self.kernel.page_shift
        frame = int(link.value) if link.kind == "pfn" else int(link.value) >> shift
        with contextlib.suppress(KvintroError):
            address = (frame << shift) + self.kernel.linear_offset.value & ALL
            if self.region_at(address) == self.kernel.regions.direct_map.key:
                return _with(place, places.pointers(address, 1 << shift))
        return place

    def _region(self, key: str) -> Place:
        found = None if key == HOLE else self.kernel.locate(key)
        if isinstance(found, Placement):
            return places.region(key, found.range.start, found.range.end)
        return places.follow(Link("region", key))

    def find(self, text: str) -> List[Found]:
        """Every meaning of a text, the most likely first.

        :raises UsageError: the text means nothing on this kernel.
        """
        text = text.strip()
        found: List[Found] = []
        key = region_key(self.kernel.regions, self.kernel.arch, text)
        if key is not None and key != HOLE:
            found.append(Found(f"region {key}", self._region(key)))
            if key == text:
                return found
        found += self._processes(text)
        found += self._modules(text)
        found += self._numbers(text)
        if not found:
            try:
                Translator(self.kernel).parse(text)
            except UsageError as error:
                what = f"nothing is called {printable(text)}"
                raise UsageError(what, error.remedy) from None
            found.append(Found(f"symbol {printable(text)}", self.place(Link("symbol", text))))
        elif not _NUMBER.fullmatch(text) and ":" not in text:
            with contextlib.suppress(KvintroError):
                Translator(self.kernel).parse(text)
                found.append(Found(f"symbol {printable(text)}", self.place(Link("symbol", text))))
        return found

    def _processes(self, text: str) -> List[Found]:
        wanted = text.partition(":")[2] if text.startswith("pid:") else text
        out: List[Found] = []
        with contextlib.suppress(Unavailable):
            for process in processes(self.kernel, Damage()):
                if str(process.pid) == wanted or process.comm == wanted:
                    comm = inert(process.comm)
                    title = f"process {process.pid} {comm}"
                    place = places.follow(Link("pid", process.pid, name=comm))
                    place = places.with_task(place, process.task, memory=process.mm != 0)
                    out.append(Found(title, place))
                    if len(out) >= 20:
                        break
        return out

    def _modules(self, text: str) -> List[Found]:
        with contextlib.suppress(KvintroError):
            report = self._report(Tab("", ("show", "modules")), Place("", ()))
            for table in report.tables:
                if table.key == "modules" and any(row.name == text for row in table.rows):
                    return [Found(f"module {printable(text)}", places.follow(Link("module", text)))]
        return []

    def _numbers(self, text: str) -> List[Found]:
        kind, colon, rest = text.partition(":")
        if colon and kind.lower() in _KINDS and _NUMBER.fullmatch(rest):
            form = _KINDS[kind.lower()]
            return [self._number(form, int(rest, 16))]
        if not _NUMBER.fullmatch(text):
            return []
        value = int(text, 16)
        form = Translator(self.kernel).form_of(value)
        if form == "page":
            return [self._number("virtual", value)]
        out = [self._number(form, value)]
        if form == "physical" and value >> 40 == 0:
            out.append(self._number("pfn", value))
        return out

    def _number(self, form: str, value: int) -> Found:
        text = f"{value:016x}" if form != "pfn" else f"{value:x}"
        names = {"virtual": "address", "physical": "physical address", "pfn": "page frame"}
        return Found(f"{names[form]} {text}", self.place(Link(form, value)))

    def region_at(self, address: int) -> Optional[str]:
        """Key of the region that contains an address."""
        return Places(self.kernel).key_at(address)


def _with(place: Place, tab: Tab) -> Place:
    """Add a tab to a place."""
    return replace(place, tabs=(*place.tabs, tab))


def _written(words: Sequence[str], text: str) -> Sheet:
    """The unchanged output of a command."""
    lines = sheets.prose_lines(text, sheets.Context())
    return Sheet(tuple(words), tuple(lines[: sheets.MOST_LINES]))


def _selected(tables: Sequence[Table], view: View) -> Tuple[Table, ...]:
    if view.match:
        tables = [sheets.matching(table, view.match) for table in tables]
    out: List[Table] = []
    for table in tables:
        try:
            out += select((table,), Selection(sort=view.sort or None, reverse=view.reverse))
        except UsageError:
            out.append(table)  # the table does not have the column
    return tuple(out)


def _findings_within(report: Report, start: int, end: int) -> Report:
    """The findings of ``check`` in a range, and the rules that were checked."""
    findings, rules = cast("Tuple[Table, Table]", tuple(report.tables))
    rows = [
        row
        for row in findings.rows
        if row.start is not None and row.start <= end and (row.end or row.start) >= start
    ]
    elsewhere = len(findings.rows) - len(rows)
    are = "finding is" if elsewhere == 1 else "findings are"
    notes = [f"{elsewhere} {are} about other addresses: run :check"] if elsewhere else []
    return replace(
        report,
        tables=(replace(findings, rows=rows, title="findings here"), replace(rules, title="rules")),
        notes=(*notes, *report.notes),
    )

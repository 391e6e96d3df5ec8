# SPDX-License-Identifier: LGPL-2.1-or-later
"""The screen of ``kvintro browse``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Callable, ClassVar, Dict, Iterable, List, Optional, Sequence, Tuple

from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches
from textual.dom import DOMNode
from textual.filter import LineFilter
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Footer, Static
from textual.worker import WorkerFailed

from kvintro.browse import dialogs, places
from kvintro.browse.left import LeftView, MapView, PhysicalView, ProcessView
from kvintro.browse.lines import Link, Sheet, plain
from kvintro.browse.listing import Listing
from kvintro.browse.places import Place, Tab
from kvintro.browse.session import Found, Session, View
from kvintro.browse.worker import Answer, Question, Worker
from kvintro.commands import Bar
from kvintro.errors import KvintroError
from kvintro.render.text import DIM, RED, columns_of, wrapped
from kvintro.streams import in_ascii
from kvintro.text import printable

#: Seconds for an orderly exit after a signal, or after the terminal is gone.
LAST = 3.0
_SETTLE = 0.06  # seconds that the cursor must rest before the browser asks about what is under it
_LONGEST = 1.0  # seconds that a key may keep the next one waiting
_SWITCH = 0.002  # seconds until the worker must let the screen's thread run
_NARROW = 110  # terminals with fewer columns show only one pane
_PATIENCE = 0.5  # seconds until a tab without its contents is emptied
_AGAIN = 2.0  # seconds between two reads of a running kernel
_GOTO = "goto"  # lane of the questions about where to go

_HELP = """\
Enter    zoom into the map; follow an address, page, process
← →      zoom out and in; in a line, choose what to follow; scroll
Tab      go to the other pane       z    one pane alone, or both
b f      back, forward              g    go to anything
m p u    map, physical memory, processes
1 to 9   choose a tab               [ ]  previous, next tab
/        filter lines               s S  sort, in reverse
y        copy the address           c    as a command line
T        show memory as a type, such as struct task_struct
:        run a command              ?    explain this region
r        read a running kernel again
a        keep reading it            t    light or dark
Escape   cancel; back to the map    q    quit
Ctrl+P   find any of these by name"""


# Keys as the command palette names them, and descriptions that are short in the footer.
_NAMES_OF_KEYS = {"question_mark": "?", "colon": ":", "slash": "/"}
_LONG = {
    "Go": "Go to an address, symbol, process, module or region",
    "Filter": "Filter lines",
    "Cmd": "Show and copy the command line that prints the same",
    "Run": "Run a command of kvintro",
    "Explain": "Explain this region",
    "Pane": "Go to the other pane",
    "Keys": "Show all keys",
}
# Commands in the palette, by the question that they answer.
_QUESTIONS = {
    "Is anything writable and executable?": "ptdump --wx",
    "Is anything wrong in this kernel's data?": "check",
    "How far was the kernel image moved, and everything else (KASLR)?": "kaslr",
    "Which code or module allocated the largest areas of vmalloc?": "show vmalloc --top 10",
    "What uses the memory?": "pages",
    "Which kernel is this, and what can be read of it?": "info",
}
# Questions about an address that must be typed.
_WHERE = {
    "Which process owns this page?": "key g, then pfn:1a2b, phys:1a2b000 or an address",
    "Which struct or object does this pointer point into?": "key g, then the pointer",
}


# The eight colours on a light background, dark enough to read.
_DARK = [(0, 0, 0), (170, 0, 30), (0, 105, 20), (125, 80, 0), (20, 70, 180), (130, 20, 130), (0, 95, 115)]
_ON_LIGHT = TerminalTheme((240, 240, 240), (30, 30, 30), [*_DARK, (90, 90, 90)])


@dataclass
class Stop:
    """One stop in the history: a place, its open tab, and the cursor.

    :ivar from_map: whether the left pane's cursor led here; its next such stop replaces this one.
    """

    place: Place
    tab: int = 0
    item: int = 0
    view: View = field(default_factory=View)
    from_map: bool = False


class Ascii(LineFilter):
    """Draws with ASCII only, for terminals that support nothing else."""

    def apply(self, segments: List[Segment], background: Color) -> List[Segment]:
        """Convert segments to ASCII."""
        return [segment if segment.text.isascii() else self._plain(segment) for segment in segments]

    def _plain(self, segment: Segment) -> Segment:
        text = "".join(
            in_ascii(char).ljust(columns_of(char), "?")[: columns_of(char)] for char in segment.text
        )
        return Segment(text, segment.style, segment.control)


class Colorless(LineFilter):
    """Draws without colours. Textual's own filter sends greys."""

    def apply(self, segments: List[Segment], background: Color) -> List[Segment]:
        """Remove the colours of segments."""
        return [
            Segment(text, None if style is None else _colorless(style), control)
            for text, style, control in segments
        ]


@lru_cache(maxsize=1024)
def _colorless(style: Style) -> Style:
    return style.without_color


class Answered(Message):
    """The worker has an answer.

    :ivar then: function to call with the answer.
    """

    def __init__(self, answer: Answer, then: Callable[[Any], None]) -> None:
        super().__init__()
        self.answer = answer
        self.then = then


class Browser(App[int]):
    """Map on the left, details of the selected item on the right.

    :param light: begin with dark text on a light background.
    :param ascii_only: draw with ASCII only.
    :param begin: where to begin, as typed after ``g``.
    :ivar map: the left pane.
    :ivar detail: the right pane.
    :ivar questions: the thread that queries the kernel.
    :ivar stops: the history; :ivar:`at` is the index of the current stop.
    """

    TITLE = "kvintro"
    CSS = """
    Screen { layout: vertical; }
    #head { height: 1; background: $primary; color: $text; text-style: bold; }
    #crumbs { height: 1; background: $surface; padding: 0 1; }
    #panes { height: 1fr; }
    #left { width: 40%; min-width: 41; max-width: 70; }
    #left.small { width: 21; min-width: 21; }
    #right { width: 1fr; }
    #tabs, #title { height: 1; background: $boost; padding: 0 1; }
    .here #title, .here #tabs { background: $primary 30%; }
    Listing { height: 1fr; }
    .small Listing { overflow-x: hidden; }
    .alone #left { width: 100%; max-width: 100%; }
    .hidden { display: none; }
    .here #title:nocolor, .here #tabs:nocolor { text-style: underline; }
    OptionList:nocolor > .option-list--option-highlighted { text-style: bold underline; }
    Input:nocolor > .input--cursor { text-style: reverse; }
    """
    BINDINGS: ClassVar[List[BindingType]] = [
        Binding("g", "goto", "Go"),
        Binding("b,backspace,alt+left", "step(-1)", "Back"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("c", "command_line", "Cmd"),
        Binding("colon", "run", "Run", key_display=":"),
        Binding("question_mark", "explain", "Explain", key_display="?"),
        Binding("tab", "other_pane", "Pane", priority=True),
        Binding("f1", "keys", "Keys"),
        Binding("q", "quit", "Quit", show=False),
        Binding("f,alt+right", "step(1)", "Forward", show=False),
        Binding("m", "look('map')", "Map", show=False),
        Binding("p", "look('physical')", "Physical memory", show=False),
        Binding("u", "look('processes')", "Processes", show=False),
        Binding("T", "as_type", "Show memory as a type", show=False),
        Binding("S", "reverse", "Sort in reverse", show=False),
        Binding("y", "copy", "Copy the address", show=False),
        Binding("r", "read_again", "Read a running kernel again", show=False),
        Binding("a", "keep_reading", "Keep reading a running kernel", show=False),
        Binding("z", "alone", "Show one pane alone", show=False),
        Binding("t", "other_theme", "Light or dark", show=False),
        Binding("escape", "escape", "Cancel", show=False),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("left_square_bracket", "tab(-1)", "Tab before", show=False),
        Binding("right_square_bracket", "tab(1)", "Next tab", show=False),
        *(Binding(str(n), f"choose_tab({n - 1})", show=False) for n in range(1, 10)),
    ]

    def __init__(
        self, session: Session, *, light: bool = False, ascii_only: bool = False, begin: str = ""
    ) -> None:
        super().__init__()
        self.session = session
        self.questions = Worker()
        session.say = self.questions.say
        self.theme = "textual-light" if light else "textual-dark"
        self.ansi_theme_light = _ON_LIGHT
        # Kept as attributes, because queries find the widgets of a dialog while it is open.
        self.map = Listing(
            id="map", followed=self._enter, moved=self._moved, aside=self._aside, resized=self._redraw_left
        )
        self.detail = Listing(id="detail", followed=self._enter_detail, resized=self._redraw_detail)
        self._left, self._right = Vertical(id="left", classes="here"), Vertical(id="right")
        self._panes = Horizontal(id="panes")
        self._head, self._crumbs, self._title, self._tabs = (
            Static("", id=name, markup=False) for name in ("head", "crumbs", "title", "tabs")
        )
        self._ascii = ascii_only
        self._begin = begin
        self.stops: List[Stop] = []
        self.at = -1
        page = session.kernel.form.page_size
        self._views: Dict[str, LeftView] = {
            "map": MapView(),
            "physical": PhysicalView(page),
            "processes": ProcessView(),
        }
        self._view = self._views["map"]
        self._answers: Dict[LeftView, Any] = {}
        self._sheet: Optional[Sheet] = None  # None until the tab has been read
        self._sheet_of: Optional[Tuple[Place, int]] = None
        self._settling: Optional[Timer] = None
        self._rereading: Optional[Timer] = None
        self._tab_at: Sequence[int] = ()
        self._head_text = ""
        self._changes = ""  # what the last read of a running kernel changed
        self._going: Optional[Callable[[Any], None]] = None  # gets the answer to where to go
        self._typed: List[events.Event] = []  # keys that wait until it is there
        self._catching_up = False  # whether those keys are being handled

    # The screen

    def compose(self) -> ComposeResult:
        """Head, breadcrumb, two panes, keys."""
        yield self._head
        yield self._crumbs
        with self._panes:
            with self._left:
                yield self._title
                yield self.map
            with self._right:
                yield self._tabs
                yield self.detail
        yield Footer(show_command_palette=False)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Filters for every line of the screen."""
        filters = [Colorless()] if self.no_color else super().get_line_filters()
        return [*filters, Ascii()] if self._ascii else filters

    def on_mount(self) -> None:
        """Start by reading the map."""
        sys.setswitchinterval(_SWITCH)
        Bar.instead = self.questions.say
        self._end_on_signals()
        self._focus(self.map)
        self.set_interval(0.15, self._show_head)
        self._show_head()
        self._read_left()
        if self._begin:
            self._go_to(self._begin)

    def _end_on_signals(self) -> None:
        """Restore the terminal if a signal ends this process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._end_on, 128 + number)

    def _end_on(self, code: int) -> None:
        """Exit, even if the terminal is gone and Textual would wait forever to write to it."""
        last = threading.Timer(LAST, os._exit, (code,))
        last.daemon = True
        last.start()
        self.exit(return_code=code)

    def _handle_exception(self, error: Exception) -> None:
        """Go on if the command palette was closed while Textual filled its list."""
        if not (isinstance(error, WorkerFailed) and isinstance(error.error, NoMatches)):
            super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """End without a traceback on the screen; ``start`` raises the exception again."""
        self._close_messages_no_wait()

    def on_unmount(self) -> None:
        """Stop the worker."""
        self.questions.stop()
        Bar.instead = None

    def _focus(self, pane: Listing) -> None:
        """Focus a pane at once; ``Widget.focus`` would do it after the keys that are waiting."""
        pane.screen.set_focus(pane)

    @property
    def _in_map(self) -> bool:
        """Whether the left pane has the focus, or gets it back when the dialog closes."""
        return self.map.screen.focused is self.map

    @property
    def idle(self) -> bool:
        """Whether no question is running or pending."""
        return self.questions.idle and self._settling is None

    def _ask(
        self,
        lane: str,
        text: str,
        question: Callable[[], Any],
        then: Callable[[Any], None],
        *,
        patient: bool = False,
    ) -> None:
        """Have the worker run a question; ``then`` gets the answer in the screen's thread."""

        def done(answer: Answer) -> None:
            self.post_message(Answered(answer, then))

        if lane == _GOTO:
            self._going = then
        self.questions.ask(Question(lane, text, question, done, patient))

    async def on_answered(self, message: Answered) -> None:
        """Pass an answer on, or show its error, once the width of the panes is known."""
        if not self._left.size and not self._right.size:
            self.call_after_refresh(self.on_answered, message)
            return
        if message.answer.lane != _GOTO:
            self._use(message)
        elif message.then is self._going:
            self._going = None
            self._use(message)
            if message.answer.error is not None:
                self._typed.clear()
            self._catching_up = True
            self.call_next(self._catch_up)

    async def _catch_up(self) -> None:
        """Handle a key that had to wait, then the next one, after what a closing dialog does."""
        if self._typed and self._going is None:
            await self._take(self._typed.pop(0))
            self.call_next(self._catch_up)
        else:
            self._catching_up = False

    def _use(self, message: Answered) -> None:
        if message.answer.error is None:
            message.then(message.answer.value)
            return
        what, remedy = _problem(message.answer.error)
        if message.answer.lane == _GOTO:
            self.notify(f"{what}\n{remedy}".rstrip(), severity="error", markup=False, timeout=8)
            return
        pane = self.map
        if message.answer.lane == "detail":
            pane, self._sheet = self.detail, Sheet((), ())
        width = self._room(pane)
        lines = [plain(line, RED) for line in wrapped(what, width)]
        lines += [plain(line) for line in wrapped(remedy, width) if remedy]
        pane.show(lines)

    def _show_head(self) -> None:
        who = self.session.identity
        busy = self.questions.busy
        again = "again every 2 s" if self._rereading is not None else ""
        says = f"{busy}…" if busy else ", ".join(filter(None, (self._changes, again)))
        right = f" {says} " if says else ""
        kaslr = {True: "KASLR on", False: "KASLR off", None: "KASLR unknown"}[who.kaslr]
        parts = ["kvintro", f"Linux {printable(who.release or 'of unknown release')}", kaslr]
        used = len("   ".join(parts)) + 5 + len(right)
        parts.append(_tail(printable(self.session.label), max(self.size.width - used, 12)))
        room = max(self.size.width - len(right), 10)
        left = f" {'   '.join(parts)}"[:room].ljust(room)
        if left + right != self._head_text:
            self._head_text = left + right
            self._head.update(Text(self._head_text, no_wrap=True, overflow="crop"))

    @staticmethod
    def _room(pane: Listing) -> int:
        """Columns for the lines of a pane, without its scroll bar."""
        return max(pane.container_size.width - 3, 18)

    # The left pane

    def _read_left(self, cursor: int = 0) -> None:
        view = self._view
        self._title_left()
        question, then = partial(view.ask, self.session), partial(self._show_left, view, cursor)
        self._ask("map", view.doing, question, then, patient=isinstance(view, PhysicalView))

    def _show_left(self, view: LeftView, cursor: int, answer: Any) -> None:
        if view is self._view:
            self._draw_left(view, cursor, answer)
            self._preview()

    def _draw_left(self, view: LeftView, cursor: int, answer: Any, *, marks: bool = False) -> None:
        self._answers[view] = answer
        lines = view.lines(answer, self._room(self.map))
        cells = isinstance(view, PhysicalView)
        self.map.keeps_part = cells
        part = (self.map.part if marks else 0) if cells else -1
        self.map.show(lines or [plain("nothing")], cursor, part=part, marks=marks)
        self._title_left()

    def _title_left(self) -> None:
        width = self._room(self.map)
        text = self._view.title()
        text = text if len(text) <= width else "…" + text[1 - width :]
        self._title.update(Text(text, no_wrap=True))

    def _preview(self) -> None:
        """Show details of the item under the left pane's cursor."""
        self._settling = None
        stop = self.stop
        if stop is not None and not stop.from_map and not self._in_map:
            return
        place = self._view.place(self.map.cursor, self.map.link)
        if place is not None:
            self._stand(place, from_map=True)

    def _zoom_out(self) -> None:
        cursor = self._view.out()
        if cursor is not None:
            self._read_left(cursor)

    # Places

    @property
    def stop(self) -> Optional[Stop]:
        """The current stop."""
        return self.stops[self.at] if 0 <= self.at < len(self.stops) else None

    @property
    def _tab(self) -> Optional[Tab]:
        stop = self.stop
        return stop.place.tabs[stop.tab] if stop is not None and stop.place.tabs else None

    def _stand(self, place: Place, *, from_map: bool = False) -> None:
        """Go to a place. If both it and the current stop come from the left pane, it replaces that stop."""
        stop = self.stop
        if stop is not None and stop.place == place:
            if not from_map:
                stop.from_map, stop.item = False, self.detail.cursor
                self._mark(place)
                self._read_detail()
            return
        if stop is not None and stop.from_map and (from_map or _same(stop.place, place)):
            before = [tab.title for tab in stop.place.tabs]
            alike = [tab.title for tab in place.tabs[: len(before)]] == before
            self.stops[self.at] = Stop(place, stop.tab if alike else 0, from_map=from_map)
        else:
            tab = 0
            if stop is not None:
                stop.item = self.detail.cursor
                titles = [tab.title for tab in place.tabs]
                if self._tab is not None and self._tab.title == places.MEMORY in titles:
                    tab = titles.index(places.MEMORY)
            self.at += 1
            self.stops.insert(self.at, Stop(place, tab, from_map=from_map))
            if not from_map:
                self._mark(place)
        del self.stops[self.at + 1 :]
        self._read_detail()

    def _mark(self, place: Place) -> None:
        """Move the map's cursor to a place that was reached in another way."""
        address = 0 if place.pid is not None else place.start
        if address is None or not isinstance(self._view, MapView):
            return
        item = self._view.item_at(address)
        if item is not None:
            self.map.select(item)

    def _follow(self, link: Link) -> None:
        self._ask(_GOTO, "looking it up", partial(self.session.place, link), self._arrive)

    def _arrive(self, place: Place) -> None:
        if self._right.has_class("hidden"):
            self.action_alone()
        self._focus(self.detail)
        self._stand(place)

    # Details

    def _read_detail(self, *, marks: bool = False) -> None:
        self._show_crumbs()
        stop, tab = self.stop, self._tab
        if stop is None or tab is None:
            self._show_sheet(Sheet((), ()))
            return
        if self._sheet_of != (stop.place, stop.tab):
            self._sheet, self._sheet_of = None, (stop.place, stop.tab)
            self.set_timer(_PATIENCE, partial(self._show_reading, self._sheet_of))
        view = replace(stop.view, width=self._room(self.detail))
        question = partial(self.session.sheet, tab, stop.place, view)
        then = partial(self._show_sheet, marks=marks)
        self._ask("detail", " ".join(tab.command[:2]), question, then)

    def _show_reading(self, what: Tuple[Place, int]) -> None:
        """Remove the contents of the previous tab if those of this one are not there soon."""
        if self._sheet is None and self._sheet_of == what and self.questions.busy:
            self.detail.show([plain("reading…", DIM)])

    def _show_sheet(self, sheet: Sheet, *, marks: bool = False) -> None:
        self._sheet = sheet
        stop = self.stop
        item = stop.item if stop is not None else 0
        self.detail.show(sheet.lines or (plain("nothing"),), item, marks=marks)
        self._changes = ""
        if marks:
            both = (self.map, self.detail)
            count, gone = sum(len(pane.changed) for pane in both), sum(pane.gone for pane in both)
            parts = (f"{count} changed" if count else "", f"{gone} gone" if gone else "")
            self._changes = ", ".join(filter(None, parts)) or "nothing changed"

    def _show_crumbs(self) -> None:
        stop = self.stop
        names = [stop.place.title for stop in self.stops[: self.at + 1]]
        width = max(self.size.width - 2, 20)
        while len(names) > 1 and len(" › ".join(names)) > width:
            del names[0]
            names[0] = "…"
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("".join(f"{name} › " for name in names[:-1]), "dim")
        text.append(names[-1] if names else "", "bold")
        self._crumbs.update(text)
        text, self._tab_at = _tabs_text(stop, max(self._right.size.width - 2, 18))
        self._tabs.update(text)

    # Events

    def on_descendant_focus(self) -> None:
        """Mark the pane that has the focus."""
        for pane, listing in ((self._left, self.map), (self._right, self.detail)):
            pane.set_class(listing.has_focus, "here")
        self._left.set_class(self.size.width < _NARROW and self.detail.has_focus, "small")

    async def on_event(self, event: events.Event) -> None:
        """Finish what a key does before the next key, which may be for the dialog that it opens.

        Keys that are typed while the browser looks for the next place are for that place.
        """
        if not isinstance(event, (events.Key, events.Paste)) or event.is_forwarded:
            await super().on_event(event)
        elif (self._going is not None or self._catching_up) and not self._acts_at_once(event):
            self._typed.append(event)
        else:
            await self._take(event)

    async def _take(self, event: events.Event) -> None:
        """Handle a key or a paste."""
        dialog = len(self.screen_stack) > 1
        if dialog and self.focused is None:
            await _drained(self.screen)  # until it is open
        focused = self.focused or self.screen
        nodes = [node for node in focused.ancestors_with_self if node is not self]
        if not isinstance(event, events.Key) or focused.check_consume_key(event.key, event.character):
            await super().on_event(event)
            nodes = nodes[:1]
        else:
            await self._press(event)
        for node in nodes if dialog else ():
            await _drained(node)

    def _acts_at_once(self, event: events.Event) -> bool:
        """Whether a key ends the search for a place, or the browser. A later ``q`` may be part of a text."""
        key = event.key if isinstance(event, events.Key) else ""
        return key in ("escape", "ctrl+c") or (key == "q" and not self._typed)

    async def _press(self, event: events.Key) -> None:
        """Run a key's action now. Textual would first pass the key through the queues of all widgets."""
        active = self.active_bindings.get(event.key)
        if active is not None and active.enabled:
            self.app_focus = True
            if active.node is self and self._settling is not None:
                self._settling.stop()
                self._preview()
            if await self.run_action(active.binding.action, active.node):
                return
        await super().on_event(event)

    def _moved(self) -> None:
        """Ask about the item under the left pane's cursor, once the cursor rests."""
        if self._settling is not None:
            self._settling.stop()
        self._settling = self.set_timer(_SETTLE, self._preview)

    def _enter(self, item: int, link: Optional[Link]) -> None:
        """Enter in the left pane: zoom in, or follow a link."""
        found = self._view.enter(item, link)
        if found is True:
            self._read_left()
        elif isinstance(found, Link):
            self._follow(found)
        else:
            self._focus(self.detail)

    def _enter_detail(self, _item: int, link: Optional[Link]) -> None:
        """Enter in the right pane: follow a link."""
        if link is not None:
            self._follow(link)

    def _aside(self, by: int) -> None:
        """Left and right in the map: zoom out and in."""
        if by > 0:
            self.map.action_follow()
        else:
            self._zoom_out()

    def on_click(self, event: events.Click) -> None:
        """Open the tab that was clicked."""
        if event.widget is self._tabs and 0 <= event.x - 1 < len(self._tab_at):
            self.action_choose_tab(self._tab_at[event.x - 1])

    def _redraw_left(self) -> None:
        """Draw the left pane for its new width."""
        answer = self._answers.get(self._view)
        if answer is not None:
            self.map.show(self._view.lines(answer, self._room(self.map)), self.map.cursor)
            self._title_left()

    def _redraw_detail(self) -> None:
        """Ask for the details in their new width."""
        if self.stop is not None:
            self.stop.item = self.detail.cursor
            self._read_detail()

    # Keys

    def check_action(self, action: str, parameters: Tuple[object, ...]) -> Optional[bool]:
        """Only a dialog's own keys work while it is open."""
        return len(self.screen_stack) == 1 or action == "quit"

    def action_other_pane(self) -> None:
        """Go to the other pane."""
        if self._panes.has_class("alone"):
            self.action_alone()
        self._focus(self.detail if self._in_map else self.map)

    def action_escape(self) -> None:
        """Cancel the running question, or go back to the map, or zoom out."""
        if self.questions.busy or self._going is not None or self._typed:
            self.questions.cancel()
            self._going = None
            self._typed.clear()
            self.notify("cancelled", timeout=2)
            if self._sheet is None:
                self.detail.show([plain("cancelled", DIM)])
        elif self._in_map:
            self._zoom_out()
        elif self.stop is not None and self.stop.view.match:
            self._filter("")
        else:
            self._focus(self.map)

    def action_interrupt(self) -> None:
        """Cancel the running question, as Ctrl-C does in a shell."""
        if self.questions.busy or self._going is not None or self._typed:
            self.action_escape()
        else:
            self.notify("q quits", timeout=3)

    def action_step(self, by: int) -> None:
        """Go back, or forward again."""
        if not 0 <= self.at + by < len(self.stops):
            return
        if self.stop is not None:
            self.stop.item = self.detail.cursor
        self.at += by
        self._read_detail()

    def action_tab(self, by: int) -> None:
        """Go to the previous or next tab."""
        stop = self.stop
        if stop is not None and stop.place.tabs:
            self.action_choose_tab((stop.tab + by) % len(stop.place.tabs))

    def action_choose_tab(self, number: int) -> None:
        """Go to a tab by number."""
        stop = self.stop
        if stop is None or not 0 <= number < len(stop.place.tabs) or number == stop.tab:
            return
        stop.tab, stop.item, stop.view = number, 0, View()
        self._read_detail()

    def action_look(self, name: str) -> None:
        """Switch the left pane to another view."""
        self._view = self._views[name]
        if self._left.has_class("hidden"):
            self.action_alone()
        self._focus(self.map)
        self.map.show([plain(f"{self._view.doing}…")])
        if self._view in self._answers:
            self._show_left(self._view, 0, self._answers[self._view])
        else:
            self._read_left()

    def action_goto(self) -> None:
        """Ask for a target and go there."""
        title = "go to: address, symbol+offset, pfn:1a2b, phys:1000, pid or command, module, region"
        self.push_screen(dialogs.Ask(title), self._go_to)

    def _go_to(self, text: Optional[str]) -> None:
        if text and text.strip():
            self._ask(_GOTO, "looking it up", partial(self.session.find, text), self._found)

    def _found(self, found: List[Found]) -> None:
        if len(found) == 1:
            self._arrive(found[0].place)
            return

        def chosen(number: Optional[int]) -> None:
            if number is not None:
                self._arrive(found[number].place)

        self.push_screen(dialogs.Choose("which one?", [f.text for f in found]), chosen)

    def action_filter(self) -> None:
        """Show only lines that contain a text."""
        stop = self.stop
        if stop is not None:
            self.push_screen(dialogs.Ask("show lines that contain", stop.view.match), self._filter)

    def _filter(self, text: Optional[str]) -> None:
        stop = self.stop
        if stop is not None and text is not None:
            stop.view, stop.item = replace(stop.view, match=text), 0
            self._focus(self.detail)
            self._read_detail()

    def action_sort(self) -> None:
        """Sort by a column."""
        columns = self._sheet.columns if self._sheet is not None else ()
        if not columns:
            text = "the table is not read yet" if self._sheet is None else "there is no table here"
            self.notify(text, timeout=3)
            return

        def chosen(number: Optional[int]) -> None:
            stop = self.stop
            if number is not None and stop is not None:
                stop.view, stop.item = replace(stop.view, sort=columns[number], reverse=False), 0
                self._read_detail()

        self.push_screen(dialogs.Choose("sort by", columns), chosen)

    def action_reverse(self) -> None:
        """Reverse the order."""
        stop = self.stop
        if stop is not None:
            stop.view = replace(stop.view, reverse=not stop.view.reverse)
            self._read_detail()

    def action_explain(self) -> None:
        """Explain the region that is shown."""
        stop = self.stop
        if stop is None:
            return
        place, region_at = stop.place, self.session.region_at

        def question() -> Place:
            key = None if place.start is None else region_at(place.start)
            return places.explained(key or ("user" if place.pid is not None else "direct_map"))

        self._ask(_GOTO, "looking it up", question, self._arrive)

    def action_keys(self) -> None:
        """Show the keys."""
        self.push_screen(dialogs.Message(_HELP))

    def action_copy(self) -> None:
        """Copy the address under the cursor, or that of the place."""
        text = self._address()
        if not text:
            self.notify("there is no address here", timeout=3)
            return
        self.copy_to_clipboard(text)
        self.notify(f"copied {text}", markup=False, timeout=3)

    def _address(self) -> str:
        link = None if self._in_map else self.detail.link
        if link is not None:
            return f"{link.value:x}" if isinstance(link.value, int) else link.value
        stop = self.stop
        if stop is None:
            return ""
        return stop.place.copied if stop.place.start is None else f"{stop.place.start:016x}"

    def action_command_line(self) -> None:
        """Show the command line with the same output, and copy it."""
        stop, tab = self.stop, self._tab
        if stop is None or tab is None:
            return
        command = self._sheet.command if self._sheet is not None else ()
        line = self.session.command_line(command or tab.command, stop.view)
        self.copy_to_clipboard(line)
        self.push_screen(dialogs.Message(f"{line}\n\n(copied)"))

    def action_run(self) -> None:
        """Run a command of kvintro and show its output in the right pane."""

        def typed(line: Optional[str]) -> None:
            if line and line.strip():
                self._arrive(places.typed(line))

        self.push_screen(dialogs.Ask("run: kvintro"), typed)

    def action_as_type(self) -> None:
        """Show the memory at the cursor's address, or the place's, as members of a type."""
        address = self._address()
        stop = self.stop
        if not address or stop is None:
            return
        pid = (
            f"--pid {stop.place.pid} " if stop.place.pid is not None and stop.place.start is not None else ""
        )

        def typed(name: Optional[str]) -> None:
            if name and name.strip():
                line = shlex.join(["read", address, "--type", name.strip()])
                self._arrive(places.typed(line.replace("read ", f"read {pid}", 1)))

        self.push_screen(dialogs.Ask(f"{address} is a", "struct "), typed)

    def action_read_again(self) -> None:
        """Read a running kernel again."""
        if not self.session.live:
            self.notify("a dump does not change; this is for running kernels", timeout=3)
            return
        view = self._view

        def question() -> Any:
            self.session.refresh()
            return view.ask(self.session)

        self._answers.clear()
        self._ask("map", view.doing, question, partial(self._read_both, view))

    def _read_both(self, view: LeftView, answer: Any) -> None:
        stop = self.stop
        if view is self._view:
            self._draw_left(view, self.map.cursor, answer, marks=True)
            item = self.map.cursor
            if stop is not None and stop.from_map and view.item_of(stop.place, item) != item:
                self.map.select(view.item_of(stop.place, item))
        if stop is not None:
            stop.item = self.detail.cursor
        self._read_detail(marks=True)

    def action_keep_reading(self) -> None:
        """Start or stop reading a running kernel periodically."""
        if self._rereading is not None:
            self._rereading.stop()
            self._rereading = None
        elif self.session.live:
            self._rereading = self.set_interval(_AGAIN, self._read_if_idle)
            self.action_read_again()
        else:
            self.notify("a dump does not change; this is for running kernels", timeout=3)

    def _read_if_idle(self) -> None:
        if not self.questions.busy:
            self.action_read_again()

    def action_alone(self) -> None:
        """Show only the pane with the focus, or both again."""
        hidden = [pane for pane in (self._left, self._right) if pane.has_class("hidden")]
        for pane in hidden:
            pane.remove_class("hidden")
        if not hidden:
            (self._right if self._in_map else self._left).add_class("hidden")
        self._panes.set_class(not hidden, "alone")

    def action_other_theme(self) -> None:
        """Switch between dark and light."""
        self.theme = "textual-light" if self.theme == "textual-dark" else "textual-dark"

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Entries of the command palette: all keys, and commands that answer frequent questions."""
        seen = set()
        for _, binding in self._bindings:
            if binding.description and binding.action not in seen:
                seen.add(binding.action)
                run = partial(self.call_later, self.run_action, binding.action)
                key = binding.key_display or _NAMES_OF_KEYS.get(binding.key, binding.key)
                yield SystemCommand(_LONG.get(binding.description, binding.description), f"key {key}", run)
        for title, line in _QUESTIONS.items():
            yield SystemCommand(title, f":{line}", partial(self._arrive, places.typed(line)))
        for title, keys in _WHERE.items():
            yield SystemCommand(title, keys, partial(self.call_later, self.run_action, "goto"))


def _same(one: Place, other: Place) -> bool:
    """Whether two places are the same process or address, perhaps with more tabs."""
    return (one.title, one.start, one.end, one.pid) == (other.title, other.start, other.end, other.pid)


async def _drained(node: DOMNode) -> None:
    """Wait until a widget has handled the messages that it has now, unless it is closing."""
    done = asyncio.Event()
    if node.call_later(done.set):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), _LONGEST)


def _tail(text: str, room: int) -> str:
    """The end of a text that is too long."""
    return text if len(text) <= room else "…" + text[1 - room :]


def _tabs_text(stop: Optional[Stop], room: int) -> Tuple[Text, Sequence[int]]:
    """The tabs that fit around the open one, and the tab at each column; -1 for none."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if stop is None:
        return text, ()
    names = [f" {number} {tab.title} " for number, tab in enumerate(stop.place.tabs, 1)]
    first = 0
    # The one after it is visible, too.
    upto = min(stop.tab + 2, len(names))
    while first < stop.tab and sum(len(name) + 1 for name in names[first:upto]) + 2 > room:
        first += 1
    columns: List[int] = []

    def add(part: str, style: str, number: int) -> None:
        text.append(part, style)
        columns.extend([number] * len(part))

    if first:
        add("‹", "bold", first - 1)
    for number in range(first, len(names)):
        more = number + 1 < len(names)
        if len(columns) + len(names[number]) + 2 * more > room:
            add("›", "bold", number)
            break
        add(names[number], "reverse bold" if number == stop.tab else "", number)
        add(" ", "", -1)
    view = stop.view
    if view.match:
        text.append(f" /{printable(view.match)}", "bold")
    if view.sort:
        text.append(f" by {view.sort}", "bold")
    return text, columns


def _problem(error: Exception) -> Tuple[str, str]:
    if isinstance(error, KvintroError):
        return printable(error.what), printable(error.remedy)
    return f"this cannot be read: {printable(' '.join(repr(error).split()))[:300]}", ""


def is_light() -> bool:
    """Whether the terminal declares a light background, as some do (COLORFGBG)."""
    return os.environ.get("COLORFGBG", "").split(";")[-1] in ("7", "15")

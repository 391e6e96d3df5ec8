# SPDX-License-Identifier: LGPL-2.1-or-later
"""A list of lines with a cursor, of any length. Only the visible lines are drawn."""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, ClassVar, FrozenSet, List, Optional, Sequence, Set, Tuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kvintro.browse.lines import Line, Link
from kvintro.render.text import columns_of

_GUTTER = 1  # columns before each line
_MARK = "*"  # in the gutter of a changed line
_NAMES = {
    "30": "black",
    "31": "red",
    "32": "green",
    "33": "yellow",
    "34": "blue",
    "35": "magenta",
    "36": "cyan",
    "37": "white",
}


@lru_cache(maxsize=256)
def style_of(code: str) -> Style:
    """Convert an SGR code of :mod:`kvintro.render` to a style."""
    style = Style()
    words = code.split(";") if code else []
    while words:
        word = words.pop(0)
        if word == "38" and words[:1] == ["5"]:
            style += Style(color=f"color({words[1]})")
            del words[:2]
        elif word == "48" and words[:1] == ["5"]:
            # The text of a cell is black or white, whichever is legible.
            style += Style(
                color="black" if _is_bright(int(words[1])) else "white", bgcolor=f"color({words[1]})"
            )
            del words[:2]
        elif word in _NAMES:
            style += Style(color=_NAMES[word])
        else:
            style += {
                "1": Style(bold=True),
                "2": Style(dim=True),
                "4": Style(underline=True),
                "7": Style(reverse=True),
            }.get(word, Style())
    return style


def _is_bright(number: int) -> bool:
    """Whether black is legible on a colour of the 256-colour palette."""
    if number >= 232:
        return number >= 244
    red, green, blue = ((number - 16) // step % 6 for step in (36, 6, 1))
    return 3 * red + 6 * green + blue >= 20


def _nothing(*_: object) -> None:
    """Do nothing."""


class Listing(ScrollView, can_focus=True):
    """Lines with a cursor.

    The cursor moves by items (:attr:`Line.item`). Left and right choose among the links of a line.

    It calls functions instead of posting messages, because the next key may already be waiting.

    :param followed: called with the item and the chosen link when Enter is pressed.
    :param moved: called when the cursor moved.
    :param aside: called with -1 or 1 when left or right is pressed on a line without links;
        None scrolls sideways.
    :param resized: called when the pane's width changed.
    """

    COMPONENT_CLASSES: ClassVar[Set[str]] = {
        "listing--cursor",
        "listing--blurred",
        "listing--changed",
        "listing--leads",
    }
    DEFAULT_CSS = """
    Listing { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    Listing .listing--cursor { background: $primary-muted; }
    Listing .listing--blurred { background: $surface; }
    Listing .listing--changed { color: $warning; text-style: bold; }
    Listing .listing--leads { color: $text-primary; }
    """
    BINDINGS: ClassVar[List[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown,space", "page(1)", "Page down", show=False),
        Binding("home", "edge(-1)", "First", show=False),
        Binding("end", "edge(1)", "Last", show=False),
        Binding("left,h", "part(-1)", "Link to the left", show=False),
        Binding("right,l", "part(1)", "Link to the right", show=False),
        Binding("enter", "follow", "Follow", show=False),
    ]

    def __init__(
        self,
        *,
        id: str,
        followed: Callable[[int, Optional[Link]], object],
        moved: Callable[[], object] = _nothing,
        aside: Optional[Callable[[int], object]] = None,
        resized: Callable[[], object] = _nothing,
    ) -> None:
        super().__init__(id=id)
        self._resized, self._width = resized, 0
        self._followed, self._moved, self._aside = followed, moved, aside
        self._lines: Sequence[Line] = ()
        self._items: List[Tuple[int, int]] = []  # first line, last line plus one
        self._item_at: List[int] = []  # by line; -1 for lines outside items
        self._cursor = 0
        self._part = -1
        #: Whether the same link number stays chosen when the cursor moves.
        self.keeps_part = False
        self._changed: FrozenSet[int] = frozenset()
        #: Number of lines that the marked contents no longer have.
        self.gone = 0

    def on_resize(self) -> None:
        """Tell when the width changes. Only now is the new width certain, whatever changed it."""
        width = self.container_size.width
        if width != self._width:
            self._width = width
            self._resized()

    # Contents

    @property
    def lines(self) -> Sequence[Line]:
        """The lines shown."""
        return self._lines

    @property
    def changed(self) -> Sequence[Line]:
        """The marked lines."""
        return [self._lines[number] for number in sorted(self._changed)]

    @property
    def cursor(self) -> int:
        """Number of the item under the cursor."""
        return self._cursor

    def show(self, lines: Sequence[Line], cursor: int = 0, *, part: int = -1, marks: bool = False) -> None:
        """Replace the lines.

        :param cursor: number of the item to put the cursor on.
        :param part: number of the link to choose there.
        :param marks: mark lines that were not there before.
        """
        self._changed, self.gone = _changes(self._lines, lines) if marks else (frozenset(), 0)
        self._lines = lines
        self._items, self._item_at = _items_of(lines)
        self._cursor = max(0, min(cursor, len(self._items) - 1))
        self._part = part
        width = max((line.width for line in lines), default=0)
        self.virtual_size = Size(_GUTTER + width, len(lines))
        self.scroll_to(0, None if cursor else 0, animate=False)
        self._reveal()
        self.refresh()

    def select(self, item: int) -> None:
        """Put the cursor on an item, without a message."""
        self._cursor = max(0, min(item, len(self._items) - 1))
        self._part = -1
        self._reveal()
        self.refresh()

    @property
    def part(self) -> int:
        """Number of the chosen link; -1 for the line's own."""
        return self._part

    @property
    def line(self) -> Optional[Line]:
        """The first line under the cursor."""
        return self._lines[self._items[self._cursor][0]] if self._items else None

    @property
    def link(self) -> Optional[Link]:
        """The link that Enter follows."""
        line = self.line
        if line is None:
            return None
        if 0 <= self._part < len(line.links):
            return line.links[self._part]
        return line.link or next(iter(line.links), None)

    # Drawing

    def render_line(self, y: int) -> Strip:
        """Draw a line of the screen."""
        scroll_x, scroll_y = self.scroll_offset
        number = y + scroll_y
        width = self.size.width
        base = self.rich_style
        if number >= len(self._lines):
            return Strip.blank(width, base)
        line = self._lines[number]
        under = bool(self._items) and self._item_at[number] == self._cursor
        if under:
            name = "listing--cursor" if self.has_focus else "listing--blurred"
            base += self.get_component_rich_style(name, partial=True)
            if self._few_colors:
                base += Style(reverse=True) if self.has_focus else Style(underline=True)
        if number in self._changed:
            base += self.get_component_rich_style("listing--changed", partial=True)
        chosen = self._part if under and self._items[self._cursor][0] == number else -1
        strip = Strip(self._segments(line, base, chosen))
        body = strip.crop_extend(scroll_x, scroll_x + width - _GUTTER, base)
        return Strip([Segment(_MARK if number in self._changed else " ", base), *body], width)

    def _segments(self, line: Line, base: Style, chosen: int) -> List[Segment]:
        out: List[Segment] = []
        links = 0
        for part in line.parts:
            style = base + style_of(part.style)
            if part.link is not None:
                if not part.style:
                    style += self.get_component_rich_style("listing--leads", partial=True)
                if links == chosen:
                    # In a reversed line it is not reversed.
                    style += Style(reverse=not base.reverse, underline=bool(base.reverse))
                links += 1
            out.append(Segment(part.text, style))
        return out

    @property
    def _few_colors(self) -> bool:
        """Whether the terminal does not show the cursor's background: NO_COLOR, or sixteen colours."""
        return self.app.no_color or self.app.console.color_system in (None, "standard")

    # Keys

    def action_move(self, by: int) -> None:
        """Move the cursor by items."""
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by a screen."""
        if not self._items:
            return
        line = self._items[self._cursor][0] + by * max(self.size.height - 1, 1)
        self._go(self._item_near(line))

    def action_edge(self, to: int) -> None:
        """Move the cursor to the first or the last item."""
        self._go(0 if to < 0 else len(self._items) - 1)

    def action_part(self, by: int) -> None:
        """Choose another link of the line. Where there is no other, scroll sideways."""
        line = self.line
        if self._aside is not None and (line is None or not line.links):
            self._aside(by)
            return
        start, width = self._chosen_columns(line)
        most = len(line.links) - 1 if line is not None else -1
        if by > 0 and self._part >= most:
            self.scroll_to(self.scroll_offset.x + self.size.width // 2, None, animate=False)
            return
        if by > 0 or start + width > self.scroll_offset.x:
            self._part = max(-1, min(self._part + by, most))
            start, width = self._chosen_columns(line)
        row = self._items[self._cursor][0] if self._items else 0
        self.scroll_to_region(Region(start, row, _GUTTER + width, 1), animate=False, force=True)
        self.refresh()
        self._moved()

    def action_follow(self) -> None:
        """Follow the chosen link."""
        self._followed(self._cursor, self.link)

    def _go(self, item: int) -> None:
        item = max(0, min(item, len(self._items) - 1))
        if item == self._cursor or not self._items:
            return
        self._cursor = item
        line = self.line
        # In a row of cells the cursor stays in its column.
        most = len(line.links) - 1 if line is not None else -1
        self._part = min(self._part, most) if self.keeps_part else -1
        self._reveal()
        self.refresh()
        self._moved()

    def _item_near(self, line: int) -> int:
        line = max(0, min(line, len(self._lines) - 1))
        while line > 0 and self._item_at[line] < 0:
            line -= 1
        return max(self._item_at[line], 0) if self._item_at else 0

    def _reveal(self) -> None:
        if not self._items:
            return
        first, last = self._items[self._cursor]
        if self._cursor == 0:
            first = 0  # show what precedes the first item
        region = Region(self.scroll_offset.x, first, 1, min(last - first, max(self.size.height, 1)))
        self.scroll_to_region(region, animate=False, force=True)

    def _chosen_columns(self, line: Optional[Line]) -> Tuple[int, int]:
        """First column and width of the chosen link. Without one, those of the line's beginning."""
        at, links = 0, -1
        for part in line.parts if line is not None else ():
            wide = columns_of(part.text)
            links += part.link is not None
            if part.link is not None and links == self._part:
                return at, wide
            at += wide
        return 0, 0

    def on_click(self, event: events.Click) -> None:
        """Choose what was clicked. A second click follows it."""
        number = event.y + self.scroll_offset.y
        if not 0 <= number < len(self._lines) or self._item_at[number] < 0:
            return
        item = self._item_at[number]
        part = self._part_at(self._lines[number], event.x - _GUTTER + self.scroll_offset.x)
        again = item == self._cursor and (part == self._part or event.chain > 1)
        self._go(item)
        self._part = part if self._items[item][0] == number else -1
        self.refresh()
        if again:
            self.action_follow()

    def _part_at(self, line: Line, column: int) -> int:
        at, links = 0, -1
        for part in line.parts:
            at += columns_of(part.text)
            links += part.link is not None
            if column < at:
                return links if part.link is not None else -1
        return -1


def _changes(before: Sequence[Line], after: Sequence[Line]) -> Tuple[FrozenSet[int], int]:
    """Numbers of the lines that were not there before, and how many lines there are no longer."""
    old, new = {line.text for line in before}, {line.text for line in after}
    changed = [number for number, line in enumerate(after) if line.text not in old]
    return frozenset(changed), max(len(old - new) - len(changed), 0)


def _items_of(lines: Sequence[Line]) -> Tuple[List[Tuple[int, int]], List[int]]:
    """The lines of each item, and the item of each line."""
    items: List[Tuple[int, int]] = []
    item_at: List[int] = []
    before: Optional[int] = None
    for number, line in enumerate(lines):
        if line.head:
            item_at.append(-1)
            before = None
            continue
        if line.item is not None and line.item == before:
            items[-1] = items[-1][0], number + 1
        else:
            items.append((number, number + 1))
        before = line.item
        item_at.append(len(items) - 1)
    return items, item_at

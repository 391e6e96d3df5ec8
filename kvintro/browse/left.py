# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three views of the left pane: the virtual map, physical memory and processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple, Union

from kvintro.browse import mapping, places
from kvintro.browse.lines import Line, Link, Part
from kvintro.browse.places import Place
from kvintro.browse.session import Session
from kvintro.browse.stretches import Box, Stretch, boxes_of_layout
from kvintro.regions.user import REGION as USER_SPACE
from kvintro.render.inert import inert
from kvintro.render.text import DIM
from kvintro.text import size_text


class LeftView:
    """One view. ``ask`` runs in the worker's thread, everything else in the screen's.

    :ivar name: name to display.
    :ivar doing: description of ``ask`` to display.
    """

    name = ""
    doing = ""

    def title(self) -> str:
        """Title of what is currently shown."""
        return self.name

    def ask(self, session: Session) -> Any:
        """Get the data to show."""
        raise NotImplementedError

    def lines(self, answer: Any, width: int) -> List[Line]:
        """Format the data as lines."""
        raise NotImplementedError

    def place(self, item: int, link: Optional[Link]) -> Optional[Place]:
        """The place under the cursor."""
        raise NotImplementedError

    def item_of(self, place: Place, item: int) -> int:
        """The item of a place that was at an item before the data was read again."""
        return item

    def enter(self, item: int, link: Optional[Link]) -> Union[bool, Link]:
        """Zoom in and return True (ask again), or return a link to follow; False if there is neither."""
        raise NotImplementedError

    def out(self) -> Optional[int]:
        """Zoom out and return the item that the cursor was on; None if that is not possible."""
        return None


class MapView(LeftView):
    """The virtual address space, from all of it down to single page-table entries."""

    name, doing = "Map", "reading page tables"

    def __init__(self) -> None:
        self._way: List[Tuple[Stretch, int]] = []
        self.boxes: Sequence[Box] = ()

    def title(self) -> str:
        """The path of zoomed ranges."""
        return " › ".join([self.name, *(stretch.title for stretch, _ in self._way)])

    def ask(self, session: Session) -> Any:
        """Get the boxes."""
        return session.stretch(self._way[-1][0]) if self._way else session.layout()

    def lines(self, answer: Any, width: int) -> List[Line]:
        """Draw the boxes."""
        self.boxes = answer if isinstance(answer, list) else boxes_of_layout(inert(answer))
        return mapping.map_lines(self.boxes, width)

    def place(self, item: int, link: Optional[Link]) -> Optional[Place]:
        """The region, the hole or the entry."""
        return places.of_box(self.boxes[item]) if item < len(self.boxes) else None

    def enter(self, item: int, link: Optional[Link]) -> Union[bool, Link]:
        """Zoom into a region or a table, or follow a page."""
        if item >= len(self.boxes):
            return False
        box = self.boxes[item]
        if box.key == USER_SPACE.key and not self._way:
            return Link("region", "user")
        if not box.zooms:
            return box.link or False
        title = box.key if box.kind == "region" else f"{box.start & 0xFFFFFFFFFFFF:x}"
        pid = self._way[-1][0].pid if self._way else None
        self._way.append((Stretch(box.start, box.end, box.key, title, pid), item))
        return True

    def item_at(self, address: int) -> Optional[int]:
        """Number of the innermost box that contains an address; None if none does."""
        found = [
            n for n, box in enumerate(self.boxes) if box.start <= address <= box.end and box.end > box.start
        ]
        return found[-1] if found else None

    def out(self) -> Optional[int]:
        """Go back to the table above."""
        return self._way.pop()[1] if self._way else None


@dataclass(frozen=True)
class Cells:
    """A part of physical memory.

    :ivar start: first address.
    :ivar end: last address, inclusive.
    :ivar cell: bytes of a cell.
    """

    start: int
    end: int
    cell: int


class PhysicalView(LeftView):
    """Physical memory as coloured cells by page type, from all RAM to one page."""

    name, doing = "Physical memory", "counting pages"

    def __init__(self, page_size: int) -> None:
        self._page = page_size
        self._way: List[Tuple[Cells, int]] = []
        self._cell = 0

    def title(self) -> str:
        """The part of memory, and the size of a cell."""
        where = f" › {self._way[-1][0].start:x}" if self._way else ""
        return f"{self.name}{where}, {size_text(self._cell)} a cell" if self._cell else self.name

    def ask(self, session: Session) -> Any:
        """Get the census of the part."""
        part = self._way[-1][0] if self._way else None
        return session.physical(None if part is None else (part.start, part.end))

    def lines(self, answer: Any, width: int) -> List[Line]:
        """Rows of cells."""
        self._cell = int(answer.extra["cell_size"])
        return mapping.cell_lines(inert(answer), width)

    def place(self, item: int, link: Optional[Link]) -> Optional[Place]:
        """The memory of the cell under the cursor."""
        return None if link is None else places.follow(link)

    def enter(self, item: int, link: Optional[Link]) -> Union[bool, Link]:
        """Zoom into a cell."""
        if link is None or link.end is None:
            return link or False
        start = int(link.value)
        if link.end + 1 - start <= self._page:
            return Link("physical", start)
        self._way.append((Cells(start, link.end, self._cell), item))
        return True

    def out(self) -> Optional[int]:
        """Go back to the previous part."""
        return self._way.pop()[1] if self._way else None


class ProcessView(LeftView):
    """All processes with their own memory."""

    name, doing = "Processes", "reading processes"

    def __init__(self) -> None:
        self._links: List[Link] = []

    def ask(self, session: Session) -> Any:
        """Get the rows of ``kvintro user``."""
        return session.processes()

    def lines(self, answer: Any, width: int) -> List[Line]:
        """One line per process."""
        self._links = []
        out: List[Line] = []
        wide = max((len(str(row.pid)) for row in answer), default=1)
        for row in inert(answer):
            link = Link("pid", row.pid, name=row.comm)
            self._links.append(link)
            size = f"{size_text(row.resident)}"
            room = max(width - wide - len(size) - 3, 8)
            name = mapping.cut(row.comm, room)
            parts = (Part(f"{row.pid:>{wide}} ", DIM), Part(f"{name:<{room}} "), Part(size))
            out.append(Line(parts))
        return out

    def place(self, item: int, link: Optional[Link]) -> Optional[Place]:
        """The process."""
        return places.follow(self._links[item]) if item < len(self._links) else None

    def item_of(self, place: Place, item: int) -> int:
        """The process with the same pid."""
        return next((n for n, link in enumerate(self._links) if link.value == place.pid), item)

    def enter(self, item: int, link: Optional[Link]) -> Union[bool, Link]:
        """Follow the process; its areas appear beside the list."""
        return self._links[item] if item < len(self._links) else False

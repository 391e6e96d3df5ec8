# SPDX-License-Identifier: LGPL-2.1-or-later
"""Content of a pane: lines of parts, some of which are links."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple, Union

from kvintro.render.text import columns_of


@dataclass(frozen=True)
class Link:
    """A link; :func:`kvintro.browse.places.follow` returns its target.

    :ivar kind: ``virtual``, ``physical``, ``pfn``, ``pid``, ``region``, ``module``, ``symbol``, ``range``,
        ``entry``, ``cells``, ``command``.
    :ivar value: an address or a number; the text of a symbol, a module, a region's key or a command.
    :ivar end: last address of a range, inclusive.
    :ivar pid: process whose page tables translate a user address.
    :ivar name: name to display.
    :ivar region: key of a range's region; name of an entry's level.
    """

    kind: str
    value: Union[int, str]
    end: Optional[int] = None
    pid: Optional[int] = None
    name: str = ""
    region: str = ""


@dataclass(frozen=True)
class Part:
    """A piece of a line: its text, its style as an SGR code, and its link."""

    text: str
    style: str = ""
    link: Optional[Link] = None


@dataclass(frozen=True)
class Line:
    """One line of a pane.

    :ivar link: link that Enter follows if no part is chosen.
    :ivar item: consecutive lines with the same number are selected together; None for a line of its own.
    :ivar head: whether it is a title or a header, which the cursor skips.
    """

    parts: Tuple[Part, ...]
    link: Optional[Link] = None
    item: Optional[int] = None
    head: bool = False

    @property
    def links(self) -> Sequence[Link]:
        """Links of its parts, from left to right."""
        return [part.link for part in self.parts if part.link is not None]

    @property
    def text(self) -> str:
        """The line without styles."""
        return "".join(part.text for part in self.parts)

    @property
    def width(self) -> int:
        """Width in columns."""
        return sum(columns_of(part.text) for part in self.parts)


@dataclass(frozen=True)
class Sheet:
    """The contents of one tab.

    :ivar command: words of the command with the same output, without ``kvintro`` and the source.
    :ivar columns: keys of the columns that it can be sorted by.
    """

    command: Tuple[str, ...]
    lines: Tuple[Line, ...]
    columns: Tuple[str, ...] = ()


def plain(text: str, style: str = "", link: Optional[Link] = None, *, head: bool = False) -> Line:
    """Make a line of one part."""
    return Line((Part(text, style, link),), link, head=head)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Places to go to, their tabs, and targets of links. Each tab is a command of kvintro."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Callable, Dict, Optional, Sequence, Tuple

from kvintro.browse.lines import Link
from kvintro.browse.stretches import Box
from kvintro.model import ALL
from kvintro.regions.user import REGION as USER_SPACE
from kvintro.text import printable

#: Title of the memory tab. Following a pointer from it opens the memory tab of the target.
MEMORY = "Memory"


@dataclass(frozen=True)
class Tab:
    """One view of a place.

    :ivar command: words of the command that it shows, without ``kvintro`` and the source.
    :ivar within: show only the findings in this range; for ``check``.
    :ivar typed: a whole command line that the user typed instead of ``command``.
    :ivar entries: list single page-table entries, where the command shows ranges.
    """

    title: str
    command: Tuple[str, ...]
    within: Optional[Tuple[int, int]] = None
    entries: bool = False
    typed: str = ""


@dataclass(frozen=True)
class Place:
    """A place to go to.

    :ivar title: title in the breadcrumb.
    :ivar start: first address, which can be copied and is marked on the map; None if it has no virtual
        address.
    :ivar end: last address, inclusive.
    :ivar pid: process whose page tables translate its addresses.
    :ivar copied: text to copy if it has no virtual address.
    """

    title: str
    tabs: Tuple[Tab, ...]
    start: Optional[int] = None
    end: Optional[int] = None
    pid: Optional[int] = None
    copied: str = ""


def range_text(start: int, end: int) -> str:
    """Argument of ``--range``, whose end is exclusive and has at most 16 digits."""
    return f"{start:x}-{min(end + 1, ALL):x}"


def _process_words(pid: Optional[int]) -> Tuple[str, ...]:
    return () if pid is None else ("--pid", str(pid))


def _about(text: str, pid: Optional[int], form: str = "") -> Tuple[Tab, ...]:
    """Tabs of every address."""
    kind = ("--from", form) if form else ()
    by = _process_words(pid)
    return (
        Tab("Identity", ("identify", *kind, *by, text)),
        Tab("Walk", ("translate", "--walk", *kind, *by, text)),
        Tab("Page", ("page", *kind, *by, text)),
    )


def _memory(words: Sequence[str]) -> Tab:
    return Tab(MEMORY, ("read", *words, "--size", "1024"))


def pointers(start: int, size: int, pid: Optional[int] = None) -> Tab:
    """What points into a range."""
    return Tab("Pointers", ("search", *_process_words(pid), "--to", f"{start:016x}", "--size", str(size)))


def _virtual(link: Link) -> Place:
    value = int(link.value)
    text = f"{value:016x}"
    memory = _memory((*_process_words(link.pid), text))
    aliases = () if link.pid is not None else (Tab("Aliases", ("aliases", "--from", "virtual", text)),)
    tabs = (*_about(text, link.pid, "virtual"), memory, *aliases)
    return Place(link.name or text, tabs, value, value, link.pid)


def _physical(link: Link, shift: int) -> Place:
    text = f"{int(link.value):x}"
    form = link.kind
    title = f"{'pfn' if form == 'pfn' else 'physical'} {text}"
    page = f"pfn:{text}" if form == "pfn" else text
    return Place(
        title,
        (
            Tab("Page", ("page", page) if form == "pfn" else ("page", "--from", form, page)),
            Tab("Identity", ("identify", "--from", form, text)),
            Tab("Aliases", ("aliases", "--from", form, text)),
            Tab("Addresses", ("translate", "--walk", "--from", form, text)),
            _memory(("--phys", f"{int(link.value) << (shift if form == 'pfn' else 0):x}")),
        ),
        copied=text,
    )


def _process(link: Link) -> Place:
    pid = int(link.value)
    name = f" {link.name}" if link.name else ""
    return Place(
        f"pid {pid}{name}",
        (
            Tab("Areas", ("user", str(pid))),
            Tab("Page tables", ("ptdump", "--pid", str(pid), "--range", "user")),
        ),
        pid=pid,
        copied=str(pid),
    )


def with_task(place: Place, task: int, *, memory: bool) -> Place:
    """Add the ``struct task_struct`` of a process. A kernel thread has nothing else."""
    tab = Tab("Task", ("read", f"{task:016x}", "--type", "struct task_struct"))
    return replace(place, tabs=(*place.tabs, tab) if memory else (tab,))


def region(key: str, start: int, end: int) -> Place:
    """A region of this kernel, by its first and last address."""
    tables = (
        () if key == USER_SPACE.key else (Tab("Page tables", ("ptdump", "--range", range_text(start, end))),)
    )
    first = Tab("Processes", ("user",)) if key == USER_SPACE.key else Tab("Contents", ("show", key))
    tabs = (first, *tables, Tab("Explain", ("explain", key)), Tab("Findings", ("check",), (start, end)))
    return Place(key, tabs, start, end)


def hole(start: int, end: int) -> Place:
    """Addresses in no region."""
    tabs = (
        Tab("Explain", ("explain", "hole")),
        Tab("Page tables", ("ptdump", "--range", range_text(start, end))),
        Tab("Findings", ("check",), (start, end)),
    )
    return Place("unused", tabs, start, end)


def _region_named(link: Link) -> Place:
    key = str(link.value)
    return Place(key, (Tab("Contents", ("show", key)), Tab("Explain", ("explain", key))))


def _module(link: Link) -> Place:
    name = str(link.value)
    pattern = f"(^| ){re.escape(name)}( |$)"
    return Place(
        f"module {name}",
        (
            Tab("Memory", ("show", "modules", "--table", "memory", "--match", pattern)),
            Tab("Module", ("show", "modules", "--table", "modules", "--match", pattern)),
            Tab("Sections", ("show", "modules", "--table", "sections", "--match", pattern)),
        ),
        copied=name,
    )


def _symbol(link: Link) -> Place:
    text = str(link.value)
    tabs = (*_about(text, None), _memory((text,)), Tab("Aliases", ("aliases", text)))
    return Place(text, tabs, copied=text)


def _range(link: Link) -> Place:
    start, end = int(link.value), link.end if link.end is not None else int(link.value)
    where = range_text(start, end)
    by = _process_words(link.pid)
    inside = ("user", str(link.pid)) if link.pid is not None else ("show", link.region)
    text = f"{start:016x}"
    tabs = []
    if link.pid is not None or link.region:
        tabs.append(Tab("Area", (*inside, "--range", where)))
    tabs.append(Tab("Pages", ("ptdump", *by, "--range", where), entries=True))
    tabs.append(Tab("Page tables", ("ptdump", *by, "--range", where)))
    tabs += [*_about(text, link.pid, "virtual"), _memory((*by, text))]
    return Place(link.name or text, tuple(tabs), start, end, link.pid)


def _cells(link: Link) -> Place:
    start, end = int(link.value), link.end if link.end is not None else int(link.value)
    where = range_text(start, end)
    tabs = [Tab("Types", ("pages", "--range", where))]
    for title, by in (("Caches", "cache"), ("Flags", "flags"), ("Zones", "zone")):
        tabs.append(Tab(title, ("pages", "--by", by, "--range", where)))
    tabs.append(Tab("First page", ("page", "--from", "physical", f"{start:x}")))
    return Place(f"physical {start:x}", tuple(tabs), copied=f"{start:x}")


def _entry(link: Link) -> Place:
    value, start = int(link.value), int(link.name, 16)
    by = _process_words(link.pid)
    text = f"{start:016x}"
    half = "kernel" if start >> 63 else "user"
    tabs = [Tab("Entry", ("pte", "--level", link.region, "--half", half, f"{value:016x}"))]
    if link.end is not None:
        where = range_text(start, link.end)
        tabs.append(Tab("Page tables", ("ptdump", *by, "--range", where)))
        tabs.append(Tab("Pages", ("ptdump", *by, "--range", where), entries=True))
    return Place(
        f"{link.region} entry {text}", (*tabs, *_about(text, link.pid, "virtual")), start, link.end, link.pid
    )


_FOLLOW: Dict[str, Callable[[Link], Place]] = {
    "virtual": _virtual,
    "pid": _process,
    "region": _region_named,
    "module": _module,
    "symbol": _symbol,
    "range": _range,
    "entry": _entry,
    "cells": _cells,
    "command": lambda link: typed(str(link.value)),
}


def follow(link: Link, shift: int = 12) -> Place:
    """Return the target of a link.

    :param shift: log2 of the page size.
    """
    if link.kind in ("pfn", "physical"):
        return _physical(link, shift)
    return _FOLLOW[link.kind](link)


def of_box(box: Box) -> Place:
    """The place of a box on the map."""
    if box.kind in ("hole", "empty", "lost"):
        return hole(box.start, box.end)
    if box.kind == "region":
        return region(box.key, box.start, box.end)
    return follow(box.entry or Link("region", box.key))


def typed(line: str) -> Place:
    """The output of a command that the user typed."""
    words = line.split()
    title = ":" + printable(" ".join(words[:2]))
    return Place(title, (Tab("Output", tuple(words), typed=line),))


def explained(key: str) -> Place:
    """The explanation of a region."""
    return Place(f"about {key}", (Tab("Explain", ("explain", key)),))

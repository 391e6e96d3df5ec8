# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots of Cloud Hypervisor: memory in ``memory-ranges``, and its addresses in ``state.json`` beside it.

The state has a table of ranges with ``gpa`` and ``length``, which are contiguous in the file
(vm-migration/src/protocol.rs). Its place in the JSON differs between versions, and it may be JSON in a
string, so any table whose lengths add up to the size of the file is accepted. Without it, and for
Firecracker, whose state is not JSON, the file is raw memory with one of the usual gaps.
"""

from __future__ import annotations

import json
from typing import Any, Iterator, List, Optional, Tuple, Union

from kvintro.source.beside import Beside
from kvintro.source.content import Content
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.opened import Source
from kvintro.source.physical import Extent, MemoryFile
from kvintro.source.vmcoreinfo import Chosen

_STATE = "state.json"
_MAX_STATE = 8 << 20
_MAX_VALUES = 1 << 20
_MAX_RANGES = 1000
_MAX_DEPTH = 3  # JSON in a string in JSON ...
_MAX_ADDRESS = 1 << 52


class MicroVmDump(MemoryDump):
    """Memory whose ranges are in a snapshot's state."""

    def __init__(
        self, content: Content, path: str, extents: List[Extent], state: Tuple[str, Content]
    ) -> None:
        super().__init__(content, path, "Cloud Hypervisor snapshot", [MemoryFile(content, extents)])
        self.complete = True
        self.left_out = 0
        self.others = (state,)

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        source.writer = "Cloud Hypervisor"
        return source


def read_memory(content: Content, path: str, beside: Beside) -> Optional[MicroVmDump]:
    """Read raw memory, if a snapshot's state beside it has the addresses of all of it; otherwise None."""
    for other in beside.named(_STATE):
        for extents in _tables(other.content):
            if sum(extent.size for extent in extents) == content.size:
                return MicroVmDump(content, path, sorted(extents), (other.path, other.content))
    return None


def _tables(content: Content) -> Iterator[List[Extent]]:
    """All valid tables of ranges in a JSON document."""
    if content.size > _MAX_STATE:
        return
    waiting: List[Tuple[Any, int]] = [(content.at(0, content.size), 0)]
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        value, depth = waiting.pop()
        if isinstance(value, (bytes, str)):
            inner = _document(value) if depth < _MAX_DEPTH else None
            if inner is not None:
                waiting.append((inner, depth + 1))
        elif isinstance(value, dict):
            waiting.extend((each, depth) for each in value.values() if isinstance(each, (dict, list, str)))
        elif isinstance(value, list):
            extents = _extents(value)
            if extents is not None:
                yield extents
            text = _bytes(value)
            if text is not None:
                waiting.append((text, depth))
            elif extents is None:
                waiting.extend((each, depth) for each in value if isinstance(each, (dict, list, str)))


def _document(text: Union[bytes, str]) -> Any:
    """The JSON object or array in a text; None if it has none."""
    if text[:1] not in (b"{", b"[", "{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _bytes(values: List[Any]) -> Optional[bytes]:
    """The bytes in a list of numbers, which older versions use for JSON; None if it is not such a list."""
    if len(values) < 2 or values[0] != ord("{"):
        return None
    try:
        return bytes(values)
    except (TypeError, ValueError):
        return None


def _extents(values: List[Any]) -> Optional[List[Extent]]:
    """A list of ranges that are contiguous in the file; None if it is not such a list."""
    found: List[Extent] = []
    offset = 0
    if not 0 < len(values) <= _MAX_RANGES:
        return None
    for value in values:
        if not isinstance(value, dict):
            return None
        first, size = value.get("gpa"), value.get("length")
        if type(first) is not int or type(size) is not int:
            return None
        if not 0 <= first < first + size <= _MAX_ADDRESS:
            return None
        found.append(Extent(first, size, offset))
        offset += size
    order = sorted(found)
    overlap = any(one.address + one.size > two.address for one, two in zip(order, order[1:]))
    return None if overlap else found

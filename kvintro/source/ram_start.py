# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the physical address of a file that consists only of RAM, on machines whose RAM does not start at 0.

Nothing in memory gives it directly. But VMCOREINFO has the physical address of init_uts_ns, and the file has
it at some offset. The page tables, which also contain physical addresses, must then agree: see
:class:`kvintro.source.vmcoreinfo.Judge`.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Iterator, List, NamedTuple

from kvintro.arch import by_vmcoreinfo
from kvintro.arch.address_space import symbol_in
from kvintro.source.note import parse
from kvintro.source.physical import PAGE, PhysicalMemory

#: struct new_utsname, from sysname to release (include/uapi/linux/utsname.h): 65 bytes each.
_NAMES = re.compile(rb"Linux\0{60}.{65}([0-9][^\0]{0,63})\0", re.DOTALL)
_LONGEST = 3 * 65
#: In struct uts_namespace at most a kref precedes the names (until 5.11).
_BEFORE_NAMES = 64
#: The kernel has one, and so does each UTS namespace of a container.
_MAX_NAMES = 256
_MAX_STARTS = 4


class _Names(NamedTuple):
    """A struct new_utsname.

    :ivar offset: its offset in the memory.
    """

    offset: int
    release: bytes


class RamStart:
    """Searches memory once, on first use.

    :param memory: memory of the file, from address 0 on.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory

    def candidates(self, text: bytes) -> List[int]:
        """Physical addresses at which the memory may begin, according to a text of VMCOREINFO; at most four.

        Empty if the architecture's RAM begins at 0, or if the text is invalid.
        """
        lines = parse(text)
        arch = by_vmcoreinfo(lines)
        if arch is None or arch.ram_from_zero or "SYMBOL(init_uts_ns)" not in lines:
            return []
        try:
            space = arch.address_space(lines)
            physical = space.physical(symbol_in(lines, "init_uts_ns", space.image))
        except ValueError:
            return []
        release = lines.get("OSRELEASE", "").encode("ascii", "replace")
        starts: List[int] = []
        for names in self._names:
            # Memory begins at a page boundary, which leaves at most one place for the names.
            start = physical - names.offset + (names.offset - physical) % PAGE
            if names.release == release and start > 0 and start + names.offset - physical < _BEFORE_NAMES:
                starts += [start] if start not in starts else []
        return starts[:_MAX_STARTS]

    @cached_property
    def _names(self) -> List[_Names]:
        found: List[_Names] = []
        for names in self._look():
            if len(found) == _MAX_NAMES:
                break
            found.append(names)
        return found

    def _look(self) -> Iterator[_Names]:
        behind, tail = -1, b""
        for address, data in self._memory.pieces():
            # Names may cross the border between two pieces.
            kept = tail if address == behind else b""
            joined = kept + bytes(data)
            first = address - len(kept)
            for match in _NAMES.finditer(joined):
                yield _Names(first + match.start(), match[1])
            behind, tail = address + len(data), joined[-_LONGEST + 1 :]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The toy's ptdump, which shows pages by level and flags, and nothing else."""

from __future__ import annotations

from typing import Iterable, Iterator, Tuple

from kvintro.arch.rights import EXEC, USER, USER_EXEC, WRITE
from kvintro.paging import EFFECTIVE_SHIFT, LEVEL_MASK, MAPPED
from kvintro.queries.ptdump import Dump, Shown
from tests.toy.form import FOR_USER, NO_EXEC, NO_USER_EXEC, READ_ONLY

_FLAGS = ((READ_ONLY, "ro"), (FOR_USER, "usr"), (NO_EXEC, "nx"), (NO_USER_EXEC, "unx"))
_RIGHTS = ((WRITE, "w"), (USER, "u"), (EXEC, "x"), (USER_EXEC, "ux"))
_COMPARED = sum(mask << EFFECTIVE_SHIFT for mask, _ in _RIGHTS)


class ToyDump(Dump):
    """See :class:`kvintro.queries.ptdump.Dump`."""

    def find_headings(self) -> None:
        """One for each region that is not inside another."""
        for key in ("direct_map", "vmalloc", "vmemmap", "fixmap", "kasan_shadow"):
            self.head_region(key, key)

    def noted(self, ranges: Iterable[Tuple[int, int, int]]) -> Iterator[Tuple[int, int, int]]:
        """For holes, only the level."""
        for start, end, key in ranges:
            flags = self.kernel.form.flag_bits(self.level(key)) | MAPPED | _COMPARED
            yield start, end, key & (LEVEL_MASK | flags if key & MAPPED else LEVEL_MASK)

    def shown(self, key: int) -> Shown:
        """Flags, and the rights of all levels."""
        level = self.kernel.form.level_name(self.level(key))
        if not key & MAPPED:
            return Shown(level, "not-present")
        flags = tuple(name for mask, name in _FLAGS if key & mask)
        rights = tuple(name for mask, name in _RIGHTS if key >> EFFECTIVE_SHIFT & mask)
        return Shown(level, "present", flags, rights)

    def writable_and_executable(self, key: int) -> bool:
        """Both rights of kernel mode."""
        return (key >> EFFECTIVE_SHIFT) & (WRITE | EXEC) == WRITE | EXEC


DUMP = ToyDump

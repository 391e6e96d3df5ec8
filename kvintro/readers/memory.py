# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory as the kernel keeps account of it: ``iomem_resource``, and what lies behind an address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Set, Tuple

from kvintro.arch.x86_64 import ALL, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.readers.structures import TROUBLE, Damage, number, struct_at, text_at

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_MAX_RESOURCES = 1 << 16
_MAX_DEPTH = 32
SYSTEM_RAM = "System RAM"


@dataclass(frozen=True)
class Resource:
    """A line of /proc/iomem: physical addresses, both inclusive, and how deep it lies in the tree."""

    start: int
    end: int
    name: str
    depth: int


def resources(kernel: Kernel, damage: Damage) -> List[Resource]:
    """All of ``iomem_resource``, in the order of /proc/iomem.

    :raises Unavailable: the source does not tell.
    """
    try:
        child = number(struct_at(kernel, "struct resource", kernel.symbol("iomem_resource")), "child")
    except TROUBLE as error:
        why = error.what if isinstance(error, Unavailable) else error
        raise Unavailable(f"the tree of memory resources cannot be read: {why}") from error
    out: List[Resource] = []
    seen: Set[int] = set()
    waiting: List[Tuple[int, int]] = [(child, 0)]
    while waiting:
        address, depth = waiting.pop()
        if not address:
            continue
        if address in seen or depth > _MAX_DEPTH or len(seen) >= _MAX_RESOURCES:
            damage.add("the tree of memory resources runs in a circle", f"back to {address:016x}")
            continue
        seen.add(address)
        try:
            entry = struct_at(kernel, "struct resource", address)
        except Unavailable as error:
            damage.add("the tree of memory resources breaks off", error.what)
            continue
        pointer = number(entry, "name")
        try:
            name = text_at(kernel, pointer, 256) if pointer else "<BAD>"
        except Unavailable:
            name = "<BAD>"
        start, end = number(entry, "start"), number(entry, "end")
        if start <= end:
            out.append(Resource(start, end, name, depth))
        waiting.append((number(entry, "sibling"), depth))
        waiting.append((number(entry, "child"), depth + 1))
    return out


def debug_pagealloc(kernel: Kernel) -> bool:
    """Whether free pages, and what of the image is freed, are mapped nowhere: debug_pagealloc_enabled()."""
    try:
        return bool(kernel.value("_debug_pagealloc_enabled_early", 1).value)
    except Unavailable:
        return False


class Physical:
    """What lies at a physical address: a part of the kernel image, a device, RAM.

    Never raises; what cannot be told is None.

    :param damage: told of what is wrong with the tree of resources.
    :ivar problem: why there is no such tree, "" if there is one.
    """

    def __init__(self, kernel: Kernel, damage: Optional[Damage] = None) -> None:
        self._kernel = kernel
        self.problem = ""
        try:
            self.resources = resources(kernel, Damage() if damage is None else damage)
        except Unavailable as error:
            self.resources = []
            self.problem = error.what
        self._top = sorted((r for r in self.resources if not r.depth), key=lambda r: r.start)
        self._top_starts = [resource.start for resource in self._top]
        # Leaves of the tree say most; a child starts where or behind its parent does, and comes later.
        self._starts = sorted(
            (resource.start, resource.depth, resource.end, resource.name) for resource in self.resources
        )

    def resource(self, address: int) -> Optional[str]:
        """Name of the innermost resource."""
        index = bisect_right(self._starts, (address, _MAX_DEPTH + 1, 0, "")) - 1
        # Whatever encloses the address starts before it; the first that reaches so far is the innermost.
        while index >= 0:
            start, depth, end, name = self._starts[index]
            if start <= address <= end:
                return name
            if depth == 0 and end < address:
                return None
            index -= 1
        return None

    def overlapping(self, start: int, end: int) -> Tuple[str, ...]:
        """Names of the resources at the top of the tree that lie between two addresses, both inclusive."""
        index = max(bisect_right(self._top_starts, start) - 1, 0)
        names: List[str] = []
        for resource in self._top[index:]:
            if resource.start > end:
                break
            if resource.end >= start and resource.name not in names:
                names.append(resource.name)
        return tuple(names)

    def symbol(self, address: int) -> Optional[str]:
        """Symbol of the kernel image that is there, ``symbol+0x10``; freed parts of it keep their names."""
        try:
            kernel = self._kernel
            virtual = address - kernel.phys_base.value + START_KERNEL_MAP & ALL
            # Where only code has names, none of it is at the end.
            if virtual < kernel.text.value or (not kernel.code_only and virtual >= kernel.symbol("_end")):
                return None
            found = kernel.prog.symbol(virtual)
        except (LookupError, Unavailable):
            return None
        offset = virtual - found.address
        return f"{found.name}+{offset:#x}" if offset else str(found.name)

    def behind(self, address: int) -> Optional[str]:
        """The best of both."""
        return self.symbol(address) or self.resource(address)

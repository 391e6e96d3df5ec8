# SPDX-License-Identifier: LGPL-2.1-or-later
"""Physical memory as ``iomem_resource`` lists it, and names for physical addresses."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.model import ALL
from kvintro.readers.damage import Damage
from kvintro.readers.lists import nested_entries
from kvintro.readers.structures import TROUBLE, number, struct_at, text_at

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_MAX_RESOURCES = 1 << 16
_MAX_DEPTH = 32
SYSTEM_RAM = "System RAM"


class Resource(NamedTuple):
    """A line of /proc/iomem: inclusive physical addresses, a name, and the depth in the tree."""

    start: int
    end: int
    name: str
    depth: int


def resources(kernel: Kernel, damage: Damage) -> List[Resource]:
    """Read all of ``iomem_resource``, in the order of /proc/iomem.

    :raises Unavailable: the source does not contain it.
    """
    try:
        child = number(struct_at(kernel, "struct resource", kernel.symbol("iomem_resource")), "child")
    except TROUBLE as error:
        why = error.what if isinstance(error, Unavailable) else error
        raise Unavailable(f"the tree of memory resources cannot be read: {why}") from error
    out: List[Resource] = []
    for entry, depth in nested_entries(
        kernel,
        child,
        "struct resource",
        "sibling",
        "child",
        damage,
        "the tree of memory resources",
        limit=_MAX_RESOURCES,
        max_depth=_MAX_DEPTH,
    ):
        pointer = number(entry, "name")
        try:
            name = text_at(kernel, pointer, 256) if pointer else "<BAD>"
        except Unavailable:
            name = "<BAD>"
        start, end = number(entry, "start"), number(entry, "end")
        if start <= end:
            out.append(Resource(start, end, name, depth))
    return out


def debug_pagealloc(kernel: Kernel) -> bool:
    """Whether the kernel unmaps free pages and freed parts of the image: debug_pagealloc_enabled()."""
    try:
        return bool(kernel.value("_debug_pagealloc_enabled_early", 1).value)
    except Unavailable:
        return False


class Physical:
    """Names for physical addresses: part of the kernel image, device or RAM.

    Methods never raise; unknown values are None.

    :param damage: collects problems of the tree of resources.
    :ivar problem: why the tree cannot be read, "" if it can.
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
        # Leaves are the most specific. A child starts at or after its parent's start, and sorts after it.
        self._starts = sorted(
            (resource.start, resource.depth, resource.end, resource.name) for resource in self.resources
        )

    def resource(self, address: int) -> Optional[str]:
        """Name of the innermost resource."""
        index = bisect_right(self._starts, (address, _MAX_DEPTH + 1, 0, "")) - 1
        # Every enclosing resource starts at or before the address; the first that reaches it is the
        # innermost.
        while index >= 0:
            start, depth, end, name = self._starts[index]
            if start <= address <= end:
                return name
            if depth == 0 and end < address:
                return None
            index -= 1
        return None

    def overlapping(self, start: int, end: int) -> Tuple[str, ...]:
        """Names of the top-level resources that overlap two inclusive addresses."""
        index = max(bisect_right(self._top_starts, start) - 1, 0)
        names: List[str] = []
        for resource in self._top[index:]:
            if resource.start > end:
                break
            if resource.end >= start and resource.name not in names:
                names.append(resource.name)
        return tuple(names)

    def symbol(self, address: int) -> Optional[str]:
        """Symbol of the kernel image at an address, ``symbol+0x10``; freed parts of it keep their names."""
        try:
            kernel = self._kernel
            virtual = address + kernel.image_offset.value & ALL
            # If only code has names, no symbol marks the end.
            if virtual < kernel.text.value or (not kernel.code_only and virtual >= kernel.symbol("_end")):
                return None
            found = kernel.prog.symbol(virtual)
        except (LookupError, Unavailable):
            return None
        offset = virtual - found.address
        return f"{found.name}+{offset:#x}" if offset else str(found.name)

    def behind(self, address: int) -> Optional[str]:
        """The symbol at an address, or else the resource."""
        return self.symbol(address) or self.resource(address)

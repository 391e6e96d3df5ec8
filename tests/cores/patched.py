# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels whose page tables, variables or VMCOREINFO lines a test changes."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Set

import numpy
import pytest

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Placement
from kvintro.paging import walk
from kvintro.queries.pages.census import TYPE_NUMBERS, FrameTypes, Pages
from kvintro.readers.damage import Damage
from kvintro.regions import regions_of
from kvintro.regions.vmalloc import AreaRow, Areas


def overlaid(data: bytes, address: int, words: Mapping[int, int]) -> bytes:
    """Data that begins at an address, with words of 8 bytes replaced; some may be only partly in it."""
    changed = bytearray(data)
    for at, value in words.items():
        first, end = max(at, address), min(at + 8, address + len(data))
        if first < end:
            changed[first - address : end - address] = value.to_bytes(8, "little")[first - at : end - at]
    return bytes(changed)


class Patched(Kernel):
    """A kernel with some page-table entries and variables changed."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.source, regions_of)
        self.patches: Dict[int, int] = {}
        self.variables: Dict[int, int] = {}
        self.said: Dict[str, str] = {}

    def read_physical(self, address: int, size: int) -> bytes:
        return overlaid(super().read_physical(address, size), address, self.patches)

    def read(self, address: int, size: int) -> bytes:
        if address in self.variables:
            return self.variables[address].to_bytes(8, "little")[:size]
        return super().read(address, size)

    def afresh(self, kernel: Optional[Kernel] = None) -> Patched:
        """The same kernel without data that was cached before the changes.

        :param kernel: also change this one.
        """
        other = Patched(kernel or self)
        other.patches, other.variables = self.patches, self.variables
        if self.said:
            lines = {**other.source.vmcoreinfo, **self.said}
            other.source = dataclasses.replace(other.source, vmcoreinfo=lines)
        return other

    def change(
        self,
        virtual: int,
        *,
        add: int = 0,
        take: int = 0,
        tables_add: int = 0,
        tables_take: int = 0,
        root: Optional[int] = None,
    ) -> None:
        """Change the last entry on the path to an address, and the table entries on that path."""
        steps = walk(self.read_physical, self.form, self.root.value if root is None else root, virtual).steps
        for step in steps[:-1]:
            assert step.value is not None
            self.patches[step.entry_address] = (step.value | tables_add) & ~tables_take
        last = steps[-1]
        assert last.value is not None
        self.patches[last.entry_address] = (last.value | add) & ~take

    def put(self, virtual: int, value: int) -> None:
        """Set the last entry on the path to an address."""
        self.patches[self.walk(virtual).steps[-1].entry_address] = value


#: Changes a kernel so that a rule breaks.
Break = Callable[[Patched], None]


class Breaks(NamedTuple):
    """How the rules of an architecture are broken.

    :ivar breaks: by rule.
    :ivar elsewhere: rules that separate tests break.
    :ivar files: the file of /proc that a rule of the running kernel compares with, as the truth has it.
    :ivar nameless: rules that need variables, and are unknown if variables have no names.
    :ivar without_memory: rules that need only VMCOREINFO.
    :ivar protections: rules about a protection that is off, whose findings are warnings.
    """

    breaks: Mapping[str, Break]
    elsewhere: Set[str]
    files: Mapping[str, str]
    nameless: Set[str]
    without_memory: FrozenSet[str] = frozenset()
    protections: FrozenSet[str] = frozenset()


def symbol(kernel: Kernel, name: str) -> int:
    try:
        return kernel.symbol(name)
    except Unavailable as error:
        pytest.skip(error.what)


def rows(kernel: Kernel) -> List[AreaRow]:
    """All areas of vmalloc."""
    place = kernel.locate("vmalloc")
    assert isinstance(place, Placement)
    return Areas(kernel, place.range, Damage()).rows()


def vmalloc_page(kernel: Kernel) -> int:
    """An address in an area with its own pages, and without code."""
    where = kernel.place("vmalloc").range
    return int(
        next(
            row.start
            for row in rows(kernel)
            if row.kind == "vmalloc" and row.pages and row.mapped and row.start in where
            if not any("x" in rights for rights in row.rights)
        )
    )


def mapped_from(kernel: Kernel, start: int) -> int:
    """The first page that is mapped at an address or after it: memfd_secret and KFENCE unmap single pages.

    :param start: address of a page in the direct map.
    """
    pages = range(start, start + (16 << 20), kernel.form.page_size)
    return next(at for at in pages if kernel.walk(at).physical is not None)


def ram(kernel: Kernel) -> int:
    """The start of memory. Nodes may begin with memory of the firmware, and on riscv64 a dump has its ROM."""
    starts = [segment.paddr for segment in kernel.source.segments if segment.memsz]
    if kernel.arch.name == "riscv64":
        starts = []
    return min(starts, default=kernel.node_spans()[0][0] << kernel.page_shift)


def frame_of(kernel: Kernel, kind: str) -> int:
    """A page frame of a type, not among the first 1,024."""
    types = FrameTypes(Pages(kernel))
    first = ram(kernel) >> kernel.page_shift
    frames = numpy.arange(first + (1 << 10), first + (24 << 10), dtype=numpy.uint64)
    return int(frames[types.numbers(frames) == TYPE_NUMBERS[kind]][0])

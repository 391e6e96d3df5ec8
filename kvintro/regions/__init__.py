# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per region of the address space.

A region is added by adding a file here with a ``REGION``, an instance of a subclass of :class:`Region`: the
layout, and whatever else lists regions, finds it by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

from kvintro.errors import Unavailable
from kvintro.model import AddressRange, Located, NoRange, Placement, Unknown

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


@dataclass(frozen=True)
class Root:
    """A page-table root under which a region is mapped.

    :ivar table: physical address of the root table.
    :ivar owner: whose root it is, for people: ``init_top_pgt``, ``efi_mm``, ``pid 1``.
    """

    table: int
    owner: str


@dataclass(frozen=True)
class Linear:
    """A rule by which a region translates without page tables: physical = virtual - offset, modulo 2^64.

    It says where the kernel puts things, not what is mapped: the page tables have the last word.

    :ivar range: virtual addresses for which it holds.
    """

    range: AddressRange
    offset: int


class Region:
    """A row of the memory map: where it lies on a kernel, and which tables map it."""

    #: Name in JSON and on the command line.
    key: str
    #: What people call it.
    name: str
    #: ``region``, or ``hole`` for what nothing may ever live in.
    kind = "region"
    #: The kernel's macro or variable that defines the start.
    macro: str
    #: Place among the rows of mm.rst, for lists in which nothing else gives an order.
    row = 100
    #: Architecture (:attr:`kvintro.arch.Architecture.name`) that has it.
    arch = "x86-64"
    #: Whether the bounds are constants of the paging mode. Where what was read contradicts them, they win.
    fixed = False
    #: What one of ``roots`` is called in a count.
    root_noun = ("root", "roots")

    def locate(self, kernel: Kernel) -> Located:
        """Where it lies on this kernel, or why this kernel has none.

        :raises Unavailable: the source does not tell.
        """
        raise NotImplementedError

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        """The roots to look under for what is mapped in it.

        :raises Unavailable: the source does not tell.
        """
        return (Root(kernel.root.value, "init_top_pgt"),)

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """The rule by which it translates; None if only page tables tell.

        :raises Unavailable: the source does not tell.
        """
        return None

    def located(self, kernel: Kernel) -> Located:
        """:meth:`locate`, with what cannot be read as :class:`~kvintro.model.Unknown`."""
        try:
            return self.locate(kernel)
        except Unavailable as error:
            return Unknown(error.what)
        except NoRange as error:
            return Unknown(f"its bounds make no sense: {error}")


def fixed_place(found: AddressRange, note: str = "") -> Placement:
    """The placement of a region whose bounds follow from the paging mode alone."""
    return Placement(found, "constant", default_start=found.start, note=note)


@cache
def _modules() -> Tuple[Any, ...]:
    return tuple(
        importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)
    )


def regions_of(arch: Any) -> Tuple[Region, ...]:
    """All regions of an architecture: those with a file here, and those its own file brings."""
    found = [m.REGION for m in _modules() if hasattr(m, "REGION") and m.REGION.arch == arch.name]
    return tuple(sorted((*found, *arch.regions), key=lambda region: (region.row, region.key)))

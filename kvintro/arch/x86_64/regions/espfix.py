# SPDX-License-Identifier: LGPL-2.1-or-later
"""The region of stacks for returning to 16-bit stacks without leaking the upper half of %esp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ESPFIX_BASE, P4D_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    Absent,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Located,
    Placement,
    Randomised,
    Size,
    Table,
)
from kvintro.readers.cpus import per_cpu_address, possible_cpus
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View
from kvintro.readers.processes import is_behind_broken_table, mapped_physical
from kvintro.readers.randomness import drawn, not_known
from kvintro.readers.structures import pointer_at
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_STACK_SIZE = 64  # ESPFIX_STACK_SIZE
_STACKS_PER_PAGE = PAGE_SIZE // _STACK_SIZE
_CLONE_STRIDE = 1 << 16
_PAGE_SPACE = 1 << P4D_SHIFT - 12 - 16  # ESPFIX_PAGE_SPACE


@dataclass(frozen=True)
class StackRow:
    """A CPU's stack.

    :ivar start: its lowest address in the read-only mapping, which user mode's tables also have.
    :ivar slot: its number among the stacks of the page.
    :ivar writable: address where the kernel writes to the same memory (``espfix_waddr``).
    :ivar clones: number of mappings of the page, which are 64 KB apart.
    """

    cpu: int
    start: Address
    end: Address
    size: Size
    slot: int
    rights: Tuple[str, ...]
    writable: Address
    physical: Optional[Address]
    clones: int
    problem: Optional[str]


_COLUMNS = (
    Column("cpu", "cpu", "right"),
    Column("start", "start"),
    Column("end", "end", spare=2),
    Column("size", "size", "right"),
    Column("slot", "slot", "right"),
    Column("rights", "rights"),
    Column("writable", "writable at"),
    Column("physical", "physical", spare=1),
    Column("clones", "mapped, times", "right"),
    Column("problem", ""),
)


class Espfix(Region):
    """``ESPFIX_BASE_ADDR``, one entry of a P4D; arch/x86/kernel/espfix_64.c."""

    key = "espfix"
    row = 10
    name = "%esp fixup stacks"
    macro = "ESPFIX_BASE_ADDR"
    traits = Trait.IN_USE | Trait.NO_EXEC | Trait.NO_WRITE

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol("init_espfix_ap", code=True):
            return Absent("CONFIG_X86_ESPFIX64 is off")
        found = AddressRange(ESPFIX_BASE, ESPFIX_BASE + (1 << P4D_SHIFT) - 1)
        walk = kernel.walk(found.start)
        # If the P4D's entry is empty, nothing is set up: init_espfix_bsp fills it, but not with FRED.
        if walk.state == "unmapped" and walk.steps[-1].level >= 4:
            return Absent("the kernel did not set it up (it is not needed with FRED)")
        return fixed_place(found, "each page again every 64 KB")

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """The place of the first CPU's stack (init_espfix_random), which is random even without KASLR."""
        what = "espfix stack of CPU 0"
        if not isinstance(kernel.locate(self), Placement):
            return ()
        start = pointer_at(kernel, per_cpu_address(kernel, "espfix_stack", 0))
        if not ESPFIX_BASE <= start < ESPFIX_BASE + (1 << P4D_SHIFT):
            return (not_known(self.key, what, "CPU 0 does not have one"),)
        return (
            drawn(
                self.key,
                what,
                default=ESPFIX_BASE,
                actual=start,
                granularity=_STACK_SIZE,
                slots=_PAGE_SPACE * _STACKS_PER_PAGE,
                provenance="espfix_stack",
                computed=f"{_PAGE_SPACE} pages (page_random) of {_STACKS_PER_PAGE} places (slot_random)",
                note="random even without KASLR",
            ),
        )

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Each CPU's stack, from ``espfix_stack`` and ``espfix_waddr``. Only the list of CPUs needs types."""
        damage = Damage()
        base, end = ESPFIX_BASE, ESPFIX_BASE + (1 << P4D_SHIFT) - 1
        view = View.of(kernel, base, end)
        # Only clones of a few pages are mapped here, and each page has an equal share of the mappings.
        mapped = view.stretch(base, end).mapped
        cpus = possible_cpus(kernel)
        pages = max(-(-len(cpus) // _STACKS_PER_PAGE), 1)
        rows: List[StackRow] = []
        idle: List[int] = []
        for cpu in cpus:
            try:
                start = pointer_at(kernel, per_cpu_address(kernel, "espfix_stack", cpu))
                writable = pointer_at(kernel, per_cpu_address(kernel, "espfix_waddr", cpu))
            except Unavailable as error:
                damage.add("the stack of a CPU cannot be found", f"CPU {cpu}: {error.what}")
                continue
            if not start:
                idle.append(cpu)  # set up when the CPU first comes up
            elif not base <= start <= end - _STACK_SIZE + 1:
                damage.add("the stack of a CPU is outside the region", f"CPU {cpu}: {start:016x}")
            else:
                rows.append(_stack(kernel, view, cpu, start, writable, mapped // PAGE_SIZE // pages))
        notes = [*damage.notes]
        if idle:
            notes.append(f"{len(idle)} CPUs have never been up and have no stack: {idle[:8]}")
        notes += [f"CPU {row.cpu}: {row.problem}" for row in rows if row.problem]
        totals = {
            "stacks": len(rows),
            "pages": len({row.physical & ~(PAGE_SIZE - 1) for row in rows if row.physical is not None}),
            "address_space_mapped": Size(mapped),
        }
        return Contents((Table("stacks", _COLUMNS, rows),), totals, notes, partial=bool(damage))


def _stack(kernel: Kernel, view: View, cpu: int, start: int, writable: int, clones: int) -> StackRow:
    found = view.stretch(start, start + _STACK_SIZE - 1)
    here, there = mapped_physical(kernel, start), mapped_physical(kernel, writable)
    problem = None
    if found.unreadable:
        pass
    elif here is None:
        problem = "nothing is mapped"
    elif found.rights != ("r--",):
        problem = f"mapped {' '.join(found.rights)}, should be r--"
    elif here != there and not is_behind_broken_table(kernel, writable):
        problem = f"{writable:016x} is not the same memory"
    elif (
        mapped_physical(
            kernel,
            (start + _CLONE_STRIDE)
            if start + _CLONE_STRIDE >> P4D_SHIFT == start >> P4D_SHIFT
            else start - _CLONE_STRIDE,
        )
        != here
    ):
        problem = "the page is not mapped again 64 KB later"
    return StackRow(
        cpu=cpu,
        start=Address(start),
        end=Address(start + _STACK_SIZE - 1),
        size=Size(_STACK_SIZE),
        slot=start % PAGE_SIZE // _STACK_SIZE,
        rights=found.rights,
        writable=Address(writable),
        physical=None if here is None else Address(here),
        clones=clones,
        problem=problem,
    )


REGION = Espfix()

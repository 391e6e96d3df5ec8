# SPDX-License-Identifier: LGPL-2.1-or-later
"""The LDT of a process as user mode sees it under page-table isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Sequence, Set

from kvintro.arch.x86_64 import ALL, START_KERNEL_MAP
from kvintro.errors import Unavailable
from kvintro.model import Absent, Located
from kvintro.regions import Region, Root, fixed_place
from kvintro.structures import TROUBLE

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_MAX_TASKS = 1 << 22  # PID_MAX_LIMIT


class LdtRemap(Region):
    """One entry of the root, mapped per process by ``arch/x86/kernel/ldt.c:map_ldt_struct``."""

    key = "ldt_remap"
    row = 4
    name = "LDT remap for PTI"
    macro = "LDT_BASE_ADDR"
    fixed = True
    root_noun = ("process", "processes")

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.pti.value:
            return Absent("page-table isolation is off")
        if not kernel.has_symbol("ldt_dup_context"):
            return Absent("CONFIG_MODIFY_LDT_SYSCALL is off")
        return fixed_place(kernel.geometry.ldt_remap)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        """The roots of the processes that have an LDT."""
        from drgn.helpers.linux.pid import for_each_task

        if kernel.source.types == "none":
            raise Unavailable("processes cannot be listed without types")
        found: List[Root] = []
        seen: Set[int] = set()
        try:
            for count, task in enumerate(for_each_task(kernel.prog)):
                if count >= _MAX_TASKS:
                    raise Unavailable("the list of tasks does not end")
                mm = task.mm.read_()
                if not mm or mm.value_() in seen:
                    continue
                seen.add(mm.value_())
                if mm.context.ldt:
                    found.append(Root(table_of(kernel, mm.pgd.value_()), f"pid {task.pid.value_()}"))
        except TROUBLE as error:
            raise Unavailable(f"processes cannot be listed: {error}") from error
        return found


def table_of(kernel: Kernel, address: int) -> int:
    """Physical address of a page table given by its address in the image or the direct map."""
    if address >= START_KERNEL_MAP:
        return address - START_KERNEL_MAP + kernel.phys_base.value & ALL
    return address - kernel.page_offset_base.value & ALL


REGION = LdtRemap()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes and their address spaces, from ``init_task``'s list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterator, Optional, Set

import drgn

from kvintro.arch.x86_64 import ALL, START_KERNEL_MAP
from kvintro.errors import Unavailable, UsageError
from kvintro.readers.structures import (
    TROUBLE,
    Damage,
    list_entries,
    need_types,
    number,
    offset_of,
    struct_at,
    text_of,
)

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_MAX_PROCESSES = 1 << 22  # PID_MAX_LIMIT


@dataclass(frozen=True)
class Process:
    """A thread group leader.

    :ivar mm: address of its ``struct mm_struct``, 0 for kernel threads and for what has exited.
    """

    pid: int
    comm: str
    task: int
    mm: int


def processes(kernel: Kernel, damage: Damage) -> Iterator[Process]:
    """All processes, kernel threads among them, in the order of the kernel's list.

    :raises Unavailable: the source does not tell.
    """
    need_types(kernel, "processes")
    init = kernel.symbol("init_task")
    tasks = offset_of(kernel, "struct task_struct", "tasks")
    entries = list_entries(
        kernel,
        init + tasks,
        "struct task_struct",
        "tasks",
        damage,
        "the list of processes",
        limit=_MAX_PROCESSES,
    )
    for address, task in entries:
        try:
            mm = number(task, "mm") or _left_mm(kernel, task)
            yield Process(number(task, "pid"), text_of(task.comm), address, mm)
        except TROUBLE as error:
            damage.add("a process cannot be read", f"{address:016x}: {error}")


def _left_mm(kernel: Kernel, task: drgn.Object) -> int:
    """The memory of a process whose first thread has exited: its other threads still have it."""
    threads = number(task, "signal")
    if not threads or number(task, "flags") & 0x00200000:  # PF_KTHREAD
        return 0
    head = threads + offset_of(kernel, "struct signal_struct", "thread_head")
    for _, thread in list_entries(
        kernel, head, "struct task_struct", "thread_node", Damage(), "a list of threads", limit=_MAX_PROCESSES
    ):
        if number(thread, "mm"):
            return number(thread, "mm")
    return 0


def find_process(kernel: Kernel, pid: int) -> Process:
    """A process that has memory of its own.

    :raises UsageError: there is none of that number, or it has none.
    :raises Unavailable: the source does not tell.
    """
    damage = Damage()
    for process in processes(kernel, damage):
        if process.pid == pid:
            if not process.mm:
                raise UsageError(
                    f"pid {pid} ({process.comm}) is a kernel thread or has exited: it has no user memory",
                    "see `user --all` for those that have",
                )
            return process
    if damage:
        raise Unavailable(
            f"process {pid} was not found, and the list of processes is damaged: {damage.notes[0]}"
        )
    raise UsageError(f"there is no process {pid}", "see `user --all`; threads go by the pid of their process")


def each_mm(kernel: Kernel, damage: Damage) -> Iterator[Process]:
    """Processes with memory of their own, each memory once (vfork and CLONE_VM share)."""
    seen: Set[int] = set()
    for process in processes(kernel, damage):
        if process.mm and process.mm not in seen:
            seen.add(process.mm)
            yield process


def mm_of(kernel: Kernel, process: Process) -> drgn.Object:
    """Its ``struct mm_struct`` as a value.

    :raises Unavailable: it is not in the source.
    """
    return struct_at(kernel, "struct mm_struct", process.mm)


def root_of(kernel: Kernel, mm: drgn.Object) -> int:
    """Physical address of the root of its page tables."""
    return physical_of(kernel, number(mm, "pgd"))


def physical_of(kernel: Kernel, address: int) -> int:
    """``__pa()``: of an address in the image or the direct map."""
    if address >= START_KERNEL_MAP:
        return address - START_KERNEL_MAP + kernel.phys_base.value & ALL
    return address - kernel.page_offset_base.value & ALL


def mapped_physical(kernel: Kernel, address: int) -> Optional[int]:
    """What the kernel's page tables map an address to, None for nothing and where they are broken."""
    return None if is_behind_broken_table(kernel, address) else kernel.walk(address & ALL).physical


def is_behind_broken_table(kernel: Kernel, address: int) -> bool:
    """Whether what maps an address is not known, as a page table on the way is broken."""
    return any(broken.start <= address & ALL <= broken.end for broken in kernel.source.broken_tables)

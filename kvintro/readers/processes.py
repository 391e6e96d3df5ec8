# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes and their address spaces, from ``init_task``'s list."""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import drgn

from kvintro.errors import Unavailable, UsageError
from kvintro.model import ALL
from kvintro.paging import Tree
from kvintro.paging.forest import MOST_ROOTS, Forest
from kvintro.paging.tree import read_tables
from kvintro.readers.damage import Damage
from kvintro.readers.lists import list_members
from kvintro.readers.structures import (
    TROUBLE,
    member_reader,
    need_types,
    number,
    offset_of,
    plain_text,
    struct_at,
)

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_MAX_PROCESSES = 1 << 22  # PID_MAX_LIMIT
_MAX_FOREIGN = 1 << 10  # above this limit none of the process's tables is used
#: The note about tables that :func:`foreign_tables` finds.
SHARED_TABLES = "page tables of a process also belong to another process, and are ignored"


#: A process's name for notes, and its root table.
OwnRoot = Tuple[str, int]


class Process(NamedTuple):
    """A thread group leader.

    :ivar mm: address of its ``struct mm_struct``, 0 for kernel threads and exited processes.
    """

    pid: int
    comm: str
    task: int
    mm: int


def processes(kernel: Kernel, damage: Damage) -> Iterator[Process]:
    """All processes, including kernel threads, in the order of the kernel's list.

    :raises Unavailable: the source does not contain them.
    """
    need_types(kernel, "processes")
    init = kernel.symbol("init_task")
    tasks = offset_of(kernel, "struct task_struct", "tasks")
    entries = list_members(
        kernel,
        init + tasks,
        "struct task_struct",
        "tasks",
        ("pid", "comm", "mm", "signal", "flags"),
        damage,
        "the list of processes",
        limit=_MAX_PROCESSES,
    )
    for address, (pid, comm, mm, signal, flags) in entries:
        try:
            yield Process(pid, plain_text(comm), address, mm or _left_mm(kernel, signal, flags))
        except TROUBLE as error:
            damage.add("a process cannot be read", f"{address:016x}: {error}")


def _left_mm(kernel: Kernel, signal: int, flags: int) -> int:
    """The ``mm_struct`` of a process whose first thread has exited; its other threads still have it."""
    if not signal or flags & 0x00200000:  # PF_KTHREAD
        return 0
    head = signal + offset_of(kernel, "struct signal_struct", "thread_head")
    what = "a list of threads"
    for _, (mm,) in list_members(
        kernel, head, "struct task_struct", "thread_node", ("mm",), Damage(), what, limit=_MAX_PROCESSES
    ):
        if mm:
            return int(mm)
    return 0


def find_process(kernel: Kernel, pid: int) -> Process:
    """Find a process that has its own memory.

    :raises UsageError: there is no process with this number, or it has no memory.
    :raises Unavailable: the source does not contain the process.
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
    raise UsageError(
        f"there is no process {pid}", "see `user --all`; for a thread, give the pid of its process"
    )


def each_mm(kernel: Kernel, damage: Damage) -> Iterator[Process]:
    """Processes with their own memory; memory shared by several (vfork, CLONE_VM) occurs once.

    :raises Unavailable: the source does not contain them.
    """
    found, lost = kernel.once(_all_processes)
    damage.merge(lost)
    seen: Set[int] = set()
    for process in found:
        if process.mm and process.mm not in seen:
            seen.add(process.mm)
            yield process


def _all_processes(kernel: Kernel) -> Tuple[Sequence[Process], Damage]:
    damage = Damage()
    return list(processes(kernel, damage)), damage


def mm_of(kernel: Kernel, process: Process) -> drgn.Object:
    """Read a process's ``struct mm_struct``.

    :raises Unavailable: it is not in the source.
    """
    return struct_at(kernel, "struct mm_struct", process.mm)


class Memory(NamedTuple):
    """What a ``struct mm_struct`` says about the memory of a process.

    :ivar root: physical address of the root page table.
    :ivar areas: number of memory areas.
    :ivar pages: size of all areas in pages.
    :ivar tables: bytes of page tables (``mm_pgtables_bytes()``).
    :ivar ldt: address of the ``struct ldt_struct``, 0 if none.
    """

    root: int
    areas: int
    pages: int
    tables: int
    ldt: int


def memory_of(kernel: Kernel, process: Process) -> Memory:
    """Read a process's ``struct mm_struct``.

    :raises Unavailable: it is not in the source.
    """
    pgd, *others = kernel.once(_mm_reader)(process.mm)
    return Memory(physical_of(kernel, pgd), *others)


def _mm_reader(kernel: Kernel) -> Callable[[int], Tuple[Any, ...]]:
    members = ("pgd", "map_count", "total_vm", "pgtables_bytes.counter", "context.ldt")
    return member_reader(kernel, "struct mm_struct", *members)


def root_of(kernel: Kernel, mm: drgn.Object) -> int:
    """Physical address of the root page table of an ``mm_struct``."""
    return physical_of(kernel, number(mm, "pgd"))


def foreign_tables(kernel: Kernel, root: int) -> Set[int]:
    """Find page tables of a process's user half that belong to a process examined before.

    A table of user memory belongs to one process. Tables that map only huge pages are an exception
    (mm/hugetlb.c:huge_pmd_share); they are never foreign. A dump in which processes share other tables is
    damaged or forged. Expanding them for each process would take unbounded time, so walks over processes skip
    them. Tables below a foreign one are not in the result.

    :param root: physical address of the process's root table.
    """
    import numpy

    u = numpy.uint64
    foreign: Set[int] = set()
    met: Set[int] = {root}
    form = kernel.form
    level = form.levels
    tables: List[int] = [root]
    while level > 1 and tables:
        data, _ = read_tables(kernel.read_physical, form, numpy.array(tables, u), level)
        if level == form.levels:
            data = data[:, form.user_entries()]
        lower = form.is_table(data, level)
        own = numpy.ones(len(tables), bool)
        for row in numpy.flatnonzero(lower.any(axis=1)).tolist():
            if kernel.claims.problem("user page table", tables[row], form.table_size(level), root):
                foreign.add(tables[row])
                own[row] = False
        following = numpy.unique(form.table_address(data[own][lower[own]])).tolist()
        tables = [table for table in following if table not in met]
        met.update(tables)
        if len(met) > kernel.table_limit or len(foreign) > _MAX_FOREIGN:
            return {root}
        level -= 1
    return foreign


def forests(kernel: Kernel, roots: Sequence[OwnRoot]) -> Iterator[Tuple[Sequence[OwnRoot], Optional[Forest]]]:
    """The user halves of processes, those of some at a time.

    A forest is None for a single process whose page tables are unusual or many: use :func:`user_tree`.
    """
    for low in range(0, len(roots), MOST_ROOTS):
        waiting = [roots[low : low + MOST_ROOTS]]
        while waiting:
            part = waiting.pop()
            forest = kernel.forest([root for _, root in part])
            if forest is not None and not _is_own(kernel, forest):
                forest = None
            if forest is not None or len(part) == 1:
                yield part, forest
            else:
                # Find the one that is unusual.
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]


def _is_own(kernel: Kernel, forest: Forest) -> bool:
    """Whether no table belongs to another process as well; see :func:`foreign_tables`."""
    import numpy

    inner = [(level, level.tables[level.inner], level.owners[level.inner]) for level in forest.levels[:-1]]
    tables = numpy.sort(numpy.concatenate([numpy.zeros(0, numpy.uint64), *(found for _, found, _ in inner)]))
    if (tables[1:] == tables[:-1]).any():
        return False
    problem, roots = kernel.claims.problem, forest.roots
    return not any(
        problem("user page table", table, kernel.form.table_size(level.level), roots[owner])
        for level, found, owners in inner
        for table, owner in zip(found.tolist(), owners.tolist())
    )


def user_tree(kernel: Kernel, root: int, damage: Damage, owner: str) -> Tree:
    """Return the page tables of a process without those that belong to another process.

    The kernel object does not cache the tree: thousands of processes would take too much memory.

    :param root: physical address of the root table.
    :param damage: collects a note about omitted tables.
    :param owner: name of the process for that note.
    """
    foreign = foreign_tables(kernel, root)
    if foreign:
        damage.add(SHARED_TABLES, owner)
    return kernel.new_tree(root, unusable=foreign)


def physical_of(kernel: Kernel, address: int) -> int:
    """``__pa()`` of an address in the image or the direct map."""
    offset = kernel.image_offset if address in kernel.facts.image else kernel.linear_offset
    return address - offset.value & ALL


def mapped_physical(kernel: Kernel, address: int) -> Optional[int]:
    """Physical address of a virtual one; None if it is unmapped, or a page table is broken."""
    return None if is_behind_broken_table(kernel, address) else kernel.walk(address & ALL).physical


def is_behind_broken_table(kernel: Kernel, address: int) -> bool:
    """Whether a broken page table hides the mapping of an address."""
    return any(broken.start <= address & ALL <= broken.end for broken in kernel.source.broken_tables)

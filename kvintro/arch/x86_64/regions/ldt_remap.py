# SPDX-License-Identifier: LGPL-2.1-or-later
"""The LDT of a process as user mode sees it under page-table isolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import LDT_SLOT_STRIDE, PAGE_SIZE
from kvintro.arch.x86_64.facts import x86_form
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import Absent, Address, Asked, Column, Contents, Located, Root, Size, Table
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View
from kvintro.readers.processes import Process, each_mm, mapped_physical, memory_of
from kvintro.readers.structures import TROUBLE, need_types, number, struct_at
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    import drgn

    from kvintro.kernels import Kernel

_ENTRY_SIZE, _MAX_ENTRIES = 8, 8192  # arch/x86/include/uapi/asm/ldt.h


@dataclass(frozen=True)
class LdtRow:
    """The LDT of a process.

    :ivar slot: 0 or 1, which alternate with every change; None if it is not mapped.
    :ivar entries: number of entries that it has room for.
    :ivar memory: address of the kernel's own mapping.
    """

    pid: int
    comm: str
    slot: Optional[int]
    entries: int
    start: Optional[Address]
    end: Optional[Address]
    size: Size
    memory: Address
    mapped: Size
    rights: Tuple[str, ...]
    physical: Optional[Address]
    problem: Optional[str]


@dataclass(frozen=True)
class EntryRow:
    """An entry of an LDT that is not empty.

    :ivar value: the raw descriptor.
    :ivar limit: last offset, in bytes or in pages of 4K.
    """

    pid: int
    entry: int
    value: Address
    base: Address
    limit: int
    limit_unit: str
    kind: str
    privilege: int
    present: bool


_TABLE_COLUMNS = (
    Column("pid", "pid", "right"),
    Column("comm", "command"),
    Column("slot", "slot", "right", 2),
    Column("entries", "entries", "right"),
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("rights", "rights"),
    Column("physical", "physical", spare=1),
    Column("memory", "same as", spare=3),
    Column("problem", ""),
)
_ENTRY_COLUMNS = (
    Column("pid", "pid", "right"),
    Column("entry", "entry", "right"),
    Column("value", "descriptor", spare=1),
    Column("base", "base"),
    Column("limit", "limit", "right"),
    Column("limit_unit", "in"),
    Column("kind", "segment"),
    Column("privilege", "DPL", "right"),
)


class LdtRemap(Region):
    """One entry of the root, mapped per process by ``arch/x86/kernel/ldt.c:map_ldt_struct``."""

    key = "ldt_remap"
    row = 4
    name = "LDT remap for PTI"
    macro = "LDT_BASE_ADDR"
    fixed = True
    root_noun = ("process", "processes")
    traits = Trait.PER_PROCESS | Trait.OTHER_ROOTS | Trait.NO_EXEC | Trait.NO_WRITE

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.isolation.value:
            return Absent("page-table isolation is off")
        if not kernel.has_symbol("ldt_dup_context", code=True):
            return Absent("CONFIG_MODIFY_LDT_SYSCALL is off")
        return fixed_place(x86_form(kernel).ldt_remap)

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        """The roots of the processes that have an LDT."""
        found: List[Root] = []
        damage = Damage()
        for process in each_mm(kernel, damage):
            try:
                memory = memory_of(kernel, process)
                if memory.ldt:
                    found.append(Root(memory.root, f"pid {process.pid}"))
            except TROUBLE as error:
                damage.add("the memory of a process cannot be read", f"pid {process.pid}: {error}")
        if damage:
            raise Unavailable(f"processes cannot be listed: {damage.notes[0]}")
        return found

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Every process's table, and its entries."""
        need_types(kernel, "LDTs")
        damage = Damage()
        tables: List[LdtRow] = []
        entries: List[EntryRow] = []
        for process in each_mm(kernel, damage):
            if asked.pid is not None and process.pid != asked.pid:
                continue
            try:
                memory = memory_of(kernel, process)
                if memory.ldt:
                    ldt = struct_at(kernel, "struct ldt_struct", memory.ldt)
                    row = _table(kernel, process, memory.root, ldt)
                    tables.append(row)
                    entries += _entries(kernel, row)
            except TROUBLE as error:
                damage.add("the LDT of a process cannot be read", f"pid {process.pid}: {error}")
        notes = [*damage.notes, *(f"pid {row.pid}: {row.problem}" for row in tables if row.problem)]
        totals = {
            "processes": len(tables),
            "mapped": Size(sum(row.mapped for row in tables)),
            "entries_in_use": len(entries),
        }
        return Contents(
            (
                Table("tables", _TABLE_COLUMNS, tables),
                Table("entries", _ENTRY_COLUMNS, entries, "entries in use"),
            ),
            totals,
            notes,
            partial=bool(damage),
        )


def _table(kernel: Kernel, process: Process, root: int, ldt: drgn.Object) -> LdtRow:
    """A process's table and its mapping, which should be read-only and map the pages of the table."""
    slot, count, memory = number(ldt, "slot"), number(ldt, "nr_entries"), number(ldt, "entries")
    if not 0 <= count <= _MAX_ENTRIES:
        raise ValueError(f"invalid number of LDT entries: {count}")
    size = -(-count * _ENTRY_SIZE // PAGE_SIZE) * PAGE_SIZE
    if slot not in (0, 1) or not size:
        return LdtRow(
            process.pid, process.comm, None, count, None, None, Size(size), Address(memory), Size(0), (),
            None, "it is not mapped, though page-table isolation is on",
        )  # fmt: skip
    start = x86_form(kernel).ldt_remap.start + slot * LDT_SLOT_STRIDE
    found = View.of(kernel, start, start + size - 1, root).stretch(start, start + size - 1)
    problem = None
    if found.unreadable:
        pass
    elif found.mapped != size:
        problem = f"{found.mapped} of {size} bytes are mapped"
    elif found.rights != ("r--",):
        problem = f"mapped {' '.join(found.rights)}, should be r--"
    else:
        for offset in range(0, size, PAGE_SIZE):
            wanted = mapped_physical(kernel, memory + offset)
            if wanted is not None and kernel.walk(start + offset, root).physical != wanted:
                problem = f"{start + offset:016x} is not the page of the table"
                break
    physical = kernel.walk(start, root).physical
    return LdtRow(
        pid=process.pid,
        comm=process.comm,
        slot=slot,
        entries=count,
        start=Address(start),
        end=Address(start + size - 1),
        size=Size(size),
        memory=Address(memory),
        mapped=Size(found.mapped),
        rights=found.rights,
        physical=None if physical is None else Address(physical),
        problem=problem,
    )


def _entries(kernel: Kernel, table: LdtRow) -> List[EntryRow]:
    """Entries that are not all zero (struct desc_struct)."""
    data = kernel.read(table.memory, table.entries * _ENTRY_SIZE)
    rows = []
    for index in range(table.entries):
        value = int.from_bytes(data[index * _ENTRY_SIZE : (index + 1) * _ENTRY_SIZE], "little")
        if not value:
            continue
        limit = value & 0xFFFF | (value >> 48 & 0xF) << 16
        rows.append(
            EntryRow(
                pid=table.pid,
                entry=index,
                value=Address(value),
                base=Address(value >> 16 & 0xFFFFFF | value >> 56 << 24),
                limit=limit,
                limit_unit="pages" if value >> 55 & 1 else "bytes",
                kind=_kind(value),
                privilege=value >> 45 & 3,
                present=bool(value >> 47 & 1),
            )
        )
    return rows


def _kind(value: int) -> str:
    """The type of a code or data segment as text. Linux installs no other segments."""
    kind = value >> 40 & 15
    width = "64-bit" if value >> 53 & 1 else "32-bit" if value >> 54 & 1 else "16-bit"
    if not value >> 44 & 1:
        return f"system {kind}"
    if kind & 8:
        return (
            f"{width} code, {'readable' if kind & 2 else 'execute only'}{', conforming' if kind & 4 else ''}"
        )
    return f"{width} data, {'writable' if kind & 2 else 'read-only'}{', expands down' if kind & 4 else ''}"


REGION = LdtRemap()

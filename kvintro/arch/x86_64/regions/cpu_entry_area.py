# SPDX-License-Identifier: LGPL-2.1-or-later
"""The data that each CPU needs to enter the kernel: the only kernel data that user mode's tables also map."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.arch.x86_64 import CPU_ENTRY_AREA_BASE, P4D_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import (
    ALL,
    Address,
    AddressRange,
    Asked,
    Column,
    Contents,
    Located,
    Randomised,
    Size,
    Table,
    Thing,
)
from kvintro.paging import MAPPED
from kvintro.readers.cpus import per_cpu_address, possible_cpus
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View
from kvintro.readers.processes import mapped_physical
from kvintro.readers.randomness import drawn, kaslr_enabled, not_drawn, why_off
from kvintro.readers.structures import need_types, offset_of, pointer_at, size_of, type_of
from kvintro.regions import Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

# Members of struct cpu_entry_area: the per-CPU variable that each maps a second time, and its rights
# (arch/x86/mm/cpu_entry_area.c:setup_cpu_entry_area).
_BEHIND: Dict[str, Tuple[str, str]] = {
    "gdt": ("gdt_page", "r--"),
    "entry_stack_page": ("entry_stack_storage", "rw-"),
    "tss": ("cpu_tss_rw", "r--"),
    "cpu_debug_store": ("cpu_debug_store", "rw-"),
}
# Mapped only on some machines: VC stacks in SEV-ES guests, the debug store on Intel's processors, and its
# buffers while perf uses them.
_OPTIONAL = ("VC_stack", "VC2_stack", "cpu_debug_store", "cpu_debug_buffers")

_MAX_CPUS = 1 << 13
# arch/x86/include/asm/segment.h; present, for user mode, read-only data.
_GDT_ENTRY_CPUNODE, _CPUNODE_RIGHTS = 15, 0xF5


@dataclass(frozen=True)
class MemberRow:
    """A member of a CPU's area, or the IDT at the start of the region.

    :ivar cpu: None for the IDT, which all CPUs share.
    :ivar guard: whether it is a guard, where nothing may be mapped.
    :ivar expected: rights that it should have; empty if nothing should be mapped.
    :ivar physical: physical address of the first page that it maps.
    :ivar behind: the variable that it maps a second time.
    """

    cpu: Optional[int]
    member: str
    start: Address
    end: Address
    size: Size
    guard: bool
    expected: str
    rights: Tuple[str, ...]
    mapped: Size
    physical: Optional[Address]
    behind: Optional[str]
    problem: Optional[str]


@dataclass(frozen=True)
class AreaRow:
    """A CPU's area.

    :ivar slot: number of its place in the region; the CPU's number if places are not randomised.
    """

    cpu: int
    slot: int
    start: Address
    end: Address
    size: Size
    mapped: Size


_MEMBER_COLUMNS = (
    Column("cpu", "cpu", "right"),
    Column("member", "member"),
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("rights", "rights"),
    Column("physical", "physical", spare=1),
    Column("behind", "same as", spare=2),
    Column("problem", ""),
)
_AREA_COLUMNS = (
    Column("cpu", "cpu", "right"),
    Column("slot", "slot", "right"),
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("mapped", "mapped", "right"),
)


class CpuEntryArea(Region):
    """``CPU_ENTRY_AREA_BASE``, one entry of a P4D; arch/x86/include/asm/cpu_entry_area.h."""

    key = "cpu_entry_area"
    row = 9
    name = "cpu_entry_area"
    macro = "CPU_ENTRY_AREA_BASE"
    fixed = True
    traits = Trait.IN_USE | Trait.NO_EXEC

    def locate(self, kernel: Kernel) -> Located:
        base = CPU_ENTRY_AREA_BASE
        note = ""
        if kernel.find_symbol("_cea_offset") is not None:
            note = "each CPU's at a random place in it"
        return fixed_place(AddressRange(base, base + (1 << P4D_SHIFT) - 1), note)

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """Each CPU's place (init_cea_offsets)."""
        size = size_of(kernel, "struct cpu_entry_area")
        places = ((1 << P4D_SHIFT) - PAGE_SIZE) // size
        has_offsets = kernel.has_symbol("_cea_offset")
        found = [(cpu, *area_of(kernel, cpu)) for cpu in possible_cpus(kernel)]
        # For a while they were also randomised without KASLR (a3f547addcaa "x86/mm: Do not shuffle CPU entry
        # areas without KASLR").
        moved = any(slot != cpu for cpu, slot, _ in found)
        enabled = has_offsets and (moved or kaslr_enabled(kernel)[0])
        rows = []
        for before, (cpu, _, start) in enumerate(found):
            key, what = f"cpu_entry_area.{cpu}", f"cpu_entry_area of CPU {cpu}"
            default = CPU_ENTRY_AREA_BASE + PAGE_SIZE + cpu * size
            if not enabled:
                reason = why_off(kernel) if has_offsets else "this kernel puts them one after the other"
                rows.append(
                    not_drawn(key, what, reason, default=default, actual=start, provenance="constant")
                )
                continue
            rows.append(
                drawn(
                    key,
                    what,
                    default=default,
                    actual=start,
                    granularity=size,
                    # The draw is repeated until it gives a place that no CPU before it has, nor the CPU
                    # itself, whose place is still the first one at that time.
                    slots=max(places - 1 - before, 1),
                    provenance="_cea_offset",
                    computed="places of its size in the region, minus the first and those of earlier CPUs",
                )
            )
        return rows

    def finder(self, kernel: Kernel) -> Callable[[int], Iterable[Thing]]:
        return _Finder(kernel).members

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """The IDT, and every CPU's members."""
        need_types(kernel, "members of cpu_entry_area")
        damage = Damage()
        base, end = CPU_ENTRY_AREA_BASE, CPU_ENTRY_AREA_BASE + (1 << P4D_SHIFT) - 1
        view = View.of(kernel, base, end)
        rows: List[MemberRow] = [_idt(kernel, view)]
        areas: List[AreaRow] = []
        size = size_of(kernel, "struct cpu_entry_area")
        for cpu, slot, start in areas_of(kernel, damage):
            mapped = view.stretch(start, start + size - 1).mapped
            areas.append(
                AreaRow(cpu, slot, Address(start), Address(start + size - 1), Size(size), Size(mapped))
            )
            rows += [
                _member(kernel, view, cpu, name, start + offset, length, parent)
                for name, offset, length, parent in _members(kernel)
            ]
        mapped = view.stretch(base, end).mapped
        known = sum(row.mapped for row in rows)
        totals = {
            "cpus": len(areas),
            "size_for_each": Size(size),
            "mapped": Size(mapped),
            "guards": sum(row.guard for row in rows),
            "places": ((1 << P4D_SHIFT) - PAGE_SIZE) // size,
        }
        notes = [*damage.notes]
        wrong = [row for row in rows if row.problem]
        if wrong:
            shown = "; ".join(f"{row.start:016x} ({row.member}): {row.problem}" for row in wrong[:3])
            notes.append(f"{len(wrong)} members are not mapped as they should be: {shown}")
        if mapped != known and not damage:
            notes.append(f"{mapped - known} mapped bytes do not belong to a member of any CPU")
        return Contents(
            (
                Table("members", _MEMBER_COLUMNS, rows),
                Table("cpus", _AREA_COLUMNS, areas, "each CPU's area"),
            ),
            totals,
            notes,
            partial=bool(damage),
        )


def areas_of(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, int, int]]:
    """(CPU, place, address) of every CPU's area.

    :raises Unavailable: the source does not contain it.
    """
    if kernel.code_only:
        yield from _areas_by_tables(kernel, damage)
        return
    size = size_of(kernel, "struct cpu_entry_area")
    for cpu in possible_cpus(kernel):
        try:
            slot, start = area_of(kernel, cpu)
        except Unavailable as error:
            damage.add("the area of a CPU cannot be found", f"CPU {cpu}: {error.what}")
            continue
        if start + size > CPU_ENTRY_AREA_BASE + (1 << P4D_SHIFT):
            damage.add("the area of a CPU is outside the region", f"CPU {cpu}: slot {slot}")
            continue
        yield cpu, slot, start


def _areas_by_tables(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, int, int]]:
    """Find areas without symbols of variables: an area is mapped, and its GDT has the CPU's number.

    A descriptor for vdso's getcpu() has the number in its limit (arch/x86/kernel/cpu/common.c:
    setup_getcpu), in the low 12 bits, with the node above. A CPU that was never started has no such
    descriptor.
    """
    size = size_of(kernel, "struct cpu_entry_area")
    first = CPU_ENTRY_AREA_BASE + PAGE_SIZE
    places = ((1 << P4D_SHIFT) - PAGE_SIZE) // max(size, 1)
    mapped = kernel.kernel_ranges.clip(first, first + places * size - 1).select(MAPPED)
    slots = {
        slot for low, high, _ in mapped for slot in range((low - first) // size, (high - first) // size + 1)
    }
    if len(slots) > _MAX_CPUS:
        raise Unavailable(f"invalid number of CPUs: {len(slots)}")
    gdt = offset_of(kernel, "struct cpu_entry_area", "gdt")
    found: Dict[int, Tuple[int, int]] = {}
    for slot in sorted(slots):
        start = first + slot * size
        try:
            descriptor = pointer_at(kernel, start + gdt + 8 * _GDT_ENTRY_CPUNODE)
        except Unavailable as error:
            damage.add("the area of a CPU cannot be read", error.what)
            continue
        cpu = descriptor & 0xFFF
        if descriptor >> 40 & 0xFF != _CPUNODE_RIGHTS or cpu in found:
            damage.add("an area does not contain the number of its CPU", f"{start:016x}")
            continue
        found[cpu] = slot, start
    for cpu in sorted(found):
        yield (cpu, *found[cpu])


class _Finder:
    """Finds members of areas by their addresses."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def _areas(self) -> Tuple[List[Tuple[int, int]], Damage]:
        """(address, CPU) of every CPU's area, ascending; and the damage that was found."""
        damage = Damage()
        return sorted((start, cpu) for cpu, _, start in areas_of(self._kernel, damage)), damage

    def members(self, address: int) -> Iterator[Thing]:
        """The member that an address belongs to."""
        if self._kernel.source.types == "none":
            return
        if address < CPU_ENTRY_AREA_BASE + PAGE_SIZE:
            member: Optional[Tuple[str, int, int]] = ("IDT", CPU_ENTRY_AREA_BASE, PAGE_SIZE)
            cpu, whose = None, "all CPUs"
        else:
            areas, damage = self._areas
            at = bisect_right(areas, (address, ALL)) - 1
            start, cpu = areas[at] if at >= 0 else (address, None)
            member, whose = member_at(self._kernel, start, address) if at >= 0 else None, f"CPU {cpu}"
            if member is None and damage:
                raise Unavailable(f"cpu_entry_area: {damage.notes[0]}")
        if member is None:
            return
        name, start, size = member
        offset = address - start
        text = f"cpu_entry_area of {whose}: {name} +{offset:#x}"
        details = {"cpu": cpu, "member": name, "offset": offset}
        yield Thing("cpu_entry_area", text, Address(start), size, details)


def member_at(kernel: Kernel, start: int, address: int) -> Optional[Tuple[str, int, int]]:
    """(name, address, bytes) of the member of an area that an address belongs to.

    :param start: the area's address.
    """
    for name, offset, length, _ in _members(kernel):
        if start + offset <= address < start + offset + length:
            return name, start + offset, length
    return None


def area_of(kernel: Kernel, cpu: int) -> Tuple[int, int]:
    """(place, address) of a CPU's area: ``get_cpu_entry_area()``.

    The places are random since 97e3d26b5e5f "x86/mm: Randomize per-cpu entry area" (6.2). Before, and without
    KASLR, they follow CPU numbers.

    :raises Unavailable: the source does not contain it.
    """
    slot = cpu
    if kernel.has_symbol("_cea_offset"):
        slot = pointer_at(kernel, per_cpu_address(kernel, "_cea_offset", cpu))
    size = size_of(kernel, "struct cpu_entry_area")
    if not 0 < size <= 1 << 24 or slot * size > 1 << P4D_SHIFT:
        raise Unavailable(f"place {slot} of {size} bytes is invalid")
    # The first page is the IDT's.
    return slot, CPU_ENTRY_AREA_BASE + PAGE_SIZE + slot * size


def _members(kernel: Kernel) -> Iterator[Tuple[str, int, int, Optional[str]]]:
    """(name, offset, size, containing member) of each member of the area, in order."""
    for member in type_of(kernel, "struct cpu_entry_area").members:
        base = member.bit_offset // 8
        if member.name == "estacks":
            for inner in member.type.members:
                yield inner.name or "", base + inner.bit_offset // 8, drgn.sizeof(inner.type), member.name
        else:
            yield member.name or "", base, drgn.sizeof(member.type), None


def _idt(kernel: Kernel, view: View) -> MemberRow:
    """``arch/x86/kernel/idt.c:idt_setup_apic_and_irq_gates`` maps idt_table, which is one page, read-only."""
    wanted: Optional[int] = None
    address = kernel.find_symbol("idt_table")
    if address is not None:
        wanted = mapped_physical(kernel, address)
    return _row(kernel, view, None, "IDT", CPU_ENTRY_AREA_BASE, PAGE_SIZE, "r--", "idt_table", [wanted])


def _is_guard(name: str) -> bool:
    """Whether nothing may be mapped there. DB2_stack, up to 5.7, is a hole to end nested debug exceptions."""
    return name.endswith("_guard") or name == "DB2_stack"


def _member(
    kernel: Kernel, view: View, cpu: int, name: str, start: int, size: int, parent: Optional[str]
) -> MemberRow:
    guard = _is_guard(name)
    behind, expected = _BEHIND.get(name, (None, ""))
    offset = 0
    if parent == "estacks" and not guard:
        behind, expected = "exception_stacks", "rw-"
        try:
            offset = next(
                m.bit_offset // 8
                for m in type_of(kernel, "struct exception_stacks").members
                if m.name == name
            )
        except (StopIteration, Unavailable):
            behind = None
    wanted: List[Optional[int]] = []
    if behind is not None:
        try:
            source = per_cpu_address(kernel, behind, cpu) + offset
            wanted = [mapped_physical(kernel, source + at) for at in range(0, size, PAGE_SIZE)]
        except Unavailable:
            pass
    shown = behind if parent is None or behind is None else f"{behind}.{name}"
    return _row(kernel, view, cpu, name, start, size, expected, shown, wanted)


def _row(
    kernel: Kernel,
    view: View,
    cpu: Optional[int],
    name: str,
    start: int,
    size: int,
    expected: str,
    behind: Optional[str],
    wanted: List[Optional[int]],
) -> MemberRow:
    guard = _is_guard(name)
    found = view.stretch(start, start + size - 1)
    physical = mapped_physical(kernel, start) if found.mapped else None
    optional = name in _OPTIONAL
    problem = None
    if found.unreadable:
        pass
    elif guard and found.mapped:
        problem = "a guard page that is mapped"
    elif expected and not found.mapped and not optional:
        problem = "nothing is mapped"
    elif expected and found.mapped:
        if found.mapped != size:
            problem = f"{found.mapped} of {size} bytes are mapped"
        elif found.rights != (expected,):
            problem = f"{' '.join(found.rights)}, should be {expected}"
        else:
            for index, frame in enumerate(wanted):
                at = start + index * PAGE_SIZE
                if frame is not None and mapped_physical(kernel, at) != frame:
                    problem = f"{at:016x} is not the page of {behind}"
                    break
    return MemberRow(
        cpu=cpu,
        member=name,
        start=Address(start),
        end=Address(start + size - 1),
        size=Size(size),
        guard=guard,
        expected="" if guard or (optional and not found.mapped) else expected,
        rights=found.rights,
        mapped=Size(found.mapped),
        physical=None if physical is None else Address(physical),
        behind=behind if found.mapped else None,
        problem=problem,
    )


REGION = CpuEntryArea()

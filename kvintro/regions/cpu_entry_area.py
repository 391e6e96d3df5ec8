# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each CPU needs to enter the kernel: the only kernel data that user mode's tables also map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.arch.x86_64 import CPU_ENTRY_AREA_BASE, P4D_SHIFT, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.model import Address, AddressRange, Column, Located, Size, Table
from kvintro.paging import MAPPED
from kvintro.readers.mapped import View
from kvintro.readers.processes import mapped_physical
from kvintro.readers.randomness import Randomised, drawn, kaslr_enabled, not_drawn, why_off
from kvintro.readers.structures import (
    Damage,
    need_types,
    offset_of,
    per_cpu_address,
    pointer_at,
    possible_cpus,
    size_of,
    type_of,
)
from kvintro.regions import Asked, Contents, Region, fixed_place

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

# Members of struct cpu_entry_area: the per-CPU variable that each is another mapping of, and its rights
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
# arch/x86/include/asm/segment.h; present, for user mode, data that is only read.
_GDT_ENTRY_CPUNODE, _CPUNODE_RIGHTS = 15, 0xF5


@dataclass(frozen=True)
class MemberRow:
    """A member of a CPU's area, or the IDT at the start of the region.

    :ivar cpu: None for the IDT, which all CPUs share.
    :ivar guard: whether it is there to be mapped to nothing.
    :ivar expected: rights that it should have, empty for nothing mapped.
    :ivar physical: the first page behind it.
    :ivar behind: the variable that it is another mapping of.
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

    :ivar slot: which of the places in the region it has; the CPU's number where they are not randomised.
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
    Column("physical", "physical"),
    Column("behind", "same as"),
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
        # For a while they were drawn without KASLR, too (a3f547addcaa "x86/mm: Do not shuffle CPU entry areas
        # without KASLR").
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
                    # Drawn anew until it is a place that no CPU before it has, nor the CPU itself, whose
                    # place is still the first one then.
                    slots=max(places - 1 - before, 1),
                    provenance="_cea_offset",
                    computed="places of its size in the region, less the first and those of the CPUs before",
                )
            )
        return rows

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
            notes.append(f"{mapped - known} bytes are mapped here that belong to no member of any CPU")
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

    :raises Unavailable: the source does not tell.
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
            damage.add("the area of a CPU lies outside of the region", f"CPU {cpu}: slot {slot}")
            continue
        yield cpu, slot, start


def _areas_by_tables(kernel: Kernel, damage: Damage) -> Iterator[Tuple[int, int, int]]:
    """Where variables have no names: an area is where something is mapped, and its GDT knows the CPU.

    For vdso's getcpu() a descriptor has the number as its limit (arch/x86/kernel/cpu/common.c:
    setup_getcpu), with the node behind 12 bits. A CPU that was never started has none.
    """
    size = size_of(kernel, "struct cpu_entry_area")
    first = CPU_ENTRY_AREA_BASE + PAGE_SIZE
    places = ((1 << P4D_SHIFT) - PAGE_SIZE) // max(size, 1)
    mapped = kernel.kernel_ranges.clip(first, first + places * size - 1).select(MAPPED)
    slots = {
        slot for low, high, _ in mapped for slot in range((low - first) // size, (high - first) // size + 1)
    }
    if len(slots) > _MAX_CPUS:
        raise Unavailable(f"{len(slots)} CPUs make no sense")
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
            damage.add("there is an area that does not tell of which CPU it is", f"{start:016x}")
            continue
        found[cpu] = slot, start
    for cpu in sorted(found):
        yield (cpu, *found[cpu])


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

    The places were drawn at random since 97e3d26b5e5f "x86/mm: Randomize per-cpu entry area" (6.2); before,
    and without KASLR, they go by CPU numbers.

    :raises Unavailable: the source does not tell.
    """
    slot = cpu
    if kernel.has_symbol("_cea_offset"):
        slot = pointer_at(kernel, per_cpu_address(kernel, "_cea_offset", cpu))
    size = size_of(kernel, "struct cpu_entry_area")
    if not 0 < size <= 1 << 24 or slot * size > 1 << P4D_SHIFT:
        raise Unavailable(f"place {slot} of {size} bytes makes no sense")
    # The first page is the IDT's.
    return slot, CPU_ENTRY_AREA_BASE + PAGE_SIZE + slot * size


def _members(kernel: Kernel) -> Iterator[Tuple[str, int, int, Optional[str]]]:
    """(name, offset, size, containing member) of what the area consists of, in order."""
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
    """Whether nothing is mapped there; DB2_stack, up to 5.7, is a hole that ends nested debug exceptions."""
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots of one page each, at addresses known when the kernel was compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from kvintro.arch.x86_64 import FIXADDR_TOP, PAGE_SHIFT, PAGE_SIZE, VSYSCALL_ADDR
from kvintro.errors import Unavailable
from kvintro.model import Address, AddressRange, Column, Located, Placement, Size, Table
from kvintro.readers.mapped import View
from kvintro.readers.memory import Physical
from kvintro.readers.structures import need_types
from kvintro.regions import Asked, Contents, Region

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_MAX_SLOTS = 1 << 16
# arch/x86/include/asm/fixmap.h:FIXMAP_PMD_NUM, arch/x86/kernel/head_64.S: the slots have two tables since
# "x86/mm: Expand static page table for fixmap space" (05ab1d8a4b36, 4.20).
_ROOM = FIXADDR_TOP + PAGE_SIZE - (2 << 21) & -(1 << 21)
_PERMANENT_END = "__end_of_permanent_fixed_addresses"
_END = "__end_of_fixed_addresses"


@dataclass(frozen=True)
class SlotRow:
    """A slot.

    :ivar slot: its number; slot 0 is the highest page.
    :ivar name: enumerator of ``enum fixed_addresses``, ``NAME+n`` within an array of slots, None for none.
    :ivar permanent: whether it outlives early boot.
    :ivar physical: the page behind it, None if nothing is mapped.
    :ivar behind: what lies there.
    """

    slot: int
    name: Optional[str]
    start: Address
    end: Address
    size: Size
    permanent: bool
    mapped: Size
    physical: Optional[Address]
    behind: Optional[str]
    rights: Tuple[str, ...]
    caching: Tuple[str, ...]


_COLUMNS = (
    Column("slot", "slot", "right"),
    Column("start", "address"),
    Column("name", "name"),
    Column("physical", "physical"),
    Column("rights", "rights"),
    Column("caching", "caching"),
    Column("behind", "what is there"),
)


class Fixmap(Region):
    """``FIXADDR_START`` up to the vsyscall page; slots count downwards from ``FIXADDR_TOP``.

    The slots above the vsyscall page, which is slot 511, have no names. Without the page the range goes up to
    FIXADDR_TOP. Below FIXADDR_START lie slots for early boot only, down to FIXADDR_TOT_START.
    """

    key = "fixmap"
    row = 14
    name = "fixmap"
    macro = "FIXADDR_START"

    def locate(self, kernel: Kernel) -> Located:
        if kernel.source.types == "none":
            return _room(kernel)
        slots = self.permanent_slots(kernel)
        start = FIXADDR_TOP - (slots << PAGE_SHIFT)
        # Without CONFIG_X86_VSYSCALL_EMULATION the first slots start where the vsyscall page's number was.
        try:
            first = int(kernel.prog.constant("VSYSCALL_PAGE").value_()) + 1
            end = VSYSCALL_ADDR - 1
        except LookupError:
            first, end = 0, FIXADDR_TOP + PAGE_SIZE - 1
        note = f"slots {first} to {slots - 1}, and the page below them"
        return Placement(AddressRange(start, end), "enum fixed_addresses", note=note)

    def permanent_slots(self, kernel: Kernel) -> int:
        """How many slots outlive early boot: FIXADDR_START is so many pages below FIXADDR_TOP.

        :raises Unavailable: there are no types, or they make no sense.
        """
        try:
            slots = int(kernel.prog.constant(_PERMANENT_END).value_())
        except LookupError:
            raise Unavailable("its slots are an enum, which cannot be read without types") from None
        if not 0 < slots < _MAX_SLOTS:
            raise Unavailable(f"enum fixed_addresses has {slots} slots, which makes no sense")
        return slots

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Every slot that has a name, early boot's among them, and any other that something is mapped in."""
        need_types(kernel, "fixmap slots")
        names, permanent, last = _slots(kernel)
        physical = Physical(kernel)
        top, bottom = FIXADDR_TOP + PAGE_SIZE - 1, FIXADDR_TOP - (last << PAGE_SHIFT) + PAGE_SIZE
        view = View.of(kernel, bottom, top)
        rows: List[SlotRow] = []
        for slot in range(last):
            start = FIXADDR_TOP - (slot << PAGE_SHIFT)
            found = view.stretch(start, start + PAGE_SIZE - 1)
            name = names.get(slot)
            if name is None and not found.mapped:
                continue
            frame = kernel.walk(start).physical if found.mapped else None
            rows.append(
                SlotRow(
                    slot=slot,
                    name=name,
                    start=Address(start),
                    end=Address(start + PAGE_SIZE - 1),
                    size=Size(PAGE_SIZE),
                    permanent=slot < permanent,
                    mapped=Size(found.mapped),
                    physical=None if frame is None else Address(frame),
                    behind=None if frame is None else physical.behind(frame),
                    rights=found.rights,
                    caching=found.caching,
                )
            )
        in_use = [row for row in rows if row.mapped]
        totals = {
            "permanent_slots": sum(row.permanent and row.name is not None for row in rows),
            "slots_of_early_boot": sum(not row.permanent for row in rows),
            "mapped": len(in_use),
        }
        stray = [row for row in in_use if row.name is None]
        notes = [f"slot {row.slot} has no name, but is mapped" for row in stray[:5]]
        notes += [
            f"slot {row.slot}, {row.name}, is early boot's and is still mapped"
            for row in in_use
            if not row.permanent
        ][:5]
        return Contents(
            (
                Table("mapped", _COLUMNS, in_use, "mapped"),
                Table("slots", _COLUMNS, rows, "all slots with a name"),
            ),
            totals,
            notes,
        )


def has_kmap_slots(kernel: Kernel) -> bool:
    """Whether CONFIG_DEBUG_KMAP_LOCAL_FORCE_MAP gives the fixmap another 16 MB."""
    try:
        kernel.prog.constant("FIX_KMAP_BEGIN")
        return True
    except LookupError:
        # mm/highmem.c, which 64-bit kernels have for this alone.
        return kernel.find_symbol("__kmap_local_pfn_prot") is not None


def _room(kernel: Kernel) -> Placement:
    """What the page tables leave room for, where the number of slots is not known.

    :raises Unavailable: the tables are not the kernel's two, or nothing tells whether the vsyscall page is.
    """
    if has_kmap_slots(kernel):
        raise Unavailable("its slots are an enum, which cannot be read without types")
    for address in (_ROOM, _ROOM + (1 << 21)):
        steps = kernel.walk(address).steps
        if not steps or steps[-1].level != 1:
            raise Unavailable("its slots are an enum, and its page tables are not those that kernels have")
    emulated = kernel.has_symbol("map_vsyscall", code=True)
    return Placement(
        AddressRange(_ROOM, VSYSCALL_ADDR - 1 if emulated else FIXADDR_TOP + PAGE_SIZE - 1),
        "page tables",
        note="the room of its page tables; how many slots it has cannot be read without types",
    )


def _slots(kernel: Kernel) -> Tuple[Dict[int, str], int, int]:
    """(names by slot, number of permanent slots, number of all)."""
    try:
        enumerators = {e.name: int(e.value) for e in kernel.prog.type("enum fixed_addresses").enumerators}
        permanent, last = enumerators.pop(_PERMANENT_END), enumerators.pop(_END)
    except (LookupError, TypeError) as error:
        raise Unavailable(f"enum fixed_addresses cannot be read: {error}") from error
    if not 0 < permanent <= last < _MAX_SLOTS:
        raise Unavailable(f"enum fixed_addresses has {last} slots, which makes no sense")
    names = {value: name for name, value in enumerators.items()}
    # An array of slots has a name at either end: X_0 or X_BEGIN or X, and X_END. On x86 early boot's are
    # counted so that the one called BEGIN has the higher number.
    for name, value in enumerators.items():
        if not name.endswith("_END"):
            continue
        stem = name[: -len("_END")]
        others = {n: v for n, v in enumerators.items() if n != name and n.startswith(stem)}
        for other, first in others.items():
            if other not in (stem, f"{stem}_0", f"{stem}_BEGIN"):
                continue
            low, high = sorted((first, value))
            for slot in range(low + 1, high):
                names.setdefault(slot, f"{stem}+{slot - low}")
    return names, permanent, last


REGION = Fixmap()

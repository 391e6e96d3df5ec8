# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slots of one page each, at addresses that are fixed when the kernel is compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import MAX_FIXMAP_SLOTS, Trait
from kvintro.model import Address, Asked, Column, Contents, Located, Size, Table
from kvintro.readers.mapped import View
from kvintro.readers.memory import Physical
from kvintro.readers.structures import need_types
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_PERMANENT_END = "__end_of_permanent_fixed_addresses"
_END = "__end_of_fixed_addresses"


@dataclass(frozen=True)
class SlotRow:
    """A slot.

    :ivar slot: number of the slot; slot 0 is the highest page.
    :ivar name: enumerator of ``enum fixed_addresses``, ``NAME+n`` within an array of slots; None if unnamed.
    :ivar permanent: whether it is still used after early boot.
    :ivar physical: physical address of the mapped page, None if no page is mapped.
    :ivar behind: what the mapped page contains.
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
    Column("physical", "physical", spare=2),
    Column("rights", "rights"),
    Column("caching", "caching", spare=1),
    Column("behind", "what is there"),
)


class Fixmap(Region):
    """From ``FIXADDR_START``; slots count downwards from ``FIXADDR_TOP``.

    Below FIXADDR_START lie slots for early boot only, down to FIXADDR_TOT_START.
    """

    key = "fixmap"
    row = 14
    name = "fixmap"
    macro = "FIXADDR_START"
    traits = Trait.SLOTS | Trait.IN_USE | Trait.NO_EXEC

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Every named slot, including those of early boot, and every other slot with a mapped page."""
        need_types(kernel, "fixmap slots")
        names, permanent, last = _slots(kernel)
        physical = Physical(kernel)
        top, page = kernel.facts.fixmap_top, kernel.form.page_size
        view = View.of(kernel, top - (last - 1) * page, top + page - 1)
        rows: List[SlotRow] = []
        for slot in range(last):
            start = top - slot * page
            found = view.stretch(start, start + page - 1)
            name = names.get(slot)
            if name is None and not found.mapped:
                continue
            frame = kernel.walk(start).physical if found.mapped else None
            rows.append(
                SlotRow(
                    slot=slot,
                    name=name,
                    start=Address(start),
                    end=Address(start + page - 1),
                    size=Size(page),
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
            f"slot {row.slot}, {row.name}, belongs to early boot and is still mapped"
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


def _slots(kernel: Kernel) -> Tuple[Dict[int, str], int, int]:
    """(names by slot, number of permanent slots, number of all slots)."""
    try:
        enumerators = {e.name: int(e.value) for e in kernel.prog.type("enum fixed_addresses").enumerators}
        permanent, last = enumerators.pop(_PERMANENT_END), enumerators.pop(_END)
    except (LookupError, TypeError) as error:
        raise Unavailable(f"enum fixed_addresses cannot be read: {error}") from error
    if not 0 < permanent <= last < MAX_FIXMAP_SLOTS:
        raise Unavailable(f"enum fixed_addresses has {last} slots, which is invalid")
    names = {value: name for name, value in enumerators.items()}
    # An array of slots has a name at each end: X_0 or X_BEGIN or X, and X_END. On x86, slots of early boot
    # are numbered so that BEGIN has the higher number.
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

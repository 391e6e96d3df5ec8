# SPDX-License-Identifier: LGPL-2.1-or-later
"""Swap entries, which entries that are not present keep for the kernel, and special swap types. Pure
arithmetic. The layout of the fields depends on the architecture and is not defined here.

Mirrors ``include/linux/swap.h`` and ``include/linux/swapops.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Mapping, NamedTuple, Optional, Tuple

#: MAX_SWAPFILES_SHIFT: bits of a swap type.
SWP_TYPE_BITS = 5
#: Bits of a marker's offset (include/linux/swapops.h). The meaning of bit 1 was a separate type at first.
MARKERS = ("uffd-wp", "poisoned", "guard")
_MIGRATION = {
    0: (),
    2: ("migration (read)", "migration (write)"),
    3: ("migration (read)", "migration (read, exclusive)", "migration (write)"),
}
_DEVICE = {
    0: (),
    2: ("device private (write)", "device private (read)"),
    3: ("device private (write)", "device private (read)", "device exclusive"),
    4: (
        "device private (write)",
        "device private (read)",
        "device exclusive (write)",
        "device exclusive (read)",
    ),
}
#: The most special types that any version has: 5.19 to 6.1 with everything built in.
MOST_SPECIAL = 10


@dataclass(frozen=True)
class SpecialSwapTypes:
    """Swap types that are not swap files, by number. The kernel's configuration decides which exist.

    :ivar markers: number of bits of a marker that have a meaning, see :data:`MARKERS`.
    """

    names: Mapping[int, str]
    markers: int = len(MARKERS)

    @classmethod
    def of(
        cls, *, markers: int, device: int, migration: int, hwpoison: bool, swapin_error: bool = False
    ) -> SpecialSwapTypes:
        """The types from the top (31) down, in the order of ``include/linux/swap.h``.

        :param markers: number of bits of a marker that have a meaning; 0 if there is no SWP_PTE_MARKER.
        :param device: SWP_DEVICE_NUM.
        :param migration: SWP_MIGRATION_NUM.
        :param hwpoison: whether SWP_HWPOISON exists.
        :param swapin_error: whether SWP_SWAPIN_ERROR exists.
        """
        # In ascending order, as swap.h adds them to MAX_SWAPFILES.
        order: List[str] = ["hwpoison"] if hwpoison else []
        order += (*_MIGRATION[migration], *_DEVICE[device])
        order += ["marker"] if markers else []
        order += ["swap-in error"] if swapin_error else []
        first = (1 << SWP_TYPE_BITS) - len(order)
        return cls({first + i: name for i, name in enumerate(order)}, markers)

    @classmethod
    def fitting(
        cls,
        count: Optional[int],
        *,
        hwpoison: bool,
        migration: bool,
        exclusive: int,
        guard: bool,
        least: int = 0,
        most: int = 3,
    ) -> Optional[SpecialSwapTypes]:
        """The types of the only generation of ``swap.h`` that agrees with known properties of a kernel.

        :param count: number of special types, from the length of swap_info; None if unknown.
        :param hwpoison: CONFIG_MEMORY_FAILURE.
        :param migration: CONFIG_MIGRATION.
        :param exclusive: device types of a kernel with make_device_exclusive() or similar; otherwise 0.
        :param guard: whether markers of guard regions exist.
        :param least: first possible index in the generations below.
        :param most: last possible index, inclusive.
        :return: None if no generation fits, or several with different types do.
        """
        found = []
        for number, (first_markers, swapin_error, kinds) in enumerate(_GENERATIONS):
            if not least <= number <= most or (guard and number < len(_GENERATIONS) - 1):
                continue
            devices = {exclusive} if exclusive else {d for d in (0, 2) if d == 0 or number == 0}
            for device in devices:
                types = cls.of(
                    markers=len(MARKERS) if guard else first_markers,
                    device=device,
                    migration=kinds if migration else 0,
                    hwpoison=hwpoison,
                    swapin_error=swapin_error,
                )
                if count in (None, len(types.names)) and types not in found:
                    found.append(types)
        return found[0] if len(found) == 1 else None


#: Generations of include/linux/swap.h: bits of markers, SWP_SWAPIN_ERROR, SWP_MIGRATION_NUM.
_GENERATIONS = (
    (0, False, 2),
    # 9f186f9e5fa9 "mm/swapfile: unuse_pte can map random data if swap read fails" and 6c287605fd56 "mm:
    # remember exclusively mapped anonymous pages with PG_anon_exclusive" (5.19), without CONFIG_PTE_MARKER
    (0, True, 3),
    # 679d10331910 "mm: introduce PTE_MARKER swap entry" (5.19)
    (1, True, 3),
    # 15520a3f0469 "mm: use pte markers for swap errors" (6.2); 7c53dfbdb024 "mm: add PTE_MARKER_GUARD PTE
    # marker" (6.13) gave a meaning to the third bit
    (2, False, 3),
)


class SwapFields(NamedTuple):
    """What an entry keeps for the swap code.

    :ivar type: number of the swap file, or of a special type.
    :ivar bits: names of the entry's other bits that are set, by bit number.
    :ivar inverted: whether the offset was stored inverted.
    """

    type: int
    offset: int
    bits: Mapping[int, str]
    inverted: bool = False


@dataclass(frozen=True)
class Swap:
    """The swap entry in a page-table entry that is not present.

    :ivar type: number of the swap file, or of a special type.
    :ivar kind: ``swap``, a special type's name, or None if that depends on an unknown kernel configuration.
    :ivar offset: page in the swap file; for special types the value that they keep.
    :ivar pfn: page frame number, for types that keep one.
    :ivar flags: EXCLUSIVE, SOFT_DIRTY, UFFD_WP or UFFD; YOUNG and DIRTY for migration entries.
    :ivar markers: names of the bits of a marker from :data:`MARKERS`; ``bit N`` for bits without a name.
    """

    type: int
    kind: Optional[str]
    offset: int
    pfn: Optional[int]
    flags: Tuple[str, ...]
    markers: Tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The entry as text."""
        if self.markers:
            return f"marker: {', '.join(self.markers)} (swap type {self.type}, offset {self.offset:#x})"
        kind = f" ({self.kind})" if self.kind and self.kind != "swap" else ""
        frame = "" if self.pfn is None else f", page frame {self.pfn:#x}"
        return f"swap type {self.type}{kind}, offset {self.offset:#x}{frame}"


def marker_names(offset: int, known: int) -> Tuple[str, ...]:
    """Names of the bits that are set in a marker.

    :param offset: offset of its swap entry.
    :param known: number of bits that have a meaning.
    """
    return tuple(
        MARKERS[bit] if bit < known else f"bit {bit}"
        for bit in range(offset.bit_length())
        if offset >> bit & 1
    )

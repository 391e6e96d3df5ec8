# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shadow in which the address sanitizer keeps a byte for every eight bytes of the kernel half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Tuple

from kvintro.arch.x86_64 import ALL, KASAN_SHADOW_OFFSET, PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.model import Absent, Address, AddressRange, Column, Located, Size, Table
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, PRUNED, FrameTree, Tree
from kvintro.readers.mapped import View, rights_text
from kvintro.readers.processes import physical_of
from kvintro.readers.structures import Damage, type_of
from kvintro.regions import Asked, Contents, Region, fixed_place
from kvintro.types import KASAN

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


_SCALE_SHIFT = 3  # KASAN_SHADOW_SCALE_SHIFT: a byte stands for eight
_MOST = 16 << 20  # bytes of shadow that are decoded in one go
# mm/kasan/kasan.h of generic KASAN.
_MEANINGS = {
    0x00: "may be used",
    0xFF: "free page",
    0xFE: "redzone of a large kmalloc",
    0xFC: "redzone of a slab object",
    0xFB: "freed slab object",
    0xFA: "freed slab object with its free track",
    0xF9: "redzone of a global variable",
    0xF8: "vmalloc area beyond what was asked for, or variable out of scope",
    0xF1: "stack, left redzone",
    0xF2: "stack, between variables",
    0xF3: "stack, right redzone",
    0xF4: "stack, partial redzone",
    0xF5: "stack of a function that returned",
    0xCA: "alloca, left redzone",
    0xCB: "alloca, right redzone",
}
# Before 5.8, when free tracks moved into the freed objects and got a byte.
_OLD_MEANINGS = {
    **_MEANINGS,
    0xFA: "redzone of a global variable",
    0xF9: "vmalloc area beyond what was asked for",
    0xF8: "variable out of scope",
}


@dataclass(frozen=True)
class ByteRow:
    """Addresses whose shadow bytes are all the same.

    :ivar start: first address of memory, to :ivar:`end`.
    :ivar shadow: address of the first shadow byte.
    :ivar value: the shadow byte, None if it is not mapped or not in this source.
    :ivar shared: whether the byte is in the page of zeros that all shadow without one of its own shares.
    """

    start: Address
    end: Address
    size: Size
    shadow: Address
    value: Optional[int]
    byte: str
    meaning: str
    shared: bool


@dataclass(frozen=True)
class ShadowRow:
    """A stretch of shadow of its own, or shared.

    :ivar start: of the shadow, to :ivar:`end`.
    :ivar covers: first address of the memory that it stands for, to :ivar:`covers_end`.
    :ivar region: region of that memory.
    """

    start: Address
    end: Address
    size: Size
    shared: bool
    rights: str
    page_size: str
    covers: Address
    covers_end: Address


_BYTE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("shadow", "shadow at"),
    Column("byte", "byte"),
    Column("meaning", "means"),
    Column("shared", "shared"),
)
_SHADOW_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("rights", "rights"),
    Column("page_size", "pages"),
    Column("covers", "stands for"),
    Column("covers_end", "to"),
)


class KasanShadow(Region):
    """``KASAN_SHADOW_START .. KASAN_SHADOW_END``, arch/x86/include/asm/kasan.h."""

    key = "kasan_shadow"
    row = 8
    name = "KASAN shadow"
    macro = "KASAN_SHADOW_START"

    def locate(self, kernel: Kernel) -> Located:
        if not kernel.has_symbol(KASAN, code=True):
            return Absent("CONFIG_KASAN is off")
        return fixed_place(kernel.geometry.kasan_shadow, "what is mapped is mostly one shared page of zeros")

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """What of the shadow is real; and the shadow of the addresses asked for, byte by byte.

        The range asked for may be of memory or of the shadow itself.
        """
        damage = Damage()
        where = kernel.geometry.kasan_shadow
        early = _early_shadow(kernel)
        # As in the kernel's own ptdump: what lies below a shared table is not looked at again and again.
        tree = Tree(kernel.read_physical, kernel.geometry, kernel.root.value, prune=early.tables, prune_as=1)
        ranges = tree.ranges(where.start, where.end)
        shared_pages = _shared_pages(kernel, early, where)
        rows: List[ShadowRow] = []
        shared = real = 0
        for low, high, key in ranges:
            if key & PRUNED:
                shared += high - low + 1
            elif key & MAPPED:
                for start, end, is_shared in _cut(low, high, shared_pages):
                    size = end - start + 1
                    if is_shared:
                        shared += size
                        continue
                    real += size
                    _add(rows, start, end, key)
        totals = {
            "real": Size(real),
            "shared_zero_page": Size(shared),
            "stands_for": Size(real << _SCALE_SHIFT),
        }
        notes: List[str] = []
        if tree.unreadable_tables:
            damage.add("tables of the shadow are not in this source", str(tree.unreadable_tables))
        decoded: List[ByteRow] = []
        if asked.within is None:
            notes.append("give --range A-B to have the shadow of those addresses decoded")
        else:
            decoded = list(_decode(kernel, asked.within, where, early.page, damage))
        if asked.within is not None:
            table = Table("bytes", _BYTE_COLUMNS, decoded, "shadow bytes")
        else:
            table = Table("real", _SHADOW_COLUMNS, rows, "shadow of its own")
        return Contents((table,), totals, (*damage.notes, *notes), partial=bool(damage), ranged=True)


def shadow_of(address: int) -> int:
    """``kasan_mem_to_shadow()``."""
    return (address >> _SCALE_SHIFT) + KASAN_SHADOW_OFFSET & ALL


def memory_of(shadow: int) -> int:
    """``kasan_shadow_to_mem()``: the first of the eight addresses."""
    return (shadow - KASAN_SHADOW_OFFSET & ALL) << _SCALE_SHIFT & ALL


def _meanings(kernel: Kernel) -> Mapping[int, str]:
    """What bytes mean on this kernel."""
    try:
        old = not type_of(kernel, "struct kasan_free_meta").has_member("free_track")
    except Unavailable:
        old = False
    return _OLD_MEANINGS if old else _MEANINGS


def _meaning(value: Optional[int], meanings: Mapping[int, str]) -> str:
    """What a shadow byte says of its eight bytes."""
    if value is None:
        return "not mapped, or not in this source"
    if 0 < value < 8:
        return f"the first {value} bytes may be used"
    return meanings.get(value, "nothing known")


@dataclass(frozen=True)
class _Early:
    """The shared tables and page (arch/x86/mm/kasan_init_64.c).

    :ivar tables: physical address by the level of the entries that point to it.
    :ivar page: physical address of the page of zeros.
    """

    tables: Dict[int, int]
    page: int


def _early_shadow(kernel: Kernel) -> _Early:
    # An entry at level 2 points to a table of PTEs, and so on.
    names = {2: "kasan_early_shadow_pte", 3: "kasan_early_shadow_pmd", 4: "kasan_early_shadow_pud"}
    if kernel.geometry.levels == 5:
        names[5] = "kasan_early_shadow_p4d"
    tables = {level: physical_of(kernel, kernel.symbol(name)) for level, name in names.items()}
    return _Early(tables, physical_of(kernel, kernel.symbol("kasan_early_shadow_page")))


def _shared_pages(kernel: Kernel, early: _Early, where: AddressRange) -> View:
    """Where single entries point to the page of zeros."""
    tree = FrameTree(kernel.read_physical, kernel.geometry, kernel.root.value, early.page)
    return View(tree.ranges(where.start, where.end))


def _cut(low: int, high: int, shared: View) -> Iterator[Tuple[int, int, bool]]:
    """A stretch in pieces: (start, end, whether it is the shared page)."""
    for start, end, key in shared.parts(low, high):
        yield start, end, bool(key & MAPPED)


def _add(rows: List[ShadowRow], start: int, end: int, key: int) -> None:
    from dataclasses import replace

    page = {1: "4K", 2: "2M", 3: "1G"}[(key & LEVEL_MASK) >> LEVEL_SHIFT]
    rights = rights_text(key)
    last = rows[-1] if rows else None
    if last and last.end + 1 == start and (last.rights, last.page_size) == (rights, page):
        rows[-1] = replace(
            last, end=Address(end), size=Size(end - last.start + 1), covers_end=Address(memory_of(end) + 7)
        )
        return
    rows.append(
        ShadowRow(
            start=Address(start),
            end=Address(end),
            size=Size(end - start + 1),
            shared=False,
            rights=rights,
            page_size=page,
            covers=Address(memory_of(start)),
            covers_end=Address(memory_of(end) + 7),
        )
    )


def _decode(
    kernel: Kernel, within: AddressRange, where: AddressRange, zeros: int, damage: Damage
) -> Iterator[ByteRow]:
    """Runs of equal shadow bytes of the addresses, which may be memory's or the shadow's."""
    if within.start in where and within.end in where:
        low, high = within.start, within.end
    else:
        low, high = shadow_of(within.start), shadow_of(within.end)
        if low not in where or high not in where:
            raise Unavailable(
                f"{within.start:016x}-{within.end:016x} has no shadow: only the kernel half has"
            )
    if high - low >= _MOST:
        damage.add("not all of the range is decoded", f"{_MOST << _SCALE_SHIFT} bytes are the most at a time")
        high = low + _MOST - 1
    meanings = _meanings(kernel)
    run: Optional[Tuple[int, Optional[int], bool]] = None
    at = low
    while at <= high:
        last = min(at | PAGE_SIZE - 1, high)
        found = kernel.walk(at)
        values: List[Optional[int]]
        shared = False
        if found.physical is None:
            values = [None] * (last - at + 1)
        else:
            shared = found.physical & ~(PAGE_SIZE - 1) == zeros
            try:
                values = list(kernel.read_physical(found.physical, last - at + 1))
            except Unavailable as error:
                damage.add("shadow is not in this source", error.what)
                values = [None] * (last - at + 1)
        for index, value in enumerate(values):
            if run is None:
                run = (at + index, value, shared)
            elif (value, shared) != run[1:]:
                yield _byte_row(run, at + index - 1, meanings)
                run = (at + index, value, shared)
        at = last + 1
    if run is not None:
        yield _byte_row(run, high, meanings)


def _byte_row(run: Tuple[int, Optional[int], bool], last: int, meanings: Mapping[int, str]) -> ByteRow:
    first, value, shared = run
    return ByteRow(
        start=Address(memory_of(first)),
        end=Address(memory_of(last) + 7),
        size=Size((last - first + 1) << _SCALE_SHIFT),
        shadow=Address(first),
        value=value,
        byte="??" if value is None else f"{value:02x}",
        meaning=_meaning(value, meanings),
        shared=shared,
    )


REGION = KasanShadow()

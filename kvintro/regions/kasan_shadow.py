# SPDX-License-Identifier: LGPL-2.1-or-later
"""KASAN's shadow: one byte for every eight bytes of the kernel half."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Trait
from kvintro.model import ALL, Address, AddressRange, Asked, Column, Contents, Located, Placement, Size, Table
from kvintro.paging import MAPPED, PRUNED, FrameTree, Tree
from kvintro.readers.damage import Damage
from kvintro.readers.mapped import View, page_text, rights_text
from kvintro.readers.neighbours import add_merged
from kvintro.readers.processes import physical_of
from kvintro.readers.structures import type_of
from kvintro.regions import Region

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


_SCALE_SHIFT = 3  # KASAN_SHADOW_SCALE_SHIFT: one byte for eight
_MOST = 16 << 20  # bytes of shadow to decode at most
# mm/kasan/kasan.h of generic KASAN.
_MEANINGS = {
    0x00: "may be used",
    0xFF: "free page",
    0xFE: "redzone of a large kmalloc",
    0xFC: "redzone of a slab object",
    0xFB: "freed slab object",
    0xFA: "freed slab object with its free track",
    0xF9: "redzone of a global variable",
    0xF8: "vmalloc area beyond the requested size, or variable out of scope",
    0xF1: "stack, left redzone",
    0xF2: "stack, between variables",
    0xF3: "stack, right redzone",
    0xF4: "stack, partial redzone",
    0xF5: "stack of a function that returned",
    0xCA: "alloca, left redzone",
    0xCB: "alloca, right redzone",
}
# Before 5.8, which moved free tracks into the freed objects and gave them a byte.
_OLD_MEANINGS = {
    **_MEANINGS,
    0xFA: "redzone of a global variable",
    0xF9: "vmalloc area beyond the requested size",
    0xF8: "variable out of scope",
}


@dataclass(frozen=True)
class ByteRow:
    """Addresses with equal shadow bytes.

    :ivar start: first address of memory; the last is :ivar:`end`.
    :ivar shadow: address of the first shadow byte.
    :ivar value: the shadow byte, None if it is not mapped or not in this source.
    :ivar shared: whether the byte is in the page of zeros that is shared by all shadow without its own
        memory.
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
    """A range of shadow with its own memory, or of shared shadow.

    :ivar start: first address of the shadow; the last is :ivar:`end`.
    :ivar covers: first address of the memory that it describes; the last is :ivar:`covers_end`.
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
    Column("end", "end", spare=1),
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
    Column("page_size", "pages", spare=1),
    Column("covers", "covers"),
    Column("covers_end", "to"),
)


class KasanShadow(Region):
    """``KASAN_SHADOW_START .. KASAN_SHADOW_END``."""

    key = "kasan_shadow"
    row = 8
    name = "KASAN shadow"
    macro = "KASAN_SHADOW_START"
    traits = Trait.NO_EXEC

    def locate(self, kernel: Kernel) -> Located:
        return kernel.facts.place(self.key)

    def claimed(self, kernel: Kernel, place: Placement) -> AddressRange:
        # arch/x86/mm/kasan_init_64.c fills whole entries of the root.
        shift = kernel.form.shift(kernel.form.levels)
        return AddressRange(place.range.start >> shift << shift, place.range.end)

    def own_memory(self, kernel: Kernel) -> Optional[int]:
        return _survey(kernel, _early_shadow(kernel), kernel.place(self).range)[1]

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """Parts of the shadow that have their own memory, and the shadow bytes of the requested range.

        The requested range may be memory or shadow.
        """
        damage = Damage()
        where = kernel.place(self).range
        early = _early_shadow(kernel)
        rows, real, shared, unreadable = _survey(kernel, early, where)
        totals = {
            "real": Size(real),
            "shared_zero_page": Size(shared),
            "stands_for": Size(real << _SCALE_SHIFT),
        }
        notes: List[str] = []
        if unreadable:
            damage.add("tables of the shadow are not in this source", str(unreadable))
        decoded: List[ByteRow] = []
        if asked.within is None:
            notes.append("give --range A-B to decode the shadow of those addresses")
        else:
            decoded = list(_decode(kernel, asked.within, where, early.page, damage))
        table: Table
        if asked.within is not None:
            table = Table("bytes", _BYTE_COLUMNS, decoded, "shadow bytes")
        else:
            table = Table("real", _SHADOW_COLUMNS, rows, "shadow of its own")
        return Contents((table,), totals, (*damage.notes, *notes), partial=bool(damage), ranged=True)


def shadow_of(address: int, offset: int) -> int:
    """``kasan_mem_to_shadow()``.

    :param offset: KASAN_SHADOW_OFFSET.
    """
    return (address >> _SCALE_SHIFT) + offset & ALL


def memory_of(shadow: int, offset: int) -> int:
    """``kasan_shadow_to_mem()``: the first of the eight addresses."""
    return (shadow - offset & ALL) << _SCALE_SHIFT & ALL


def _meanings(kernel: Kernel) -> Mapping[int, str]:
    """Meanings of shadow bytes on this kernel."""
    try:
        old = not type_of(kernel, "struct kasan_free_meta").has_member("free_track")
    except Unavailable:
        old = False
    return _OLD_MEANINGS if old else _MEANINGS


def _meaning(value: Optional[int], meanings: Mapping[int, str]) -> str:
    """Meaning of a shadow byte for its eight bytes of memory."""
    if value is None:
        return "not mapped, or not in this source"
    if 0 < value < 8:
        return f"the first {value} bytes may be used"
    return meanings.get(value, "nothing known")


class _Early(NamedTuple):
    """The shared tables and page (arch/x86/mm/kasan_init_64.c).

    :ivar tables: physical address by the level of the entries that point to it.
    :ivar page: physical address of the page of zeros.
    """

    tables: Dict[int, int]
    page: int


def _early_shadow(kernel: Kernel) -> _Early:
    # An entry at level 2 points to a table of PTEs, and so on.
    names = {2: "kasan_early_shadow_pte", 3: "kasan_early_shadow_pmd", 4: "kasan_early_shadow_pud"}
    if kernel.form.levels == 5:
        names[5] = "kasan_early_shadow_p4d"
    tables = {level: physical_of(kernel, kernel.symbol(name)) for level, name in names.items()}
    return _Early(tables, physical_of(kernel, kernel.symbol("kasan_early_shadow_page")))


def _survey(kernel: Kernel, early: _Early, where: AddressRange) -> Tuple[List[ShadowRow], int, int, int]:
    """(shadow with its own memory, its bytes, bytes of the shared zero page, tables not in the source)."""
    # Like the kernel's own ptdump, do not walk below shared tables again and again.
    tree = Tree(kernel.read_physical, kernel.form, kernel.root.value, prune=early.tables, prune_as=1)
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
                add_merged(rows, _row(kernel, start, end, key), _alike, _join)
    return rows, real, shared, tree.unreadable_tables


def _shared_pages(kernel: Kernel, early: _Early, where: AddressRange) -> View:
    """Ranges whose entries point to the page of zeros one by one."""
    tree = FrameTree(kernel.read_physical, kernel.form, kernel.root.value, early.page)
    return View(tree.ranges(where.start, where.end), kernel.form)


def _cut(low: int, high: int, shared: View) -> Iterator[Tuple[int, int, bool]]:
    """Split a range into pieces: (start, end, whether it is the shared page)."""
    for start, end, key in shared.parts(low, high):
        yield start, end, bool(key & MAPPED)


def _row(kernel: Kernel, start: int, end: int, key: int) -> ShadowRow:
    offset = kernel.facts.kasan_shadow_offset
    return ShadowRow(
        start=Address(start),
        end=Address(end),
        size=Size(end - start + 1),
        shared=False,
        rights=rights_text(key),
        page_size=page_text(kernel.form, key),
        covers=Address(memory_of(start, offset)),
        covers_end=Address(memory_of(end, offset) + 7),
    )


def _alike(one: ShadowRow, other: ShadowRow) -> bool:
    return (one.rights, one.page_size) == (other.rights, other.page_size)


def _join(low: ShadowRow, high: ShadowRow) -> ShadowRow:
    size = Size(high.end - low.start + 1)
    return replace(low, end=high.end, size=size, covers_end=high.covers_end)


def _decode(
    kernel: Kernel, within: AddressRange, where: AddressRange, zeros: int, damage: Damage
) -> Iterator[ByteRow]:
    """Runs of equal shadow bytes. The addresses may be memory or shadow."""
    offset, page = kernel.facts.kasan_shadow_offset, kernel.form.page_size
    if within.start in where and within.end in where:
        low, high = within.start, within.end
    else:
        low, high = shadow_of(within.start, offset), shadow_of(within.end, offset)
        if low not in where or high not in where:
            raise Unavailable(
                f"{within.start:016x}-{within.end:016x} has no shadow: only the kernel half has"
            )
    if high - low >= _MOST:
        damage.add("not all of the range is decoded", f"at most {_MOST << _SCALE_SHIFT} bytes are decoded")
        high = low + _MOST - 1
    meanings = _meanings(kernel)
    run: Optional[Tuple[int, Optional[int], bool]] = None
    at = low
    while at <= high:
        last = min(at | page - 1, high)
        found = kernel.walk(at)
        values: List[Optional[int]]
        shared = False
        if found.physical is None:
            values = [None] * (last - at + 1)
        else:
            shared = found.physical & ~(page - 1) == zeros
            try:
                values = list(kernel.read_physical(found.physical, last - at + 1))
            except Unavailable as error:
                damage.add("shadow is not in this source", error.what)
                values = [None] * (last - at + 1)
        for index, value in enumerate(values):
            if run is None:
                run = (at + index, value, shared)
            elif (value, shared) != run[1:]:
                yield _byte_row(run, at + index - 1, meanings, offset)
                run = (at + index, value, shared)
        at = last + 1
    if run is not None:
        yield _byte_row(run, high, meanings, offset)


def _byte_row(
    run: Tuple[int, Optional[int], bool], last: int, meanings: Mapping[int, str], offset: int
) -> ByteRow:
    first, value, shared = run
    return ByteRow(
        start=Address(memory_of(first, offset)),
        end=Address(memory_of(last, offset) + 7),
        size=Size((last - first + 1) << _SCALE_SHIFT),
        shadow=Address(first),
        value=value,
        byte="??" if value is None else f"{value:02x}",
        meaning=_meaning(value, meanings),
        shared=shared,
    )


REGION = KasanShadow()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why memory is missing from the direct map, or is mapped there by small pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Set, Tuple

from kvintro.arch.image import FREED_PARTLY
from kvintro.errors import Unavailable
from kvintro.model import ALL, Address, Placement, Size
from kvintro.paging import MAPPED, NONZERO
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.readers.damage import Damage
from kvintro.readers.index_trees import maple_entries
from kvintro.readers.kfence import KfencePool, kfence_pool
from kvintro.readers.mapped import View, caching_text, rights_text
from kvintro.readers.memory import SYSTEM_RAM, Physical, debug_pagealloc
from kvintro.readers.structures import has_member, is_operations, offset_of
from kvintro.regions.kernel_image import sections
from kvintro.regions.vmemmap import REGION as VMEMMAP

if TYPE_CHECKING:
    from kvintro.arch.form import PagingForm
    from kvintro.kernels import Kernel

_MAX_EXAMINED = 1 << 16  # missing pages that are examined one by one
_ISA_END = 1 << 20
#: Why a page with a memory error is missing.
POISONED = "hwpoison"


@dataclass(frozen=True)
class HoleRow:
    """Physical memory below max_pfn that the direct map does not map, and why.

    :ivar kept: whether its entries still have a frame: it was mapped and then removed.
    """

    start: Address
    end: Address
    size: Size
    physical: Address
    resource: Optional[str]
    kept: bool
    why: str


@dataclass
class Block:
    """Summary of the entries of a block of 2 MB that is not one large page.

    :ivar form: format of the page tables.
    :ivar rights: rights that occur.
    :ivar caching: memory types that occur.
    :ivar kept: whether some entries are not present but still have a frame.
    :ivar empty: whether some entries are empty.
    """

    form: PagingForm
    rights: Set[str] = field(default_factory=set)
    caching: Set[str] = field(default_factory=set)
    kept: bool = False
    empty: bool = False

    def add(self, key: int) -> None:
        """Add a range by its key; see :mod:`kvintro.paging.tree` for the keys."""
        if key & MAPPED:
            self.rights.add(rights_text(key))
            self.caching.add(caching_text(self.form, key))
        elif key & NONZERO:
            self.kept = True
        else:
            self.empty = True


def missing(kernel: Kernel) -> Callable[[int, bool], Optional[str]]:
    """Return a function that gives the reason why the direct map does not map a page, None if unknown.

    Its arguments are the page's physical address, and whether the page's entry still has a frame.
    """
    damage = Damage()
    physical = Physical(kernel, damage)
    if not physical.resources:
        return lambda address, kept: None
    offset, page = kernel.linear_offset.value, kernel.form.page_size
    reasons = Reasons(kernel, offset, physical, damage)

    def why(address: int, kept: bool) -> Optional[str]:
        start = offset + address // page * page & ALL
        return next(reasons.hole(start, start + page - 1, kept)).why

    return why


_SECRET = ("secretmem_aops", "struct address_space_operations", "free_folio", "secretmem_free_folio")


class Reasons:
    """Reasons why physical memory is missing from the direct map, or is mapped page by page."""

    def __init__(self, kernel: Kernel, offset: int, physical: Physical, damage: Damage) -> None:
        self._kernel = kernel
        self._offset = offset
        self._page_size = kernel.form.page_size
        self._physical = physical
        self._examined = 0
        self._rox = self._executable_cache()
        self._code: Optional[Set[int]] = None
        self._kfence: Optional[KfencePool] = None
        try:
            self._kfence = kfence_pool(kernel)
        except Unavailable as error:
            damage.add(error.what)
        self._image = self._image_parts()
        self._unmaps_free = debug_pagealloc(kernel)
        self._freed = self._freed_after_boot() if self._unmaps_free else ()
        try:
            self._pages, self._struct_size, _ = VMEMMAP.pages(kernel)
            self._mapping = offset_of(kernel, "struct page", "mapping")
            self._references = offset_of(kernel, "struct page", "_refcount")
            self._operations = offset_of(kernel, "struct address_space", "a_ops")
        except Unavailable:
            self._struct_size = 0
        try:
            self._poison: Optional[int] = int(kernel.prog.constant("PG_hwpoison").value_())
        except LookupError:
            self._poison = None

    def hole(self, low: int, high: int, kept: bool) -> Iterator[HoleRow]:
        """Rows of a range that is not mapped."""
        for start, end, resource in self._pieces(low, high):
            # Outside RAM, the whole piece has one reason.
            ram = resource is not None and resource.startswith(SYSTEM_RAM)
            if not ram:
                known = bool(self._physical.resources)
                why = f"no RAM ({resource})" if resource else "no RAM"
                why = why if known else "not known whether this is RAM"
                yield self._hole(start, end, resource, kept, why)
                continue
            at = start
            while at <= end:
                why = self._page(at, kept)
                run = at
                while run <= end and self._examined < _MAX_EXAMINED and self._page(run, kept) == why:
                    run += self._page_size
                following = (
                    end + 1
                    if self._examined >= _MAX_EXAMINED
                    else min(max(run, at + self._page_size), end + 1)
                )
                yield self._hole(at, following - 1, resource, kept, why)
                at = following

    def _hole(self, start: int, end: int, resource: Optional[str], kept: bool, why: str) -> HoleRow:
        return HoleRow(
            Address(start),
            Address(end),
            Size(end - start + 1),
            Address(start - self._offset & ALL),
            resource,
            kept,
            why,
        )

    def _pieces(self, low: int, high: int) -> Iterator[Tuple[int, int, Optional[str]]]:
        """Split a range where the outermost resource changes."""
        cursor = low - self._offset & ALL
        last = high - self._offset & ALL
        for resource in self._physical.resources:
            if resource.depth or resource.end < cursor or resource.start > last:
                continue
            if resource.start > cursor:
                yield self._offset + cursor & ALL, self._offset + resource.start - 1 & ALL, None
            cursor = max(cursor, resource.start)
            end = min(resource.end, last)
            yield self._offset + cursor & ALL, self._offset + end & ALL, resource.name
            cursor = end + 1
        if cursor <= last:
            yield self._offset + cursor & ALL, high, None

    def _page(self, address: int, kept: bool) -> str:
        """Reason why a page of RAM is not mapped."""
        self._examined += 1
        frame = address - self._offset & ALL
        if frame in self._rox:
            return "executable memory's cache (mapped in modules instead)"
        if self._kfence is not None and address in self._kfence:
            return self._kfence.text(address)
        data = self._struct_page(frame)
        if data is not None:
            if self._poison is not None and int.from_bytes(data[:8], "little") >> self._poison & 1:
                return POISONED
            if self._is_secret(data):
                return "memfd_secret"
            if kept and self._unmaps_free and not any(data[self._references : self._references + 4]):
                return "free page (debug_pagealloc)"
        if kept and any(low <= frame < high for low, high in self._freed):
            return "freed after boot (debug_pagealloc)"
        if any(first <= frame <= last for first, last, _ in self._image):
            image = frame + self._kernel.image_offset.value & ALL
            if self._kernel.walk(image).physical == frame:
                return "data of the kernel image, which this kernel maps in the image only"
        return "unmapped by set_memory_np(), for an unknown user" if kept else "RAM that was never mapped"

    def _struct_page(self, frame: int) -> Optional[bytes]:
        if not self._struct_size:
            return None
        try:
            at = self._pages + frame // self._page_size * self._struct_size & ALL
            return self._kernel.read(at, self._struct_size)
        except Unavailable:
            return None

    def _is_secret(self, page: bytes) -> bool:
        mapping = int.from_bytes(page[self._mapping : self._mapping + 8], "little")
        if mapping & 3 or not mapping >> 63:
            return False
        try:
            raw = self._kernel.read(mapping + self._operations, 8)
        except Unavailable:
            return False
        return is_operations(self._kernel, int.from_bytes(raw, "little"), *_SECRET)

    def split(self, start: int, end: int, block: Block) -> str:
        """Reason why a block is not one large page."""
        reasons: List[str] = []
        if (start - self._offset & ALL) < _ISA_END:
            reasons.append("the first megabyte")
        elif len({name for _, _, name in self._pieces(start, end)}) > 1 or (block.empty and block.rights):
            reasons.append("RAM begins or ends in it")
        if end - start + 1 < 1 << self._kernel.form.shift(2):
            reasons.append("ends at max_pfn")
        if block.kept:
            told = sorted({row.why for row in self._kept_reasons(start, end)})
            reasons.append(f"pages unmapped: {', '.join(told)}" if told else "pages unmapped")
        if len(block.rights) > 1:
            rights = " ".join(sorted(block.rights))
            reasons.append(f"rights differ: {rights}{self._whose_rights(start, end)}")
        if len(block.caching) > 1:
            reasons.append(f"caching differs: {' '.join(sorted(block.caching))}")
        return "; ".join(reasons) or "no reason is left: the parts are alike now"

    def _whose_rights(self, start: int, end: int) -> str:
        """Contents of a block that need different rights, in parentheses; empty if unknown."""
        physical, physical_end = (start - self._offset & ALL), end - self._offset & ALL
        parts = sorted({name for low, high, name in self._image if low <= physical_end and physical <= high})
        if parts:
            return f" (kernel image: {', '.join(parts)})"
        code = self._run_time_code()
        if any(at in code for at in range(physical, physical_end, self._page_size)):
            return " (modules, BPF)"
        return ""

    def _kept_reasons(self, start: int, end: int) -> Iterator[HoleRow]:
        for low, high, key in View.of(self._kernel, start, end).parts(start, end):
            if not key & MAPPED and key & NONZERO:
                yield from self.hole(low, high, True)

    def _image_parts(self) -> Tuple[Tuple[int, int, str], ...]:
        """(first, last physical address, name) of the image's parts, which have their own rights."""
        try:
            return tuple(
                (part.physical, part.physical + part.end - part.start, part.name)
                for part in sections(self._kernel)
            )
        except Unavailable:
            return ()

    def _freed_after_boot(self) -> Tuple[Tuple[int, int], ...]:
        """Physical addresses that free_init_pages unmaps after boot: parts of the image, and the initrd."""
        found: List[Tuple[int, int]] = []
        partly = {part.name for part in self._kernel.arch.image_parts if part.fate == FREED_PARTLY}
        try:
            found += self._kernel.facts.initrd()
            found += [
                (part.physical, part.physical + part.end - part.start + 1)
                for part in sections(self._kernel)
                if part.freed or part.name in partly
            ]
        except Unavailable:
            pass
        page = self._page_size
        return tuple((low // page * page, -(-high // page) * page) for low, high in found)

    def _run_time_code(self) -> Set[int]:
        """Physical addresses of the pages that are mapped in the region of modules."""
        if self._code is None:
            self._code = set()
            found = self._kernel.locate("modules")
            if isinstance(found, Placement):
                view = View.of(self._kernel, found.range.start, found.range.end)
                for low, high, key in view.parts(found.range.start, found.range.end):
                    if key & MAPPED:
                        self._code |= self._frames(low, high)
        return self._code

    def _frames(self, start: int, end: int) -> Set[int]:
        """Physical addresses of the pages mapped from ``start`` to ``end``, both inclusive."""
        import numpy

        u, shift = numpy.uint64, self._kernel.page_shift
        pages = numpy.arange((end - start >> shift) + 1, dtype=u) << u(shift)
        physical, states = self._kernel.translate_array(pages + u(start))
        return set(physical[states == FOUND].tolist())

    def _executable_cache(self) -> Set[int]:
        """Physical addresses of the pages of ``execmem_cache``, which the direct map does not have (6.13)."""
        kernel = self._kernel
        if kernel.find_symbol("execmem_cache") is None or not has_member(
            kernel, "struct execmem_cache", "busy_areas"
        ):
            return set()
        found: Set[int] = set()
        for name in ("busy_areas", "free_areas"):
            tree = kernel.symbol("execmem_cache") + offset_of(kernel, "struct execmem_cache", name)
            try:
                for start, end, _ in maple_entries(kernel, tree, Damage(), name):
                    if 0 <= end - start < 1 << 30:
                        found |= self._frames(start, end)
            except Unavailable:
                pass
        return found

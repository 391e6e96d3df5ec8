# SPDX-License-Identifier: LGPL-2.1-or-later
"""All physical memory at one stretch of addresses: where most of what the kernel allocates is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from kvintro.arch.x86_64 import ALL, CPU_ENTRY_AREA_BASE, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT
from kvintro.errors import Unavailable
from kvintro.model import Address, AddressRange, Column, Located, Placement, Size, Table
from kvintro.paging import LEVEL_MASK, LEVEL_SHIFT, MAPPED, NONZERO, OVER_LIMIT, UNREADABLE
from kvintro.paging.bulk import MAPPED as FOUND
from kvintro.readers.boot_params import boot_initrd
from kvintro.readers.kfence import KfencePool, kfence_pool
from kvintro.readers.mapped import PAGE_NAMES, View, caching_text, rights_text
from kvintro.readers.memory import SYSTEM_RAM, Physical, debug_pagealloc
from kvintro.readers.randomness import Randomised, region_draw
from kvintro.readers.structures import Damage, has_member, is_table, maple_entries, offset_of
from kvintro.regions import Asked, Contents, Linear, Region
from kvintro.regions.kernel_image import LOCKS, sections
from kvintro.regions.vmemmap import REGION as VMEMMAP

if TYPE_CHECKING:
    from kvintro.kernel import Kernel


# Memory that is not RAM leaves holes in the direct map, up to where devices' 64-bit windows lie.
_LARGEST_GAP = 1 << 40


_MAX_EXAMINED = 1 << 16  # pages that are missing from the map and looked at one by one
_ISA_END = 1 << 20
_POISONED = "hwpoison"


@dataclass(frozen=True)
class RamRow:
    """A range of physical memory that is RAM, from the tree of resources.

    :ivar start: where it lies in the direct map.
    :ivar pages: number of entries that map it, by page size.
    :ivar missing: bytes of it that nothing maps.
    """

    physical: Address
    physical_end: Address
    size: Size
    start: Address
    end: Address
    mapped: Size
    missing: Size
    pages: Mapping[str, int]


@dataclass(frozen=True)
class RunRow:
    """A stretch that is mapped all alike.

    :ivar resources: what lies there by the outermost lines of /proc/iomem.
    """

    start: Address
    end: Address
    size: Size
    page_size: str
    rights: str
    caching: str
    physical: Address
    resources: Tuple[str, ...]


@dataclass(frozen=True)
class SplitRow:
    """Neighbouring blocks of 2 MB that are mapped by pages of 4 KB, and why.

    :ivar why: what in the block differs from page to page.
    """

    start: Address
    end: Address
    size: Size
    physical: Address
    blocks: int
    why: str


@dataclass(frozen=True)
class HoleRow:
    """A stretch of physical memory below max_pfn that the direct map leaves out, and why.

    :ivar kept: whether its entries still have a frame: it was mapped and taken out.
    """

    start: Address
    end: Address
    size: Size
    physical: Address
    resource: Optional[str]
    kept: bool
    why: str


_RAM_COLUMNS = (
    Column("physical", "physical"),
    Column("physical_end", "end"),
    Column("size", "size", "right"),
    Column("start", "mapped at"),
    Column("mapped", "mapped", "right"),
    Column("missing", "missing", "right"),
    Column("pages", "pages"),
)
_RUN_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("page_size", "pages"),
    Column("rights", "rights"),
    Column("caching", "caching"),
    Column("physical", "physical"),
    Column("resources", "what lies there"),
)
_SPLIT_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical"),
    Column("why", "why"),
)
_HOLE_COLUMNS = (
    Column("start", "start"),
    Column("end", "end"),
    Column("size", "size", "right"),
    Column("physical", "physical"),
    Column("resource", "resource"),
    Column("why", "why"),
)


#: How the end was found where only the mappings tell.
_AT_LEAST = "mapped at least up to there"


class DirectMap(Region):
    """From ``page_offset_base``; what is reserved follows arch/x86/mm/kaslr.c:kernel_randomize_memory."""

    key = "direct_map"
    row = 5
    name = "direct map of physical memory"
    macro = "PAGE_OFFSET"

    def locate(self, kernel: Kernel) -> Located:
        base = kernel.page_offset_base
        default = kernel.geometry.page_offset_base
        end, source = self._reserved_end(kernel, base.value, base.value - default)
        used, note = None, ""
        try:
            frames = kernel.max_pfn
            last = base.value + (frames.value << PAGE_SHIFT) - 1
            if base.value <= last <= end:
                used, note = AddressRange(base.value, last), f"up to {frames.provenance}"
        except Unavailable:
            pass
        return Placement(
            AddressRange(base.value, end),
            f"{base.provenance}, {source}",
            default_start=default,
            slide=base.value - default,
            used=used,
            used_note=note,
        )

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """``__pa()`` below the image."""
        found = kernel.locate(self)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        return Linear(
            found.range, kernel.page_offset_base.value, whole=not found.provenance.endswith(_AT_LEAST)
        )

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """Its base (arch/x86/mm/kaslr.c)."""
        return (region_draw(kernel, self.key, "direct map of physical memory"),)

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """RAM and how it is mapped; what is split into small pages, and what is left out, with the
        reasons.
        """
        base = kernel.page_offset_base.value
        last = base + (kernel.max_pfn.value << PAGE_SHIFT) - 1
        found = kernel.locate(self)
        if not isinstance(found, Placement) or not base <= last <= found.range.end:
            raise Unavailable("max_pfn does not lie within the direct map")
        damage = Damage()
        view = View.of(kernel, base, last)
        physical = Physical(kernel, damage)
        if not physical.resources:
            why = physical.problem or "the tree of memory resources is empty"
            damage.add("what is RAM and what is not is unknown", why)
        runs: List[RunRow] = []
        blocks: Dict[int, _Block] = {}
        holes: List[Tuple[int, int, bool]] = []
        counted: Dict[str, int] = {}
        unreadable = 0
        for low, high, key in view.parts(base, last):
            level = (key & LEVEL_MASK) >> LEVEL_SHIFT
            if key & (UNREADABLE | OVER_LIMIT):
                unreadable += high - low + 1
                continue
            if key & MAPPED:
                _add_run(runs, low, high, key, base, physical)
            else:
                _add_hole(holes, low, high, bool(key & NONZERO))
            if key & (MAPPED | NONZERO) and level in PAGE_NAMES:
                # The kernel counts entries, and goes on counting those that are no longer present.
                counted[PAGE_NAMES[level]] = counted.get(PAGE_NAMES[level], 0) + (
                    high - low + 1 >> 12 + 9 * (level - 1)
                )
            if level == 1:
                _add_to_blocks(blocks, low, high, key)
        reasons = _Reasons(kernel, base, physical, damage)
        hole_rows = [row for low, high, kept in holes for row in reasons.hole(low, high, kept)]
        splits = _splits(blocks, base, last, reasons)
        ram = _ram_rows(view, base, last, physical)
        totals: Dict[str, Any] = {
            **({"ram": Size(sum(row.size for row in ram))} if physical.resources else {}),
            "mapped": Size(sum(row.size for row in runs)),
            "not_mapped": Size(sum(row.size for row in hole_rows)),
            **{f"pages_of_{name}": counted.get(name, 0) for name in PAGE_NAMES.values()},
        }
        notes = [*damage.notes]
        if unreadable:
            notes.append(f"page tables of {unreadable} bytes are not in this source")
        counts = _direct_pages_count(kernel)
        # mm/pat/set_memory.c:__split_large_page takes a split of the image's own mapping for one here, too,
        # while there are large pages to count down: split_page_count.
        image = min(_blocks_split_in_image(kernel), counted.get("2M", 0))
        totals["blocks_split_in_image"] = image
        if counts:
            expected = {name: counted.get(name, 0) for name in PAGE_NAMES.values()}
            expected["4K"] += 512 * image
            expected["2M"] -= image
            # set_mce_nospec() has a broken page taken out by an address that is not canonical, in which
            # __split_large_page does not know the direct map again.
            poisoned = sum(row.blocks for row in splits if _POISONED in row.why)
            lost = expected["4K"] - counts["4K"] >> 9
            if poisoned and 0 < lost <= poisoned:
                totals["blocks_split_by_hwpoison"] = lost
                expected["4K"] -= 512 * lost
                expected["2M"] += lost
            totals.update({f"kernel_counts_{name}": count for name, count in counts.items()})
            differing = {name: count for name, count in counts.items() if expected[name] != count}
            if differing and not unreadable:
                told = ", ".join(
                    f"{name}: {expected[name]}, not {count}" for name, count in differing.items()
                )
                # phys_pud_init and phys_pmd_init count a large page again when a range mapped later at boot
                # meets it, as happens where RAM ends within one.
                twice = all(count > expected[name] and name != "4K" for name, count in differing.items())
                why = (
                    "; the kernel counts large pages twice that it meets twice while it boots"
                    if twice
                    else ""
                )
                notes.append(f"direct_pages_count does not agree with the page tables: {told}{why}")
        return Contents(
            (
                Table("ram", _RAM_COLUMNS, ram, "RAM"),
                Table("runs", _RUN_COLUMNS, runs, "mapped alike"),
                Table("splits", _SPLIT_COLUMNS, splits, "split into pages of 4 KB"),
                Table("holes", _HOLE_COLUMNS, hole_rows, "not mapped"),
            ),
            totals,
            notes,
            partial=bool(damage) or bool(unreadable),
        )

    def _reserved_end(self, kernel: Kernel, base: int, slide: int) -> Tuple[int, str]:
        try:
            # 6.12 calls it physmem_end, later kernels direct_map_physmem_end; both inclusive.
            last = kernel.first_value("direct_map_physmem_end", "physmem_end")
            if last.value < 1 << kernel.geometry.max_physmem_bits:
                return base + last.value & ALL, last.provenance
        except Unavailable:
            pass
        most = base + (1 << kernel.geometry.max_physmem_bits) - 1
        if slide == 0:
            return most, "MAX_PHYSMEM_BITS"
        # Before the variable existed the reserved size was gone after boot: only what comes next bounds it.
        following = kernel.locate("vmalloc")
        if isinstance(following, Placement) and following.range.start > base:
            if following.range.start > most:
                return most, "MAX_PHYSMEM_BITS at most"
            return following.range.start - 1, "up to vmalloc_base"
        return self._mapped_end(kernel, base), _AT_LEAST

    def _mapped_end(self, kernel: Kernel, base: int) -> int:
        """Last address of what page tables map from the base on as the direct map would."""
        end = None
        for low, high, _ in kernel.kernel_ranges.clip(base, CPU_ENTRY_AREA_BASE - 1).select(MAPPED):
            if end is not None and low > end + _LARGEST_GAP:
                break
            if kernel.walk(low).physical != low - base:
                break
            end = high
        if end is None:
            raise Unavailable("nothing tells where the direct map ends")
        return end


def _add_run(runs: List[RunRow], low: int, high: int, key: int, base: int, physical: Physical) -> None:
    row = RunRow(
        start=Address(low),
        end=Address(high),
        size=Size(high - low + 1),
        page_size=PAGE_NAMES[(key & LEVEL_MASK) >> LEVEL_SHIFT],
        rights=rights_text(key),
        caching=caching_text(key),
        physical=Address(low - base),
        resources=physical.overlapping(low - base, high - base),
    )
    last = runs[-1] if runs else None
    alike = last and (last.page_size, last.rights, last.caching) == (row.page_size, row.rights, row.caching)
    if last and alike and last.end + 1 == low:
        names = tuple(dict.fromkeys((*last.resources, *row.resources)))
        runs[-1] = replace(last, end=row.end, size=Size(high - last.start + 1), resources=names)
    else:
        runs.append(row)


def _add_hole(holes: List[Tuple[int, int, bool]], low: int, high: int, kept: bool) -> None:
    if holes and holes[-1][1] + 1 == low and holes[-1][2] == kept:
        holes[-1] = (holes[-1][0], high, kept)
    else:
        holes.append((low, high, kept))


@dataclass
class _Block:
    """What was met in a block of 2 MB that has a table of its own."""

    rights: Set[str]
    caching: Set[str]
    kept: bool = False
    empty: bool = False


def _add_to_blocks(blocks: Dict[int, _Block], low: int, high: int, key: int) -> None:
    # A range never spans blocks in different tables unless all of it is alike; it may span many of those.
    for number in range(low >> PMD_SHIFT, (high >> PMD_SHIFT) + 1):
        block = blocks.get(number)
        if block is None:
            block = blocks[number] = _Block(set(), set())
        if key & MAPPED:
            block.rights.add(rights_text(key))
            block.caching.add(caching_text(key))
        elif key & NONZERO:
            block.kept = True
        else:
            block.empty = True


def _splits(blocks: Mapping[int, _Block], base: int, last: int, reasons: _Reasons) -> List[SplitRow]:
    """Blocks with the reasons why they cannot be one page, neighbours of the same reason together."""
    rows: List[SplitRow] = []
    for number in sorted(blocks):
        block = blocks[number]
        if not block.rights:
            continue
        start = max(number << PMD_SHIFT, base)
        end = min((number + 1 << PMD_SHIFT) - 1, last)
        why = reasons.split(start, end, block)
        row = SplitRow(Address(start), Address(end), Size(end - start + 1), Address(start - base), 1, why)
        before = rows[-1] if rows else None
        if before and before.why == why and before.end + 1 == start:
            rows[-1] = replace(
                before, end=row.end, size=Size(end - before.start + 1), blocks=before.blocks + 1
            )
        else:
            rows.append(row)
    return rows


def _ram_rows(view: View, base: int, last: int, physical: Physical) -> List[RamRow]:
    rows = []
    for resource in physical.resources:
        if not resource.name.startswith(SYSTEM_RAM):
            continue
        start, end = base + resource.start, min(base + resource.end, last)
        # The kernel takes whole pages only.
        first, final = -(-start // PAGE_SIZE) * PAGE_SIZE, (end + 1) // PAGE_SIZE * PAGE_SIZE - 1
        if final < first:
            continue
        found = view.stretch(first, final)
        rows.append(
            RamRow(
                physical=Address(resource.start),
                physical_end=Address(resource.end),
                size=Size(resource.end - resource.start + 1),
                start=Address(start),
                end=Address(base + resource.end),
                mapped=Size(found.mapped),
                missing=Size(final - first + 1 - found.mapped - found.unreadable),
                pages=found.pages,
            )
        )
    return rows


def _direct_pages_count(kernel: Kernel) -> Dict[str, int]:
    """``direct_pages_count[]`` by page size, empty if it cannot be read; PG_LEVEL_4K is 1."""
    try:
        data = kernel.read(kernel.symbol("direct_pages_count"), 32)
    except Unavailable:
        return {}
    return {
        name: int.from_bytes(data[8 * level : 8 * level + 8], "little") for level, name in PAGE_NAMES.items()
    }


def _blocks_split_in_image(kernel: Kernel) -> int:
    """Blocks of 2 MB of the kernel image that are mapped page by page."""
    image = kernel.locate("kernel_image")
    if not isinstance(image, Placement) or image.used is None:
        return 0
    view = View.of(kernel, image.used.start, image.used.end)
    blocks: Set[int] = set()
    for low, high, key in view.parts(image.used.start, image.used.end):
        if key & (MAPPED | NONZERO) and (key & LEVEL_MASK) >> LEVEL_SHIFT == 1:
            blocks.update(range(low >> PMD_SHIFT, (high >> PMD_SHIFT) + 1))
    return len(blocks)


def missing(kernel: Kernel) -> Callable[[int, bool], Optional[str]]:
    """What tells why the direct map does not map the page at a physical address, None if nothing does.

    It is told whether the page's entry still has a frame.
    """
    damage = Damage()
    physical = Physical(kernel, damage)
    if not physical.resources:
        return lambda address, kept: None
    base = kernel.page_offset_base.value
    reasons = _Reasons(kernel, base, physical, damage)

    def why(address: int, kept: bool) -> Optional[str]:
        start = base + address // PAGE_SIZE * PAGE_SIZE
        return next(reasons.hole(start, start + PAGE_SIZE - 1, kept)).why

    return why


_SECRET = ("secretmem_aops", "struct address_space_operations", "free_folio", "secretmem_free_folio")


class _Reasons:
    """Why physical memory is missing from the direct map, or mapped page by page."""

    def __init__(self, kernel: Kernel, base: int, physical: Physical, damage: Damage) -> None:
        self._kernel = kernel
        self._base = base
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
            self._pages, self._page_size, _ = VMEMMAP.pages(kernel)
            self._mapping = offset_of(kernel, "struct page", "mapping")
            self._references = offset_of(kernel, "struct page", "_refcount")
            self._operations = offset_of(kernel, "struct address_space", "a_ops")
        except Unavailable:
            self._page_size = 0
        try:
            self._poison: Optional[int] = int(kernel.prog.constant("PG_hwpoison").value_())
        except LookupError:
            self._poison = None

    def hole(self, low: int, high: int, kept: bool) -> Iterator[HoleRow]:
        """The rows of a stretch that is not mapped."""
        for start, end, resource in self._pieces(low, high):
            # Where there is no RAM, or where the entries never held a frame, all of it has one reason.
            ram = resource is not None and resource.startswith(SYSTEM_RAM)
            if not ram:
                known = bool(self._physical.resources)
                why = f"no RAM ({resource})" if resource else "no RAM"
                why = why if known else "not known: RAM or no RAM"
                yield self._hole(start, end, resource, kept, why)
                continue
            at = start
            while at <= end:
                why = self._page(at, kept)
                run = at
                while run <= end and self._examined < _MAX_EXAMINED and self._page(run, kept) == why:
                    run += PAGE_SIZE
                following = (
                    end + 1 if self._examined >= _MAX_EXAMINED else min(max(run, at + PAGE_SIZE), end + 1)
                )
                yield self._hole(at, following - 1, resource, kept, why)
                at = following

    def _hole(self, start: int, end: int, resource: Optional[str], kept: bool, why: str) -> HoleRow:
        return HoleRow(
            Address(start),
            Address(end),
            Size(end - start + 1),
            Address(start - self._base),
            resource,
            kept,
            why,
        )

    def _pieces(self, low: int, high: int) -> Iterator[Tuple[int, int, Optional[str]]]:
        """A stretch cut where the outermost resource changes."""
        cursor = low - self._base
        last = high - self._base
        for resource in self._physical.resources:
            if resource.depth or resource.end < cursor or resource.start > last:
                continue
            if resource.start > cursor:
                yield self._base + cursor, self._base + resource.start - 1, None
            cursor = max(cursor, resource.start)
            end = min(resource.end, last)
            yield self._base + cursor, self._base + end, resource.name
            cursor = end + 1
        if cursor <= last:
            yield self._base + cursor, high, None

    def _page(self, address: int, kept: bool) -> str:
        """Why a page of RAM is not mapped."""
        self._examined += 1
        frame = address - self._base
        if frame in self._rox:
            return "executable memory's cache (mapped in modules instead)"
        if self._kfence is not None and address in self._kfence:
            return self._kfence.text(address)
        data = self._struct_page(frame)
        if data is not None:
            if self._poison is not None and int.from_bytes(data[:8], "little") >> self._poison & 1:
                return _POISONED
            if self._is_secret(data):
                return "memfd_secret"
            if kept and self._unmaps_free and not any(data[self._references : self._references + 4]):
                return "free page (debug_pagealloc)"
        if kept and any(low <= frame < high for low, high in self._freed):
            return "freed after boot (debug_pagealloc)"
        return "taken out by set_memory_np(), for whom is not known" if kept else "RAM that was never mapped"

    def _struct_page(self, frame: int) -> Optional[bytes]:
        if not self._page_size:
            return None
        try:
            return self._kernel.read(self._pages + (frame >> PAGE_SHIFT) * self._page_size, self._page_size)
        except Unavailable:
            return None

    def _is_secret(self, page: bytes) -> bool:
        mapping = int.from_bytes(page[self._mapping : self._mapping + 8], "little")
        if mapping & 3 or mapping < 1 << 63:
            return False
        try:
            raw = self._kernel.read(mapping + self._operations, 8)
        except Unavailable:
            return False
        return is_table(self._kernel, int.from_bytes(raw, "little"), *_SECRET)

    def split(self, start: int, end: int, block: _Block) -> str:
        """Why a block is not one large page."""
        reasons: List[str] = []
        physical, physical_end = start - self._base, end - self._base
        if physical < _ISA_END:
            reasons.append("the first megabyte")
        elif len({name for _, _, name in self._pieces(start, end)}) > 1 or (block.empty and block.rights):
            reasons.append("RAM begins or ends in it")
        if end - start + 1 < 1 << PMD_SHIFT:
            reasons.append("ends at max_pfn")
        if block.kept:
            told = sorted({row.why for row in self._kept_reasons(start, end)})
            reasons.append(f"pages taken out: {', '.join(told)}" if told else "pages taken out")
        if len(block.rights) > 1:
            parts = sorted(
                {name for low, high, name in self._image if low <= physical_end and physical <= high}
            )
            if parts:
                by = f" (kernel image: {', '.join(parts)})"
            elif any(at in self._run_time_code() for at in range(physical, physical_end, PAGE_SIZE)):
                by = " (modules, BPF)"
            else:
                by = ""
            reasons.append(f"rights differ: {' '.join(sorted(block.rights))}{by}")
        if len(block.caching) > 1:
            reasons.append(f"caching differs: {' '.join(sorted(block.caching))}")
        return "; ".join(reasons) or "nothing any more: split once, alike now"

    def _kept_reasons(self, start: int, end: int) -> Iterator[HoleRow]:
        for low, high, key in View.of(self._kernel, start, end).parts(start, end):
            if not key & MAPPED and key & NONZERO:
                yield from self.hole(low, high, True)

    def _image_parts(self) -> Tuple[Tuple[int, int, str], ...]:
        """(first, last physical address, name) of the image's parts that have rights of their own."""
        try:
            return tuple(
                (part.physical, part.physical + part.end - part.start, part.name)
                for part in sections(self._kernel)
            )
        except Unavailable:
            return ()

    def _freed_after_boot(self) -> Tuple[Tuple[int, int], ...]:
        """Physical addresses of what free_init_pages unmaps then: parts of the image, and the initrd."""
        found: List[Tuple[int, int]] = []
        try:
            found += boot_initrd(self._kernel)
            found += [
                (part.physical, part.physical + part.end - part.start + 1)
                for part in sections(self._kernel)
                if part.freed or part.name == LOCKS
            ]
        except Unavailable:
            pass
        return tuple((low // PAGE_SIZE * PAGE_SIZE, -(-high // PAGE_SIZE) * PAGE_SIZE) for low, high in found)

    def _run_time_code(self) -> Set[int]:
        """Physical addresses of the pages that are mapped in modules' region."""
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
        """Physical addresses of the pages mapped from one address to another, inclusive."""
        import numpy

        u = numpy.uint64
        pages = numpy.arange((end - start >> PAGE_SHIFT) + 1, dtype=u) << u(PAGE_SHIFT)
        physical, states = self._kernel.translate_array(pages + u(start))
        return set(physical[states == FOUND].tolist())

    def _executable_cache(self) -> Set[int]:
        """Physical addresses of the pages of ``execmem_cache``, which leave the direct map (6.13)."""
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


REGION = DirectMap()

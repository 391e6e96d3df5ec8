# SPDX-License-Identifier: LGPL-2.1-or-later
"""One kernel: its program, the facts about it with where each was read, its page tables and regions.

This is what a person at a prompt holds in the hand. Facts are read when they are asked for, once; what cannot
be read raises :class:`~kvintro.errors.Unavailable` with the reason, and nothing is filled in for it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import drgn

from kvintro.arch import x86_64
from kvintro.arch.x86_64 import ALL, SECTION_SIZE_BITS, START_KERNEL_MAP, X86Geometry
from kvintro.arch.x86_64_entry import SWP_TYPE_BITS, Dialect, SpecialSwapTypes
from kvintro.errors import NotInDump, Unavailable
from kvintro.model import Fact, Identity, Located
from kvintro.paging import LEVEL_SHIFT, UNREADABLE, Bulk, BulkWalk, Ranges, Tree, Walk, walk
from kvintro.source import Request, Source, open_source

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from kvintro.regions import Region, Regions

#: Arrays of pointers, one for each type of swap space.
_BY_SWAP_TYPE = ("swap_info", "swapper_spaces")
_MAX_NODES = 1 << 10  # with CONFIG_NODES_SHIFT=10, its largest value


def open_kernel(request: Request) -> Kernel:
    """Open a source and wrap it; see :func:`kvintro.source.open_source` for what it raises."""
    return Kernel(open_source(request))


class Claims:
    """Which list or tree each structure of a dump is in.

    A structure is in one list by one of its members, and structures do not overlap. A hostile dump could
    otherwise have a list of a million entries in a few pages, and thousands of lists that lead into it. With
    this, all lists together are no longer than the memory that they take.
    """

    def __init__(self, source: Source) -> None:
        # While a kernel runs, its structures move from list to list.
        self._checked = not source.live
        self._taken: Dict[str, Dict[int, Tuple[int, int]]] = {}

    def problem(self, kind: str, address: int, size: int, owner: int) -> str:
        """What is wrong with an entry of a list; empty if nothing is.

        :param kind: the type of the entry, and the member by which it is in the list.
        :param address: where the entry, or that member of it, lies.
        :param size: bytes of the entry.
        :param owner: address of the list's head.
        """
        if not self._checked:
            return ""
        taken, place = self._taken.setdefault(kind, {}), address // size
        for near in (place - 1, place, place + 1):
            other, its_owner = taken.get(near, (address, owner))
            if other != address and abs(other - address) < size:
                return f"{address:016x} overlaps {other:016x}"
            if other == address and its_owner != owner:
                return f"{address:016x} is in another list, too"
        taken[place] = address, owner
        return ""


class Kernel:
    """See the module.

    :ivar prog: the drgn program, with symbols and types as far as there are any.
    :ivar source: what was opened, and how complete it is.
    :ivar claims: which list each structure was found in.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.prog = source.prog
        self.arch = x86_64.ARCHITECTURE
        self.claims = Claims(source)
        self._trees: Dict[int, Tree] = {}
        self._locations: Dict[str, Located] = {}

    # Memory

    def read_physical(self, address: int, size: int) -> bytes:
        """Physical memory.

        :raises NotInDump: any byte of it is not in the source.
        """
        try:
            data: bytes = self.prog.read(address, size, True)
            return data
        except (drgn.FaultError, OverflowError, ValueError, OSError) as error:
            raise NotInDump(address, size, physical=True) from error

    def read(self, address: int, size: int) -> bytes:
        """Kernel virtual memory.

        :raises NotInDump: any byte of it is not mapped or not in the source.
        """
        try:
            data: bytes = self.prog.read(address, size)
            return data
        except (drgn.FaultError, OverflowError, ValueError, OSError) as error:
            raise NotInDump(address, size, physical=False) from error

    # Symbols and facts

    def symbol(self, name: str) -> int:
        """Address of a symbol.

        :raises Unavailable: the kernel has none of that name, or the source has no symbols.
        """
        address = self.find_symbol(name)
        if address is None:
            raise self.nameless(name)
        return address

    def nameless(self, name: str) -> Unavailable:
        """Why a symbol is not to be had."""
        if self.source.symbols == "none":
            return Unavailable(f"no symbols here, so {name} cannot be found", "give -s VMLINUX")
        if self.code_only:
            return Unavailable(
                f"{name} cannot be found: this kernel names its code only (CONFIG_KALLSYMS_ALL is off)",
                "give -s VMLINUX",
            )
        return Unavailable(f"this kernel has no symbol {name}")

    def why(self, error: BaseException) -> str:
        """What drgn raised, in one line; where a variable has no name, that this is why."""
        text = " ".join(str(error).split())[:200] or type(error).__name__
        missing = re.fullmatch(r"could not find '(\w+)'", text.strip('"'))
        return self.nameless(missing[1]).what if missing and self.code_only else text

    @cached_property
    def code_only(self) -> bool:
        """Whether variables have no names here: CONFIG_KALLSYMS_ALL is off.

        Then a symbol that is not found says nothing, unless it would be one of code.
        """
        return self.source.kallsyms is not None and self.source.kallsyms.code_only

    def find_symbol(self, name: str) -> Optional[int]:
        """Address of a symbol, None if there is none."""
        try:
            address: int = self.prog.symbol(name).address
            return address
        except LookupError:
            return None

    def has_symbol(self, name: str, *, code: bool = False) -> bool:
        """Whether the kernel has the symbol. Where its name would not be there anyway, that is an error.

        :param code: it is a function's, which all symbol tables have.
        :raises Unavailable: the source has no symbols, or those of code only and this is none.
        """
        if self.source.symbols == "none":
            raise Unavailable("no symbols here, so nothing tells what this kernel was built with")
        found = self.find_symbol(name) is not None
        if not found and self.code_only and not code:
            raise self.nameless(name)
        return found

    def value(self, name: str, size: int = 8, *, signed: bool = False) -> Fact[int]:
        """A scalar variable by its symbol alone; no types are needed.

        :param size: bytes.
        :raises Unavailable: no such symbol, or its memory is not in the source.
        """
        address = self.symbol(name)
        data = self.read(address, size)
        # Where the page tables do not lead to it, that is said.
        by = self.source.translation.arithmetic(address) if self.source.translation else ""
        return Fact(int.from_bytes(data, "little", signed=signed), f"{name} (by {by})" if by else name)

    def number_of(self, name: str, size: int = 8) -> int:
        """As :meth:`value`; also of a variable whose value is known, and where it lies is not.

        :raises Unavailable: nothing tells.
        """
        if self.code_only and self.find_symbol(name) is None:
            with contextlib.suppress(LookupError):
                return int(self.prog[name])
        return self.value(name, size).value

    def first_value(self, *names: str, size: int = 8) -> Fact[int]:
        """The first of several variables that this kernel has; names change from version to version.

        :raises Unavailable: it has none of them.
        """
        for name in names:
            if self.find_symbol(name) is not None:
                return self.value(name, size)
        if self.code_only or self.source.symbols == "none":
            raise self.nameless(" or ".join(names))
        raise Unavailable(f"this kernel has none of the symbols {', '.join(names)}")

    def number(self, key: str) -> Fact[int]:
        """A number of VMCOREINFO, such as ``NUMBER(phys_base)`` (decimal) or ``SYMBOL(_stext)`` (hex).

        :raises Unavailable: VMCOREINFO has no such key, or its value is no number.
        """
        text = self.source.vmcoreinfo.get(key)
        if text is None:
            raise Unavailable(f"VMCOREINFO has no {key}")
        base = 10 if key.startswith(("NUMBER", "SIZE", "OFFSET", "LENGTH")) else 16
        try:
            # Some NUMBERs are printed as 0x... all the same (VMALLOC_START).
            value = int(text, 16 if text.startswith("0x") else base)
        except ValueError:
            raise Unavailable(f"VMCOREINFO's {key} is no number") from None
        if not -(1 << 63) <= value < 1 << 64:
            raise Unavailable(f"VMCOREINFO's {key} is no number of 64 bits")
        return Fact(value, f"VMCOREINFO {key[key.find('(') + 1 :].rstrip(')')}")

    def first_fact(self, *ways: Callable[[], Fact[int]]) -> Fact[int]:
        """What the first way that works finds.

        :raises Unavailable: none works; the reasons of all, the first one first.
        """
        reasons: List[str] = []
        for way in ways:
            try:
                return way()
            except Unavailable as error:
                reasons.append(error.what)
        raise Unavailable("; ".join(reasons))

    @cached_property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        fact = self.first_fact(
            lambda: self.number("NUMBER(pgtable_l5_enabled)"),
            lambda: self.value("__pgtable_l5_enabled", 4),
        )
        return Fact(5 if fact.value else 4, fact.provenance)

    @cached_property
    def phys_base(self) -> Fact[int]:
        """Physical address that START_KERNEL_MAP would have: what image addresses are moved by, signed."""
        return self.first_fact(
            lambda: self.number("NUMBER(phys_base)"), lambda: self.value("phys_base", signed=True)
        )

    @cached_property
    def physical_mask(self) -> Fact[int]:
        """Bits that hold an address in a page-table entry (``physical_mask``)."""

        def from_sme() -> Fact[int]:
            sme = self.number("NUMBER(sme_mask)")
            return Fact(((1 << 52) - 1) & ~sme.value, sme.provenance)

        fact = self.first_fact(lambda: self.value("physical_mask"), from_sme)
        # A mask that is no mask would make every walk wrong; a damaged dump can hold anything there.
        if fact.value & 0xFFFFF000 != 0xFFFFF000 or fact.value >> 52:
            fact = from_sme()
        return fact

    @cached_property
    def geometry(self) -> X86Geometry:
        """Page-table geometry of this kernel."""
        return self.arch.geometry(self.levels.value, self.physical_mask.value)

    @cached_property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table (init_top_pgt)."""
        fact = self.first_fact(
            lambda: self.number("SYMBOL(swapper_pg_dir)"),
            lambda: Fact(self.symbol("init_top_pgt"), "init_top_pgt"),
        )
        return Fact(fact.value - START_KERNEL_MAP + self.phys_base.value & ALL, fact.provenance)

    @cached_property
    def image_window(self) -> Fact[int]:
        """KERNEL_IMAGE_SIZE in bytes: the window in which the image may lie."""
        return self.number("NUMBER(KERNEL_IMAGE_SIZE)")

    @cached_property
    def text(self) -> Fact[int]:
        """Address of ``_text``, the image's first byte."""

        def from_stext() -> Fact[int]:
            # _stext is _text in every kernel that puts nothing before the text (all since 2.6).
            return self.number("SYMBOL(_stext)")

        return self.first_fact(lambda: Fact(self.symbol("_text"), "_text"), from_stext)

    @cached_property
    def image_slide(self) -> Fact[int]:
        """By how many bytes KASLR moved the image."""

        def from_kerneloffset() -> Fact[int]:
            return self.number("KERNELOFFSET")

        def from_text() -> Fact[int]:
            return Fact(self.text.value - x86_64.DEFAULT_TEXT, self.text.provenance)

        return self.first_fact(from_kerneloffset, from_text)

    @cached_property
    def max_pfn(self) -> Fact[int]:
        """One more than the highest page frame number of RAM."""
        return self.first_fact(lambda: self.value("max_pfn"), self._end_of_nodes)

    def node_addresses(self) -> List[int]:
        """Address of the ``struct pglist_data`` of each node; no types are needed.

        :raises Unavailable: the source does not tell.
        """
        try:
            # Without CONFIG_NUMA there is one, and VMCOREINFO names it.
            return [self.number("SYMBOL(contig_page_data)").value]
        except Unavailable:
            pass
        table = self.first_fact(
            lambda: self.number("SYMBOL(node_data)"), lambda: Fact(self.symbol("node_data"), "node_data")
        )
        count = min(max(self.number("LENGTH(node_data)").value, 0), _MAX_NODES)
        data = self.read(table.value, 8 * count)
        found = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
        return [address for address in found if address]

    def nodes(self) -> Iterator[drgn.Object]:
        """The ``struct pglist_data`` of each node, not read yet.

        :raises Unavailable: the source does not tell.
        """
        try:
            for address in self.node_addresses():
                yield drgn.Object(self.prog, "struct pglist_data", address=address)
        except (LookupError, TypeError, ValueError, drgn.FaultError) as error:
            raise Unavailable(f"the nodes of memory cannot be read: {error}") from error

    def _end_of_nodes(self) -> Fact[int]:
        """Nodes reach from the first page frame of their memory to the last (mm/mm_init.c:free_area_init).

        Memory that was plugged in and never put online is in no zone, and so behind the end of its node.
        """
        ends = [0, *(end for _, end in self.node_spans())]
        if not 0 < max(ends) < 1 << 52:
            raise Unavailable("the nodes of memory say nothing of its end")
        return Fact(max(ends), "the end of its nodes")

    def node_spans(self) -> List[Tuple[int, int]]:
        """(first page frame, one more than the last) of each node; no types are needed.

        :raises Unavailable: the source does not tell.
        """
        start, spanned = (
            self.number(f"OFFSET(pglist_data.{member})").value
            for member in ("node_start_pfn", "node_spanned_pages")
        )
        spans = []
        for node in self.node_addresses():
            first, count = (
                int.from_bytes(self.read(node + at & ALL, 8), "little") for at in (start, spanned)
            )
            spans.append((first, first + count))
        return spans

    @cached_property
    def page_struct_size(self) -> Fact[int]:
        """sizeof(struct page)."""
        return self.number("SIZE(page)")

    @cached_property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS: how many bits of a physical address there are within a memory section."""
        return self.first_fact(
            lambda: self.number("NUMBER(SECTION_SIZE_BITS)"),
            # VMCOREINFO has it since 5.8.
            lambda: Fact(SECTION_SIZE_BITS, "constant"),
        )

    @cached_property
    def page_offset_base(self) -> Fact[int]:
        """Where the direct map starts."""
        return self.first_fact(
            lambda: self.value("page_offset_base"),
            self._direct_map_from_segments,
            self._direct_map_from_tables,
        )

    def _direct_map_from_segments(self) -> Fact[int]:
        """RAM in kexec's dumps and /proc/kcore has both addresses; their difference is the base."""
        start = self.geometry.ldt_remap.end + 1
        bases = {
            segment.vaddr - segment.paddr
            for segment in self.source.segments
            if start <= segment.vaddr < x86_64.CPU_ENTRY_AREA_BASE
            and segment.paddr < 1 << self.geometry.max_physmem_bits
        }
        if len(bases) != 1:
            raise Unavailable("the source's segments do not give RAM's virtual addresses")
        return Fact(bases.pop(), "PT_LOAD")

    def _direct_map_from_tables(self) -> Fact[int]:
        """The direct map is the lowest mapping above the LDT slot, and page frame 0 is on a GiB boundary."""
        start = self.geometry.ldt_remap.end + 1
        # Not a walk of its own: a second one finds every table shared.
        for low, _, key in self.kernel_ranges.clip(start, x86_64.CPU_ENTRY_AREA_BASE - 1):
            if key & x86_64.PRESENT:
                found = self.walk(low)
                if found.physical is None:
                    break
                base = low - found.physical
                if base % (1 << 30) == 0 and base >= start:
                    return Fact(base, "page tables: lowest mapping of the kernel half")
                break
        raise Unavailable("the page tables do not show where the direct map starts")

    @cached_property
    def pti(self) -> Fact[bool]:
        """Whether page-table isolation is on.

        Read off the tables: only then does the root have a second page, for user mode, into which the
        kernel clones the entry of cpu_entry_area (arch/x86/mm/pti.c:pti_clone_p4d).
        """
        level = self.geometry.levels
        offset = 8 * self.geometry.index(x86_64.CPU_ENTRY_AREA_BASE, level)
        kernel_half = self.root.value & ~x86_64.PTI_USER_ROOT_BIT
        if self.root.value != kernel_half:
            return Fact(False, "init_top_pgt is not aligned for two roots")
        address = kernel_half + offset
        if level == 5:
            # All five-level roots share the last entry; PTI clones below it, into a table of its own.
            user_top = self._entry(kernel_half + x86_64.PTI_USER_ROOT_BIT + offset)
            kernel_top = self._entry_of_cpus(address)
            if not user_top & x86_64.PRESENT or user_top == kernel_top:
                return Fact(False, "page tables: no user root")
            index = 8 * self.geometry.index(x86_64.CPU_ENTRY_AREA_BASE, 4)
            mask = self.geometry.pfn_mask
            same = self._entry((user_top & mask) + index) == self._entry((kernel_top & mask) + index)
        else:
            same = self._entry_of_cpus(address) == self._entry(address + x86_64.PTI_USER_ROOT_BIT)
        return Fact(same, f"page tables: {'a' if same else 'no'} user root")

    def _entry_of_cpus(self, physical: int) -> int:
        """The entry that leads to cpu_entry_area, which every kernel maps.

        :raises Unavailable: there is none: memory that was overwritten, or reads as zeros.
        """
        entry = self._entry(physical)
        if not entry & x86_64.PRESENT:
            raise Unavailable("init_top_pgt has no entry for cpu_entry_area")
        return entry

    def _entry(self, physical: int) -> int:
        return int.from_bytes(self.read_physical(physical, 8), "little")

    # Page tables

    def tree(self, root: Optional[int] = None) -> Tree:
        """The page-table tree of a root (physical address), by default the kernel's own."""
        if root is None:
            root = self.root.value
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = self.new_tree(root)
        return tree

    def new_tree(self, root: int, *, prune: Optional[Mapping[int, int]] = None, prune_as: int = 0) -> Tree:
        """A tree of its own; see :class:`kvintro.paging.Tree` for what pruning means."""
        return Tree(
            self.read_physical,
            self.geometry,
            root,
            table_limit=self.table_limit,
            memory_end=self._memory_end,
            unusable=[broken.table for broken in self.source.broken_tables if broken.whole],
            prune=prune,
            prune_as=prune_as,
        )

    @cached_property
    def table_limit(self) -> int:
        """How many page tables there can be: no more than pages, and some slack for hot-plugged memory."""
        try:
            return min(self.max_pfn.value * 2 + (1 << 16), 1 << 34)
        except Unavailable:
            return 1 << 24

    @cached_property
    def _memory_end(self) -> Optional[int]:
        """Physical address behind the last RAM, where all page tables lie."""
        try:
            return self.max_pfn.value << x86_64.PAGE_SHIFT if self.max_pfn.value < 1 << 40 else None
        except Unavailable:
            return None

    @cached_property
    def kernel_ranges(self) -> Ranges:
        """The kernel half of the kernel's own tables, above the guard hole.

        What broken tables translate is unreadable here, whatever they say.
        """
        ranges = self.tree().ranges(self.geometry.guard_hole.end + 1, ALL)
        for broken in self.source.broken_tables:
            ranges = ranges.replaced(broken.start, broken.end, UNREADABLE | broken.level << LEVEL_SHIFT)
        return ranges

    def walk(self, address: int, root: Optional[int] = None) -> Walk:
        """Translate one address step by step, by the kernel's own root unless another is given."""
        if root is None:
            root = self.root.value
        return walk(self.read_physical, self.geometry, root, address)

    def bulk(self, root: Optional[int] = None, *, sound: bool = False) -> Bulk:
        """Translates arrays of addresses by a root (physical address), by default the kernel's own.

        :param sound: take what broken tables translate for not in the dump.
        """
        broken = [(table.start, table.end) for table in self.source.broken_tables] if sound else []
        return Bulk(self.read_physical, self.geometry, self.root.value if root is None else root, broken)

    def translate_array(
        self, addresses: NDArray[numpy.uint64], root: Optional[int] = None
    ) -> Tuple[NDArray[numpy.uint64], NDArray[numpy.uint8]]:
        """Translate many virtual addresses at once, some tens of millions a second.

        :param addresses: numpy array of uint64, one dimension.
        :param root: physical address of the root table, by default the kernel's own.
        :return: physical addresses (0 where there is none), and what became of each address as an index into
            :data:`kvintro.paging.bulk.STATES`: 0 unmapped, 1 mapped, 2 not in the dump, 3 non-canonical.
        """
        result = self.bulk(root).translate(addresses)
        return result.physical, result.states

    def walk_array(self, addresses: NDArray[numpy.uint64], root: Optional[int] = None) -> BulkWalk:
        """As :meth:`translate_array`, with the entries met at each level and the sizes of the pages.

        :param addresses: numpy array of uint64, one dimension.
        :param root: physical address of the root table, by default the kernel's own.
        :return: arrays; see :class:`kvintro.paging.BulkWalk`.
        """
        return self.bulk(root).walk(addresses)

    @cached_property
    def entry_dialect(self) -> Dialect:
        """What this kernel's build changes in the meaning of page-table entries; unknowns stay unknown."""
        try:
            return self._entry_dialect()
        except Unavailable:
            return Dialect()

    @cached_property
    def _special_swap_types(self) -> Optional[int]:
        """How many swap types are no swap files, by the length of ``swap_info`` (mm/swapfile.c).

        None where it is not known: there is no swap, or what follows the array is not known to be next to it.
        """
        table = self.source.kallsyms
        sizes = [] if table is None else [s.size for name in _BY_SWAP_TYPE for s in table.lookup_all(name)]
        rooms = [size // 8 for size in sizes if size]
        count = (1 << SWP_TYPE_BITS) - min(rooms) if rooms else 0
        return count if 0 < count < 16 else None

    def _swap_generations(self, shadow_stacks: bool) -> Tuple[int, int]:
        """Between which generations of special swap types this kernel is, by what came with them or later."""
        if shadow_stacks:
            return 3, 3
        if self.source.types != "none":
            try:
                # 78fbe906cc90 "mm/page-flags: reuse PG_mappedtodisk as PG_anon_exclusive for PageAnon()
                # pages" came with the second generation.
                self.prog.constant("PG_anon_exclusive")
            except LookupError:
                return 0, 0
            try:
                self.prog.type("struct mm_rss_stat")
            except LookupError:
                # f1a7941243c1 "mm: convert mm's rss stats into percpu_counter" came with the last one.
                return 3, 3
            return 1, 2
        # A and D bits of migration entries came later than the second.
        return int(self.find_symbol("swap_migration_ad_supported") is not None), 3

    def _entry_dialect(self) -> Dialect:
        # Shadow stacks (6.6) took bit 58 for SAVED_DIRTY, and SOFTW4 moved to 57; this came with them.
        shadow_stacks = self.has_symbol("arch_check_zapped_pte", code=True)
        exclusive = 0
        if self.has_symbol("make_device_exclusive_range", code=True):
            exclusive = 4
        elif self.has_symbol("make_device_exclusive", code=True):
            exclusive = 3
        count = self._special_swap_types
        least, most = self._swap_generations(shadow_stacks)
        swap_types = None
        if shadow_stacks or count is not None:
            swap_types = SpecialSwapTypes.fitting(
                count,
                hwpoison=self.has_symbol("memory_failure", code=True),
                migration=self.has_symbol("remove_migration_ptes", code=True),
                exclusive=exclusive,
                guard=self.has_symbol("guard_remove_pte_entry", code=True),
                least=least,
                most=most,
            )
        return Dialect(
            57 if shadow_stacks else 58,
            swap_types,
            # Both went with "mm: remove devmap related functions and page table bits" and its series (6.17).
            devmap=self.find_symbol("devmap_managed_key") is not None,
            # arch/x86/mm/pat/set_memory.c, the one reader of _PAGE_KERNEL_4K.
            kernel_4k=self.has_symbol("collapse_large_pages", code=True),
            # include/linux/userfaultfd_k.h of 7.3, where _PAGE_UFFD_WP became _PAGE_UFFD.
            uffd="UFFD" if self.has_symbol("userfaultfd_rwp", code=True) else "UFFD_WP",
        )

    # Regions

    @cached_property
    def regions(self) -> Regions:
        """All regions that this architecture can have."""
        from kvintro.regions import regions_of

        return regions_of(self.arch)

    def locate(self, region: Union[Region, str]) -> Located:
        """Where a region (or the one with that key) lies on this kernel."""
        if isinstance(region, str):
            region = next(r for r in self.regions if r.key == region)
        found = self._locations.get(region.key)
        if found is None:
            found = self._locations[region.key] = region.located(self)
        return found

    @cached_property
    def identity(self) -> Identity:
        """Which kernel this is. Never raises: what cannot be read is None."""
        from kvintro.model import Placement

        moved: List[bool] = []
        with contextlib.suppress(Unavailable):
            moved.append(self.image_slide.value != 0)
        for key in ("direct_map", "vmalloc", "vmemmap"):
            place = self.locate(key)
            if isinstance(place, Placement) and place.slide is not None:
                moved.append(place.slide != 0)
        try:
            pti: Optional[bool] = self.pti.value
        except Unavailable:
            pti = None
        return Identity(
            release=self.source.vmcoreinfo.get("OSRELEASE"),
            build_id=self.source.vmcoreinfo.get("BUILD-ID"),
            arch=self.arch.name,
            paging_levels=self.levels.value,
            kaslr=any(moved) if moved else None,
            pti=pti,
            source=self.source.label,
            live=self.source.live,
            types=self.source.types,
            symbols=self.source.symbols,
        )


class _Callable(ModuleType):
    """Makes this module what a person at a prompt types: ``from kvintro import kernel; k = kernel(prog)``.

    It has the name that is right for both. The function is :func:`kvintro.prompt.kernel`.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("kvintro.prompt").kernel(*args, **options)


sys.modules[__name__].__class__ = _Callable

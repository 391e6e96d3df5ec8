# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel: its program, its facts with their provenance, its page tables and its regions.

Each fact is read once, on first use. If it cannot be read, :class:`~kvintro.errors.Unavailable` is raised
with the reason.
"""

from __future__ import annotations

import contextlib
import enum
import re
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    TypeVar,
    Union,
    cast,
)

import drgn

from kvintro.arch import Architecture, by_drgn_name, part
from kvintro.arch.entry import EntryFormat
from kvintro.arch.form import PagingForm
from kvintro.errors import NotInDump, Unavailable
from kvintro.model import (
    ALL,
    Absent,
    AddressRange,
    Asked,
    Contents,
    Fact,
    Identity,
    Linear,
    Located,
    NoRange,
    Placement,
    Randomised,
    Root,
    Thing,
    Unknown,
)
from kvintro.paging import LEVEL_SHIFT, UNREADABLE, Bulk, BulkWalk, Ranges, Tree, Walk, walk
from kvintro.paging.forest import Forest, grow
from kvintro.source import Source

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

T = TypeVar("T")

MAX_FIXMAP_SLOTS = 1 << 16
_MAX_NODES = 1 << 10  # with CONFIG_NODES_SHIFT=10, its largest value


class Claims:
    """Records which list or tree each structure of a dump is in.

    Each list member links a structure into one list, and structures do not overlap. Without this check, a
    hostile dump could hold a list of a million entries in a few pages, and thousands of lists that lead into
    it. With it, the total length of all lists is bounded by the memory that they occupy.
    """

    def __init__(self, source: Source) -> None:
        # In a running kernel, structures move from list to list.
        self._checked = not source.live
        self._taken: Dict[str, Dict[int, Tuple[int, int]]] = {}

    def problem(self, kind: str, address: int, size: int, owner: int) -> str:
        """What is wrong with an entry of a list; empty if nothing is wrong.

        :param kind: type of the entry, and the member that links it into the list.
        :param address: address of the entry, or of that member.
        :param size: size of the entry in bytes.
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


class Trait(enum.Flag):
    """Properties of a region, for code that checks these instead of comparing the region's key."""

    NONE = 0
    #: It contains symbols of code and data.
    SYMBOLS = enum.auto()
    #: It contains vmalloc areas, including modules.
    AREAS = enum.auto()
    #: It contains memory of per-CPU variables.
    PER_CPU = enum.auto()
    #: It contains the slots of the fixmap.
    SLOTS = enum.auto()
    #: Each process maps its own.
    PER_PROCESS = enum.auto()
    #: Roots other than the kernel's own map it.
    OTHER_ROOTS = enum.auto()
    #: User mode may access it, although it is in the upper half.
    FOR_USER = enum.auto()
    #: No page that is mapped in it is free.
    IN_USE = enum.auto()
    #: Nothing in it may be executable.
    NO_EXEC = enum.auto()
    #: Nothing in it may be writable.
    NO_WRITE = enum.auto()
    #: Nothing in it may be mapped.
    UNUSED = enum.auto()


class Region:
    """A row of the memory map: where it lies on a kernel, and which tables map it.

    This is the part that :class:`Kernel` uses. Files in :mod:`kvintro.regions` subclass
    :class:`kvintro.regions.Region`, which also reads the page tables.
    """

    #: Name in JSON and on the command line.
    key: str
    #: Its name for display.
    name: str
    #: ``region``, or ``hole`` for a range that must stay unused.
    kind = "region"
    #: The kernel's macro or variable that defines the start.
    macro: str
    #: Its position among the rows of mm.rst, for lists that have no other order.
    row = 100
    #: Whether the bounds are constants of the paging mode. They override contradicting data.
    fixed = False
    #: Its addresses if they are the same on every kernel that has it; None if they differ.
    reserved: Optional[AddressRange] = None
    #: Its properties.
    traits = Trait.NONE
    #: The noun for ``roots`` in a count, singular and plural.
    root_noun = ("root", "roots")

    def locate(self, kernel: Kernel) -> Located:
        """Where it lies on this kernel, or why this kernel does not have it.

        :raises Unavailable: the source does not contain it.
        """
        raise NotImplementedError

    def roots(self, kernel: Kernel) -> Sequence[Root]:
        """The roots to search for mappings in it.

        :raises Unavailable: the source does not contain it.
        """
        return (kernel.kernel_root,)

    def also_mapped(self, kernel: Kernel) -> Sequence[AddressRange]:
        """Other ranges that its roots map and no other root does."""
        return ()

    def linear(self, kernel: Kernel) -> Optional[Linear]:
        """The rule that translates its addresses; None if only page tables do.

        :raises Unavailable: the source does not contain it.
        """
        return None

    def own_memory(self, kernel: Kernel) -> Optional[int]:
        """Bytes mapped to memory of the region's own, if one shared page fills the rest; otherwise None.

        :raises Unavailable: the source does not contain it.
        """
        return None

    def contents(self, kernel: Kernel, asked: Asked) -> Contents:
        """The contents of the region. Call this only if this kernel has the region.

        :raises Unavailable: the source does not contain it.
        """
        raise NotImplementedError

    def finder(self, kernel: Kernel) -> Callable[[int], Iterable[Thing]]:
        """A function that returns what in the region an address belongs to.

        It takes an address in the region and keeps what it reads for later calls. It raises
        :class:`~kvintro.errors.Unavailable` if that cannot be read.
        """
        return lambda address: ()

    def mapped(self, kernel: Kernel) -> Contents:
        """The mappings in it, from the page tables.

        :raises Unavailable: its place or its roots are unknown.
        """
        raise NotImplementedError

    def claimed(self, kernel: Kernel, place: Placement) -> Optional[AddressRange]:
        """Addresses at which something may be mapped for it.

        :param place: where it lies.
        :return: None if that is unknown.
        """
        return place.range

    def randomised(self, kernel: Kernel) -> Sequence[Randomised]:
        """What KASLR randomises in it; empty if nothing in it moves.

        :raises Unavailable: the source does not contain it.
        """
        return ()

    def located(self, kernel: Kernel) -> Located:
        """As :meth:`locate`, but returns :class:`~kvintro.model.Unknown` if something cannot be read."""
        try:
            return self.locate(kernel)
        except Unavailable as error:
            return Unknown(error.what)
        except NoRange as error:
            return Unknown(f"its bounds are invalid: {error}")


class Regions(Tuple[Region, ...]):
    """Regions in the order of their rows. Each is also an attribute named by its key: ``regions.vmalloc``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Region:
        found = self.named(name)
        if found is None:
            raise AttributeError(f"there is no region {name!r}, only {', '.join(r.key for r in self)}")
        return found

    def named(self, key: str) -> Optional[Region]:
        """The region with that key; None if the architecture has none."""
        return next((region for region in self if region.key == key), None)

    def __dir__(self) -> List[str]:
        return [*super().__dir__(), *(region.key for region in self)]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


class Facts(Protocol):
    """Interface of ``FACTS`` in an architecture's ``facts`` module, which is constructed from a kernel.

    Members that are facts raise :class:`~kvintro.errors.Unavailable` if the source does not say. Members
    have the same meaning as those of :class:`Kernel` with the same names.
    """

    @property
    def form(self) -> PagingForm:
        """The form of the page tables."""

    @property
    def entries(self) -> EntryFormat:
        """Decodes the entries of the page tables. Never raises: flags of unknown meaning have no name."""

    @property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""

    @property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's root table."""

    @property
    def root_name(self) -> str:
        """The kernel's name for its root table."""

    def firmware_root(self) -> Union[Root, Absent]:
        """The root that EFI's runtime services run on, if no region has it.

        :return: the root, or why there is none.
        :raises Unavailable: the source does not contain it.
        """

    def user_root(self, table: int) -> Optional[int]:
        """The root that user mode runs on under isolation.

        :param table: physical address of the root that kernel mode runs on.
        :return: None if both run on the same root, or the user half has a root of its own anyway.
        """

    @property
    def image_offset(self) -> Fact[int]:
        """Virtual minus physical address in the image."""

    @property
    def image(self) -> AddressRange:
        """Addresses that ``__pa()`` translates by :attr:`image_offset`; modules' may be among them."""

    @property
    def image_slide(self) -> Fact[int]:
        """Bytes by which KASLR moved the image."""

    @property
    def linear_offset(self) -> Fact[int]:
        """Virtual minus physical address in the direct map, modulo 2^64."""

    @property
    def linear_window(self) -> AddressRange:
        """All addresses that the direct map can have, wherever it lies."""

    @property
    def isolation(self) -> Fact[bool]:
        """Whether user mode runs on page tables that do not map the kernel."""

    @property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS."""

    @property
    def kaslr(self) -> Fact[bool]:
        """Whether KASLR was on when the kernel booted (``kaslr_enabled()``)."""

    @property
    def max_physmem_bits(self) -> Fact[int]:
        """MAX_PHYSMEM_BITS."""

    @property
    def memory_map(self) -> Fact[int]:
        """Address where the struct page of page frame 0 is or would be (``vmemmap``), modulo 2^64."""

    @property
    def fixmap_top(self) -> int:
        """Address of the fixmap's slot 0 (FIXADDR_TOP). Slots count downwards."""

    @property
    def kasan_shadow_offset(self) -> int:
        """KASAN_SHADOW_OFFSET: address where the shadow of address 0 would be."""

    def initrd(self) -> Sequence[Tuple[int, int]]:
        """(start, end) of the initrd in physical memory, ends exclusive; empty if there was none."""

    def place(self, key: str) -> Located:
        """Where the region with that key lies.

        Keys are those of the regions in :mod:`kvintro.regions` that each architecture places by its own
        rules: ``direct_map``, ``vmalloc``, ``vmemmap``, ``modules``, ``fixmap``, ``kernel_image``,
        ``kasan_shadow``, and ``pci_io`` if it has that region. A region within another has that one's key as
        ``parent``.
        """


#: Lists the regions of an architecture.
RegionsOf = Callable[[Architecture], Regions]


class Kernel:
    """A kernel; see the module.

    :ivar prog: the drgn program, with whatever symbols and types there are.
    :ivar source: what was opened, and how complete it is.
    :ivar claims: records which list each structure was found in.

    :param regions_of: lists the regions of an architecture. Regions read kernels, so they are in a higher
        layer, and the code that opens a kernel passes them in (:func:`kvintro.opening.kernel_of`).
    """

    def __init__(self, source: Source, regions_of: RegionsOf) -> None:
        self.source = source
        self._regions_of = regions_of
        self.prog = source.prog
        platform = source.prog.platform
        self.arch = by_drgn_name("unknown" if platform is None else platform.arch.name)
        self.claims = Claims(source)
        self._trees: Dict[int, Tree] = {}
        #: Forms of trees that differ from the kernel's own, by the physical address of their root.
        self.forms: Dict[int, PagingForm] = {}
        self._locations: Dict[str, Located] = {}
        self._kept: Dict[Callable[[Kernel], object], object] = {}

    def once(self, read: Callable[[Kernel], T]) -> T:
        """The result of a function that reads something of this kernel which several questions need.

        It is called once; what it raises is not kept. A running kernel is read each time. The result is
        shared, so do not change it.
        """
        if self.source.live:
            return read(self)
        if read not in self._kept:
            self._kept[read] = read(self)
        return cast(T, self._kept[read])

    def fresh(self) -> Kernel:
        """The same kernel with nothing read yet."""
        return type(self)(self.source, self._regions_of)

    # Memory

    def read_physical(self, address: int, size: int) -> bytes:
        """Read physical memory.

        :raises NotInDump: any byte of it is not in the source.
        """
        try:
            data: bytes = self.prog.read(address, size, True)
            return data
        except (drgn.FaultError, OverflowError, ValueError, OSError) as error:
            raise NotInDump(address, size, physical=True) from error

    def read(self, address: int, size: int) -> bytes:
        """Read kernel virtual memory.

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

        :raises Unavailable: the kernel has no symbol of that name, or the source has no symbols.
        """
        address = self.find_symbol(name)
        if address is None:
            raise self.nameless(name)
        return address

    def nameless(self, name: str) -> Unavailable:
        """The error that says why a symbol cannot be found."""
        if self.source.symbols == "none":
            return Unavailable(f"there are no symbols, so {name} cannot be found", "give -s VMLINUX")
        if self.code_only:
            return Unavailable(
                f"{name} cannot be found: this kernel names its code only (CONFIG_KALLSYMS_ALL is off)",
                "give -s VMLINUX",
            )
        return Unavailable(f"this kernel has no symbol {name}")

    def why(self, error: BaseException) -> str:
        """An error of drgn's as one line; if the symbol table lacks the variable, this says so."""
        text = " ".join(str(error).split())[:200] or type(error).__name__
        missing = re.fullmatch(r"could not find '(\w+)'", text.strip('"'))
        return self.nameless(missing[1]).what if missing and self.code_only else text

    @cached_property
    def code_only(self) -> bool:
        """Whether the symbol table names code only (CONFIG_KALLSYMS_ALL is off).

        In that case a variable may exist even if its symbol is not found.
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
        """Whether the kernel has the symbol.

        :param code: whether the symbol is a function. Every symbol table includes these.
        :raises Unavailable: the source has no symbols, or only those of code, and this is a variable.
        """
        if self.source.symbols == "none":
            raise Unavailable("there are no symbols, so it is not known how this kernel was built")
        found = self.find_symbol(name) is not None
        if not found and self.code_only and not code:
            raise self.nameless(name)
        return found

    def value(self, name: str, size: int = 8, *, signed: bool = False) -> Fact[int]:
        """The value of a scalar variable. Needs its symbol, but no types.

        :param size: bytes.
        :raises Unavailable: no such symbol, or its memory is not in the source.
        """
        address = self.symbol(name)
        data = self.read(address, size)
        # Say so if it was read by other means than the page tables.
        by = self.source.translation.arithmetic(address) if self.source.translation else ""
        return Fact(int.from_bytes(data, "little", signed=signed), f"{name} (by {by})" if by else name)

    def number_of(self, name: str, size: int = 8) -> int:
        """As :meth:`value`, but also works if the variable's value is known and its address is not.

        :raises Unavailable: the value is unknown.
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
        """A number from VMCOREINFO, such as ``NUMBER(phys_base)`` (decimal) or ``SYMBOL(_stext)`` (hex).

        :raises Unavailable: VMCOREINFO has no such key, or its value is not a number.
        """
        text = self.source.vmcoreinfo.get(key)
        if text is None:
            raise Unavailable(f"VMCOREINFO has no {key}")
        base = 10 if key.startswith(("NUMBER", "SIZE", "OFFSET", "LENGTH")) else 16
        try:
            # Some NUMBERs are nevertheless printed as 0x... (VMALLOC_START).
            value = int(text, 16 if text.startswith("0x") else base)
        except ValueError:
            raise Unavailable(f"VMCOREINFO's {key} is not a number") from None
        if not -(1 << 63) <= value < 1 << 64:
            raise Unavailable(f"VMCOREINFO's {key} does not fit in 64 bits")
        return Fact(value, f"VMCOREINFO {key[key.find('(') + 1 :].rstrip(')')}")

    def first_fact(self, *ways: Callable[[], Fact[int]]) -> Fact[int]:
        """The result of the first function that does not raise Unavailable.

        :raises Unavailable: all of them do; gives their reasons in order.
        """
        reasons: List[str] = []
        for way in ways:
            try:
                return way()
            except Unavailable as error:
                reasons.append(error.what)
        raise Unavailable("; ".join(reasons))

    @cached_property
    def facts(self) -> Facts:
        """The facts that each architecture reads in its own way."""
        found: Facts = part(self.arch, "facts").FACTS(self)
        return found

    @property
    def form(self) -> PagingForm:
        """The form of the page tables."""
        return self.facts.form

    @property
    def entries(self) -> EntryFormat:
        """Decodes the entries of the page tables; flags of unknown meaning have no name."""
        return self.facts.entries

    @property
    def page_shift(self) -> int:
        """log2 of the size of a page."""
        return self.form.page_shift

    @property
    def levels(self) -> Fact[int]:
        """Levels of paging in use."""
        return self.facts.levels

    @property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table (``swapper_pg_dir``)."""
        return self.facts.root

    @property
    def kernel_root(self) -> Root:
        """The kernel's own root, with its name."""
        return Root(self.root.value, self.facts.root_name)

    @property
    def image_offset(self) -> Fact[int]:
        """Virtual minus physical address in the kernel's image, modulo 2^64."""
        return self.facts.image_offset

    @property
    def image_slide(self) -> Fact[int]:
        """Bytes by which KASLR moved the image."""
        return self.facts.image_slide

    @property
    def linear_offset(self) -> Fact[int]:
        """Virtual minus physical address in the direct map, modulo 2^64."""
        return self.facts.linear_offset

    @property
    def isolation(self) -> Fact[bool]:
        """Whether user mode runs on page tables that do not map the kernel (PTI, KPTI)."""
        return self.facts.isolation

    @property
    def section_size_bits(self) -> Fact[int]:
        """SECTION_SIZE_BITS: log2 of the size of a memory section in bytes."""
        return self.facts.section_size_bits

    @cached_property
    def fixmap_slots(self) -> int:
        """Number of fixmap slots after early boot: the pages from FIXADDR_START to FIXADDR_TOP.

        :raises Unavailable: there are no types, or they are invalid.
        """
        try:
            slots = int(self.prog.constant("__end_of_permanent_fixed_addresses").value_())
        except LookupError:
            raise Unavailable("its slots are an enum, which cannot be read without types") from None
        if not 0 < slots < MAX_FIXMAP_SLOTS:
            raise Unavailable(f"enum fixed_addresses has {slots} slots, which is invalid")
        return slots

    @cached_property
    def text(self) -> Fact[int]:
        """Address of ``_text``, the image's first byte."""

        def from_stext() -> Fact[int]:
            # _stext equals _text in every kernel that puts nothing before the text (all since 2.6).
            return self.number("SYMBOL(_stext)")

        return self.first_fact(lambda: Fact(self.symbol("_text"), "_text"), from_stext)

    @cached_property
    def max_pfn(self) -> Fact[int]:
        """One more than the highest page frame number of RAM."""
        return self.first_fact(lambda: self.value("max_pfn"), self._end_of_nodes)

    def node_addresses(self) -> List[int]:
        """Address of the ``struct pglist_data`` of each node; no types are needed.

        :raises Unavailable: the source does not contain it.
        """
        try:
            # Without CONFIG_NUMA there is one node, and VMCOREINFO has its address.
            return [self.number("SYMBOL(contig_page_data)").value]
        except Unavailable:
            pass
        table = self.first_fact(
            lambda: self.number("SYMBOL(node_data)"), lambda: Fact(self.symbol("node_data"), "node_data")
        )
        numbers = self._node_numbers()
        found = [int.from_bytes(self.read(table.value + 8 * number, 8), "little") for number in numbers]
        return [address for address in found if address]

    def _node_numbers(self) -> Sequence[int]:
        """All numbers that nodes can have, or those of the online nodes if only these are known.

        :raises Unavailable: the source does not contain it.
        """
        with contextlib.suppress(Unavailable):
            return range(min(max(self.number("LENGTH(node_data)").value, 0), _MAX_NODES))
        online = self.number("SYMBOL(node_online_map)")
        try:
            size = min(drgn.sizeof(self.prog.type("nodemask_t")), _MAX_NODES // 8)
        except LookupError:
            size = 8  # the minimum; only a build for more than 64 nodes has more
        bits = int.from_bytes(self.read(online.value, size), "little")
        return [number for number in range(8 * size) if bits >> number & 1]

    def nodes(self) -> Iterator[drgn.Object]:
        """The ``struct pglist_data`` of each node, as a reference.

        :raises Unavailable: the source does not contain it.
        """
        try:
            for address in self.node_addresses():
                yield drgn.Object(self.prog, "struct pglist_data", address=address)
        except (LookupError, TypeError, ValueError, drgn.FaultError) as error:
            raise Unavailable(f"the memory nodes cannot be read: {error}") from error

    def _end_of_nodes(self) -> Fact[int]:
        """The highest end of a node. A node spans its first to last frame (mm/mm_init.c:free_area_init).

        Memory that was plugged in but never put online is in no zone, so its node does not include it.
        """
        ends = [0, *(end for _, end in self.node_spans())]
        if not 0 < max(ends) < 1 << 52:
            raise Unavailable("the memory nodes do not show the end of memory")
        return Fact(max(ends), "the end of the memory nodes")

    def node_spans(self) -> List[Tuple[int, int]]:
        """(first page frame, one more than the last) of each node; no types are needed.

        :raises Unavailable: the source does not contain it.
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

    # Page tables

    def tree(self, root: Optional[int] = None) -> Tree:
        """The page-table tree of a root (a physical address), by default the kernel's own."""
        if root is None:
            root = self.root.value
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = self.new_tree(root)
        return tree

    def form_at(self, root: int) -> PagingForm:
        """The form of a root's tables: the kernel's own, unless :attr:`forms` has another."""
        return self.forms.get(root, self.form)

    def new_tree(
        self,
        root: int,
        *,
        prune: Optional[Mapping[int, int]] = None,
        prune_as: int = 0,
        unusable: Collection[int] = (),
    ) -> Tree:
        """A new tree; see :class:`kvintro.paging.Tree` for the parameters."""
        return Tree(
            self.read_physical,
            self.form_at(root),
            root,
            table_limit=self.table_limit,
            memory_end=self._memory_end,
            unusable=[
                *(broken.table for broken in self.source.broken_tables if broken.whole),
                *unusable,
            ],
            prune=prune,
            prune_as=prune_as,
        )

    def forest(self, roots: Sequence[int]) -> Optional[Forest]:
        """The user halves of some roots; see :func:`kvintro.paging.forest.grow`."""
        return grow(
            self.read_physical,
            self.form,
            roots,
            memory_end=self._memory_end,
            unusable=[broken.table for broken in self.source.broken_tables if broken.whole],
        )

    @cached_property
    def table_limit(self) -> int:
        """Upper bound on the number of page tables: that of pages, with some slack for hot-plugged memory."""
        try:
            return min(self.max_pfn.value * 2 + (1 << 16), 1 << 34)
        except Unavailable:
            return 1 << 24

    @cached_property
    def _memory_end(self) -> Optional[int]:
        """Physical address after the last RAM; all page tables are below it. None if unknown."""
        try:
            return self.max_pfn.value << self.page_shift if self.max_pfn.value < 1 << 40 else None
        except Unavailable:
            return None

    @cached_property
    def kernel_ranges(self) -> Ranges:
        """The kernel's half of the address space, in its own tables.

        Addresses that broken tables translate are unreadable here, whatever the tables say.
        """
        ranges = self.tree().ranges(self.form.kernel.start, self.form.kernel.end)
        for broken in self.source.broken_tables:
            ranges = ranges.replaced(broken.start, broken.end, UNREADABLE | broken.level << LEVEL_SHIFT)
        return ranges

    def walk(self, address: int, root: Optional[int] = None) -> Walk:
        """Translate one address step by step.

        :param root: physical address of the root table, by default the kernel's own.
        """
        root = self.root.value if root is None else root
        other = self._other_half(root)
        if other is not None and address in other[0]:
            if other[1] is None:
                return Walk("unmapped", ())
            root = other[1]
        return walk(self.read_physical, self.form_at(root), root, address)

    def _other_half(self, root: int) -> Optional[Tuple[AddressRange, Optional[int]]]:
        """The half of the addresses that a root does not translate, and the root that does.

        That root is None for user mode's half, as each process has its own. The result is None if one root
        translates both halves.
        """
        if self.form.shared_root:
            return None
        kernels = [self.root.value]
        with contextlib.suppress(Unavailable):
            kernels += [table for table in (self._isolated_root,) if table is not None]
        if root in kernels:
            return self.form.user, None
        return self.form.upper, self.root.value

    @cached_property
    def _isolated_root(self) -> Optional[int]:
        return self.facts.user_root(self.root.value)

    def bulk(self, root: Optional[int] = None, *, sound: bool = False) -> Bulk:
        """Translates arrays of addresses by a root (a physical address), by default the kernel's own.

        :param sound: treat addresses that broken tables translate as not in the dump.
        """
        broken = [(table.start, table.end) for table in self.source.broken_tables] if sound else []
        root = self.root.value if root is None else root
        return Bulk(self.read_physical, self.form_at(root), root, broken, self._other_half(root))

    def translate_array(
        self, addresses: NDArray[numpy.uint64], root: Optional[int] = None
    ) -> Tuple[NDArray[numpy.uint64], NDArray[numpy.uint8]]:
        """Translate many virtual addresses at once, some tens of millions per second.

        :param addresses: one-dimensional numpy array of uint64.
        :param root: physical address of the root table, by default the kernel's own.
        :return: physical addresses (0 where there is none), and the state of each address as an index into
            :data:`kvintro.paging.bulk.STATES`: 0 unmapped, 1 mapped, 2 not in the dump, 3 non-canonical.
        """
        result = self.bulk(root).translate(addresses)
        return result.physical, result.states

    def walk_array(self, addresses: NDArray[numpy.uint64], root: Optional[int] = None) -> BulkWalk:
        """As :meth:`translate_array`, with the entries read at each level and the sizes of the pages.

        :param addresses: one-dimensional numpy array of uint64.
        :param root: physical address of the root table, by default the kernel's own.
        :return: arrays; see :class:`kvintro.paging.BulkWalk`.
        """
        return self.bulk(root).walk(addresses)

    # Regions

    @cached_property
    def regions(self) -> Regions:
        """All regions that this architecture can have."""
        return self._regions_of(self.arch)

    def locate(self, region: Union[Region, str]) -> Located:
        """Where a region (or the one with that key) lies on this kernel."""
        if isinstance(region, str):
            region = next(r for r in self.regions if r.key == region)
        found = self._locations.get(region.key)
        if found is None:
            found = self._locations[region.key] = region.located(self)
        return found

    def place(self, region: Union[Region, str]) -> Placement:
        """As :meth:`locate`, for callers that need the region to be present.

        :raises Unavailable: this kernel has no such region, or the source does not say where it lies.
        """
        found = self.locate(region)
        if not isinstance(found, Placement):
            raise Unavailable(found.reason)
        return found

    @cached_property
    def identity(self) -> Identity:
        """Identifies the kernel. Never raises: values that cannot be read are None."""
        moved: List[bool] = []
        with contextlib.suppress(Unavailable):
            moved.append(self.image_slide.value != 0)
        for key in ("direct_map", "vmalloc", "vmemmap"):
            place = self.locate(key)
            if isinstance(place, Placement) and place.slide is not None:
                moved.append(place.slide != 0)
        try:
            isolation: Optional[bool] = self.isolation.value
        except Unavailable:
            isolation = None
        return Identity(
            release=self.source.vmcoreinfo.get("OSRELEASE"),
            build_id=self.source.vmcoreinfo.get("BUILD-ID"),
            arch=self.arch.name,
            paging_levels=self.levels.value,
            paging=self.form.text,
            page_size=self.form.page_size,
            kaslr=any(moved) if moved else None,
            pti=isolation,
            isolation=isolation,
            source=self.source.label,
            live=self.source.live,
            types=self.source.types,
            symbols=self.source.symbols,
        )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translate a virtual address, a physical address, a page frame number or a struct page into all the others.

The page tables decide what is mapped. Some regions also have a linear rule (direct map, image); if that
disagrees, the answer follows the page tables and has a note. An unmapped address has no physical address.
:mod:`kvintro.queries.translate_many` translates lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.kernels import Kernel, Region, Trait
from kvintro.model import ALL, Address, Linear, Root, Size
from kvintro.paging import Walk
from kvintro.queries.names import similar_symbols
from kvintro.queries.placements import Places
from kvintro.queries.roots import kernel_root, named_root, process_root, user_half
from kvintro.regions.direct_map_reasons import missing
from kvintro.regions.vmemmap import REGION as VMEMMAP
from kvintro.text import printable, size_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: The kinds of numbers.
FORMS = ("virtual", "physical", "pfn", "page")

_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]+")
# Prefixes that users write to state the kind of a number.
_KINDS = {"pfn": "pfn", "phys": "physical", "physical": "physical", "virt": "virtual", "virtual": "virtual"}
_SYMBOL = re.compile(r"(?P<name>[A-Za-z_.$][\w.$]*)(?P<offset>[+-](?:0[xX])?[0-9a-fA-F]+)?")


@dataclass(frozen=True)
class WalkStep:
    """One level of a walk.

    :ivar level: the kernel's name of the level: ``pgd`` to ``pte``.
    :ivar entry_address: physical address of the entry.
    :ivar value: the entry; None if it is not in the source.
    :ivar flags: the kernel's names of its set bits.
    :ivar kind: kind of the entry: ``table``, ``page``, ``empty``, ``swap`` and others, as in ``kvintro pte``.
    """

    level: str
    entry_address: Address
    value: Optional[Address]
    flags: Tuple[str, ...]
    kind: Optional[str]
    note: str


@dataclass(frozen=True)
class Translation:
    """One address in all its forms; the JSON object of the same fields is described in docs/translate.md."""

    input: str
    taken_as: str
    state: str
    region: Optional[str]
    virtual: Optional[Address]
    physical: Optional[Address]
    pfn: Optional[int]
    page: Optional[Address]
    page_size: Optional[Size]
    method: Optional[str]
    symbol: Optional[str]
    in_dump: Optional[bool]
    root: Optional[str]
    note: Optional[str]
    walk: Tuple[WalkStep, ...]


@dataclass(frozen=True)
class Input:
    """An input: its text, its number, the number's kind (of :data:`FORMS`), and a note about it.

    :ivar removed: bits of the text's number that differ from ``value``: a pointer's tag or signature.
    """

    text: str
    value: int
    form: str
    note: str = ""
    removed: int = 0


class Translator:
    """Translates through the page tables of one root.

    :param root: a name of :data:`kvintro.queries.roots.NAMES`, instead of a process.
    :param form: kind of all numbers; None to infer it from their values.
    :param below: kind of numbers in the user half (``virtual`` or ``physical``) if ``form`` is None; None for
        physical if such memory is possible, else virtual.
    :param plain_virtual: treat addresses of struct pages as virtual addresses.
    :raises UsageError: there is no such process or root.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        pid: Optional[int] = None,
        user: bool = False,
        root: Optional[str] = None,
        form: Optional[str] = None,
        below: Optional[str] = None,
        plain_virtual: bool = False,
    ) -> None:
        self.kernel = kernel
        self.root = kernel_root(kernel) if pid is None else process_root(kernel, pid)
        self.own_root = pid is None and not user and root is None
        if user:
            self.root = user_half(kernel, self.root)
        elif root is not None:
            self.root = named_root(kernel, root)
        self.pid = pid
        #: Whether the root maps addresses below the kernel's half.
        self.low_root = pid is not None or root in ("efi", "idmap", "reserved")
        self._region_roots: Dict[str, Tuple[Sequence[Root], str]] = {}
        self.form = form
        self.below = below
        self.plain_virtual = plain_virtual

    @cached_property
    def places(self) -> Places:
        """Regions by address."""
        return Places(self.kernel)

    @cached_property
    def pages(self) -> Optional[Tuple[int, int, int]]:
        """See :meth:`kvintro.regions.vmemmap.Vmemmap.pages`; None if unknown."""
        try:
            return VMEMMAP.pages(self.kernel)
        except Unavailable:
            return None

    @cached_property
    def direct_map(self) -> Optional[Linear]:
        """The rule of the direct map, None if unknown."""
        return self.rules.get("direct_map")

    @cached_property
    def rules(self) -> Mapping[str, Linear]:
        """Linear rules of regions, by the regions' keys."""
        found: Dict[str, Linear] = {}
        for region in self.kernel.regions:
            try:
                rule = region.linear(self.kernel)
            except Unavailable:
                continue
            if rule is not None:
                found[region.key] = rule
        return found

    # Input

    def parse_frame(self, text: str) -> Input:
        """Parse a page frame number in hex. Symbols are not accepted.

        :raises UsageError: the text is not a number, or exceeds the largest page frame number.
        """
        if not _HEX.fullmatch(text) or int(text, 16) > ALL >> self.kernel.page_shift:
            raise UsageError(
                f"{printable(_short(text))!r} is not a page frame number",
                "give its hex digits, as in pfn:1a2b3",
            )
        return Input(text, int(text, 16), "pfn")

    def parse(self, text: str) -> Input:
        """Parse an input: a hexadecimal number, or else a symbol.

        :raises UsageError: the text is neither a number nor a symbol of this kernel.
        """
        text = text.strip()
        if _HEX.fullmatch(text):
            value = int(text, 16)
            if value > ALL:
                raise UsageError(
                    f"{_short(text)} has more than 64 bits", "give an address of up to 16 hex digits"
                )
            return self.plain(Input(text, value, self.form or self.form_of(value)))
        match = _SYMBOL.fullmatch(text)
        if match is None:
            kind = _KINDS.get(text.partition(":")[0].lower()) if ":" in text else None
            raise UsageError(
                f"{printable(_short(text))!r} is not an address",
                f"give the hex digits alone, and --from {kind}"
                if kind
                else "give hex digits, a symbol, or symbol+offset in hex",
            )
        found = self.kernel.find_symbol(match["name"])
        if found is None:
            missing = self.kernel.nameless(match["name"])
            near = similar_symbols(self.kernel, match["name"])
            raise UsageError(missing.what, missing.remedy or f"{near}check the name, or give its address")
        note = ""
        offset = int(match["offset"], 16) if match["offset"] else 0
        value = found
        per_cpu = self._per_cpu_base(value)
        if per_cpu is not None:
            value += per_cpu
            note = f"{match['name']} is a per-CPU variable; this is CPU 0's"
        return Input(text, value + offset & ALL, "virtual", note)

    def _per_cpu_base(self, symbol: int) -> Optional[int]:
        """Offset from a per-CPU symbol to CPU 0's copy; None for other symbols."""
        start, end = (self.kernel.find_symbol(f"__per_cpu_{name}") for name in ("start", "end"))
        if start is None or end is None or not start <= symbol < end:
            return None
        try:
            # The first element of an array of unsigned long.
            return self.kernel.value("__per_cpu_offset").value
        except Unavailable:
            return None

    @property
    def first_page(self) -> int:
        """Address of page frame 0's struct page, which may be after or before the region's start."""
        return 0 if self.pages is None else self.pages[0]

    def form_of(self, value: int) -> str:
        """The kind of a number, inferred from its value."""
        if value not in self.kernel.form.user:
            if self.plain_virtual or self.places.at(value) is not self.kernel.regions.vmemmap:
                return "virtual"
            return "page" if value >= self.first_page else "virtual"
        if self.below is not None:
            return self.below
        if self.low_root:
            return "virtual"
        return "physical" if value >> self.kernel.facts.max_physmem_bits.value == 0 else "virtual"

    def plain(self, asked: Input) -> Input:
        """Remove a pointer's tag or signature, if its page has an entry then (also of swapped-out memory)."""
        found = self.kernel.form.plain(asked.value) if asked.form == "virtual" else None
        if found is None:
            return asked
        steps = self.kernel.walk(found[0], self.root.table).steps
        if not steps or not steps[-1].value:
            return asked
        return Input(asked.text, found[0], asked.form, found[1], asked.value ^ found[0])

    # One answer

    def translate(self, asked: Input) -> Translation:
        """Return one address in all its forms."""
        if asked.form == "page":
            return self._of_page(asked)
        if asked.form in ("physical", "pfn"):
            physical = asked.value << self.kernel.page_shift if asked.form == "pfn" else asked.value
            if physical >> 52:
                return self._nothing(asked, "unmapped", "no processor supports that much physical memory")
            return self._of_physical(asked, physical, [asked.note])
        return self._of_virtual(asked)

    def _nothing(self, asked: Input, state: str, note: str) -> Translation:
        return Translation(
            asked.text,
            asked.form,
            state,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            note,
            (),
        )

    def _of_virtual(self, asked: Input) -> Translation:
        address = asked.value
        notes = [asked.note]
        region = self.places.at(address)
        root, found = self._walk(address, notes)
        if found.state == "unmapped" and address in self.kernel.form.user:
            found = self.kept(found, address, notes)
        rule = None if region is None else self.rules.get(region.key)
        method = None
        if found.state == "mapped":
            method = "walk"
            if rule is not None and address in rule.range:
                if found.physical == address - rule.offset & ALL:
                    method = "linear"
                else:
                    notes.append(disagreement(address, rule))
        elif found.state == "unmapped":
            notes.append(self._why_unmapped(address, region))
        elif found.state == "not-in-dump":
            notes.append("a page table on the way is not in this dump")
        return self._answer(asked, found, root, address, found.physical, method, notes)

    def kept(self, found: Walk, address: int, notes: List[str]) -> Walk:
        """Treat a user page as mapped that the kernel has (``pte_present()``) and the processor does not see.

        PROT_NONE and NUMA hinting make such entries. pagemap also reports them as present.
        """
        last = found.steps[-1] if found.steps else None
        if last is None or last.value is None:
            return found
        entry = self.kernel.entries.decode(last.value, last.level, half="user")
        if entry.kind not in ("protnone", "invalid") or entry.physical is None:
            if entry.swap is not None:
                notes.append(f"not in memory: {entry.swap.text}")
            return found
        if entry.kind == "protnone":
            notes.append("PROT_NONE or a NUMA hint: the page is there, and any access to it faults")
        else:
            notes.append("a huge page that is just being split")
        inside = address & (entry.page_size - 1)
        return Walk("mapped", found.steps, entry.physical | inside, entry.page_size)

    def _why_unmapped(self, address: int, region: Optional[Region]) -> str:
        if address in self.kernel.form.user and not self.low_root:
            return "a user address: name the process with --pid"
        if region is self.kernel.regions.kernel_image:
            return "nothing of the image is mapped there now (freed after boot, or a gap between sections)"
        if region is self.kernel.regions.direct_map:
            why = self._why_missing(address, self.kernel.walk(address))
            return f"a hole in the direct map: {why}" if why else "a hole in the direct map"
        if region is not None and Trait.PER_PROCESS in region.traits and not self.low_root:
            return "mapped per process: name it with --pid"
        return ""

    @cached_property
    def _missing(self) -> Callable[[int, bool], Optional[str]]:
        try:
            return missing(self.kernel)
        except Unavailable:
            return lambda address, kept: None

    def _why_missing(self, address: int, found: Walk) -> Optional[str]:
        """Why nothing is mapped at an address of the direct map, None if unknown."""
        rule = self.direct_map
        if rule is None or address not in rule.range:
            return None
        return self._missing(address - rule.offset & ALL, bool(found.steps and found.steps[-1].value))

    def _walk(self, address: int, notes: List[str]) -> Tuple[Root, Walk]:
        """Walk from this translator's root; if none was named, from the roots of the region."""
        region = self.places.at(address)
        if self.own_root and region is not None:
            for root in self._roots_of(region, notes):
                found = self.kernel.walk(address, root.table)
                if found.state != "unmapped":
                    if root.table != self.root.table:
                        notes.append(f"by the page tables of {root.owner}")
                    return root, found
        return self.root, self.kernel.walk(address, self.root.table)

    def _roots_of(self, region: Region, notes: List[str]) -> Sequence[Root]:
        """Roots of a region. They are looked up once."""
        known = self._region_roots.get(region.key)
        if known is None:
            try:
                known = region.roots(self.kernel), ""
            except Unavailable as error:
                known = (), f"{region.name}: {error.what}"
            self._region_roots[region.key] = known
        if known[1]:
            notes.append(known[1])
        return known[0]

    def _of_physical(self, asked: Input, physical: int, notes: List[str]) -> Translation:
        """Translate a physical address to its place in the direct map, or else in the kernel image."""
        rule = self.direct_map
        if rule is None:
            notes.append("the address of the direct map is not known")
            return self._answer(asked, None, None, None, physical, None, notes, state="not-in-dump")
        address = physical + rule.offset & ALL
        if address not in rule.range:
            notes.append("not in the direct map: beyond what is reserved for it")
            return self._answer(asked, None, None, None, physical, None, notes)
        found = self.kernel.walk(address, self.root.table)
        if found.state != "mapped":
            why = "a page table of the direct map is not in this dump"
            image = self._in_image(physical)
            if image is not None and found.state == "unmapped":
                notes.append("mapped in the kernel image, and not in the direct map")
                return self._answer(asked, self.kernel.walk(image), self.root, image, physical, "walk", notes)
            if found.state == "unmapped":
                told = self._why_missing(address, found)
                why = f"not in the direct map: {told or 'there is no memory, or the kernel unmapped it'}"
            notes.append(why)
            return self._answer(asked, found, self.root, None, physical, None, notes)
        if found.physical != physical:
            notes.append(f"the direct map's page tables map {address:016x} to {found.physical:016x} instead")
            return self._answer(asked, found, self.root, None, physical, None, notes, state="unmapped")
        return self._answer(asked, found, self.root, address, physical, "linear", notes)

    def _in_image(self, physical: int) -> Optional[int]:
        """Where the kernel image maps a physical address, None if it does not or that is unknown."""
        try:
            address = physical + self.kernel.image_offset.value & ALL
        except Unavailable:
            return None
        inside = self.places.at(address) is self.kernel.regions.kernel_image
        return address if inside and self.kernel.walk(address).physical == physical else None

    def _of_page(self, asked: Input) -> Translation:
        pages = self.pages
        if pages is None:
            raise Unavailable("the address of the struct pages is not known", "give -s VMLINUX")
        base, size, count = pages
        pfn, inside = divmod(asked.value - base & ALL, size)
        if not 0 <= pfn < count:
            raise UsageError(
                f"{asked.text} is not a struct page: they are at {base:016x}-{base + count * size - 1:016x}",
                "omit --from, and kvintro infers its kind",
            )
        notes = [asked.note]
        own = self.kernel.walk(asked.value)
        if own.physical is None:
            gone = "page tables of the memory map are not in this dump"
            note = "nothing is mapped there: no struct page" if own.state == "unmapped" else gone
            return self._answer(asked, own, self.root, None, None, None, [*notes, note])
        if inside:
            notes.append(f"{inside:#x} into the struct page")
        notes.append(f"the struct page itself is at physical {own.physical:016x}")
        return self._of_physical(asked, pfn << self.kernel.page_shift, notes)

    def _answer(
        self,
        asked: Input,
        found: Optional[Walk],
        root: Optional[Root],
        virtual: Optional[int],
        physical: Optional[int],
        method: Optional[str],
        notes: Sequence[str],
        state: Optional[str] = None,
    ) -> Translation:
        region = None
        if virtual is not None:
            region = self.places.key_at(virtual)
        elif asked.form == "virtual":
            region = self.places.key_at(asked.value)
        in_dump = None
        if physical is not None:
            try:
                self.kernel.read_physical(physical, 1)
                in_dump = True
            except NotInDump:
                in_dump = False
        return Translation(
            input=asked.text,
            taken_as=asked.form,
            state=state or ("unmapped" if found is None else found.state),
            region=region,
            virtual=None if virtual is None else Address(virtual),
            physical=None if physical is None else Address(physical),
            pfn=None if physical is None else physical >> self.kernel.page_shift,
            page=self._page_of(physical),
            page_size=Size(found.page_size) if found is not None and found.page_size else None,
            method=method,
            symbol=self.symbol_at(virtual, region),
            in_dump=in_dump,
            root=None if root is None else root.owner,
            note="; ".join(note for note in notes if note) or None,
            # Other inputs are looked up in the kernel half.
            walk=() if found is None else self.steps(found, asked.value if asked.form == "virtual" else ALL),
        )

    def _page_of(self, physical: Optional[int]) -> Optional[Address]:
        """Address of the struct page of a physical address, None if there is none."""
        if physical is None or self.pages is None:
            return None
        base, size, count = self.pages
        pfn = physical >> self.kernel.page_shift
        address = base + pfn * size & ALL
        if pfn >= count or self.kernel.walk(address).state == "unmapped":
            return None
        return Address(address)

    @cached_property
    def _with_symbols(self) -> Set[str]:
        return {region.key for region in self.kernel.regions if Trait.SYMBOLS in region.traits}

    def symbol_at(self, address: Optional[int], region: Optional[str]) -> Optional[str]:
        """``symbol`` or ``symbol+0x...``, in regions that have symbols."""
        if address is None or region not in self._with_symbols:
            return None
        try:
            symbol = self.kernel.prog.symbol(address)
        except LookupError:
            return None
        offset = address - symbol.address
        return f"{symbol.name}+{offset:#x}" if offset else str(symbol.name)

    def steps(self, found: Walk, address: int) -> Tuple[WalkStep, ...]:
        """A walk with every entry decoded."""
        form, entries = self.kernel.form, self.kernel.entries
        half = "user" if address in form.user else "kernel"
        out = []
        for step in found.steps:
            name = form.level_name(step.level)
            entry_address = Address(step.entry_address)
            if step.value is None:
                out.append(WalkStep(name, entry_address, None, (), None, "this table is not in the dump"))
                continue
            entry = entries.decode(step.value, step.level, half=half)
            note = ""
            if entry.swap is not None:
                note = entry.swap.text
            elif entry.kind in ("protnone", "invalid"):
                note = f"{entry.kind}: keeps page frame {(entry.physical or 0) >> form.page_shift:#x}"
            elif entry.reserved:
                note = "reserved bits are set: the processor refuses it"
            elif entry.contiguous:
                note = f"part of {size_text(entry.contiguous)} with the contiguous bit"
            out.append(WalkStep(name, entry_address, Address(step.value), entry.flags, entry.kind, note))
        return tuple(out)


def disagreement(address: int, rule: Linear) -> str:
    """Note about an address for which the page tables and the region's rule disagree."""
    return (
        f"the region's rule gives {address - rule.offset & ALL:016x}, but the page tables disagree; the "
        "page tables decide"
    )


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."

# SPDX-License-Identifier: LGPL-2.1-or-later
"""From any of virtual address, physical address, page frame number and struct page to all the others.

Whatever a region's own rule says (linear for direct map and image), the page tables decide what is mapped,
and where the two differ the answer is the tables' and says so. What nothing maps gets no physical address.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.arch.x86_64 import ALL, PAGE_SHIFT
from kvintro.arch.x86_64_entry import decode, level_name
from kvintro.errors import NotInDump, Unavailable, UsageError
from kvintro.kernel import Kernel
from kvintro.model import Address, Size
from kvintro.paging import Walk
from kvintro.paging.bulk import MAPPED, NOT_IN_DUMP, STATES
from kvintro.queries.placements import HOLE, Places
from kvintro.queries.roots import kernel_root, process_root, user_half
from kvintro.regions import Linear, Region, Root
from kvintro.regions.direct_map import missing
from kvintro.regions.vmemmap import REGION as VMEMMAP
from kvintro.text import printable

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U64 = NDArray[numpy.uint64]

#: What a number can be.
FORMS = ("virtual", "physical", "pfn", "page")

_HEX = re.compile(r"(?:0[xX])?[0-9a-fA-F]+")
# What people write before a number to say what it is.
_KINDS = {"pfn": "pfn", "phys": "physical", "physical": "physical", "virt": "virtual", "virtual": "virtual"}
_SYMBOL = re.compile(r"(?P<name>[A-Za-z_.$][\w.$]*)(?P<offset>[+-](?:0[xX])?[0-9a-fA-F]+)?")


@dataclass(frozen=True)
class WalkStep:
    """One level of a walk.

    :ivar level: the kernel's name of the level: ``pgd`` to ``pte``.
    :ivar entry_address: physical address of the entry.
    :ivar value: the entry; None if it is not in the source.
    :ivar flags: its bits by the kernel's names.
    :ivar kind: what the entry is: ``table``, ``page``, ``empty``, ``swap`` and others, as in ``kvintro pte``.
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
    """What was asked for: the text, the number it stands for, what the number is, and what to add to that."""

    text: str
    value: int
    form: str
    note: str = ""


class Translator:
    """Answers for one root.

    :param form: what all numbers are; None to tell by where they lie.
    :param below: what numbers of the user half are if nothing says (``virtual`` or ``physical``); None for
        physical if there can be such memory, else virtual.
    :param plain_virtual: take kernel addresses for what they are, those of struct pages too.
    :raises UsageError: there is no such process or root.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        pid: Optional[int] = None,
        user: bool = False,
        form: Optional[str] = None,
        below: Optional[str] = None,
        plain_virtual: bool = False,
    ) -> None:
        self.kernel = kernel
        self.root = kernel_root(kernel) if pid is None else process_root(kernel, pid)
        self._own_root = pid is None and not user
        if user:
            self.root = user_half(kernel, self.root)
        self.pid = pid
        self._region_roots: Dict[str, Tuple[Sequence[Root], str]] = {}
        self._form = form
        self._below = below
        self._plain_virtual = plain_virtual

    @cached_property
    def places(self) -> Places:
        """Regions by address."""
        return Places(self.kernel)

    @cached_property
    def _pages(self) -> Optional[Tuple[int, int, int]]:
        """See :meth:`kvintro.regions.vmemmap.Vmemmap.pages`; None if not known."""
        try:
            return VMEMMAP.pages(self.kernel)
        except Unavailable:
            return None

    @cached_property
    def _direct_map(self) -> Optional[Linear]:
        return self._rules.get("direct_map")

    @cached_property
    def _rules(self) -> Mapping[str, Linear]:
        """The rules of regions that have one, by key."""
        found: Dict[str, Linear] = {}
        for region in self.kernel.regions:
            try:
                rule = region.linear(self.kernel)
            except Unavailable:
                continue
            if rule is not None:
                found[region.key] = rule
        return found

    # What was asked for

    def parse_frame(self, text: str) -> Input:
        """The number of a page frame, in hex; never a symbol.

        :raises UsageError: it is no number, or no processor has so many.
        """
        if not _HEX.fullmatch(text) or int(text, 16) > ALL >> PAGE_SHIFT:
            raise UsageError(
                f"{printable(_short(text))!r} is no page frame number", "give its hex digits, as in pfn:1a2b3"
            )
        return Input(text, int(text, 16), "pfn")

    def parse(self, text: str) -> Input:
        """What an input stands for. Numbers are hexadecimal; what is one is never a symbol.

        :raises UsageError: it is neither a number nor a symbol of this kernel.
        """
        text = text.strip()
        if _HEX.fullmatch(text):
            value = int(text, 16)
            if value > ALL:
                raise UsageError(
                    f"{_short(text)} has more than 64 bits", "give an address of up to 16 hex digits"
                )
            return Input(text, value, self._form or self.form_of(value))
        match = _SYMBOL.fullmatch(text)
        if match is None:
            kind = _KINDS.get(text.partition(":")[0].lower()) if ":" in text else None
            raise UsageError(
                f"{printable(_short(text))!r} is no address",
                f"give the hex digits alone, and --from {kind}"
                if kind
                else "give hex digits, a symbol, or symbol+offset in hex",
            )
        found = self.kernel.find_symbol(match["name"])
        if found is None:
            missing = self.kernel.nameless(match["name"])
            raise UsageError(missing.what, missing.remedy or "check the name, or give its address")
        note = ""
        offset = int(match["offset"], 16) if match["offset"] else 0
        value = found
        per_cpu = self._per_cpu_base(value)
        if per_cpu is not None:
            value += per_cpu
            note = f"{match['name']} is a per-CPU variable; this is CPU 0's"
        return Input(text, value + offset & ALL, "virtual", note)

    def _per_cpu_base(self, symbol: int) -> Optional[int]:
        """What makes a per-CPU symbol the address of CPU 0's copy; None for other symbols."""
        start, end = (self.kernel.find_symbol(f"__per_cpu_{name}") for name in ("start", "end"))
        if start is None or end is None or not start <= symbol < end:
            return None
        try:
            # The first element of an array of unsigned long.
            return self.kernel.value("__per_cpu_offset").value
        except Unavailable:
            return None

    def form_of(self, value: int) -> str:
        """What a number is, told by where it lies."""
        if value > self.kernel.geometry.user.end:
            if self._plain_virtual or self.places.at(value) is not VMEMMAP:
                return "virtual"
            return "page"
        if self._below is not None:
            return self._below
        if self.pid is not None:
            return "virtual"
        return "physical" if value >> self.kernel.geometry.max_physmem_bits == 0 else "virtual"

    # One answer, with everything that is to be said

    def translate(self, asked: Input) -> Translation:
        """One address in all its forms."""
        if asked.form == "page":
            return self._of_page(asked)
        if asked.form in ("physical", "pfn"):
            physical = asked.value << PAGE_SHIFT if asked.form == "pfn" else asked.value
            if physical >> 52:
                return self._nothing(asked, "unmapped", "no processor has so much physical memory")
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
        if found.state == "unmapped" and address <= self.kernel.geometry.user.end:
            found = self._kept(found, address, notes)
        rule = None if region is None else self._rules.get(region.key)
        method = None
        if found.state == "mapped":
            method = "walk"
            if rule is not None and address in rule.range:
                if found.physical == address - rule.offset & ALL:
                    method = "linear"
                else:
                    notes.append(self._disagreement(address, rule))
        elif found.state == "unmapped":
            notes.append(self._why_unmapped(address, None if region is None else region.key))
        elif found.state == "not-in-dump":
            notes.append("a page table on the way is not in this dump")
        return self._answer(asked, found, root, address, found.physical, method, notes)

    def _kept(self, found: Walk, address: int, notes: List[str]) -> Walk:
        """A user page that the processor refuses and the kernel still has mapped (``pte_present()``).

        PROT_NONE and NUMA hinting leave such entries behind; pagemap calls them present too.
        """
        last = found.steps[-1]
        if last.value is None:
            return found
        entry = decode(
            last.value, last.level, self.kernel.geometry, half="user", dialect=self.kernel.entry_dialect
        )
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

    def _disagreement(self, address: int, rule: Linear) -> str:
        return (
            f"the region's rule says {address - rule.offset & ALL:016x}, and the page tables say otherwise; "
            "they decide"
        )

    def _why_unmapped(self, address: int, region: Optional[str]) -> str:
        if address <= self.kernel.geometry.user.end and self.pid is None:
            return "a user address: name the process with --pid"
        if region == "kernel_image":
            return "nothing of the image is mapped there now (freed after boot, or a gap between sections)"
        if region == "direct_map":
            why = self._why_missing(address, self.kernel.walk(address))
            return f"a hole in the direct map: {why}" if why else "a hole in the direct map"
        if region == "ldt_remap" and self.pid is None:
            return "mapped per process: name it with --pid"
        return ""

    @cached_property
    def _missing(self) -> Callable[[int, bool], Optional[str]]:
        try:
            return missing(self.kernel)
        except Unavailable:
            return lambda address, kept: None

    def _why_missing(self, address: int, found: Walk) -> Optional[str]:
        """Why nothing is mapped at an address of the direct map, None if that cannot be told."""
        rule = self._direct_map
        if rule is None or address not in rule.range:
            return None
        return self._missing(address - rule.offset & ALL, bool(found.steps and found.steps[-1].value))

    def _walk(self, address: int, notes: List[str]) -> Tuple[Root, Walk]:
        """Walk by this translator's root, or if nothing was named by those of the region."""
        region = self.places.at(address)
        if self._own_root and region is not None:
            for root in self._roots_of(region, notes):
                found = self.kernel.walk(address, root.table)
                if found.state != "unmapped":
                    if root.table != self.root.table:
                        notes.append(f"by the page tables of {root.owner}")
                    return root, found
        return self.root, self.kernel.walk(address, self.root.table)

    def _roots_of(self, region: Region, notes: List[str]) -> Sequence[Root]:
        """A region's roots, looked up once."""
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
        """A physical address, at its place in the direct map."""
        rule = self._direct_map
        if rule is None:
            notes.append("this source does not tell where the direct map lies")
            return self._answer(asked, None, None, None, physical, None, notes, state="not-in-dump")
        address = physical + rule.offset & ALL
        if address not in rule.range:
            notes.append("not in the direct map: beyond what is reserved for it")
            return self._answer(asked, None, None, None, physical, None, notes)
        found = self.kernel.walk(address, self.root.table)
        if found.state != "mapped":
            why = "a page table of the direct map is not in this dump"
            if found.state == "unmapped":
                told = self._why_missing(address, found)
                why = f"not in the direct map: {told or 'no memory is there, or the kernel took it out'}"
            notes.append(why)
            return self._answer(asked, found, self.root, None, physical, None, notes)
        if found.physical != physical:
            notes.append(f"the direct map's page tables map {address:016x} to {found.physical:016x} instead")
            return self._answer(asked, found, self.root, None, physical, None, notes, state="unmapped")
        return self._answer(asked, found, self.root, address, physical, "linear", notes)

    def _of_page(self, asked: Input) -> Translation:
        pages = self._pages
        if pages is None:
            raise Unavailable("where the struct pages lie is not known", "give -s VMLINUX")
        base, size, count = pages
        pfn, inside = divmod(asked.value - base, size)
        if not 0 <= pfn < count:
            raise UsageError(
                f"{asked.text} is no struct page: they lie at {base:016x}-{base + count * size - 1:016x}",
                "omit --from to have its kind recognised",
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
        return self._of_physical(asked, pfn << PAGE_SHIFT, notes)

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
            pfn=None if physical is None else physical >> PAGE_SHIFT,
            page=self._page_of(physical),
            page_size=Size(found.page_size) if found is not None and found.page_size else None,
            method=method,
            symbol=self.symbol_at(virtual, region),
            in_dump=in_dump,
            root=None if root is None else root.owner,
            note="; ".join(note for note in notes if note) or None,
            # What was asked by its frame was looked for in the direct map.
            walk=() if found is None else self.steps(found, asked.value if asked.form == "virtual" else ALL),
        )

    def _page_of(self, physical: Optional[int]) -> Optional[Address]:
        """The address of the struct page of a physical address, None if there is none."""
        if physical is None or self._pages is None:
            return None
        base, size, count = self._pages
        pfn = physical >> PAGE_SHIFT
        address = base + pfn * size
        if pfn >= count or self.kernel.walk(address).state == "unmapped":
            return None
        return Address(address)

    def symbol_at(self, address: Optional[int], region: Optional[str]) -> Optional[str]:
        """``symbol`` or ``symbol+0x...`` where the region can hold any."""
        if address is None or region not in ("kernel_image", "modules"):
            return None
        try:
            symbol = self.kernel.prog.symbol(address)
        except LookupError:
            return None
        offset = address - symbol.address
        return f"{symbol.name}+{offset:#x}" if offset else str(symbol.name)

    def steps(self, found: Walk, address: int) -> Tuple[WalkStep, ...]:
        """A walk with every entry decoded."""
        geometry = self.kernel.geometry
        half = "user" if address <= geometry.user.end else "kernel"
        out = []
        for step in found.steps:
            name = level_name(step.level, geometry.levels)
            entry_address = Address(step.entry_address)
            if step.value is None:
                out.append(WalkStep(name, entry_address, None, (), None, "this table is not in the dump"))
                continue
            entry = decode(step.value, step.level, geometry, half=half, dialect=self.kernel.entry_dialect)
            note = ""
            if entry.swap is not None:
                note = entry.swap.text
            elif entry.kind in ("protnone", "invalid"):
                note = f"{entry.kind}: keeps page frame {(entry.physical or 0) >> PAGE_SHIFT:#x}"
            elif entry.reserved:
                note = "reserved bits are set: the processor refuses it"
            out.append(WalkStep(name, entry_address, Address(step.value), entry.flags, entry.kind, note))
        return tuple(out)

    # Many answers, with what a line has room for

    @cached_property
    def _starts(self) -> U64:
        import numpy

        return numpy.array(self.places.starts, numpy.uint64)

    @cached_property
    def _keys(self) -> List[str]:
        return [HOLE if region is None else region.key for region in self.places.regions]

    def forms_of(self, values: U64) -> "NDArray[numpy.uint8]":
        """:meth:`form_of` of many numbers, as indices into :data:`FORMS`."""
        import numpy

        if self._form is not None:
            return numpy.full(len(values), FORMS.index(self._form), numpy.uint8)
        forms = numpy.zeros(len(values), numpy.uint8)
        if not self._plain_virtual and VMEMMAP in self.places.regions:
            at = self.places.regions.index(VMEMMAP)
            end = self.places.starts[at + 1] - 1 if at + 1 < len(self.places.starts) else ALL
            start = numpy.uint64(self.places.starts[at])
            forms[(values >= start) & (values <= numpy.uint64(end))] = FORMS.index("page")
        below = values <= numpy.uint64(self.kernel.geometry.user.end)
        if self._below is not None or self.pid is not None:
            forms[below] = FORMS.index(self._below or "virtual")
        else:
            limit = numpy.uint64(self.kernel.geometry.max_physmem_bits)
            forms[below & (values >> limit == numpy.uint64(0))] = FORMS.index("physical")
        return forms

    def columns(self, texts: Sequence[str], values: U64, forms: "NDArray[numpy.uint8]") -> Columns:
        """The fields of many answers, a list for each; see :meth:`one_by_one` for which are not final.

        :param forms: indices into :data:`FORMS`.
        """
        import numpy

        u = numpy.uint64
        n = len(values)
        virtual = values.copy()
        physical = numpy.zeros(n, u)
        known = numpy.zeros(n, bool)  # physical follows from the input itself
        lost = numpy.zeros(n, bool)  # a struct page that is not there
        states = numpy.zeros(n, numpy.uint8)
        shift = u(PAGE_SHIFT)
        is_virtual = forms == FORMS.index("virtual")
        is_pfn = forms == FORMS.index("pfn")
        is_page = forms == FORMS.index("page")
        other = ~is_virtual
        if other.any():
            physical[other] = values[other]
            physical[is_pfn] = values[is_pfn] << shift
            known |= other & ~((is_pfn & (values >> u(40) != u(0))) | (physical >> u(52) != u(0)))
            if is_page.any() and self._pages is not None:
                base, size, count = self._pages
                pfns = (values[is_page] - u(base)) // u(size)
                physical[is_page] = pfns << shift
                own = self.kernel.bulk().translate(values[is_page]).states
                gone = numpy.zeros(n, bool)
                gone[is_page] = (own != MAPPED) | (pfns >= u(count))
                states[is_page] = own
                lost |= gone
                known &= ~gone
                known[is_page] = ~gone[is_page]
            rule = self._direct_map
            if rule is None:
                virtual[other] = u(ALL >> 1)  # certainly not canonical
            else:
                virtual[other] = physical[other] + u(rule.offset)
                beyond = other & (physical >= u(min(rule.range.size, ALL)))
                virtual[beyond | (other & ~known)] = u(ALL >> 1)
        result = self.kernel.bulk(self.root.table).translate(virtual)
        mapped = result.states == MAPPED
        found = numpy.where(is_virtual, result.states, numpy.where(mapped, MAPPED, result.states % 3))
        found[lost] = numpy.where(states[lost] == MAPPED, 0, states[lost])
        if self._direct_map is None:
            found[other & known] = NOT_IN_DUMP
        # A direct map that maps something else there does not map this page.
        agrees = ~other | (result.physical == physical)
        found[mapped & ~agrees] = 0
        mapped = (found == MAPPED) & ~lost
        out_physical = numpy.where(is_virtual, result.physical, physical)
        has_physical = numpy.where(is_virtual, mapped, known)
        has_virtual = is_virtual | mapped
        stretch = numpy.searchsorted(self._starts, virtual, side="right") - 1
        linear = self._linear(virtual, result.physical, stretch, mapped)
        notes: List[Optional[str]] = [None] * n
        for i in numpy.flatnonzero(mapped & (linear == 2)).tolist():
            region = self.places.regions[int(stretch[i])]
            notes[i] = self._disagreement(int(virtual[i]), self._rules["" if region is None else region.key])
        names = self._keys

        def optional(values: U64, has: NDArray[numpy.bool_]) -> List[Optional[int]]:
            if has.all():
                return list(values.tolist())
            return [v if h else None for v, h in zip(values.tolist(), has.tolist())]

        def paged() -> List[Optional[Address]]:
            return _addresses(*self._pages_of(out_physical, has_physical))

        methods = numpy.where(mapped, numpy.where(linear == 1, 2, 1), 0)
        return Columns(
            {
                "input": lambda: list(texts),
                "taken_as": lambda: [FORMS[f] for f in forms.tolist()],
                "state": lambda: [STATES[s] for s in found.tolist()],
                "region": lambda: [
                    names[s] if h else None for s, h in zip(stretch.tolist(), has_virtual.tolist())
                ],
                "virtual": lambda: _addresses(virtual, has_virtual),
                "physical": lambda: _addresses(out_physical, has_physical),
                "pfn": lambda: optional(out_physical >> shift, has_physical),
                "page": paged,
                "page_size": lambda: optional(u(1) << result.page_shifts.astype(u), mapped),
                "method": lambda: [(None, "walk", "linear")[m] for m in methods.tolist()],
                "symbol": lambda: [None] * n,
                "in_dump": lambda: [None] * n,
                "root": lambda: [self.root.owner] * n,
                "note": lambda: notes,
                "walk": lambda: [()] * n,
            }
        )

    def one_by_one(
        self, values: U64, forms: "NDArray[numpy.uint8]", states: Sequence[str]
    ) -> "NDArray[numpy.bool_]":
        """Which of many numbers need a closer look than :meth:`columns` has.

        They lie in regions that other roots map, or are pages that the kernel has and the processor refuses.

        :param states: what :meth:`columns` says.
        """
        import numpy

        out = numpy.zeros(len(values), bool)
        if not self._own_root:
            user = (forms == 0) & (values <= numpy.uint64(self.kernel.geometry.user.end))
            if user.any():
                out = user & (numpy.array(states) == "unmapped")
            return out
        stretch = numpy.searchsorted(self._starts, values, side="right") - 1
        apart = [
            i
            for i, region in enumerate(self.places.regions)
            if region is not None and region.key in ("efi", "ldt_remap")
        ]
        for i in apart:
            out |= (stretch == i) & (forms == 0)
        return out

    def _linear(
        self, virtual: U64, physical: U64, stretch: "NDArray[numpy.intp]", mapped: "NDArray[numpy.bool_]"
    ) -> "NDArray[numpy.uint8]":
        """For each address: 0 its region has no rule, 1 the rule agrees, 2 it does not."""
        import numpy

        u = numpy.uint64
        out = numpy.zeros(len(virtual), numpy.uint8)
        for key, rule in self._rules.items():
            at = bisect_right(self.places.starts, rule.range.start) - 1
            if self._keys[at] != key:
                continue
            inside = (
                (stretch == at) & (virtual >= u(rule.range.start)) & (virtual <= u(rule.range.end)) & mapped
            )
            agree = virtual - u(rule.offset) == physical
            out[inside & agree] = 1
            out[inside & ~agree] = 2
        return out

    def _pages_of(self, physical: U64, has: "NDArray[numpy.bool_]") -> "Tuple[U64, NDArray[numpy.bool_]]":
        import numpy

        u = numpy.uint64
        if self._pages is None:
            return physical, numpy.zeros(len(physical), bool)
        base, size, count = self._pages
        pfns = physical >> u(PAGE_SHIFT)
        pages = u(base) + pfns * u(size)
        has = has & (pfns < u(count))
        there = self.kernel.bulk().translate(numpy.where(has, pages, u(0))).states
        return pages, has & (there != 0)


class Columns(Mapping[str, List[Any]]):
    """Lists of values by field, each made when it is first asked for: a line of text has not room for all."""

    def __init__(self, make: Mapping[str, Callable[[], List[Any]]]) -> None:
        self._make = make
        self._made: Dict[str, List[Any]] = {}

    def __getitem__(self, key: str) -> List[Any]:
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make[key]()
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


def _addresses(values: U64, has: "NDArray[numpy.bool_]") -> List[Optional[Address]]:
    if has.all():
        return list(map(Address, values.tolist()))
    return [Address(v) if h else None for v, h in zip(values.tolist(), has.tolist())]

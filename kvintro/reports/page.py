# SPDX-License-Identifier: LGPL-2.1-or-later
"""Single page frames: all that the kernel records about each, and the processes that map it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple, TypeVar

from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL, Address, Column, NoExtra, Report, Size, Table
from kvintro.queries.pages.meaning import TYPES, kpf_long
from kvintro.queries.pages.one import MemoryGroup, PageLookup, PageState, SlabUse, SwapPlace
from kvintro.queries.pages.owner import PageOwner
from kvintro.queries.rmap import ReverseMap, UserMapping, UserMappings, mappings_by_walk
from kvintro.queries.translate import Translation, Translator
from kvintro.readers.files import FileName
from kvintro.readers.kfence import cache_name

T = TypeVar("T")


@dataclass(frozen=True)
class SlabRow:
    """The slab of a page."""

    cache: Optional[str]
    cache_address: Address
    object_size: Size
    objects: int
    in_use: int
    object: Optional[Address]
    object_offset: Optional[int]
    allocated: Optional[bool]


@dataclass(frozen=True)
class KfenceRow:
    """A page of KFENCE's pool.

    :ivar object: number of the object that owns the page, null for a guard page.
    :ivar state: state of the object: ``unused``, ``allocated``, ``about to be freed``, ``freed``.
    :ivar address: address of the object; its size is :ivar:`size`.
    :ivar cache: slab cache from which the object was allocated.
    """

    object: Optional[int]
    state: Optional[str]
    address: Optional[Address]
    size: Optional[Size]
    cache: Optional[str]


@dataclass(frozen=True)
class FileRow:
    """The file that a page belongs to, and the offset in it."""

    path: Optional[str]
    file_system: str
    device: str
    inode: int
    offset: Optional[Size]


@dataclass(frozen=True)
class PageRow:
    """One page frame; docs/page.md describes the JSON object of the same fields.

    :ivar state: ``page``, ``no-struct-page``, ``not-in-dump``, ``unmapped`` (no page is mapped at the
        address).
    """

    input: str
    state: str
    pfn: Optional[int]
    physical: Optional[Address]
    page: Optional[Address]
    direct: Optional[Address]
    in_dump: Optional[bool]
    type: Optional[str] = None
    meaning: Optional[str] = None
    flags: Tuple[str, ...] = ()
    flags_value: Optional[Address] = None
    head_flags: Tuple[str, ...] = ()
    kpageflags: Tuple[str, ...] = ()
    node: Optional[int] = None
    zone: Optional[str] = None
    section: Optional[int] = None
    order: Optional[int] = None
    compound: Optional[str] = None
    head_pfn: Optional[int] = None
    refcount: Optional[int] = None
    mapcount: Optional[int] = None
    private: Optional[Address] = None
    mapping: Optional[Address] = None
    offset: Optional[int] = None
    file: Optional[FileRow] = None
    slab: Optional[SlabRow] = None
    kfence: Optional[KfenceRow] = None
    swap: Optional[SwapPlace] = None
    memcg: Optional[MemoryGroup] = None
    owner: Optional[PageOwner] = None
    mapped_by: Optional[str] = None
    mappings: Optional[Tuple[UserMapping, ...]] = None
    notes: Tuple[str, ...] = ()


PageReport = Report[Tuple[Table[PageRow]], NoExtra]

COLUMNS = (
    Column("pfn", "pfn"),
    Column("physical", "physical"),
    Column("type", "type"),
    Column("flags", "flags"),
    Column("refcount", "refs", "right"),
    Column("mapcount", "maps", "right"),
)


def page_report(
    kernel: Kernel,
    texts: Sequence[str],
    *,
    form: Optional[str] = None,
    pid: Optional[int] = None,
    search: bool = False,
    mappings: bool = True,
) -> PageReport:
    """Look up the page frames of some addresses.

    :param texts: see :meth:`kvintro.queries.translate.Translator.parse`; or ``pfn:`` and a number.
    :param form: kind of all numbers.
    :param pid: process whose page tables translate addresses of the user half.
    :param search: find the processes that map a page in all page tables, instead of by the reverse map.
    :param mappings: whether to find the processes that map a page at all.
    :raises UsageError: a text is not an address.
    :raises Unavailable: the layout of struct pages is unknown.
    """
    maker = _Maker(kernel, form, pid, search, mappings)
    rows = [maker.row(text) for text in texts]
    notes = [*kernel.source.warnings, *maker.lacks]
    return Report(
        command="page",
        kernel=kernel.identity,
        tables=(Table("pages", COLUMNS, rows),),
        notes=tuple(dict.fromkeys(notes)),
        partial=maker.partial or bool(maker.lacks),
        negative=any(row.state in ("unmapped", "no-struct-page") for row in rows),
    )


class _Maker:
    def __init__(
        self, kernel: Kernel, form: Optional[str], pid: Optional[int], search: bool, mappings: bool
    ) -> None:
        self._kernel = kernel
        self._translator = Translator(kernel, pid=pid, form=form)
        self._search = search
        self._mappings = mappings
        self.partial = False
        self._lookup = PageLookup(kernel)
        self._rmap = ReverseMap(kernel)

    @property
    def lacks(self) -> Sequence[str]:
        """What is unknown for every page, one sentence each."""
        return self._lookup.form.lacks

    def _translate(self, text: str) -> Translation:
        translator, word = self._translator, text.strip()
        if word.lower().startswith("pfn:"):
            return translator.translate(translator.parse_frame(word[4:]))
        return translator.translate(translator.parse(word))

    def row(self, text: str) -> PageRow:
        """One page."""
        found = self._translate(text)
        if found.physical is None:
            self.partial |= found.state == "not-in-dump"
            state = "not-in-dump" if found.state == "not-in-dump" else "unmapped"
            note = found.note or {"not-in-dump": "its page tables are not in this source"}.get(
                found.state, "nothing is mapped at that address"
            )
            return PageRow(text, state, None, None, None, None, None, notes=(note,))
        pfn = found.physical >> self._kernel.page_shift
        address = self._lookup.form.address(pfn)
        direct = self._optional(lambda: self._lookup.direct_address(pfn), [])
        try:
            page = self._lookup.state(pfn)
        except NotInDump as error:
            self.partial = True
            return PageRow(
                text,
                "not-in-dump",
                pfn,
                found.physical,
                Address(address),
                _address(direct),
                found.in_dump,
                notes=(error.what,),
            )
        except Unavailable as error:
            return PageRow(
                text,
                "no-struct-page",
                pfn,
                found.physical,
                None,
                _address(direct),
                found.in_dump,
                notes=(error.what,),
            )
        return self._described(text, found, page, direct)

    def _optional(self, ask: Callable[[], Optional[T]], notes: List[str]) -> Optional[T]:
        """The result; None, and a note, if it cannot be read."""
        try:
            return ask()
        except Unavailable as error:
            notes.append(error.what)
            self.partial = True
            return None

    def _described(self, text: str, found: Translation, page: PageState, direct: Optional[int]) -> PageRow:
        lookup, meaning = self._lookup, self._lookup.meaning
        kind = lookup.kind(page)
        compound = lookup.compound(page)
        notes: List[str] = [found.note] if direct is None and found.note else []
        doubts = self._doubts(page, kind, compound)
        notes += doubts
        self.partial |= bool(doubts)
        # Find the object by its address in the direct map, where slabs are.
        size = self._kernel.form.page_size
        inside = None if direct is None or found.physical is None else direct + found.physical % size
        slab = self._optional(lambda: lookup.slab(page, inside), notes)
        file = self._optional(lambda: lookup.file(page), notes)
        maps = self._user_mappings(page, notes)
        return PageRow(
            input=text,
            state="page",
            pfn=page.pfn,
            physical=found.physical,
            page=Address(lookup.form.address(page.pfn)),
            direct=_address(direct),
            in_dump=found.in_dump,
            type=kind,
            meaning=TYPES[kind],
            flags=tuple(meaning.flag_names(page.state)),
            flags_value=Address(page.flags),
            head_flags=tuple(meaning.flag_names(page.head)) if page.head else (),
            kpageflags=tuple(filter(None, kpf_long(meaning.kpageflags(page.state, page.head)).split(","))),
            node=page.node,
            zone=page.zone or None,
            section=page.pfn // lookup.pages.sections.pages_per_section,
            order=lookup.order(page),
            compound=compound,
            head_pfn=page.free_pfn if page.free_pfn is not None else page.head_pfn if compound else None,
            refcount=page.refcount,
            mapcount=page.mapcount,
            private=Address(page.private),
            mapping=Address(page.mapping) if page.mapping and not page.is_typed else None,
            offset=page.offset if page.mapping and not page.is_typed else None,
            file=None if file is None else _file(file, page, self._kernel.page_shift),
            slab=None if slab is None else _slab(slab),
            kfence=self._kfence(page.pfn),
            swap=self._optional(lambda: lookup.swap(page), notes),
            memcg=self._optional(lambda: lookup.group(page), notes),
            owner=self._optional(lambda: lookup.owner(page), notes),
            mapped_by=None if maps is None else maps.way,
            mappings=None if maps is None else maps.found,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _doubts(self, page: PageState, kind: str, compound: Optional[str]) -> List[str]:
        """Reasons why the page may be of another type than it seems."""
        lookup = self._lookup
        notes = []
        # The zero page is reserved; the huge zero page has the size of a page mapped by a PMD.
        huge = self._kernel.form.index_bits(1)
        if lookup.pages.zero_unknown and (kind == "reserved" or (compound and lookup.order(page) == huge)):
            notes.append(lookup.pages.zero_unknown)
        if kind == "slab" and lookup.form.slab_cache is not None and lookup.pages.fence[1]:
            notes.append(lookup.pages.fence[1])
        return notes

    def _kfence(self, pfn: int) -> Optional[KfenceRow]:
        pool = self._lookup.fenced(pfn)
        if pool is None:
            return None
        found = pool.object_at(self._kernel.linear_offset.value + (pfn << self._kernel.page_shift) & ALL)
        if found is None:
            return KfenceRow(None, None, None, None, None)
        if found.state == "unused":
            return KfenceRow(found.number, found.state, None, None, None)
        name = cache_name(self._kernel, found.cache)
        return KfenceRow(found.number, found.state, Address(found.address), Size(found.size), name)

    def _user_mappings(self, page: PageState, notes: List[str]) -> Optional[UserMappings]:
        if not self._mappings:
            return None
        maps: Optional[UserMappings]
        if self._search:
            maps = self._optional(lambda: mappings_by_walk(self._kernel, [page.pfn])[page.pfn], notes)
        else:
            maps = self._optional(lambda: self._rmap.mappings(page), notes)
        if maps is None:
            return None
        notes += maps.notes
        self.partial |= maps.damaged
        if maps.way is None and (page.mapcount or 0) > 0:
            notes.append(
                "it is mapped, but the page does not lead to the processes that map it; "
                "--search looks in all page tables"
            )
        return maps


def _slab(slab: SlabUse) -> SlabRow:
    return SlabRow(
        slab.cache,
        Address(slab.cache_address),
        Size(slab.object_size),
        slab.objects,
        slab.in_use,
        _address(slab.object_address),
        slab.object_offset,
        slab.allocated,
    )


def _file(file: FileName, page: PageState, shift: int) -> FileRow:
    offset = None if page.offset is None else Size(page.offset << shift)
    return FileRow(file.path, file.file_system, file.device, file.inode, offset)


def _address(value: Optional[int]) -> Optional[Address]:
    return None if value is None else Address(value)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plain values that pass between the layers.

Everything here is frozen and made of ints, strings and each other. Nothing here depends on drgn or on a
terminal. Subclasses of int say how to render a number: as an address (always 16 hexadecimal digits), a size
in bytes (``64 TB`` in text, a number in JSON) or a displacement. Arithmetic on them yields plain ints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Dict,
    Generic,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    TypeVar,
    Union,
)

T = TypeVar("T")


class Row(Protocol):
    """A row of a table: an instance of any dataclass."""

    __dataclass_fields__: ClassVar[Dict[str, Any]]


if TYPE_CHECKING:
    # Only type checkers need the defaults: code that does not depend on a report's content uses ``Report``.
    from typing_extensions import TypeVar as VarWithDefault

    Row_co = VarWithDefault("Row_co", covariant=True, default=Any)
    Tables_co = VarWithDefault("Tables_co", covariant=True, default=Sequence["Table[Any]"])
    Extra_co = VarWithDefault("Extra_co", covariant=True, default=Mapping[str, Any])
else:
    Row_co = TypeVar("Row_co", covariant=True)
    Tables_co = TypeVar("Tables_co", covariant=True)
    Extra_co = TypeVar("Extra_co", covariant=True)

#: Type of ``extra`` for a report that has no extra values.
NoExtra = Mapping[str, Any]

#: The last 64-bit address; also the mask for arithmetic on addresses.
ALL = (1 << 64) - 1

#: Names of dump formats on the command line.
DUMP_FORMATS = (
    "elf",
    "kdump",
    "raw",
    "lime",
    "avml",
    "qemu",
    "libvirt",
    "qcow2",
    "vmware",
    "virtualbox",
    "xen",
    "xl-save",
)


class Address(int):
    """A virtual or physical address."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{int(self):#x}"

    # str() still gives a decimal number: CSV and format() rely on that.
    __str__ = int.__repr__


class Size(int):
    """A number of bytes."""

    __slots__ = ()


class Displacement(int):
    """A signed number of bytes by which something was moved."""

    __slots__ = ()


def own_memory(mapped: object, shared: object) -> Optional[Size]:
    """Bytes that a region maps to memory of its own; None unless most of what it maps is shared pages.

    :param mapped: bytes that it maps. If this or ``shared`` is not a size, nothing is known.
    :param shared: bytes of these that map the same pages again, such as KASAN's page of zeros.
    """
    if not isinstance(mapped, Size) or not isinstance(shared, Size) or shared * 2 <= mapped:
        return None
    return Size(mapped - shared)


class NoRange(ValueError):
    """Two numbers are not a range of addresses."""


@dataclass(frozen=True)
class AddressRange:
    """Addresses from ``start`` to ``end``, both inclusive, so that a range can end at the last address."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < 1 << 64:
            raise NoRange(f"{self.start:#x}-{self.end:#x} is not a range of addresses")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.end - self.start + 1

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address <= self.end

    def overlaps(self, other: AddressRange) -> bool:
        """Whether the two share an address."""
        return self.start <= other.end and other.start <= self.end


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A value of this kernel, and where it was read from."""

    value: T
    provenance: str


@dataclass(frozen=True)
class Absent:
    """Something that this kernel does not have, and why."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """Something that cannot be read from this source, and why. The kernel may or may not have it."""

    reason: str


@dataclass(frozen=True)
class Placement:
    """Where a region lies on this kernel.

    :ivar range: addresses that are reserved for the region, used or not.
    :ivar provenance: where the bounds were read from.
    :ivar default_start: address of what KASLR moves on a kernel of this paging mode without KASLR. That is
        the region itself, or the first byte used in a window that never moves. None if nothing moves.
    :ivar slide: its displacement in bytes; None if nothing moves.
    :ivar used: the part of the range in use, if it is known and differs from the range.
    :ivar note: one line of advice for the reader of the row.
    :ivar open_ended: whether the region may extend beyond the range because its end is unknown.
    :ivar parent: key of the region that contains it; empty if none does. A region with a parent has no share
        of its own in the address space.
    """

    range: AddressRange
    provenance: str
    default_start: Optional[int] = None
    slide: Optional[int] = None
    used: Optional[AddressRange] = None
    used_note: str = ""
    note: str = ""
    open_ended: bool = False
    parent: str = ""


Located = Union[Placement, Absent, Unknown]


@dataclass(frozen=True)
class Identity:
    """Identifies a kernel; the ``kernel`` object of every JSON document.

    :ivar paging: the number of levels and the page size, as text.
    :ivar page_size: bytes of the smallest page.
    :ivar isolation: whether user mode runs on page tables that do not map the kernel; ``pti`` is the same.
    """

    release: Optional[str]
    build_id: Optional[str]
    arch: str
    paging_levels: int
    paging: str
    page_size: int
    kaslr: Optional[bool]
    pti: Optional[bool]
    isolation: Optional[bool]
    source: str
    live: bool
    types: str
    symbols: str


@dataclass(frozen=True)
class Thing:
    """One thing that an address belongs to.

    :ivar kind: ``task``, ``symbol``, ``region`` and others, see :mod:`kvintro.queries.identify`.
    :ivar text: description for display.
    :ivar start: first address of the thing, if it has one.
    :ivar size: size in bytes, if known.
    :ivar details: values that depend on the kind.
    """

    kind: str
    text: str
    start: Optional[Address] = None
    size: Optional[int] = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One column of a table as text: the field of a row, and its title.

    :ivar align: ``left`` or ``right``.
    :ivar spare: if the terminal is too narrow, columns with the highest number are hidden first, those with
        0 last.
    """

    key: str
    title: str
    align: str = "left"
    spare: int = 0


@dataclass(frozen=True)
class Table(Generic[Row_co]):
    """Typed rows under one JSON key.

    :ivar rows: dataclass instances. JSON and CSV have all their fields, text only those named by the columns.
    """

    key: str
    columns: Sequence[Column]
    rows: Sequence[Row_co]
    title: str = ""


@dataclass(frozen=True)
class Root:
    """A page-table root under which a region is mapped.

    :ivar table: physical address of the root table.
    :ivar owner: owner of the root, for display: ``init_top_pgt``, ``efi_mm``, ``pid 1``.
    """

    table: int
    owner: str


class Linear(NamedTuple):
    """A rule that translates a region without page tables: physical = virtual - offset, modulo 2^64.

    It says where the kernel puts things, not what is mapped: the page tables are authoritative.

    :ivar range: virtual addresses for which it holds.
    :ivar whole: False if the end of the range was only inferred, from where mappings stop following the rule.
    """

    range: AddressRange
    offset: int
    whole: bool = True


class Asked(NamedTuple):
    """The part of a region's contents that is wanted. A region may ignore this and return more.

    :ivar within: addresses of interest.
    :ivar pid: one process, for regions that differ from process to process.
    """

    within: Optional[AddressRange] = None
    pid: Optional[int] = None


@dataclass(frozen=True)
class Contents:
    """The contents of a region.

    :ivar tables: typed rows; the first table lists the contents, others summarise them or give another view.
        The columns are for text.
    :ivar totals: totals over the whole region, by name.
    :ivar notes: remarks for the reader: disagreements with the page tables, damaged structures.
    :ivar partial: whether something that belongs here could not be read.
    :ivar ranged: whether the rows are only those of the requested range, as the region defines it.
    """

    tables: Sequence[Table]
    totals: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    partial: bool = False
    ranged: bool = False


@dataclass(frozen=True)
class Randomised:
    """A base that is drawn at random.

    :ivar state: ``on``, ``off`` or ``unknown``.
    :ivar default: its address without randomisation; None if there is no such address.
    :ivar granularity: distance between two possible addresses.
    :ivar slots: number of possible addresses.
    :ivar bound: ``at least`` or ``at most`` if ``slots`` is not exact.
    :ivar bits: bits of entropy, log2 of the slots.
    :ivar provenance: where the actual address was read from.
    :ivar computed: how the number of slots was computed.
    :ivar place: which of the slots it is, from 0; None if unknown, or if the slots are not equally likely.
    """

    key: str
    what: str
    state: str
    default: Optional[Address]
    actual: Optional[Address]
    displacement: Optional[Displacement]
    granularity: Optional[Size]
    slots: Optional[int]
    bound: str
    bits: Optional[float]
    provenance: str
    computed: str
    note: str
    place: Optional[int] = None


@dataclass(frozen=True)
class Report(Generic[Tables_co, Extra_co]):
    """The result of a command. A renderer turns it into text, JSON or CSV.

    :ivar tables: its tables. Reports with a fixed set of tables name them in their type, such as
        ``Report[Tuple[Table[RegionRow]]]``, which their renderer requires.
    :ivar extra: other values by their JSON key; a typed dictionary for reports with a fixed set of values.
    :ivar partial: whether something that belongs here could not be read (exit code 4).
    :ivar negative: whether the answer is no: not mapped, a check that failed (exit code 1).
    """

    command: str
    kernel: Optional[Identity]
    tables: Tables_co
    head: Sequence[str] = ()
    notes: Sequence[str] = ()
    partial: bool = False
    negative: bool = False
    extra: Extra_co = field(default_factory=dict)  # type: ignore[assignment]


@dataclass(frozen=True)
class Raw(Report):
    """A report that consists of bytes only, which are written unchanged.

    :ivar pieces: the bytes, in order. Reading one can raise :class:`~kvintro.errors.NotInDump`.
    """

    pieces: Iterable[bytes] = ()


@dataclass(frozen=True)
class Section:
    """A report within a report.

    :ivar key: names the section in JSON and in links.
    :ivar text: introductory paragraphs.
    :ivar report: the report; None if it could not be made.
    :ivar tables: keys of the tables that the HTML page shows; None for all.
    :ivar problem: why there is no report.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    report: Optional[Report] = None
    tables: Optional[Sequence[str]] = None
    problem: str = ""


class StreamField(NamedTuple):
    """One value of each result of a :class:`Stream`.

    :ivar width: width of its column in text; negative for left-aligned.
    """

    key: str
    width: int


@dataclass(frozen=True)
class Batch:
    """Some of a stream's results: a list of values for each field, by the field's key.

    :ivar partial: see :class:`Report`.
    :ivar negative: see :class:`Report`.
    """

    values: Mapping[str, Sequence[Any]]
    partial: bool = False
    negative: bool = False


class Stream:
    """Results that are produced while inputs arrive, for input of unlimited length.

    :ivar key: JSON key of the results.
    :ivar fields: fields of each result.
    :ivar text_keys: keys of the fields that a line of text has.
    :ivar partial: whether any batch so far was partial.
    :ivar negative: whether any batch so far was negative.
    """

    def __init__(
        self,
        command: str,
        kernel: Optional[Identity],
        key: str,
        fields: Sequence[StreamField],
        text_keys: Sequence[str],
        batches: Iterable[Batch],
        notes: Sequence[str] = (),
    ) -> None:
        self.command = command
        self.kernel = kernel
        self.key = key
        self.fields = fields
        self.text_keys = text_keys
        self.notes = notes
        self.partial = False
        self.negative = False
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.partial |= batch.partial
            self.negative |= batch.negative
            yield batch

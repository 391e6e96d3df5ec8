# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plain values that pass between the rooms of the house.

Everything here is frozen, made of ints, strings and each other, and knows neither drgn nor a terminal.
Two subclasses of int carry the one thing that a renderer must know about a number: whether it is an
address (16 hexadecimal digits everywhere) or a size in bytes (``64 TB`` for people, a number in JSON).
Arithmetic on them yields plain ints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Iterable, Iterator, Mapping, Optional, Sequence, Tuple, TypeVar, Union

T = TypeVar("T")

#: What the command line can call a dump's format.
DUMP_FORMATS = ("elf", "kdump", "raw", "lime", "avml")


class Address(int):
    """A virtual or physical address."""

    __slots__ = ()


class Size(int):
    """A number of bytes."""

    __slots__ = ()


class Displacement(int):
    """A signed number of bytes by which something was moved."""

    __slots__ = ()


class NoRange(ValueError):
    """Two numbers that are no range of addresses."""


@dataclass(frozen=True)
class AddressRange:
    """Addresses from ``start`` to ``end``, both inclusive (the last address of all has no successor)."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < 1 << 64:
            raise NoRange(f"{self.start:#x}-{self.end:#x} is no range of addresses")

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
    """A value of this kernel, and where it was read."""

    value: T
    provenance: str


@dataclass(frozen=True)
class Absent:
    """Something that this kernel does not have, and why."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """Something that this source does not tell, and why. The kernel may or may not have it."""

    reason: str


@dataclass(frozen=True)
class Placement:
    """Where a region lies on this kernel.

    :ivar range: what is reserved for the region, whether used or not.
    :ivar provenance: where the bounds were read.
    :ivar default_start: where KASLR-less kernels of this paging mode put what KASLR moves: the region
        itself, or in a window that never moves the first byte used in it; None where nothing moves.
    :ivar slide: displacement of that in bytes, None where nothing moves.
    :ivar used: the part of the range in use, where it is known and differs from the range.
    :ivar note: one line that a reader of the row should know.
    """

    range: AddressRange
    provenance: str
    default_start: Optional[int] = None
    slide: Optional[int] = None
    used: Optional[AddressRange] = None
    used_note: str = ""
    note: str = ""


Located = Union[Placement, Absent, Unknown]


@dataclass(frozen=True)
class Identity:
    """Which kernel this is, as the ``kernel`` object of every JSON document."""

    release: Optional[str]
    build_id: Optional[str]
    arch: str
    paging_levels: int
    kaslr: Optional[bool]
    pti: Optional[bool]
    source: str
    live: bool
    types: str
    symbols: str


@dataclass(frozen=True)
class Column:
    """One column of a table as text or CSV: the attribute of a row, and its title."""

    key: str
    title: str
    align: str = "left"


@dataclass(frozen=True)
class Table:
    """Typed rows under one JSON key.

    :ivar rows: dataclass instances; JSON has all their fields, text and CSV those that columns name.
    """

    key: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    title: str = ""


@dataclass(frozen=True)
class Report:
    """What a command found. Renderers turn it into text, JSON or CSV; nothing in it is printed yet.

    :ivar partial: something that should be here could not be read (exit code 4).
    :ivar negative: the answer is no: not mapped, a check that failed (exit code 1).
    """

    command: str
    kernel: Optional[Identity]
    tables: Sequence[Table]
    head: Sequence[str] = ()
    notes: Sequence[str] = ()
    partial: bool = False
    negative: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A report within a report.

    :ivar key: names the section in JSON and in links.
    :ivar text: paragraphs that say what is in it.
    :ivar report: what was found; None if that failed.
    :ivar tables: keys of the tables that a page shows; None for all.
    :ivar problem: why there is nothing, or not all.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    report: Optional[Report] = None
    tables: Optional[Sequence[str]] = None
    problem: str = ""


@dataclass(frozen=True)
class StreamField:
    """One value of each result of a :class:`Stream`.

    :ivar width: columns that text gives it; negative for left-aligned.
    """

    key: str
    width: int


@dataclass(frozen=True)
class Batch:
    """Some results, one list of values for each field's key.

    :ivar partial: see :class:`Report`.
    :ivar negative: see :class:`Report`.
    """

    values: Mapping[str, Sequence[Any]]
    partial: bool = False
    negative: bool = False


class Stream:
    """Results that come while their inputs do, for lists without end.

    :ivar key: the results' JSON key.
    :ivar fields: what each result has.
    :ivar text_keys: the fields that make a line of text.
    :ivar partial: whether any batch so far was.
    :ivar negative: whether any batch so far was.
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


Leaves = Tuple[Tuple[str, int], ...]

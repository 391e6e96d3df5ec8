# SPDX-License-Identifier: LGPL-2.1-or-later
"""A decoded page-table entry, in terms that all architectures share. Pure arithmetic.

The ``entries`` module of an architecture has an :class:`EntryFormat`, which decodes the entries of one kernel
(``kernel.entries``), and a function ``of_any`` that returns the format to use without a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple, TypeVar

from kvintro.arch.form import PagingForm
from kvintro.arch.swap import (
    MOST_SPECIAL,
    SWP_TYPE_BITS,
    SpecialSwapTypes,
    Swap,
    SwapFields,
    marker_names,
)


@dataclass(frozen=True)
class Entry:
    """A decoded entry.

    :ivar kind: ``empty``, ``table`` (points to a table of the next level), ``page`` (maps a page),
        ``protnone`` (keeps a page that may not be accessed now: PROT_NONE, NUMA hints), ``invalid`` (a huge
        page that is being split), ``swap`` (see ``swap``), ``not-present`` (neither the processor nor the
        kernel's swap code would use it; ``physical`` is what it last mapped), ``reserved`` (a type that does
        not exist at this level: the processor faults).
    :ivar physical: address of the table or page, with inversion against L1TF undone. None if it has none.
    :ivar page_size: bytes mapped if kind is ``page``, ``protnone`` or ``invalid``, otherwise 0.
    :ivar flags: names of the bits that are set, from bit 0 up.
    :ivar bits: the same names by bit number.
    :ivar half_note: why an inferred half may be wrong; empty if it was given or is certain.
    :ivar memory_type: memory type that the entry of a page selects, as the kernel programs the processor.
    :ivar memory_source: the part of the entry that selects it, for display: ``PAT index 3``.
    :ivar pat: index into the PAT, for pages on x86-64.
    :ivar pkey: protection key, for pages.
    :ivar contiguous: bytes of the contiguous range that the entry says its page is part of; otherwise 0.
    :ivar swap: the swap entry; None if its layout depends on an unknown kernel version.
    :ivar inverted: whether the address is stored inverted.
    :ivar reserved: bits that are set although the processor faults on them.
    """

    value: int
    level: int
    half: str
    kind: str
    physical: Optional[int] = None
    page_size: int = 0
    flags: Tuple[str, ...] = ()
    bits: Mapping[int, str] = field(default_factory=dict)
    half_note: str = ""
    memory_type: Optional[str] = None
    memory_source: str = ""
    pat: Optional[int] = None
    pkey: Optional[int] = None
    contiguous: int = 0
    inverted: bool = False
    swap: Optional[Swap] = None
    reserved: int = 0


class UserRange(NamedTuple):
    """Properties of equal entries for user mode, from their flags only, see :meth:`PagingForm.flag_bits`.

    :ivar special: whether the page has no ``struct page`` and is not counted for any process.
    :ivar swap: for entries without a page: ``swap``, or the name of the special type.
    :ivar markers: names of a marker's bits; None if the flags do not include them.
    """

    special: bool
    swap: str
    markers: Optional[Tuple[str, ...]] = ()


def swapped(
    value: int,
    level: int,
    half: str,
    swap: SwapFields,
    form: PagingForm,
    types: Optional[SpecialSwapTypes],
    physical_bits: Optional[int],
) -> Entry:
    """Decode an entry that keeps a swap entry.

    :param swap: the fields of the swap entry, whose place depends on the architecture.
    :param types: special swap types; None if unknown.
    :param physical_bits: MAX_PHYSMEM_BITS; None if unknown.
    """
    number, offset, bits, inverted = swap
    flags = [bits[bit] for bit in sorted(bits)]
    kind: Optional[str] = None
    if types is not None:
        kind = types.names.get(number, "swap")
    elif number < (1 << SWP_TYPE_BITS) - MOST_SPECIAL:
        # Below the special types there are only swap files.
        kind = "swap"
    markers: Tuple[str, ...] = ()
    pfn: Optional[int] = None
    if kind == "marker" and types is not None:
        markers = marker_names(offset, types.markers)
    elif kind not in (None, "swap") and physical_bits is not None:
        pfn_bits = physical_bits - form.page_shift
        pfn = offset & (1 << pfn_bits) - 1
        if kind is not None and kind.startswith("migration"):
            # include/linux/swapops.h: SWP_MIG_YOUNG_BIT, SWP_MIG_DIRTY_BIT.
            flags += [name for i, name in enumerate(("YOUNG", "DIRTY")) if offset >> pfn_bits + i & 1]
    return Entry(
        *(value, level, half, "swap", None if pfn is None else pfn << form.page_shift, 0, tuple(flags), bits),
        swap=Swap(number, kind, offset, pfn, tuple(flags), markers),
        inverted=inverted,
    )


def mapping(
    value: int,
    level: int,
    half: str,
    kind: str,
    form: PagingForm,
    bits: Mapping[int, str],
    source: str,
    contiguous: int = 0,
) -> Entry:
    """Decode an entry that has a page.

    :param bits: name of each bit that is set.
    :param source: the part of the entry that selects the memory type, for display.
    """
    return Entry(
        *(value, level, half, kind, form.page_address(value, level), 1 << form.shift(level)),
        *(name_bits(bits), bits),
        memory_type=form.memory_type(value, level),
        memory_source=source,
        contiguous=contiguous,
    )


def pointing(
    value: int, level: int, half: str, kind: str, physical: Optional[int], bits: Mapping[int, str]
) -> Entry:
    """Decode an entry that maps no page.

    :param bits: name of each bit that is set.
    """
    return Entry(value, level, half, kind, physical, 0, name_bits(bits), bits)


class EntryFormat(Protocol):
    """Decodes the entries of one kernel."""

    @property
    def form(self) -> PagingForm:
        """The form of the tables."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on what was assumed or read about the kernel that affects decoding; for display."""

    def decode(self, value: int, level: int, *, half: Optional[str] = None) -> Entry:
        """Decode an entry of a table.

        :param level: 1 for entries of the smallest pages, ``form.levels`` for the root's.
        :param half: ``user`` or ``kernel``: whose addresses the entry translates; None to infer it.
        """

    def of_range(self, key: int, level: int) -> UserRange:
        """Decode the key of a range of the user half.

        :param key: has the flags of the entries in their original places, see :mod:`kvintro.paging.tree`.
        """


Form = TypeVar("Form", bound=PagingForm)
Build = TypeVar("Build")


class Decoder(Generic[Form, Build]):
    """What an architecture's :class:`EntryFormat` is made of.

    :ivar dialect: properties of the kernel's build.
    :ivar notes: remarks for the reader of decoded entries.
    """

    def __init__(self, form: Form, dialect: Build, notes: Sequence[str] = ()) -> None:
        self.form = form
        self.dialect = dialect
        self.notes = notes


def name_bits(bits: Mapping[int, str]) -> Tuple[str, ...]:
    """The names of bits, from bit 0 up, each once."""
    return tuple(dict.fromkeys(bits[bit] for bit in sorted(bits)))

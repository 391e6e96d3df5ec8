# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translates many numbers at once, without notes, symbols and walks."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from kvintro.kernels import Trait
from kvintro.model import ALL, Address
from kvintro.paging.bulk import MAPPED, NON_CANONICAL, NOT_IN_DUMP, STATES, BulkResult
from kvintro.queries.placements import HOLE
from kvintro.queries.translate import FORMS, Translator, disagreement

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    U8 = NDArray[numpy.uint8]
    U64 = NDArray[numpy.uint64]
    Bools = NDArray[numpy.bool_]

_NOT_CANONICAL = ALL >> 1  # in every paging mode
_VIRTUAL, _PFN, _PAGE = (FORMS.index(form) for form in ("virtual", "pfn", "page"))
_NO_RULE, _AGREES, _DIFFERS = range(3)


@dataclass(frozen=True)
class _Physical:
    """Physical addresses that follow directly from inputs that are not virtual addresses.

    :ivar addresses: physical addresses.
    :ivar known: whether an input has one.
    :ivar lost: inputs that are addresses of struct pages that do not exist.
    :ivar states: states of the struct pages' own addresses, as in :data:`kvintro.paging.bulk.STATES`.
    """

    addresses: U64
    known: Bools
    lost: Bools
    states: U8


class ManyAnswers:
    """Translates arrays of numbers for a translator."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self._kernel = translator.kernel
        self._places = translator.places
        self._pages = translator.pages

    @cached_property
    def _starts(self) -> U64:
        import numpy

        return numpy.array(self._places.starts, numpy.uint64)

    @cached_property
    def _keys(self) -> List[str]:
        return [HOLE if region is None else region.key for region in self._places.regions]

    def forms_of(self, values: U64) -> U8:
        """:meth:`.Translator.form_of` for many numbers, as indices into :data:`.FORMS`."""
        import numpy

        asked = self._translator
        if asked.form is not None:
            return numpy.full(len(values), FORMS.index(asked.form), numpy.uint8)
        forms = numpy.zeros(len(values), numpy.uint8)
        vmemmap = self._kernel.regions.vmemmap
        if not asked.plain_virtual and vmemmap in self._places.regions:
            at = self._places.regions.index(vmemmap)
            end = self._places.starts[at + 1] - 1 if at + 1 < len(self._places.starts) else ALL
            start = numpy.uint64(max(self._places.starts[at], asked.first_page))
            forms[(values >= start) & (values <= numpy.uint64(end))] = _PAGE
        below = values <= numpy.uint64(self._kernel.form.user.end)
        if asked.below is not None or asked.low_root:
            forms[below] = FORMS.index(asked.below or "virtual")
        else:
            limit = numpy.uint64(self._kernel.facts.max_physmem_bits.value)
            forms[below & (values >> limit == numpy.uint64(0))] = FORMS.index("physical")
        return forms

    def columns(self, texts: Sequence[str], values: U64, forms: U8) -> Columns:
        """The fields of many answers, one list each; :meth:`one_by_one` tells which are not final.

        :param forms: indices into :data:`.FORMS`.
        """
        import numpy

        is_virtual = forms == _VIRTUAL
        physical = self._physical(values, forms)
        virtual = self._virtual(values, is_virtual, physical)
        result = self._kernel.bulk(self._translator.root.table).translate(virtual)
        found = self._states(is_virtual, physical, result)
        mapped = (found == MAPPED) & ~physical.lost
        stretch = numpy.searchsorted(self._starts, virtual, side="right") - 1
        linear = self._linear(virtual, result.physical, stretch, mapped)
        return self._columns(texts, forms, physical, virtual, result, found, mapped, stretch, linear)

    def _columns(
        self,
        texts: Sequence[str],
        forms: U8,
        physical: _Physical,
        virtual: U64,
        result: BulkResult,
        found: U8,
        mapped: Bools,
        stretch: "NDArray[numpy.intp]",
        linear: U8,
    ) -> Columns:
        import numpy

        u = numpy.uint64
        n = len(texts)
        is_virtual = forms == _VIRTUAL
        out_physical = numpy.where(is_virtual, result.physical, physical.addresses)
        has_physical = numpy.where(is_virtual, mapped, physical.known)
        has_virtual = is_virtual | mapped
        methods = numpy.where(mapped, numpy.where(linear == _AGREES, 2, 1), 0)
        names = self._keys
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
                "pfn": lambda: _optional(out_physical >> u(self._kernel.page_shift), has_physical),
                "page": lambda: _addresses(*self._pages_of(out_physical, has_physical)),
                "page_size": lambda: _optional(u(1) << result.page_shifts.astype(u), mapped),
                "method": lambda: [(None, "walk", "linear")[m] for m in methods.tolist()],
                "symbol": lambda: [None] * n,
                "in_dump": lambda: [None] * n,
                "root": lambda: [self._translator.root.owner] * n,
                "note": lambda: self._notes(virtual, stretch, mapped & (linear == _DIFFERS)),
                "walk": lambda: [()] * n,
            }
        )

    def _physical(self, values: U64, forms: U8) -> _Physical:
        """Physical addresses of the inputs that are not virtual addresses."""
        import numpy

        u = numpy.uint64
        n = len(values)
        found = _Physical(
            numpy.zeros(n, u), numpy.zeros(n, bool), numpy.zeros(n, bool), numpy.zeros(n, numpy.uint8)
        )
        other, is_pfn, is_page = forms != _VIRTUAL, forms == _PFN, forms == _PAGE
        if not other.any():
            return found
        found.addresses[other] = values[other]
        found.addresses[is_pfn] = values[is_pfn] << u(self._kernel.page_shift)
        too_large = (is_pfn & (values >> u(40) != u(0))) | (found.addresses >> u(52) != u(0))
        found.known[:] = other & ~too_large
        if is_page.any() and self._pages is not None:
            base, size, count = self._pages
            pfns = (values[is_page] - u(base)) // u(size)
            found.addresses[is_page] = pfns << u(self._kernel.page_shift)
            own = self._kernel.bulk().translate(values[is_page]).states
            found.states[is_page] = own
            found.lost[is_page] = (own != MAPPED) | (pfns >= u(count))
            found.known[is_page] = ~found.lost[is_page]
        return found

    def _virtual(self, values: U64, is_virtual: Bools, physical: _Physical) -> U64:
        """The virtual addresses to walk; for page frames, those in the direct map."""
        import numpy

        u = numpy.uint64
        virtual: U64 = values.copy()
        other = ~is_virtual
        rule = self._translator.direct_map
        if rule is None:
            virtual[other] = u(_NOT_CANONICAL)
        else:
            virtual[other] = physical.addresses[other] + u(rule.offset)
            beyond = other & (physical.addresses >= u(min(rule.range.size, ALL)))
            virtual[beyond | (other & ~physical.known)] = u(_NOT_CANONICAL)
        return virtual

    def _states(self, is_virtual: Bools, physical: _Physical, result: BulkResult) -> U8:
        """The state of each answer, as in :data:`kvintro.paging.bulk.STATES`."""
        import numpy

        mapped = result.states == MAPPED
        found: U8 = result.states.copy()
        other = ~is_virtual & ~mapped
        found[other] %= NON_CANONICAL
        lost = physical.lost
        found[lost] = numpy.where(physical.states[lost] == MAPPED, 0, physical.states[lost])
        if self._translator.direct_map is None:
            found[~is_virtual & physical.known] = NOT_IN_DUMP
        # If the direct map maps another page there, this one is not mapped.
        found[mapped & ~is_virtual & (result.physical != physical.addresses)] = 0
        return found

    def _notes(self, virtual: U64, stretch: "NDArray[numpy.intp]", differs: Bools) -> List[Optional[str]]:
        import numpy

        notes: List[Optional[str]] = [None] * len(virtual)
        for i in numpy.flatnonzero(differs).tolist():
            rule = self._translator.rules[self._keys[int(stretch[i])]]
            notes[i] = disagreement(int(virtual[i]), rule)
        return notes

    def one_by_one(self, values: U64, forms: U8, states: Sequence[str]) -> Bools:
        """Which of many numbers need :meth:`.Translator.translate`.

        These are in regions that other roots map, pages that the kernel has but the processor does not see,
        and pointers that may have a tag or a signature.

        :param states: from :meth:`columns`.
        """
        import numpy

        out = numpy.zeros(len(values), bool)
        if self._kernel.form.marked_pointers:
            out |= numpy.array(states) == "non-canonical"
        if not self._translator.own_root:
            user = (forms == _VIRTUAL) & (values <= numpy.uint64(self._kernel.form.user.end))
            if user.any():
                out |= user & (numpy.array(states) == "unmapped")
            return out
        stretch = numpy.searchsorted(self._starts, values, side="right") - 1
        for at, region in enumerate(self._places.regions):
            if region is not None and Trait.OTHER_ROOTS in region.traits:
                out |= (stretch == at) & (forms == _VIRTUAL)
        return out

    def _linear(self, virtual: U64, physical: U64, stretch: "NDArray[numpy.intp]", mapped: Bools) -> U8:
        """Whether each address's region has a rule, and whether the page tables agree with it."""
        import numpy

        u = numpy.uint64
        out = numpy.full(len(virtual), _NO_RULE, numpy.uint8)
        for key, rule in self._translator.rules.items():
            at = bisect_right(self._places.starts, rule.range.start) - 1
            if self._keys[at] != key:
                continue
            inside = (
                (stretch == at) & (virtual >= u(rule.range.start)) & (virtual <= u(rule.range.end)) & mapped
            )
            agree = virtual - u(rule.offset) == physical
            out[inside & agree] = _AGREES
            out[inside & ~agree] = _DIFFERS
        return out

    def _pages_of(self, physical: U64, has: Bools) -> Tuple[U64, Bools]:
        """Addresses of struct pages, and which of them exist."""
        import numpy

        u = numpy.uint64
        if self._pages is None:
            return physical, numpy.zeros(len(physical), bool)
        base, size, count = self._pages
        pfns = physical >> u(self._kernel.page_shift)
        pages = u(base) + pfns * u(size)
        has = has & (pfns < u(count))
        there = self._kernel.bulk().translate(numpy.where(has, pages, u(0))).states
        return pages, has & (there != 0)


class Columns(Mapping[str, List[Any]]):
    """Lists of values by field. Each is made on first use, because a line of text does not show all."""

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


def _optional(values: U64, has: Bools) -> List[Optional[int]]:
    if has.all():
        return list(values.tolist())
    return [v if h else None for v, h in zip(values.tolist(), has.tolist())]


def _addresses(values: U64, has: Bools) -> List[Optional[Address]]:
    if has.all():
        return list(map(Address, values.tolist()))
    return [Address(v) if h else None for v, h in zip(values.tolist(), has.tolist())]

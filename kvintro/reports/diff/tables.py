# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables of a comparison: regions and numbers of bytes in both kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Set, Tuple

from kvintro.model import Address, Column, Displacement, Size
from kvintro.queries.pages.meaning import TOGETHER
from kvintro.reports.diff.sides import RegionFacts, Side, one_architecture


@dataclass(frozen=True)
class RegionDiffRow:
    """A region in both kernels."""

    key: str
    name: str
    a_start: Optional[Address]
    b_start: Optional[Address]
    moved: Optional[Displacement]
    a_size: Optional[Size]
    b_size: Optional[Size]
    a_mapped: Optional[Size]
    b_mapped: Optional[Size]
    mapped_change: Optional[Displacement]

    @property
    def differs(self) -> bool:
        """Whether the two sides differ."""
        return (self.a_start, self.a_size, self.a_mapped) != (self.b_start, self.b_size, self.b_mapped)


@dataclass(frozen=True)
class AmountRow:
    """Number of bytes in both kernels.

    :ivar a: None if A has none of it.
    :ivar b: None if B has none of it.
    """

    name: str
    a: Optional[Size]
    b: Optional[Size]
    change: Displacement


REGION_COLUMNS = (
    Column("name", "region"),
    Column("a_start", "A starts"),
    Column("b_start", "B starts"),
    Column("moved", "moved by", "right", 1),
    Column("a_size", "A size", "right", 3),
    Column("b_size", "B size", "right", 2),
    Column("a_mapped", "A mapped", "right"),
    Column("b_mapped", "B mapped", "right"),
    Column("mapped_change", "change", "right"),
)


def region_rows(a: Side, b: Side) -> List[RegionDiffRow]:
    """All regions that either side has, by address."""
    rows = []
    for key in dict.fromkeys((*a.regions, *b.regions)):
        rows.append(_region_row(key, a.regions.get(key), b.regions.get(key)))
    return sorted(rows, key=lambda row: min(v for v in (row.a_start, row.b_start, 1 << 64) if v is not None))


def _region_row(key: str, one: Optional[RegionFacts], two: Optional[RegionFacts]) -> RegionDiffRow:
    a, b = one or RegionFacts(key, "", "unknown"), two or RegionFacts(key, "", "unknown")
    return RegionDiffRow(
        key=key,
        name=a.name or b.name,
        a_start=None if a.base is None else Address(a.base),
        b_start=None if b.base is None else Address(b.base),
        moved=None if a.base is None or b.base is None else Displacement(b.base - a.base),
        a_size=_size(a.size),
        b_size=_size(b.size),
        a_mapped=_size(a.mapped),
        b_mapped=_size(b.mapped),
        mapped_change=None if a.mapped is None or b.mapped is None else Displacement(b.mapped - a.mapped),
    )


def _size(value: Optional[int]) -> Optional[Size]:
    return None if value is None else Size(value)


@dataclass(frozen=True)
class Amounts:
    """Bytes by name in both kernels.

    :ivar key: key of the table.
    :ivar noun: what the names stand for.
    """

    key: str
    title: str
    noun: str
    a: Mapping[str, int]
    b: Mapping[str, int]

    @property
    def columns(self) -> Tuple[Column, ...]:
        """Columns of the table."""
        return (
            Column("name", self.noun),
            Column("a", "A", "right"),
            Column("b", "B", "right"),
            Column("change", "change", "right"),
        )

    def rows(self) -> List[AmountRow]:
        """Rows of all names; the largest change comes first."""
        rows = [
            AmountRow(
                name,
                _size(self.a.get(name)),
                _size(self.b.get(name)),
                Displacement(self.b.get(name, 0) - self.a.get(name, 0)),
            )
            for name in dict.fromkeys((*self.a, *self.b))
        ]
        return sorted(rows, key=lambda row: (-abs(row.change), row.name))


def amounts(a: Side, b: Side) -> List[Amounts]:
    """Amounts that both sides have."""
    found = []
    a_types, b_types = _frames(a, b)
    # Memory types differ between architectures.
    words = 4 if one_architecture(a, b) else 3
    for key, part, title, noun, one, two in (
        ("rights", "rights", "mapped by page size and rights", "what", _flat(a, words), _flat(b, words)),
        ("vmalloc", "callers", "vmalloc by caller", "caller", _bytes(a.callers), _bytes(b.callers)),
        ("modules", "modules", "modules", "module", a.modules, b.modules),
        ("types", "types", "physical memory by type", "type", a_types, b_types),
    ):
        if one is None or two is None:
            continue
        if part in a.incomplete or part in b.incomplete:
            # The other side may have it too, where it could not be read.
            both = set(one) & set(two)
            found.append(Amounts(key, title, noun, _only(one, both), _only(two, both)))
        else:
            found.append(Amounts(key, title, noun, one, two))
    return found


def _only(found: Mapping[str, int], names: Set[str]) -> Mapping[str, int]:
    return {name: value for name, value in found.items() if name in names}


def _bytes(found: Optional[Mapping[str, Tuple[int, int]]]) -> Optional[Mapping[str, int]]:
    return None if found is None else {name: size for name, (_, size) in found.items()}


def _frames(*sides: Side) -> List[Optional[Mapping[str, int]]]:
    """Bytes by page type. Types that one side combines are summed for the other side too."""
    names = {name for side in sides for name in side.types or ()}
    together = {part: whole for whole, parts in TOGETHER.items() if whole in names for part in parts}
    out: List[Optional[Mapping[str, int]]] = []
    for side in sides:
        sums: Dict[str, int] = {}
        for name, count in (side.types or {}).items():
            whole = together.get(name, name)
            sums[whole] = sums.get(whole, 0) + count * side.page_size
        out.append(None if side.types is None else sums)
    return out


def _flat(side: Side, words: int) -> Optional[Mapping[str, int]]:
    """Bytes by the first words of the keys in :attr:`Side.rights`."""
    if side.rights is None:
        return None
    sums: Dict[str, int] = {}
    for key, size in side.rights.items():
        name = " ".join(key[:words])
        sums[name] = sums.get(name, 0) + size
    return sums

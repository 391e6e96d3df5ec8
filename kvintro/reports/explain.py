# SPDX-License-Identifier: LGPL-2.1-or-later
"""Explains regions, with this kernel's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, TypedDict

from kvintro.arch import Architecture, of_this_machine
from kvintro.errors import Unavailable
from kvintro.kernels import Kernel, Region
from kvintro.model import ALL, Address, Column, Report, Size, Table, own_memory
from kvintro.paging import MAPPED
from kvintro.queries.names import no_region, region_key
from kvintro.queries.placements import HOLE, Places
from kvintro.readers.command_line import given, options
from kvintro.regions import regions_of
from kvintro.regions.explained import (
    Definition,
    Explanation,
    explanation,
    explanation_of,
    introduction,
)
from kvintro.reports.layout import DAMAGED, RegionRow, head, layout
from kvintro.text import displacement_text, size_text


@dataclass(frozen=True)
class DefinitionRow:
    """Something that defines or moves a region, with its value on this kernel.

    :ivar here: the value on this kernel; None if it does not exist or cannot be read.
    """

    kind: str
    name: str
    what: str
    here: Optional[str]


@dataclass(frozen=True)
class ExplainRow:
    """One region explained; docs/explain.md describes the JSON object of the same fields."""

    key: str
    name: str
    also: Tuple[str, ...]
    state: str
    start: Optional[Address]
    end: Optional[Address]
    size: Optional[Size]
    here: Tuple[str, ...]
    purpose: Tuple[str, ...]
    users: Tuple[str, ...]
    definitions: Tuple[DefinitionRow, ...]
    translation: Tuple[str, ...]
    attacker: Tuple[str, ...]
    debugger: Tuple[str, ...]
    changed: Tuple[str, ...]


class ExplainExtra(TypedDict):
    """Further values of the report.

    :ivar introduction: paragraphs before the regions.
    :ivar in_full: whether regions are explained in full; otherwise only their purpose.
    """

    introduction: Tuple[str, ...]
    in_full: bool


ExplainReport = Report[Tuple[Table[ExplainRow]], ExplainExtra]

_COLUMNS = (
    Column("key", "region"),
    Column("start", "start"),
    Column("size", "size", "right"),
    Column("purpose", "what it is for"),
)


def explain(
    kernel: Optional[Kernel], names: Sequence[str] = (), *, everything: bool = False
) -> ExplainReport:
    """Explain regions.

    :param kernel: the kernel whose values to fill in; None for the texts alone.
    :param names: keys, names, other names, or addresses in a region; empty for a summary of all regions.
    :param everything: all regions in full.
    :raises UsageError: a name is unknown.
    """
    regions = kernel.regions if kernel else regions_of(_arch(kernel))
    wanted = [_find(kernel, regions, name) for name in names]
    in_full = everything or bool(names)
    rows_by_key: Dict[str, RegionRow] = {}
    holes: List[RegionRow] = []
    partial = False
    found: Optional[Tuple[str, ...]] = None
    notes: List[str] = []
    if kernel is not None:
        table = layout(kernel)
        partial = _partial(table, wanted)
        for row in table.tables[0].rows:
            if row.key == HOLE:
                holes.append(row)
            else:
                rows_by_key[row.key] = row
        try:
            found = options(kernel)
        except Unavailable as error:
            notes.append(f"kvintro does not know which boot options were given: {error.what}")
    else:
        notes.append("no kernel was read, so only general texts are shown (try -c or --qemu)")
    explainer = _Explainer(kernel, found)
    out: List[ExplainRow] = []
    for region in regions:
        if not names or region.key in wanted:
            out.append(explainer.region(region, rows_by_key.get(region.key)))
    if not names or HOLE in wanted:
        out.append(explainer.holes(holes))
    order = {key: number for number, key in enumerate(wanted)}
    out.sort(key=lambda row: order.get(row.key, 0))
    return Report(
        command="explain",
        kernel=None if kernel is None else kernel.identity,
        tables=(Table("regions", _COLUMNS, out),),
        head=() if kernel is None else head(kernel),
        notes=notes,
        partial=partial,
        extra={"introduction": () if names else paragraphs(introduction(_arch(kernel))), "in_full": in_full},
    )


def _partial(table: Report, wanted: Sequence[str]) -> bool:
    """Whether the layout of all regions lacks something about the requested ones."""
    if not wanted or HOLE in wanted or DAMAGED in table.notes:
        return table.partial
    return any(row.reason and row.state != "absent" for row in table.tables[0].rows if row.key in wanted)


def paragraphs(text: str) -> Tuple[str, ...]:
    """Split a text into paragraphs and remove its line breaks."""
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _arch(kernel: Optional[Kernel]) -> Architecture:
    """Architecture of the texts. Without a kernel it is x86-64."""
    return kernel.arch if kernel else of_this_machine()


def _find(kernel: Optional[Kernel], regions: Sequence[Region], name: str) -> str:
    """The key for a name or an address."""
    key = region_key(regions, _arch(kernel), name)
    if key is not None:
        return key
    try:
        address = int(name, 16)
    except ValueError:
        address = -1
    if kernel is not None and 0 <= address < 1 << 64:
        return Places(kernel).key_at(address)
    raise no_region(regions, _arch(kernel), name, "; or give an address, and name a kernel")


def _holes(arch: Architecture) -> Explanation:
    found = explanation(HOLE, arch)
    assert found is not None
    return found


class _Explainer:
    def __init__(self, kernel: Optional[Kernel], given_options: Optional[Tuple[str, ...]]) -> None:
        self._kernel = kernel
        self._options = given_options

    def region(self, region: Region, row: Optional[RegionRow]) -> ExplainRow:
        """One region."""
        text = explanation_of(region, _arch(self._kernel)) or Explanation(
            purpose=" ".join((type(region).__doc__ or "").split())
        )
        here: List[str] = []
        if row is not None and self._kernel is not None:
            here = self._here(self._kernel, region, row)
        return self._row(region.key, region.name, text, row, here)

    def holes(self, rows: Sequence[RegionRow]) -> ExplainRow:
        """The ranges between regions."""
        here = []
        if rows:
            total = sum(row.size or 0 for row in rows)
            here.append(f"There are {len(rows)}, with {size_text(total)} in total:")
            here += [f"{row.start:016x}-{row.end:016x}, {size_text(row.size or 0)}" for row in rows]
        return self._row(HOLE, "unused ranges", _holes(_arch(self._kernel)), None, here)

    def _row(
        self, key: str, name: str, text: Explanation, row: Optional[RegionRow], here: Sequence[str]
    ) -> ExplainRow:
        state = row.state if row else ("present" if here else "unknown")
        return ExplainRow(
            key=key,
            name=name,
            also=text.also,
            state=state,
            start=row.start if row else None,
            end=row.end if row else None,
            size=row.size if row else None,
            here=tuple(here),
            purpose=paragraphs(text.purpose),
            users=paragraphs(text.users),
            definitions=tuple(self._definition(d) for d in text.definitions),
            translation=paragraphs(text.translation),
            attacker=paragraphs(text.attacker),
            debugger=paragraphs(text.debugger),
            changed=paragraphs(text.changed),
        )

    def _definition(self, what: Definition) -> DefinitionRow:
        name, here = what.name, None
        if what.kind == "boot" and self._options is not None:
            here = " ".join(given(self._options, what.name)) or "not given"
        elif self._kernel is not None and what.symbols:
            name, here = self._symbol(self._kernel, what)
        return DefinitionRow(what.kind, name, what.what, here)

    def _symbol(self, kernel: Kernel, what: Definition) -> Tuple[str, Optional[str]]:
        try:
            if what.kind == "config":
                return what.name, "on" if any(kernel.has_symbol(name) for name in what.symbols) else "off"
            for name in what.symbols:
                if kernel.find_symbol(name) is not None:
                    value = kernel.value(name, what.size).value
                    return name, _shown(value, what.shows)
        except Unavailable:
            return what.name, None
        # A variable may exist without a name in the symbol table.
        named = kernel.source.symbols != "none" and not kernel.code_only
        return what.name, "not on this kernel" if named else None

    def _here(self, kernel: Kernel, region: Region, row: RegionRow) -> List[str]:
        """Sentences about the region on this kernel."""
        if row.state != "present" or row.start is None or row.end is None or row.size is None:
            return [
                f"This kernel does not have it: {row.reason}."
                if row.state == "absent"
                else f"Not known: {row.reason}."
            ]
        out = [
            f"It is at {row.start:016x}-{row.end:016x}, {size_text(row.size)}; {_read_from(row.provenance)}."
        ]
        if row.slide is not None and row.default_start is not None:
            subject = "Its first byte in use" if row.default_start != row.start - row.slide else "It"
            if row.slide:
                out.append(
                    f"{subject} was moved by {displacement_text(row.slide)} from {row.default_start:016x}, "
                    "where it is without KASLR."
                )
            else:
                out.append(f"{subject} is at {row.default_start:016x}, where it is without KASLR.")
        if row.used_start is not None and row.used_end is not None:
            used = Size(row.used_end - row.used_start + 1)
            out.append(
                f"The part in use is {row.used_start:016x}-{row.used_end:016x}, {size_text(used)}"
                + (f" ({row.used_note})." if row.used_note else ".")
            )
        if row.mapped is not None:
            out.append(_mapped(row))
        if row.note:
            out.append(f"{row.note[0].upper()}{row.note[1:]}.")
        try:
            example = self._example(kernel, region)
        except Unavailable:
            example = None
        if example:
            out.append(example)
        return out

    def _example(self, kernel: Kernel, region: Region) -> Optional[str]:
        """Translation of the first mapped address of a region.

        :raises Unavailable: the source does not say.
        """
        place = kernel.place(region)
        where = place.used or place.range
        roots = region.roots(kernel)
        if not roots:
            return None
        root = roots[0]
        tree = kernel.kernel_ranges if root.table == kernel.root.value else None
        if tree is None:
            tree = kernel.tree(root.table).ranges(where.start, where.end)
        first = next((low for low, _, _ in tree.clip(where.start, where.end).select(MAPPED)), None)
        if first is None:
            return None
        walk = kernel.walk(first, root.table)
        if walk.physical is None:
            return None
        page = size_text(1 << kernel.form.shift(walk.steps[-1].level))
        text = f"For example, a {page} page of {root.owner} maps {first:016x} to physical {walk.physical:x}"
        linear = region.linear(kernel)
        if linear is not None:
            offset = linear.offset
            agrees = (first - offset) & ALL == walk.physical
            text += f"; subtracting {offset:016x} gives {'the same address' if agrees else 'another address'}"
        return text + "."


def _read_from(provenance: Optional[str]) -> str:
    if provenance in (None, "constant"):
        return "fixed by the number of paging levels and by how the kernel was built"
    return f"read from {provenance}"


def _mapped(row: RegionRow) -> str:
    assert row.mapped is not None
    if not row.mapped:
        return "Nothing is mapped in it."
    pages = [f"{count} {size} page{'s' * (count != 1)}" for size, count in row.leaves.items()]
    text = f"{size_text(row.mapped)} mapped by {', '.join(pages[:-1])}{' and ' * (len(pages) > 1)}{pages[-1]}"
    if row.root_noun.startswith("process"):
        text += f", in {row.roots} {row.root_noun}"
    own = own_memory(row.mapped, row.shared)
    if own is not None:
        text += f". Only {size_text(own)} of it is memory of its own"
        text += f"; the other {size_text(row.shared or 0)} is shared pages, each mapped many times"
    elif row.shared:
        text += f"; {size_text(row.mapped - row.shared)} of it by tables that are not shared"
    return f"{text}."


def _shown(value: int, form: str) -> str:
    if form == "address":
        return f"{value:016x}"
    if form == "signed":
        return f"{value - (1 << 64) if value >> 63 else value:x}"
    if form == "size":
        return size_text(value)
    return str(value)

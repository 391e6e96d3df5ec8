# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the regions are for, with this kernel's values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kvintro.arch import x86_64
from kvintro.errors import Unavailable, UsageError
from kvintro.kernel import Kernel
from kvintro.model import Address, Column, Placement, Report, Size, Table
from kvintro.paging import MAPPED
from kvintro.queries.command_line import given, options
from kvintro.queries.placements import HOLE, Places
from kvintro.regions import Region, regions_of
from kvintro.regions.explained import Definition, Explanation, explanation, explanation_of
from kvintro.reports.layout import RegionRow, head, layout
from kvintro.text import displacement_text, size_text

#: What a reader should know before the regions make sense.
INTRODUCTION = """
    A process sees 2^64 addresses and can use two ranges of them. The lower one is its own: each process
    has page tables that fill it differently. The upper one is the kernel's and the same in every process,
    because all root tables point to the same tables below: what the kernel maps there, it maps for all.
    The one exception is the LDT remap. Between the two ranges lie the numbers that the processor does not
    accept as addresses.

    User mode cannot access the kernel's half, apart from the vsyscall page: on the way to every other page
    there, at least one level of the page tables lacks the USER bit (upper levels may have it). With
    page-table isolation user mode runs on a second root, which maps of that half only what is needed to
    enter the kernel. The way in is a system call, an interrupt or a fault, through code and stacks in the
    cpu_entry_area and the kernel image.

    Page tables have four levels, which translate 48 bits of address, or five, which translate 57. KASLR
    moves the kernel image within its window, modules within theirs, each CPU's area within the
    cpu_entry_area, and the direct map, vmalloc and vmemmap, in this order, within the space below the
    cpu_entry_area. The other regions start at addresses that depend only on the number of levels and on
    how the kernel was built.
"""


@dataclass(frozen=True)
class DefinitionRow:
    """What makes or moves a region, and what it is here.

    :ivar here: the value on this kernel, None if there is none or it cannot be read.
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


_COLUMNS = (
    Column("key", "region"),
    Column("start", "start"),
    Column("size", "size", "right"),
    Column("purpose", "what it is for"),
)


def explain(kernel: Optional[Kernel], names: Sequence[str] = (), *, everything: bool = False) -> Report:
    """Explain regions.

    :param kernel: whose values to fill in; None for the texts alone.
    :param names: keys, names, other names, or addresses in a region. Without any an overview.
    :param everything: all regions in full.
    :raises UsageError: a name is none.
    """
    # On their own texts speak of the one architecture that has any.
    regions = kernel.regions if kernel else regions_of(x86_64.ARCHITECTURE)
    wanted = [_find(kernel, regions, name) for name in names]
    in_full = everything or bool(names)
    rows_by_key: Dict[str, RegionRow] = {}
    holes: List[RegionRow] = []
    partial = False
    found: Optional[Tuple[str, ...]] = None
    notes: List[str] = []
    if kernel is not None:
        table = layout(kernel)
        partial = table.partial
        for row in table.tables[0].rows:
            if row.key == HOLE:
                holes.append(row)
            else:
                rows_by_key[row.key] = row
        try:
            found = options(kernel)
        except Unavailable as error:
            notes.append(f"whether a boot option was given is not known: {error.what}")
    else:
        notes.append("no kernel was read: these are the texts alone (name one with -c or --qemu)")
    teller = _Teller(kernel, found)
    out: List[ExplainRow] = []
    for region in regions:
        if not names or region.key in wanted:
            out.append(teller.region(region, rows_by_key.get(region.key)))
    if not names or HOLE in wanted:
        out.append(teller.holes(holes))
    order = {key: number for number, key in enumerate(wanted)}
    out.sort(key=lambda row: order.get(row.key, 0))
    return Report(
        command="explain",
        kernel=None if kernel is None else kernel.identity,
        tables=(Table("regions", _COLUMNS, out),),
        head=() if kernel is None else head(kernel),
        notes=notes,
        partial=partial,
        extra={"introduction": () if names else paragraphs(INTRODUCTION), "in_full": in_full},
    )


def paragraphs(text: str) -> Tuple[str, ...]:
    """The paragraphs of a text, without its line breaks."""
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _find(kernel: Optional[Kernel], regions: Sequence[Region], name: str) -> str:
    """The key that a person means."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "_").replace(" ", "_")

    told: Dict[str, str] = {}
    for region in regions:
        text = explanation_of(region)
        for alias in (region.name, region.macro, *(text.also if text else ())):
            told.setdefault(plain(alias), region.key)
    for alias in (HOLE, *_holes().also):
        told.setdefault(plain(alias), HOLE)
    told.update((region.key, region.key) for region in regions)
    key = told.get(plain(name))
    if key is not None:
        return key
    try:
        address = int(name, 16)
    except ValueError:
        address = -1
    if kernel is not None and 0 <= address < 1 << 64:
        return Places(kernel).key_at(address)
    keys = ", ".join((*(region.key for region in regions), HOLE))
    raise UsageError(
        f"there is no region {name}", f"regions are {keys}; an address in one will do if a kernel is named"
    )


def _holes() -> Explanation:
    found = explanation(HOLE)
    assert found is not None
    return found


class _Teller:
    def __init__(self, kernel: Optional[Kernel], given_options: Optional[Tuple[str, ...]]) -> None:
        self._kernel = kernel
        self._options = given_options

    def region(self, region: Region, row: Optional[RegionRow]) -> ExplainRow:
        """One region."""
        text = explanation_of(region) or Explanation(purpose=" ".join((type(region).__doc__ or "").split()))
        here: List[str] = []
        if row is not None and self._kernel is not None:
            here = self._here(self._kernel, region, row)
        return self._row(region.key, region.name, text, row, here)

    def holes(self, rows: Sequence[RegionRow]) -> ExplainRow:
        """The stretches between."""
        here = []
        if rows:
            total = sum(row.size or 0 for row in rows)
            here.append(f"{len(rows)} of them, {size_text(total)} together:")
            here += [f"{row.start:016x}-{row.end:016x}, {size_text(row.size or 0)}" for row in rows]
        return self._row(HOLE, "unused stretches", _holes(), None, here)

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
        # What has no name here may be there all the same.
        told = kernel.source.symbols != "none" and not kernel.code_only
        return what.name, "not on this kernel" if told else None

    def _here(self, kernel: Kernel, region: Region, row: RegionRow) -> List[str]:
        """Sentences about the region on this kernel."""
        if row.state != "present" or row.start is None or row.end is None or row.size is None:
            return [
                f"This kernel has none: {row.reason}."
                if row.state == "absent"
                else f"Not known: {row.reason}."
            ]
        out = [
            f"It lies at {row.start:016x}-{row.end:016x}, {size_text(row.size)}; "
            f"{_read_from(row.provenance)}."
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
        """The translation of the first address that is mapped in it."""
        place = kernel.locate(region)
        if not isinstance(place, Placement):
            return None
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
        page = size_text(1 << kernel.geometry.shift(walk.steps[-1].level))
        text = f"For example {first:016x} is physical {walk.physical:x}, by a {page} page of {root.owner}"
        linear = region.linear(kernel)
        if linear is not None:
            offset = linear.offset
            agrees = (first - offset) & x86_64.ALL == walk.physical
            text += f"; subtracting {offset:016x} gives {'the same' if agrees else 'something else'}"
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
    if row.shared:
        text += f"; {size_text(row.mapped - row.shared)} of it through tables that are not shared"
    return f"{text}."


def _shown(value: int, form: str) -> str:
    if form == "address":
        return f"{value:016x}"
    if form == "signed":
        return f"{value - (1 << 64) if value >> 63 else value:x}"
    if form == "size":
        return size_text(value)
    return str(value)


def texts(row: ExplainRow) -> Dict[str, Any]:
    """The paragraphs of a row by heading, in the order to read them in; empty ones are left away."""
    sections = {
        "What it is for": row.purpose,
        "On this kernel": row.here,
        "Who uses it": row.users,
        "How addresses in it translate": row.translation,
        "What an attacker looks for": row.attacker,
        "What a debugger looks for": row.debugger,
        "Where kernels differ": row.changed,
    }
    return {title: text for title, text in sections.items() if text}

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between two kernels, or two moments of one: findings first, tables after."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from kvintro.errors import KvintroError, NotADump, Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Absent, Address, Column, Displacement, Identity, Report, Size, Table
from kvintro.queries.command_line import options, split_options
from kvintro.queries.pages.meaning import TOGETHER
from kvintro.queries.rights import rights_of
from kvintro.regions import Asked
from kvintro.reports.explain import explain
from kvintro.reports.layout import layout
from kvintro.source.files import open_file, read_bounded
from kvintro.text import displacement_text, size_text

# Of a saved layout or report. Real ones have about 1 MB; one of empty lists takes twenty times its size.
_LARGEST_JSON = 32 << 20
# Objects and lists in it: each takes up to 240 bytes of memory, and two to write. A row has 100 and more.
_MOST_IN_JSON = 1 << 20
#: States of a rule that was applied.
_JUDGED = ("ok", "failed", "warning", "notice")
_TOLD = 5  # of many things of a kind, so many are findings of their own


@dataclass(frozen=True)
class RegionFacts:
    """What of a row of the layout is compared."""

    key: str
    name: str
    state: str
    start: Optional[int] = None
    size: Optional[int] = None
    slide: Optional[int] = None
    base: Optional[int] = None
    mapped: Optional[int] = None
    reason: str = ""

    @property
    def lack(self) -> str:
        """Why where it lies or how much of it is mapped is not known, or not in full; empty if it is."""
        return self.reason if self.state in ("present", "unknown") else ""


@dataclass(frozen=True)
class Side:
    """One of the two, as far as it is known; None for what is not.

    :ivar label: what a person calls it.
    :ivar identity: fields of the kernel's identity.
    :ivar regions: by key.
    :ivar rights: bytes mapped by region, page size, rights and caching.
    :ivar callers: (areas, bytes) of vmalloc by caller.
    :ivar modules: bytes by module.
    :ivar types: page frames by type.
    :ivar options: boot options.
    :ivar rules: states of the rules that ``check`` looks at.
    :ivar config: ``on`` or ``off`` of the build options that ``explain`` can tell.
    :ivar missing: why a part is not known, by the part's field.
    :ivar incomplete: why a part is known, but not all of it, by the part's field.
    :ivar saved_layout: nothing but regions was saved.
    """

    label: str
    identity: Mapping[str, Any]
    regions: Mapping[str, RegionFacts]
    rights: Optional[Mapping[Tuple[str, str, str, str], int]] = None
    callers: Optional[Mapping[str, Tuple[int, int]]] = None
    modules: Optional[Mapping[str, int]] = None
    types: Optional[Mapping[str, int]] = None
    options: Optional[Tuple[str, ...]] = None
    rules: Optional[Mapping[str, Tuple[str, str]]] = None
    config: Optional[Mapping[str, str]] = None
    missing: Mapping[str, str] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)
    saved_layout: bool = False


@dataclass(frozen=True)
class FindingRow:
    """One thing that differs, or is strikingly the same.

    :ivar kind: ``same``, ``kernel``, ``setting``, ``presence``, ``rule``, ``base``, ``size``, ``rights``,
        ``mapped``, ``vmalloc``, ``module``, ``memory``.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class RegionDiffRow:
    """A region in both."""

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


@dataclass(frozen=True)
class AmountRow:
    """Bytes of something in both.

    :ivar a: None if A has none of it.
    """

    name: str
    a: Optional[Size]
    b: Optional[Size]
    change: Displacement


_REGIONS = (
    Column("name", "region"),
    Column("a_start", "A starts"),
    Column("b_start", "B starts"),
    Column("moved", "moved by", "right"),
    Column("a_size", "A size", "right"),
    Column("b_size", "B size", "right"),
    Column("a_mapped", "A mapped", "right"),
    Column("b_mapped", "B mapped", "right"),
    Column("mapped_change", "change", "right"),
)


def side_of_kernel(
    kernel: Kernel,
    label: str,
    *,
    progress: Callable[[Sequence[str]], Iterable[str]] = lambda parts: parts,
) -> Side:
    """What a kernel shows now.

    :param progress: is handed the names of what is read, and iterated over while that is done.
    """
    missing: Dict[str, str] = {}
    incomplete: Dict[str, str] = {}
    found: Dict[str, Any] = {}
    table = layout(kernel, holes=False)
    for key in progress(list(_PARTS)):
        try:
            found[key], lack = _PARTS[key].read(kernel)
            if lack:
                incomplete[key] = lack
        except KvintroError as error:
            missing[key] = error.what
    return Side(
        label=label,
        identity=vars_of(kernel.identity),
        regions={row.key: _facts(row) for row in table.tables[0].rows},
        missing=missing,
        incomplete=incomplete,
        **found,
    )


def vars_of(identity: Identity) -> Mapping[str, Any]:
    """An identity's fields by name."""
    return {name: getattr(identity, name) for name in identity.__dataclass_fields__}


def _facts(row: Any) -> RegionFacts:
    used = row.used_start if row.key == "kernel_image" else None
    return RegionFacts(
        row.key,
        row.name,
        row.state,
        row.start,
        row.size,
        row.slide,
        used if used is not None else row.start,
        row.mapped,
        row.reason or "",
    )


class _Part(NamedTuple):
    """Something that is compared beside the regions.

    :ivar name: what it is called.
    :ivar read: gives it, and why it is not complete; an empty text if it is.
    :ivar section: of a saved report, that has it.
    """

    name: str
    read: Callable[[Kernel], Tuple[Any, str]]
    section: str


def _rights(kernel: Kernel) -> Tuple[Mapping[Tuple[str, str, str, str], int], str]:
    found, problems = rights_of(kernel)
    return {(m.region, m.page_size, m.rights, m.caching): m.size for m in found}, "; ".join(problems)


def _contents(kernel: Kernel, key: str, table: str) -> Tuple[Sequence[Any], str]:
    region = next((r for r in kernel.regions if r.key == key), None)
    if region is None:
        raise Unavailable(f"this architecture has no {key}")
    found = region.contents(kernel, Asked())
    lack = _why(found.notes) if found.partial else ""
    rows = next((t.rows for t in found.tables if t.key == table), None)
    if rows is None:
        raise Unavailable(lack or f"there is no account of {key}")
    return rows, lack


def _why(notes: Sequence[Any]) -> str:
    return str(notes[0]) if notes else "not all of it could be read"


def _callers(kernel: Kernel) -> Tuple[Mapping[str, Tuple[int, int]], str]:
    rows, lack = _contents(kernel, "vmalloc", "by_caller")
    return {row.name: (row.areas, row.size) for row in rows}, lack


def _modules(kernel: Kernel) -> Tuple[Mapping[str, int], str]:
    if isinstance(kernel.locate("modules"), Absent):
        return {}, ""
    rows, lack = _contents(kernel, "modules", "modules")
    return {row.name: row.size for row in rows}, lack


def _types(kernel: Kernel) -> Tuple[Mapping[str, int], str]:
    from kvintro.reports.pages import pages_report

    report = pages_report(kernel)
    own = [note for note in report.notes if note not in kernel.source.warnings]
    return dict(report.extra["by_type"]), _why(own) if report.partial else ""


def _options(kernel: Kernel) -> Tuple[Tuple[str, ...], str]:
    return options(kernel), ""


def _rules(kernel: Kernel) -> Tuple[Mapping[str, Tuple[str, str]], str]:
    from kvintro.reports.check import check

    return {row.key: (row.state, row.title) for row in check(kernel).tables[1].rows}, ""


def _config(kernel: Kernel) -> Tuple[Mapping[str, str], str]:
    rows = explain(kernel, everything=True).tables[0].rows
    return {d.name: d.here for row in rows for d in row.definitions if d.kind == "config" and d.here}, ""


_PARTS: Mapping[str, _Part] = {
    "rights": _Part("rights", _rights, "rights"),
    "callers": _Part("vmalloc areas", _callers, "vmalloc"),
    "modules": _Part("modules", _modules, "modules"),
    "types": _Part("page types", _types, "pages"),
    "options": _Part("boot options", _options, ""),
    "rules": _Part("rules", _rules, "check"),
    "config": _Part("build options", _config, "explain"),
}


def side_of_json(path: str) -> Side:
    """What ``layout --json`` or ``report --json`` saved.

    :raises NotADump: the file is neither.
    """
    remedy = "give a dump, or what kvintro --json layout or report wrote"
    try:
        with open_file(path) as file:
            content = read_bounded(file, path, "a saved report", _LARGEST_JSON)
        if content.count(b"{") + content.count(b"[") > _MOST_IN_JSON:
            raise NotADump(f"{path} has more rows than any saved report", remedy)
        document = json.loads(content.decode("utf-8"))
        if document["schema"] == "kvintro.layout/1":
            return _saved(path, document, {})
        if document["schema"] == "kvintro.report/1":
            parts = {s["key"]: s["report"] for s in document["sections"] if s["report"] is not None}
            side = _saved(path, parts["layout"], parts)
            text = document["command_line"]
            if text is not None:
                return replace(side, options=split_options(str(text)))
            return replace(side, missing={**side.missing, "options": "the report has no command line"})
        raise NotADump(f"{path} is {document['schema']}, which cannot be compared", remedy)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotADump(f"{path} is no layout or report of kvintro ({type(error).__name__})", remedy) from None


def _saved(path: str, table: Mapping[str, Any], parts: Mapping[str, Any]) -> Side:
    def number(text: Optional[str]) -> Optional[int]:
        return None if text is None else int(text, 16)

    def whole(value: Any) -> Optional[int]:
        return None if value is None else int(value)

    regions: Dict[str, RegionFacts] = {}
    for row in table["regions"]:
        if row["kind"] == "hole":
            continue
        used = number(row.get("used_start")) if row["key"] == "kernel_image" else None
        regions[str(row["key"])] = RegionFacts(
            str(row["key"]),
            str(row["name"]),
            str(row["state"]),
            number(row["start"]),
            whole(row["size"]),
            whole(row["slide"]),
            used if used is not None else number(row["start"]),
            whole(row["mapped"]),
            str(row["reason"] or ""),
        )
    rights = parts.get("rights")
    vmalloc, modules, pages, check = (parts.get(key) for key in ("vmalloc", "modules", "pages", "check"))
    explained = parts.get("explain")
    return Side(
        label=path,
        identity={str(k): v for k, v in table["kernel"].items()},
        regions=regions,
        rights=None
        if rights is None
        else {
            (str(r["region"]), str(r["page_size"]), str(r["rights"]), str(r["caching"])): int(r["size"])
            for r in rights["rights"]
        },
        callers=None
        if not vmalloc or "by_caller" not in vmalloc
        else {str(r["name"]): (int(r["areas"]), int(r["size"])) for r in vmalloc["by_caller"]},
        modules=None
        if not modules or "modules" not in modules
        else {str(r["name"]): int(r["size"]) for r in modules["modules"]},
        types=None
        if not pages or "by_type" not in pages
        else {str(k): int(v) for k, v in pages["by_type"].items()},
        rules=None
        if not check
        else {str(r["key"]): (str(r["state"]), str(r["title"])) for r in check["checks"]},
        config=None
        if not explained
        else {
            str(d["name"]): str(d["here"])
            for r in explained["regions"]
            for d in r["definitions"]
            if d["kind"] == "config" and d["here"]
        },
        missing={} if not parts else _missing(parts),
        incomplete={
            key: _why([str(note) for note in parts[part.section].get("notes", ())])
            for key, part in _PARTS.items()
            if key in ("rights", "callers", "modules", "types") and parts.get(part.section, {}).get("partial")
        },
        saved_layout=not parts,
    )


def _missing(parts: Mapping[str, Any]) -> Dict[str, str]:
    """The parts that a saved report has not."""
    tables = {"callers": "by_caller", "modules": "modules", "types": "by_type"}
    found = {}
    for key, part in _PARTS.items():
        table = parts.get(part.section)
        if part.section and (not table or tables.get(key, "schema") not in table):
            found[key] = "the report does not have it"
    return found


def diff(a: Side, b: Side, *, everything: bool = False) -> Report:
    """Compare. What only one side tells is not compared, and makes the report partial.

    :param everything: tables also have what is the same in both.
    """
    teller = _Teller(a, b)
    findings = teller.findings()
    lacks = _lacks(a, b)
    regions = [row for row in _region_rows(a, b) if everything or _differs(row)]
    tables = [
        Table("findings", (Column("kind", "about"), Column("text", "what differs")), findings, "findings"),
        Table("regions", _REGIONS, regions, "regions"),
    ]
    for key, title, name, one, two in teller.amounts():
        rows = [row for row in _amount_rows(one, two) if everything or row.change]
        columns = (
            Column("name", name),
            Column("a", "A", "right"),
            Column("b", "B", "right"),
            Column("change", "change", "right"),
        )
        tables.append(Table(key, columns, rows, title))
    notes = [
        f"{s}: a saved layout holds nothing but regions"
        for s, side in (("A", a), ("B", b))
        if side.saved_layout
    ]
    differs = any(row.kind != "same" for row in findings)
    return Report(
        command="diff",
        kernel=None,
        tables=[table for table in tables if table.rows or table.key in ("findings", "regions")],
        head=(f"A  {_who(a)}", f"B  {_who(b)}"),
        notes=[*notes, *(f"not compared: {lack}" for lack in lacks)],
        partial=bool(lacks),
        extra={
            "a": {"label": a.label, **a.identity},
            "b": {"label": b.label, **b.identity},
            "same": False if differs else None if lacks else True,
            "compared": _compared(a, b),
            "not_compared": lacks,
        },
    )


def _compared(a: Side, b: Side) -> Dict[str, int]:
    """How many things of each kind were compared, those among them that only one side has."""
    counts = {"regions": sum(not (one.lack or two.lack) for one, two in _pairs(a, b))}
    for key, part in _PARTS.items():
        one, two = getattr(a, key), getattr(b, key)
        if one is None or two is None:
            continue
        if key == "rules":
            one, two = ([k for k, rule in side.items() if rule[0] in _JUDGED] for side in (one, two))
        both = key in ("config", "rules") or key in a.incomplete or key in b.incomplete
        counts[part.name] = len(set(one) & set(two) if both else set(one) | set(two))
    return counts


def _pairs(a: Side, b: Side) -> List[Tuple[RegionFacts, RegionFacts]]:
    return [(one, b.regions[key]) for key, one in a.regions.items() if key in b.regions]


def _lacks(a: Side, b: Side) -> List[str]:
    """What of the two could not be compared, and why."""
    found: Dict[str, List[str]] = {}
    for name, side, other in (("A", a, b), ("B", b, a)):
        for lack in (*_region_lacks(side, other), *_identity_lacks(side, other), *_part_lacks(side, other)):
            found.setdefault(lack, []).append(name)
    return [f"{lack} (in {' and '.join(names)})" for lack, names in found.items()]


def _region_lacks(side: Side, other: Side) -> Iterator[str]:
    for key, there in other.regions.items():
        here = side.regions.get(key)
        if here is None:
            yield f"{there.name}: there is no row of it"
        elif here.lack:
            yield f"{here.name}: {here.lack}"


def _identity_lacks(side: Side, other: Side) -> Iterator[str]:
    names = {
        "release": "release",
        "paging_levels": "levels of paging",
        "kaslr": "KASLR",
        "pti": "page-table isolation",
    }
    if side.identity.get("release") == other.identity.get("release"):
        names["build_id"] = "build id"
    for key, name in names.items():
        if side.identity.get(key) is None:
            yield f"{name}: not known"


def _part_lacks(side: Side, other: Side) -> Iterator[str]:
    if side.saved_layout or other.saved_layout:
        return  # which is said on its own
    for key, part in _PARTS.items():
        if key in side.missing:
            yield f"{part.name}: {side.missing[key]}"
        elif key in side.incomplete:
            yield f"{part.name}: not all is known: {side.incomplete[key]}"
    for key, (state, title) in (side.rules or {}).items():
        if state == "unknown" and key in (other.rules or {}):
            yield f"rule: {title}: unknown"


def _who(side: Side) -> str:
    def said(value: Any) -> str:
        return "unknown" if value is None else "on" if value else "off"

    who = side.identity
    return (
        f"Linux {who.get('release') or 'of unknown release'}, {who.get('paging_levels')} levels, "
        f"KASLR {said(who.get('kaslr'))}, PTI {said(who.get('pti'))}   {side.label}"
    )


def _region_rows(a: Side, b: Side) -> List[RegionDiffRow]:
    keys = list(dict.fromkeys((*a.regions, *b.regions)))
    rows = []
    for key in keys:
        one, two = a.regions.get(key), b.regions.get(key)
        some = one or two
        assert some is not None
        a_base, b_base = (f.base if f else None for f in (one, two))
        a_mapped, b_mapped = (f.mapped if f else None for f in (one, two))
        rows.append(
            RegionDiffRow(
                key=key,
                name=some.name,
                a_start=None if a_base is None else Address(a_base),
                b_start=None if b_base is None else Address(b_base),
                moved=None if a_base is None or b_base is None else Displacement(b_base - a_base),
                a_size=_size(one.size if one else None),
                b_size=_size(two.size if two else None),
                a_mapped=_size(a_mapped),
                b_mapped=_size(b_mapped),
                mapped_change=None
                if a_mapped is None or b_mapped is None
                else Displacement(b_mapped - a_mapped),
            )
        )
    return sorted(rows, key=lambda row: min(v for v in (row.a_start, row.b_start, 1 << 64) if v is not None))


def _size(value: Optional[int]) -> Optional[Size]:
    return None if value is None else Size(value)


def _differs(row: RegionDiffRow) -> bool:
    return (row.a_start, row.a_size, row.a_mapped) != (row.b_start, row.b_size, row.b_mapped)


def _amount_rows(a: Mapping[str, int], b: Mapping[str, int]) -> List[AmountRow]:
    rows = [
        AmountRow(name, _size(a.get(name)), _size(b.get(name)), Displacement(b.get(name, 0) - a.get(name, 0)))
        for name in dict.fromkeys((*a, *b))
    ]
    return sorted(rows, key=lambda row: (-abs(row.change), row.name))


@dataclass
class _Teller:
    """Finds what a person would want to hear first."""

    a: Side
    b: Side
    out: List[FindingRow] = field(default_factory=list)

    def findings(self) -> List[FindingRow]:
        """All, the weightiest first."""
        self._kernels()
        self._rules()
        self._presence()
        self._bases()
        self._sizes()
        self._rights()
        self._mapped()
        self._amounts("vmalloc", "vmalloc by caller", "vmalloc")
        self._modules()
        self._amounts("memory", "page types", "types")
        return self.out

    def amounts(self) -> List[Tuple[str, str, str, Mapping[str, int], Mapping[str, int]]]:
        """Tables of bytes by name: key, title, what the names are, A, B."""
        found = []
        a_types, b_types = _frames(self.a.types, self.b.types)
        for key, title, name, one, two in (
            ("rights", "mapped by page size and rights", "what", _flat(self.a.rights), _flat(self.b.rights)),
            ("vmalloc", "vmalloc by caller", "caller", _bytes(self.a.callers), _bytes(self.b.callers)),
            ("modules", "modules", "module", self.a.modules, self.b.modules),
            ("types", "physical memory by type", "type", a_types, b_types),
        ):
            if one is not None and two is not None:
                part = {"vmalloc": "callers"}.get(key, key)
                if part in self.a.incomplete or part in self.b.incomplete:
                    # What only one has, the other may have where it could not be read.
                    both = set(one) & set(two)
                    found.append((key, title, name, _only(one, both), _only(two, both)))
                else:
                    found.append((key, title, name, one, two))
        return found

    def _add(self, kind: str, text: str) -> None:
        self.out.append(FindingRow(kind, text))

    def _kernels(self) -> None:
        a, b = self.a.identity, self.b.identity
        if a.get("release") != b.get("release"):
            self._add("kernel", f"other kernels: {a.get('release')} and {b.get('release')}")
        elif a.get("build_id") and b.get("build_id") and a["build_id"] != b["build_id"]:
            self._add("kernel", f"two builds of {a.get('release')}: {a['build_id']} and {b['build_id']}")
        if a.get("paging_levels") != b.get("paging_levels"):
            self._add(
                "setting",
                f"paging has {a.get('paging_levels')} levels in A, {b.get('paging_levels')} in B: "
                "all bounds differ",
            )
        for key, name in (("kaslr", "KASLR"), ("pti", "page-table isolation")):
            if None not in (a.get(key), b.get(key)) and bool(a[key]) != bool(b[key]):
                self._add("setting", f"{name} is {_on(a[key])} in A, {_on(b[key])} in B")
        if self.a.config is not None and self.b.config is not None:
            for name, value in self.a.config.items():
                if self.b.config.get(name, value) != value:
                    where = "A" if value == "on" else "B"
                    self._add("setting", f"{name} is on in {where} only")
        if self.a.options is not None and self.b.options is not None:
            for option in self.b.options:
                if option not in self.a.options:
                    self._add("setting", f"boot option {option} only in B")
            for option in self.a.options:
                if option not in self.b.options:
                    self._add("setting", f"boot option {option} only in A")

    def _rules(self) -> None:
        one, two = self.a.rules or {}, self.b.rules or {}
        for key in dict.fromkeys((*one, *two)):
            before, after = one.get(key), two.get(key)
            if before and after and before[0] != after[0] and "failed" in (before[0], after[0]):
                self._add("rule", f"{after[1]}: {before[0]} in A, {after[0]} in B")

    def _presence(self) -> None:
        for key in dict.fromkeys((*self.a.regions, *self.b.regions)):
            one, two = self.a.regions.get(key), self.b.regions.get(key)
            if one is None or two is None or one.state == two.state:
                continue
            for here, gone, where, other in ((one, two, "A", "B"), (two, one, "B", "A")):
                if here.state == "present" and gone.state == "absent":
                    self._add("presence", f"{here.name} is only in {where}; in {other} {gone.reason}")
                elif here.state == "present" and gone.state == "unknown":
                    self._add("presence", f"{here.name} is in {where}; {other} does not tell: {gone.reason}")

    def _both(self) -> List[Tuple[RegionFacts, RegionFacts]]:
        found = []
        for key, one in self.a.regions.items():
            two = self.b.regions.get(key)
            if two is not None and one.state == two.state == "present":
                found.append((one, two))
        return found

    def _bases(self) -> None:
        moving = [(one, two) for one, two in self._both() if one.slide is not None and two.slide is not None]
        drawn = [(one, two) for one, two in moving if one.slide or two.slide]
        if drawn and all(one.base == two.base for one, two in drawn):
            hidden = [one.name for one, two in _pairs(self.a, self.b) if "unknown" in (one.state, two.state)]
            what = "everything" if not hidden else f"{_few([one.name for one, _ in drawn])}"
            self._add("same", f"KASLR put {what} at the same places: two moments of one boot")
            return
        for one, two in moving:
            if one.base is None or two.base is None or one.base == two.base:
                continue
            self._add(
                "base",
                f"{one.name} at {one.base:016x} in A, {two.base:016x} in B: "
                f"{displacement_text(two.base - one.base)} (KASLR moved it by "
                f"{displacement_text(one.slide or 0)} and {displacement_text(two.slide or 0)})",
            )
        if not self._same_geometry():
            return
        for one, two in self._both():
            if (one, two) not in moving and None not in (one.base, two.base) and one.base != two.base:
                self._add("base", f"{one.name} at {one.base:016x} in A, {two.base:016x} in B")

    def _same_geometry(self) -> bool:
        """With other levels of paging all that is constant is elsewhere, and says nothing more."""
        return bool(self.a.identity.get("paging_levels") == self.b.identity.get("paging_levels"))

    def _sizes(self) -> None:
        if not self._same_geometry():
            return
        for one, two in self._both():
            if None not in (one.size, two.size) and one.size != two.size:
                self._add(
                    "size", f"{one.name}: {size_text(one.size or 0)} in A, {size_text(two.size or 0)} in B"
                )

    def _rights(self) -> None:
        one, two = self.a.rights, self.b.rights
        if one is None or two is None or "rights" in {*self.a.incomplete, *self.b.incomplete}:
            return
        for where, here, other in (("A", one, two), ("B", two, one)):
            others = {(key[0], key[2]) for key in other}
            regions = {key[0] for key in other}
            for region, rights in dict.fromkeys((key[0], key[2]) for key in here):
                if region in regions and (region, rights) not in others:
                    size = sum(n for key, n in here.items() if (key[0], key[2]) == (region, rights))
                    self._add("rights", f"{region}: {rights} only in {where} ({size_text(size)})")

    def _mapped(self) -> None:
        changes = [
            (abs((two.mapped or 0) - (one.mapped or 0)), one, two)
            for one, two in self._both()
            if not one.lack
            and not two.lack
            and None not in (one.mapped, two.mapped)
            and one.mapped != two.mapped
        ]
        for _, one, two in sorted(changes, key=lambda item: -item[0]):
            change = displacement_text((two.mapped or 0) - (one.mapped or 0))
            self._add(
                "mapped",
                f"{one.name}: {size_text(one.mapped or 0)} mapped in A, {size_text(two.mapped or 0)} in B "
                f"({change})",
            )

    def _modules(self) -> None:
        one, two = self.a.modules, self.b.modules
        if one is None or two is None:
            return
        for where, here, other, reader in (("A", one, two, self.b), ("B", two, one, self.a)):
            only = sorted(set(here) - set(other))
            if only and "modules" not in reader.incomplete:
                self._add("module", f"only in {where}: {_few(only)}")
        changed = sorted(name for name in one if name in two and one[name] != two[name])
        if changed:
            self._add("module", f"other sizes: {_few(changed)}")

    def _amounts(self, kind: str, title: str, key: str) -> None:
        found = next((item for item in self.amounts() if item[0] == key), None)
        if found is None:
            return
        changed = [row for row in _amount_rows(found[3], found[4]) if row.change]
        for row in changed[:_TOLD]:
            before, after = size_text(row.a or 0), size_text(row.b or 0)
            self._add(kind, f"{row.name}: {before} in A, {after} in B ({displacement_text(row.change)})")
        if len(changed) > _TOLD:
            self._add(kind, f"and {len(changed) - _TOLD} more {title} differ")


def _only(found: Mapping[str, int], names: Set[str]) -> Mapping[str, int]:
    return {name: value for name, value in found.items() if name in names}


def _on(value: Any) -> str:
    return "on" if value else "off"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


def _bytes(found: Optional[Mapping[str, Tuple[int, int]]]) -> Optional[Mapping[str, int]]:
    return None if found is None else {name: size for name, (_, size) in found.items()}


def _frames(*sides: Optional[Mapping[str, int]]) -> List[Optional[Mapping[str, int]]]:
    """Bytes by type of page; what one side counts together is added up in the other."""
    names = {name for found in sides if found for name in found}
    together = {part: whole for whole, parts in TOGETHER.items() if whole in names for part in parts}
    out: List[Optional[Mapping[str, int]]] = []
    for found in sides:
        sums: Dict[str, int] = {}
        for name, count in (found or {}).items():
            whole = together.get(name, name)
            sums[whole] = sums.get(whole, 0) + (count << 12)
        out.append(None if found is None else sums)
    return out


def _flat(found: Optional[Mapping[Tuple[str, str, str, str], int]]) -> Optional[Mapping[str, int]]:
    return None if found is None else {" ".join(key): size for key, size in found.items()}

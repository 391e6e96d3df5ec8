# SPDX-License-Identifier: LGPL-2.1-or-later
"""Differences between two kernels as sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Sequence, Tuple

from kvintro.reports.diff.sides import Known, RegionFacts, Side, one_architecture, pairs
from kvintro.reports.diff.tables import Amounts
from kvintro.text import displacement_text, size_text

_MOST_ALIKE = 5  # maximum number of findings of one kind; a last one counts the others
_MOST_NAMES = 12  # maximum number of names in one finding


@dataclass(frozen=True)
class FindingRow:
    """A difference, or something that is surprisingly the same.

    :ivar kind: ``same``, ``kernel``, ``setting``, ``presence``, ``rule``, ``base``, ``size``, ``rights``,
        ``mapped``, ``vmalloc``, ``module``, ``memory``.
    """

    kind: str
    text: str


def findings(a: Side, b: Side, amounts: Sequence[Amounts]) -> List[FindingRow]:
    """All differences, the most important ones first."""
    by_key = {item.key: item for item in amounts}
    return [
        FindingRow(kind, text)
        for kind, texts in (
            ("kernel", _kernels(a, b)),
            ("setting", _settings(a, b)),
            ("rule", _rules(a, b)),
            ("presence", _presence(a, b)),
            ("same", _same_places(a, b)),
            ("base", _bases(a, b)),
            ("size", _sizes(a, b)),
            ("rights", _rights(a, b)),
            ("mapped", _mapped(a, b)),
            ("vmalloc", _amounts(by_key, "vmalloc", "vmalloc by caller")),
            ("module", _modules(a, b)),
            ("memory", _amounts(by_key, "types", "page types")),
        )
        for text in texts
    ]


def _kernels(a: Side, b: Side) -> Iterator[str]:
    one, two = a.identity, b.identity
    if not one_architecture(a, b):
        yield (
            f"different architectures: {one.get('arch')} and {two.get('arch')}; addresses, sizes and memory "
            "types of their regions are not compared"
        )
    if one.get("release") != two.get("release"):
        yield f"different kernels: {one.get('release')} and {two.get('release')}"
    elif one.get("build_id") and two.get("build_id") and one["build_id"] != two["build_id"]:
        yield f"two builds of {one.get('release')}: {one['build_id']} and {two['build_id']}"


def _settings(a: Side, b: Side) -> Iterator[str]:
    """Paging levels, protections, and build and boot options."""
    one, two = a.identity, b.identity
    differ = ": all bounds differ" if one_architecture(a, b) else ""
    if one.get("paging_levels") != two.get("paging_levels"):
        yield f"paging has {one.get('paging_levels')} levels in A, {two.get('paging_levels')} in B{differ}"
    if a.page_size and b.page_size and a.page_size != b.page_size:
        yield f"pages have {size_text(a.page_size)} in A, {size_text(b.page_size)} in B{differ}"
    for key, name in (("kaslr", "KASLR"), ("isolation", "page-table isolation")):
        if None not in (one.get(key), two.get(key)) and bool(one[key]) != bool(two[key]):
            yield f"{name} is {_on(one[key])} in A, {_on(two[key])} in B"
    if a.config is not None and b.config is not None:
        for name, value in a.config.items():
            if b.config.get(name, value) != value:
                yield f"{name} is on only in {'A' if value == 'on' else 'B'}"
    if a.options is not None and b.options is not None:
        yield from (f"boot option {option} only in B" for option in b.options if option not in a.options)
        yield from (f"boot option {option} only in A" for option in a.options if option not in b.options)


def _rules(a: Side, b: Side) -> Iterator[str]:
    one, two = a.rules or {}, b.rules or {}
    for key in dict.fromkeys((*one, *two)):
        before, after = one.get(key), two.get(key)
        if before and after and before[0] != after[0] and "failed" in (before[0], after[0]):
            yield f"{after[1]}: {before[0]} in A, {after[0]} in B"


def _presence(a: Side, b: Side) -> Iterator[str]:
    for one, two in pairs(a, b):
        for here, gone, where, other in ((one, two, "A", "B"), (two, one, "B", "A")):
            if here.state == "present" and gone.state == "absent":
                yield f"{here.name} is only in {where}; in {other} {gone.reason}"
            elif here.state == "present" and gone.state == "unknown":
                yield f"{here.name} is in {where}; it is not known whether it is in {other}: {gone.reason}"


def _both(a: Side, b: Side) -> List[Tuple[RegionFacts, RegionFacts]]:
    """Regions that have a place on both sides."""
    return [(one, two) for one, two in pairs(a, b) if one.state == two.state == "present"]


def _moving(a: Side, b: Side) -> List[Tuple[RegionFacts, RegionFacts]]:
    """Regions on both sides that KASLR can move."""
    return [(one, two) for one, two in _both(a, b) if one.slide is not None and two.slide is not None]


def _unmoved(a: Side, b: Side) -> List[str]:
    """Names of the regions that KASLR moved, if it moved all of them to the same places on both sides."""
    drawn = [(one, two) for one, two in _moving(a, b) if one.slide or two.slide]
    return [one.name for one, _ in drawn] if all(one.base == two.base for one, two in drawn) else []


def _same_places(a: Side, b: Side) -> Iterator[str]:
    names = _unmoved(a, b)
    if names:
        hidden = any("unknown" in (one.state, two.state) for one, two in pairs(a, b))
        yield (
            f"KASLR put {_few(names) if hidden else 'everything'} at the same addresses: "
            "A and B are two moments of one boot"
        )


def _bases(a: Side, b: Side) -> Iterator[str]:
    if _unmoved(a, b) or not one_architecture(a, b):
        return
    moving = _moving(a, b)
    for one, two in moving:
        if one.base is not None and two.base is not None and one.base != two.base:
            yield (
                f"{one.name} at {one.base:016x} in A, {two.base:016x} in B: "
                f"{displacement_text(two.base - one.base)} (KASLR moved it by "
                f"{displacement_text(one.slide or 0)} and {displacement_text(two.slide or 0)})"
            )
    # With different levels or page sizes every constant address differs, which is not a finding.
    if _same_paging(a, b):
        for one, two in _both(a, b):
            if (one, two) not in moving and None not in (one.base, two.base) and one.base != two.base:
                yield f"{one.name} at {one.base:016x} in A, {two.base:016x} in B"


def _same_paging(a: Side, b: Side) -> bool:
    """Whether constant bounds can be equal. Files saved by older versions lack some of these values."""
    levels = a.identity.get("paging_levels") == b.identity.get("paging_levels")
    pages = 0 in (a.page_size, b.page_size) or a.page_size == b.page_size
    return levels and pages and one_architecture(a, b)


def _sizes(a: Side, b: Side) -> Iterator[str]:
    if not _same_paging(a, b):
        return
    for one, two in _both(a, b):
        if one.size is not None and two.size is not None and one.size != two.size:
            yield f"{one.name}: {size_text(one.size)} in A, {size_text(two.size)} in B"


def _rights(a: Side, b: Side) -> Iterator[str]:
    if a.rights is None or b.rights is None or "rights" in {*a.incomplete, *b.incomplete}:
        return
    for where, here, other in (("A", a.rights, b.rights), ("B", b.rights, a.rights)):
        others = {(key[0], key[2]) for key in other}
        regions = {key[0] for key in other}
        for region, rights in dict.fromkeys((key[0], key[2]) for key in here):
            if region in regions and (region, rights) not in others:
                size = sum(n for key, n in here.items() if (key[0], key[2]) == (region, rights))
                yield f"{region}: {rights} only in {where} ({size_text(size)})"


def _mapped(a: Side, b: Side) -> Iterator[str]:
    changes = [
        (two.mapped - one.mapped, one.name, one.mapped, two.mapped)
        for one, two in _both(a, b)
        if not one.lack and not two.lack and one.mapped is not None and two.mapped is not None
    ]
    for change, name, before, after in sorted(changes, key=lambda item: -abs(item[0])):
        if change:
            yield (
                f"{name}: {size_text(before)} mapped in A, {size_text(after)} in B "
                f"({displacement_text(change)})"
            )


def _modules(a: Side, b: Side) -> Iterator[str]:
    if a.modules is None or b.modules is None:
        return
    for where, here, other in (("A", a, b), ("B", b, a)):
        only = sorted(set(here.modules or ()) - set(other.modules or ()))
        if only and "modules" not in other.incomplete:
            yield f"only in {where}: {_few(only)}"
    changed = sorted(name for name, size in a.modules.items() if b.modules.get(name, size) != size)
    if changed:
        yield f"different sizes: {_few(changed)}"


def _amounts(found: Dict[str, Amounts], key: str, title: str) -> Iterator[str]:
    if key not in found:
        return
    changed = [row for row in found[key].rows() if row.change]
    for row in changed[:_MOST_ALIKE]:
        before, after = size_text(row.a or 0), size_text(row.b or 0)
        yield f"{row.name}: {before} in A, {after} in B ({displacement_text(row.change)})"
    if len(changed) > _MOST_ALIKE:
        yield f"and {len(changed) - _MOST_ALIKE} more {title} differ"


def _on(value: Known) -> str:
    return "on" if value else "off"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more

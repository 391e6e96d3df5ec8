# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much was compared, and what could not be."""

from __future__ import annotations

from typing import Dict, Iterator, List

from kvintro.reports.diff.sides import PARTS, Side, one_architecture, pairs

#: States of a rule that was applied.
_JUDGED = ("ok", "failed", "warning", "notice")


def compared(a: Side, b: Side) -> Dict[str, int]:
    """Number of things compared, by kind, including those that only one side has."""
    counts = {"regions": sum(not (one.lack or two.lack) for one, two in pairs(a, b))}
    for key, part in PARTS.items():
        one, two = a.part(key), b.part(key)
        if one is None or two is None:
            continue
        if key == "rules":
            one, two = _judged(a), _judged(b)
        both = key in ("config", "rules") or key in a.incomplete or key in b.incomplete
        counts[part.name] = len(set(one) & set(two) if both else set(one) | set(two))
    return counts


def _judged(side: Side) -> List[str]:
    return [key for key, (state, _) in (side.rules or {}).items() if state in _JUDGED]


def lacks(a: Side, b: Side) -> List[str]:
    """What could not be compared, and why."""
    found: Dict[str, List[str]] = {}
    for name, side, other in (("A", a, b), ("B", b, a)):
        for lack in (*_regions(side, other), *_identity(side, other), *_parts(side, other)):
            found.setdefault(lack, []).append(name)
    return [f"{lack} (in {' and '.join(names)})" for lack, names in found.items()]


def _regions(side: Side, other: Side) -> Iterator[str]:
    for key, there in other.regions.items():
        here = side.regions.get(key)
        if here is None and not one_architecture(side, other):
            continue
        if here is None:
            yield f"{there.name}: the layout does not have it"
        elif here.lack:
            yield f"{here.name}: {here.lack}"


def _identity(side: Side, other: Side) -> Iterator[str]:
    names = {
        "release": "release",
        "paging_levels": "levels of paging",
        "kaslr": "KASLR",
        "isolation": "page-table isolation",
    }
    if side.identity.get("release") == other.identity.get("release"):
        names["build_id"] = "build id"
    for key, name in names.items():
        if side.identity.get(key) is None:
            yield f"{name}: not known"


def _parts(side: Side, other: Side) -> Iterator[str]:
    if side.saved_layout or other.saved_layout:
        return  # a note already says that it has only regions
    for key, part in PARTS.items():
        if key in side.missing:
            yield f"{part.name}: {side.missing[key]}"
        elif key in side.incomplete:
            yield f"{part.name}: not complete: {side.incomplete[key]}"
    for key, (state, title) in (side.rules or {}).items():
        if state == "unknown" and key in (other.rules or {}):
            yield f"rule: {title}: unknown"

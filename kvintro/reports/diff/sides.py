# SPDX-License-Identifier: LGPL-2.1-or-later
"""One side of a comparison, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Collection, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from kvintro.model import Identity

#: Bytes by region, page size, rights and caching.
Rights = Mapping[Tuple[str, str, str, str], int]
#: A field of a kernel's identity.
Known = Union[str, int, bool, None]


class Part(NamedTuple):
    """A part that is compared in addition to the regions.

    :ivar name: name to display.
    :ivar section: the section of a saved report that contains it; empty if none does.
    """

    name: str
    section: str


#: By the field of :class:`Side`.
PARTS: Mapping[str, Part] = {
    "rights": Part("rights", "rights"),
    "callers": Part("vmalloc areas", "vmalloc"),
    "modules": Part("modules", "modules"),
    "types": Part("page types", "pages"),
    "options": Part("boot options", ""),
    "rules": Part("rules", "check"),
    "config": Part("build options", "explain"),
}


@dataclass(frozen=True)
class RegionFacts:
    """Facts of a layout row that are compared."""

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
        """Why its place or its mapped size is not fully known; empty if it is."""
        return self.reason if self.state in ("present", "unknown") else ""


@dataclass(frozen=True)
class Side:
    """One side. Unknown parts are None.

    :ivar label: name to display.
    :ivar identity: fields of the kernel's identity.
    :ivar regions: by key.
    :ivar rights: mapped bytes by region, page size, rights and caching.
    :ivar callers: (areas, bytes) of vmalloc by caller.
    :ivar modules: bytes by module.
    :ivar types: page frames by type.
    :ivar options: boot options.
    :ivar rules: (state, title) of the rules of ``check``.
    :ivar config: ``on`` or ``off`` for the build options that ``explain`` knows.
    :ivar missing: why a part is unknown, by the part's field.
    :ivar incomplete: why a part is not fully known, by the part's field.
    :ivar saved_layout: whether it was read from a saved layout, which has only regions.
    """

    label: str
    identity: Mapping[str, Known]
    regions: Mapping[str, RegionFacts]
    rights: Optional[Rights] = None
    callers: Optional[Mapping[str, Tuple[int, int]]] = None
    modules: Optional[Mapping[str, int]] = None
    types: Optional[Mapping[str, int]] = None
    options: Optional[Tuple[str, ...]] = None
    rules: Optional[Mapping[str, Tuple[str, str]]] = None
    config: Optional[Mapping[str, str]] = None
    missing: Mapping[str, str] = field(default_factory=dict)
    incomplete: Mapping[str, str] = field(default_factory=dict)
    saved_layout: bool = False

    @property
    def page_size(self) -> int:
        """Page size in bytes; 0 if a saved report does not say."""
        size = self.identity.get("page_size")
        return size if isinstance(size, int) else 0

    def part(self, key: str) -> Optional[Collection[object]]:
        """The keys of a part of :data:`PARTS`; None if unknown."""
        parts: Mapping[str, Optional[Collection[object]]] = {
            "rights": self.rights,
            "callers": self.callers,
            "modules": self.modules,
            "types": self.types,
            "options": self.options,
            "rules": self.rules,
            "config": self.config,
        }
        return parts[key]


def identity_fields(identity: Identity) -> Mapping[str, Known]:
    """The fields of an identity by name."""
    return dict(vars(identity))


def pairs(a: Side, b: Side) -> List[Tuple[RegionFacts, RegionFacts]]:
    """Regions for which both sides have a row."""
    return [(one, b.regions[key]) for key, one in a.regions.items() if key in b.regions]


def one_architecture(a: Side, b: Side) -> bool:
    """Whether both kernels have the same architecture, or a saved file does not say."""
    return None in (a.identity.get("arch"), b.identity.get("arch")) or (
        a.identity["arch"] == b.identity["arch"]
    )


def why(notes: Sequence[str]) -> str:
    """Why a part is incomplete."""
    return notes[0] if notes else "not all of it could be read"

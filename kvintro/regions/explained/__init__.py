# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``kvintro explain`` says of a region, apart from this kernel's values.

The text of a region is an ``EXPLAIN``, an :class:`Explanation`, in the region's own file or in the file
here that is called by its key; a region without one is still explained by its placement. Texts are prose
for people: paragraphs are set apart by empty lines, line breaks mean nothing.

Each text has a list of ``sources``: where in the kernel's sources its statements were checked, and in which
releases. ``tools/check_sources.py`` looks them up in source trees. Statements about hardware, firmware or
other programs have no source there, and none is claimed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

if TYPE_CHECKING:
    from kvintro.regions import Region


@dataclass(frozen=True)
class Definition:
    """One thing that makes a region or moves it.

    :ivar kind: ``macro``, ``variable``, ``config`` (of the build), ``boot`` (on the kernel's command line).
    :ivar name: what it is called; of a boot option that takes a value, up to and with the ``=``.
    :ivar what: what it does here.
    :ivar symbols: variables to read, the first that this kernel has; of a ``config``, the symbol that exists
        only when it is on.
    :ivar size: bytes of the variable.
    :ivar shows: what its value is: ``address``, ``size``, ``number``, or ``signed`` for an address that may
    be negative.
    """

    kind: str
    name: str
    what: str
    symbols: Tuple[str, ...] = ()
    size: int = 8
    shows: str = "address"


#: The releases whose sources were read: 6.1.192, 6.12.117 and 7.3.4.
RELEASES = ("6.1", "6.12", "7.3")


@dataclass(frozen=True)
class Source:
    """Where statements of a text were checked.

    :ivar what: the statements, in short.
    :ivar where: ``FILE:NAME``, a name that stands in a file of the kernel's sources, or ``commit HASH
        SUBJECT`` for what changed between releases.
    :ivar releases: those of :data:`RELEASES` in which that was read; none for what only a commit tells.
    """

    what: str
    where: Tuple[str, ...]
    releases: Tuple[str, ...] = RELEASES


@dataclass(frozen=True)
class Explanation:
    """The texts of one region.

    :ivar also: other names that people use for it.
    :ivar purpose: what it is for.
    :ivar users: who uses it.
    :ivar definitions: what makes it and moves it.
    :ivar translation: how addresses in it become physical ones.
    :ivar attacker: what an attacker looks for in it, and what stands in the way.
    :ivar debugger: what a person with a dump looks for in it.
    :ivar changed: where kernels differ from each other, and from the table in mm.rst.
    :ivar sources: where all that was checked.
    """

    purpose: str
    users: str = ""
    definitions: Tuple[Definition, ...] = ()
    translation: str = ""
    attacker: str = ""
    debugger: str = ""
    changed: str = ""
    also: Tuple[str, ...] = ()
    sources: Tuple[Source, ...] = ()


def source(what: str, *where: str, releases: Tuple[str, ...] = RELEASES) -> Source:
    """Where statements were checked."""
    return Source(what, where, releases)


def macro(name: str, what: str) -> Definition:
    """A macro of the kernel's source."""
    return Definition("macro", name, what)


def variable(name: str, what: str, *other_names: str, size: int = 8, shows: str = "address") -> Definition:
    """A variable of the kernel, which has other names on other kernels."""
    return Definition("variable", name, what, (name, *other_names), size, shows)


def config(name: str, what: str, symbol: str = "") -> Definition:
    """A build option; the symbol exists only when it is on."""
    return Definition("config", f"CONFIG_{name}", what, (symbol,) if symbol else ())


def boot(name: str, what: str) -> Definition:
    """An option on the kernel's command line."""
    return Definition("boot", name, what)


def explanation(key: str) -> Optional[Explanation]:
    """The text in the file here of that name; None if there is none."""
    name = f"{__name__}.{key}"
    if importlib.util.find_spec(name) is None:
        return None
    found = importlib.import_module(name).EXPLAIN
    return found if isinstance(found, Explanation) else None


def explanation_of(region: Region) -> Optional[Explanation]:
    """What a region's file, or the file here, says of it; None if neither says anything."""
    own = getattr(sys.modules[type(region).__module__], "EXPLAIN", None)
    return own if isinstance(own, Explanation) else explanation(region.key)

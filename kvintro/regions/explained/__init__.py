# SPDX-License-Identifier: LGPL-2.1-or-later
"""The texts of ``kvintro explain``, without this kernel's values.

The text of a region is an :class:`Explanation` called ``EXPLAIN``, in the region's own file or in a file
named after its key: in ``arch/NAME/regions/explained``, as most of it holds for one architecture, or here. A
region without a text is explained by its placement alone. Texts are prose: empty lines separate paragraphs,
and line breaks have no meaning.

Each text has a list of ``sources``: the places in the kernel's sources, and the releases, in which its
statements were checked. ``tools/check_sources.py`` looks them up in source trees. Statements about hardware,
firmware or other programs have no source there, so none is given.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Tuple

if TYPE_CHECKING:
    from kvintro.arch import Architecture
    from kvintro.kernels import Region


@dataclass(frozen=True)
class Definition:
    """Something that defines a region or moves it.

    :ivar kind: ``macro``, ``variable``, ``config`` (a build option) or ``boot`` (an option on the kernel's
        command line).
    :ivar name: its name; for a boot option that takes a value, up to and including the ``=``.
    :ivar what: effect on this region.
    :ivar symbols: names of the variable, of which the first that this kernel has is read; for a ``config``,
        a symbol that exists only if the option is on.
    :ivar size: size of the variable in bytes.
    :ivar shows: kind of the value: ``address``, ``size``, ``number``, or ``signed`` for an address that may
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

    :ivar what: a summary of the statements.
    :ivar where: ``FILE:NAME``, a name that occurs in a file of the kernel's sources, or ``commit HASH
        SUBJECT`` for a change between releases.
    :ivar releases: the releases of :data:`RELEASES` in which the statement was checked; empty if only a
        commit shows it.
    """

    what: str
    where: Tuple[str, ...]
    releases: Tuple[str, ...] = RELEASES


@dataclass(frozen=True)
class Explanation:
    """The texts of one region.

    :ivar also: other names of the region.
    :ivar purpose: what it is for.
    :ivar users: what uses it.
    :ivar definitions: what defines it and what moves it.
    :ivar translation: how its addresses translate to physical ones.
    :ivar attacker: what an attacker looks for in it, and what prevents attacks.
    :ivar debugger: what to look for in it in a dump.
    :ivar changed: how kernels differ from each other, and from the table in mm.rst.
    :ivar sources: where the statements were checked.
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
    """State where statements were checked."""
    return Source(what, where, releases)


def macro(name: str, what: str) -> Definition:
    """A macro of the kernel's source."""
    return Definition("macro", name, what)


def variable(name: str, what: str, *other_names: str, size: int = 8, shows: str = "address") -> Definition:
    """A variable of the kernel, with its names on other kernels."""
    return Definition("variable", name, what, (name, *other_names), size, shows)


def config(name: str, what: str, symbol: str = "") -> Definition:
    """A build option. ``symbol`` exists only if it is on."""
    return Definition("config", f"CONFIG_{name}", what, (symbol,) if symbol else ())


def boot(name: str, what: str) -> Definition:
    """An option of the kernel's command line."""
    return Definition("boot", name, what)


def introduction(arch: Architecture) -> str:
    """``INTRODUCTION`` of an architecture: what to know before the texts; empty if it has none."""
    module = _module(f"{arch.package}.regions.explained")
    return str(getattr(module, "INTRODUCTION", ""))


def explanation(key: str, arch: Architecture) -> Optional[Explanation]:
    """The text in the file named after the key: the architecture's own, or else the one here."""
    return _text(f"{arch.package}.regions", key) or _text("kvintro.regions", key)


def explanation_of(region: Region, arch: Architecture) -> Optional[Explanation]:
    """The text of a region, from its own file or from the file named after its key; None if there is none."""
    own = getattr(sys.modules[type(region).__module__], "EXPLAIN", None)
    return own if isinstance(own, Explanation) else explanation(region.key, arch)


def _text(package: str, key: str) -> Optional[Explanation]:
    module = _module(f"{package}.explained.{key}")
    return module.EXPLAIN if isinstance(getattr(module, "EXPLAIN", None), Explanation) else None


def _module(name: str) -> Any:
    """A module, or None if there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The missing module is the file, or a package above it.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None

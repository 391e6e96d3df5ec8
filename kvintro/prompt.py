# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Python API: a kernel to query at a prompt, in a notebook or in a script.

>>> import kvintro
>>> k = kvintro.open("vmcore")
>>> k.layout()                       # every command is a method; its options are keyword arguments
>>> k.translate(k.prog["init_task"], walk=True).physical
>>> k.regions.vmalloc.start

Commands return the reports of the command line. At a prompt a report displays itself as tables, in a notebook
as HTML. In code it is a sequence of rows, and ``json()`` returns what ``--json`` prints.
"""

from __future__ import annotations

import argparse
from functools import cached_property
from html import escape
from os import PathLike, fspath
from typing import (
    TYPE_CHECKING,
    Any,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import drgn

from kvintro import commands, kernels
from kvintro.answers import Answer, Listing
from kvintro.commands import ALIASES, load_command
from kvintro.errors import Unavailable, UsageError
from kvintro.methods import Commands, ConvertAnswer, ExplainAnswer, ShowAnswer, Word
from kvintro.model import (
    Absent,
    Address,
    AddressRange,
    Displacement,
    Fact,
    Identity,
    Located,
    Placement,
    Raw,
    Report,
    Size,
    Stream,
    Unknown,
)
from kvintro.opening import kernel_of, open_kernel
from kvintro.paging import BulkWalk, Walk
from kvintro.parser import make_parser
from kvintro.render.values import value_text
from kvintro.reports.convert import convert_report
from kvintro.source import Request, Source
from kvintro.source.attached import attach

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = ("Answer", "Kernel", "Listing", "Region", "Regions", "kernel", "open", "run_command")

A = TypeVar("A", bound="Answer[Any]")
_Path = Union[str, "PathLike[str]"]

_SOURCE_OPTIONS = (
    "core",
    "qemu",
    "symbols",
    "btf",
    "vmcoreinfo",
    "vmcoreinfo_at",
    "debuginfod",
    "sudo",
    "keep_root",
)


def open(source: Union[drgn.Program, _Path, None] = None, *parts: _Path) -> Kernel:
    """Open a kernel.

    :param source: path of a dump, or a drgn program; by default the running kernel.
    :param parts: paths of the other parts of a split dump (makedumpfile --split), in any order.
    :raises SourceError: the source cannot be opened, or is not a Linux kernel.
    :raises UsageError: the paths do not belong to one dump.
    """
    if source is None:
        return Kernel(open_kernel(Request()).source)
    return kernel(source, *parts)


def kernel(source: Union[drgn.Program, _Path, None] = None, *parts: _Path) -> Kernel:
    """Open a kernel like :func:`open`, but by default that of the prompt's own program.

    :param source: a drgn program, or the path of a dump.
    :param parts: paths of the other parts of a split dump (makedumpfile --split), in any order.
    :raises SourceError: the source cannot be opened, or is not a Linux kernel.
    :raises UsageError: the paths do not belong to one dump.
    """
    if isinstance(source, (str, PathLike)):
        paths = [fspath(path) for path in (source, *parts)]
        return Kernel(open_kernel(Request(core=paths)).source)
    if parts:
        raise UsageError(
            "a program cannot be given together with parts of a dump", "give the paths of all parts"
        )
    return Kernel(attach(drgn.get_default_prog() if source is None else source))


def as_int(value: object) -> int:
    """Convert an address or number, an int or a drgn object, to an int.

    A pointer or an integer gives its value; a structure, an array or a function gives its address.
    """
    if isinstance(value, drgn.Object):
        type_ = value.type_
        while type_.kind == drgn.TypeKind.TYPEDEF:
            type_ = type_.type
        if type_.kind in _BY_ADDRESS:
            if value.address_ is None:
                raise TypeError(f"this {value.type_.type_name()} is a value and has no address")
            return int(value.address_)
        return int(value.value_())
    if isinstance(value, drgn.Symbol):
        return int(value.address)
    return int(value)  # type: ignore[call-overload, no-any-return]


_BY_ADDRESS = {
    drgn.TypeKind.STRUCT,
    drgn.TypeKind.UNION,
    drgn.TypeKind.CLASS,
    drgn.TypeKind.ARRAY,
    drgn.TypeKind.FUNCTION,
}


class Region:
    """One region of one kernel: its addresses and its contents.

    :ivar key: name in JSON and on the command line.
    :ivar name: name to display.
    :ivar kind: ``region``, or ``hole`` for addresses that nothing may use.
    :ivar macro: macro or variable of the kernel that defines the start.
    """

    def __init__(self, of: Kernel, region: kernels.Region) -> None:
        self._kernel = of
        self._region = region
        self.key = region.key
        self.name = region.name
        self.kind = region.kind
        self.macro = region.macro

    def __dir__(self) -> List[str]:
        return sorted(name for name in super().__dir__() if not name.startswith("_"))

    @property
    def place(self) -> Located:
        """A Placement that says where it was read; or Absent or Unknown, with the reason."""
        return self._kernel._kernel.locate(self.key)

    @property
    def range(self) -> Optional[AddressRange]:
        """Addresses, both ends inclusive; None if the region is absent or unknown."""
        place = self.place
        return place.range if isinstance(place, Placement) else None

    @property
    def start(self) -> Optional[Address]:
        """First address."""
        return None if self.range is None else Address(self.range.start)

    @property
    def end(self) -> Optional[Address]:
        """Last address."""
        return None if self.range is None else Address(self.range.end)

    @property
    def size(self) -> Size:
        """Size of the reserved addresses in bytes; 0 if they are absent or unknown."""
        return Size(0 if self.range is None else self.range.size)

    @property
    def slide(self) -> Optional[Displacement]:
        """Offset in bytes that KASLR added; None if KASLR does not move the region."""
        place = self.place
        if not isinstance(place, Placement) or place.slide is None:
            return None
        return Displacement(place.slide)

    @property
    def reason(self) -> Optional[str]:
        """Why this kernel does not have the region, or why that is unknown."""
        place = self.place
        return place.reason if isinstance(place, (Absent, Unknown)) else None

    def __contains__(self, address: Word) -> bool:
        return self.range is not None and as_int(address) in self.range

    def show(
        self,
        *,
        table: Optional[str] = None,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
        pid: Optional[Union[int, str]] = None,
    ) -> ShowAnswer:
        """Contents of the region; see :meth:`Kernel.show`."""
        return self._kernel.show(
            self.key, table=table, match=match, range=range, top=top, sort=sort, reverse=reverse, pid=pid
        )

    def table(
        self,
        name: str,
        *,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
        pid: Optional[Union[int, str]] = None,
    ) -> ShowAnswer:
        """One table of the region's contents; see :meth:`Kernel.show`."""
        return self.show(table=name, match=match, range=range, top=top, sort=sort, reverse=reverse, pid=pid)

    def areas(
        self,
        *,
        match: Optional[str] = None,
        range: Optional[str] = None,
        top: Optional[int] = None,
        sort: Optional[str] = None,
        reverse: bool = False,
    ) -> ShowAnswer:
        """Areas of vmalloc."""
        return self.table("areas", match=match, range=range, top=top, sort=sort, reverse=reverse)

    def explain(self) -> ExplainAnswer:
        """Explain the region; see :meth:`Kernel.explain`."""
        return self._kernel.explain(self.key)

    def __repr__(self) -> str:
        found = self.range
        if found is None:
            return f"<{self.key}: {value_text(self.reason)}>"
        moved = "" if not self.slide else f", moved by {value_text(self.slide)}"
        place = f"{found.start:016x}-{found.end:016x}"
        return f"<{self.key}: {place}, {value_text(self.size)}{moved}>"


class Regions(Tuple[Region, ...]):
    """Regions in order of address. Each is also an attribute by its key: ``k.regions.vmalloc``."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Region:
        for region in self:
            if region.key == name:
                return region
        raise AttributeError(f"there is no region {name!r}, only {', '.join(r.key for r in self)}")

    def __dir__(self) -> List[str]:
        return [region.key for region in self]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))


class Kernel(Commands):
    """A kernel to query. Commands are methods; numbers may be drgn objects.

    The object caches what it reads. On a running kernel, each command reads again.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kernel = kernel_of(source)

    def __repr__(self) -> str:
        identity = self.identity
        return f"<kernel {value_text(identity.release or 'unknown')} of {value_text(identity.source)}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>"

    def __dir__(self) -> List[str]:
        return sorted(name for name in super().__dir__() if not name.startswith("_"))

    @property
    def prog(self) -> drgn.Program:
        """The drgn program, with symbols and types if there are any."""
        return self._kernel.prog

    @property
    def identity(self) -> Identity:
        """Release, source and other identifying values. Values that cannot be read are None."""
        return self._kernel.identity

    @cached_property
    def regions(self) -> Regions:
        """All regions that this architecture can have, also by attribute: ``k.regions.vmalloc``."""
        return Regions(Region(self, region) for region in self._kernel.regions)

    # Facts

    @property
    def levels(self) -> Fact[int]:
        """Number of levels of page tables.

        :raises Unavailable: the source does not contain the number.
        """
        return self._kernel.levels

    @property
    def root(self) -> Fact[int]:
        """Physical address of the kernel's own root table.

        :raises Unavailable: the source does not contain the address.
        """
        return self._kernel.root

    @property
    def phys_base(self) -> Fact[int]:
        """phys_base of x86-64, signed: physical minus virtual address in the image, plus START_KERNEL_MAP.

        :raises Unavailable: the source does not contain it, or kernels of this architecture have none.
        """
        found: Optional[Fact[int]] = getattr(self._kernel.facts, "phys_base", None)
        if found is None:
            raise Unavailable(f"kernels of {self._kernel.arch.name} have no phys_base", "use image_offset")
        return found

    @property
    def image_offset(self) -> Fact[int]:
        """Virtual minus physical address in the kernel's image, modulo 2^64.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.image_offset

    @property
    def image_slide(self) -> Fact[int]:
        """Offset in bytes that KASLR added to the kernel image.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.image_slide

    @property
    def linear_offset(self) -> Fact[int]:
        """Virtual minus physical address in the direct map, modulo 2^64.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.linear_offset

    @property
    def page_offset_base(self) -> Fact[int]:
        """Same as :attr:`linear_offset`; on x86-64, the start of the direct map.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.linear_offset

    @property
    def max_pfn(self) -> Fact[int]:
        """One more than the last page frame of RAM.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.max_pfn

    @property
    def isolation(self) -> Fact[bool]:
        """Whether user mode runs on page tables without the kernel (PTI, KPTI).

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.isolation

    @property
    def pti(self) -> Fact[bool]:
        """Same as :attr:`isolation`.

        :raises Unavailable: the source does not contain it.
        """
        return self._kernel.isolation

    def value(self, name: str, size: int = 8, *, signed: bool = False) -> Fact[int]:
        """Read a scalar variable by symbol. No types are needed.

        :param size: size of the variable in bytes.
        :raises Unavailable: there is no such symbol, or the source lacks the variable's memory.
        """
        return self._kernel.value(name, size, signed=signed)

    def symbol(self, name: str) -> int:
        """Return the address of a symbol.

        :raises Unavailable: the kernel has no such symbol, or the source has no symbols.
        """
        return self._kernel.symbol(name)

    # Memory

    def read(self, address: Word, size: int) -> bytes:
        """Read kernel virtual memory.

        :raises NotInDump: any byte of it is not mapped or not in the source.
        """
        return self._kernel.read(self._number(address), size)

    def read_physical(self, address: Word, size: int) -> bytes:
        """Read physical memory.

        :raises NotInDump: any byte of it is not in the source.
        """
        return self._kernel.read_physical(self._number(address), size)

    def walk(self, address: Word, root: Optional[Word] = None) -> Walk:
        """Translate one address step by step.

        :param root: physical address of the root table, by default the kernel's own.
        """
        return self._kernel.walk(self._number(address), None if root is None else self._number(root))

    def translate_array(
        self, addresses: NDArray[numpy.uint64], root: Optional[int] = None
    ) -> Tuple[NDArray[numpy.uint64], NDArray[numpy.uint8]]:
        """Translate many virtual addresses at once, some tens of millions a second.

        :param addresses: numpy array of uint64, one dimension.
        :param root: physical address of the root table, by default the kernel's own.
        :return: physical addresses (0 where there is none), and the state of each address as an index into
            :data:`kvintro.paging.bulk.STATES`: 0 unmapped, 1 mapped, 2 not in the dump, 3 non-canonical.
        """
        return self._kernel.translate_array(addresses, root)

    def walk_array(self, addresses: NDArray[numpy.uint64], root: Optional[int] = None) -> BulkWalk:
        """Like :meth:`translate_array`, but also return the entry at each level and the page sizes.

        :param addresses: numpy array of uint64, one dimension.
        :param root: physical address of the root table, by default the kernel's own.
        """
        return self._kernel.walk_array(addresses, root)

    def convert(
        self,
        output: _Path,
        *,
        to: Literal["elf", "kdump"] = "elf",
        compress: Literal["zstd", "zlib", "none"] = "zstd",
        level: int = 0,
        force: bool = False,
    ) -> ConvertAnswer:
        """Write the memory as a dump that other tools can read.

        :param output: path of the new file. Only its owner may read it.
        :param to: format of the new file.
        :param compress: compression of a kdump.
        :param level: which pages to leave out, from 0 to 31 like makedumpfile's ``-d``.
        :param force: replace an existing file.
        :return: number of pages written, and of pages left out by reason.
        :raises NotWritten: the file exists, or cannot be written. No partial file remains.
        :raises UsageError: the output is one of the input files, or there is no such level.
        :raises Unavailable: the source does not say which memory it has, or how its pages are used.
        """
        path = fspath(output)
        return ConvertAnswer.of(
            convert_report(self._kernel, path, form=to, compress=compress, level=level, force=force)
        )

    def _number(self, value: Word) -> int:
        return self.symbol(value) if isinstance(value, str) else as_int(value)

    # Commands

    def run(self, command: str, *values: Any, **options: Any) -> Union[Answer[Any], Listing]:
        """Run a command by name, for example one from another package.

        :param values: arguments. Ints and drgn objects are addresses.
        :param options: options without dashes: ``pid=1``, ``walk=True``.
        :raises UsageError: the command has no such option.
        """
        if command == "page" and not {"form", "from_", "pid"} & {k for k, v in options.items() if v}:
            values = tuple(_page_word(value) for value in _flat(values))
        args = make_parser(ALIASES.get(command, command)).parse_args(_command_line(command, values, options))
        result = run_command(self, args)
        if isinstance(result, Raw):
            raise UsageError("bytes are written to files only", "k.read returns them")
        return Listing.of(result) if isinstance(result, Stream) else Answer.of(result)

    def _answer(self, kind: Any, command: str, values: Sequence[Any], options: Mapping[str, Any]) -> Any:
        found = self.run(command, *values, **options)
        if kind is Listing or isinstance(found, Listing):
            return found
        return kind.of(found)


def run_command(of: Kernel, args: argparse.Namespace) -> Union[Report, Stream]:
    """Run a parsed command on an open kernel.

    :raises UsageError: the command line names another source.
    """
    for name in _SOURCE_OPTIONS:
        if getattr(args, name, None):
            raise UsageError(
                "this session already has a program, and cannot open another one",
                "run kvintro from the shell for another dump",
            )
    source = of._source
    return commands.run_command(kernel_of(source) if source.live else of._kernel, args)


def _command_line(command: str, values: Sequence[Any], options: Mapping[str, Any]) -> List[str]:
    """Return the words of the command line."""
    actions = _actions(command)
    places = [action for action in actions if not action.option_strings]
    line: List[str] = [command]
    for name, value in options.items():
        line += _option(command, actions, name, value)
    # After --, so that no value is parsed as an option.
    words = []
    for number, value in enumerate(_flat(values)):
        action = places[min(number, len(places) - 1)] if places else None
        words.append(_word(value, action))
    return [*line, "--", *words] if words else line


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple, set, range)):
            yield from value
        else:
            yield value


def _page_word(value: Any) -> Any:
    """Make a number a page frame number, unless it is a kernel address or a pointer."""
    if isinstance(value, str) or (
        isinstance(value, drgn.Object) and value.type_.kind == drgn.TypeKind.POINTER
    ):
        return value
    number = as_int(value)
    return f"pfn:{number:x}" if 0 <= number < 1 << 63 else number


def _actions(command: str) -> List[argparse.Action]:
    """Arguments and options of a command itself."""
    parser = argparse.ArgumentParser(add_help=False)
    load_command(command).configure(parser)
    return list(parser._actions)


def _option(command: str, actions: Sequence[argparse.Action], name: str, value: Any) -> List[str]:
    spelled = "--" + name.rstrip("_").replace("_", "-")
    fitting = [a for a in actions if a.option_strings and (a.dest == name or spelled in a.option_strings)]
    if not fitting:
        known = sorted({a.dest for a in actions if a.option_strings})
        raise UsageError(
            f"{command} has no option {name}", f"it has {', '.join(known)}" if known else "it has none"
        )
    if value is None:
        return []
    for action in fitting:
        if action.nargs != 0:
            return [f"{action.option_strings[-1]}={_word(value, action)}"]
        if action.const == value:
            return [action.option_strings[-1]]
    return []


def _word(value: Any, action: Optional[argparse.Action]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, PathLike):
        return str(fspath(value))
    number = as_int(value)
    # argparse parses ints as decimal. Every other number is an address.
    return f"{number:#x}" if action is None or action.type is None else str(number)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person has in the hand at a prompt or in a notebook.

>>> from kvintro import kernel
>>> k = kernel(prog)
>>> k.layout()                       # every command is a method; its options are keyword arguments
>>> k.translate(prog["init_task"], walk=True).physical
>>> k.regions.vmalloc.start

Results are the reports of the command line. At a prompt they show themselves as its tables, in a notebook as
HTML; in code they are sequences of rows, and ``json()`` is what ``--json`` prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cached_property
from html import escape
from os import PathLike, fspath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import drgn

from kvintro import commands
from kvintro.cli import make_parser, terminal_width
from kvintro.commands import ALIASES, command_names, load_command
from kvintro.errors import UsageError
from kvintro.kernel import Kernel, open_kernel
from kvintro.model import Address, AddressRange, Batch, Displacement, Placement, Report, Size, Stream, Table
from kvintro.paging import Walk
from kvintro.regions import Region, Regions
from kvintro.render import render, render_stream
from kvintro.render.inert import inert
from kvintro.render.values import value_text
from kvintro.source import Request
from kvintro.source.attached import attach
from kvintro.streams import fitting

__all__ = ("Answer", "BoundRegion", "Listing", "PromptKernel", "kernel", "run_command")

# Commands that are not for a prompt: it is one.
_NOT_METHODS = {"shell"}
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


def kernel(
    source: Union[drgn.Program, str, PathLike[str], None] = None, *parts: Union[str, PathLike[str]]
) -> PromptKernel:
    """A kernel to ask.

    :param source: a program; the path of a dump; by default the prompt's own program.
    :param parts: paths of the other parts of a dump that was split (makedumpfile --split), in any order.
    :raises SourceError: it is no kernel, or cannot be opened.
    :raises UsageError: the paths are not of one dump.
    """
    if isinstance(source, (str, PathLike)):
        paths = [fspath(path) for path in (source, *parts)]
        return PromptKernel(open_kernel(Request(core=paths)).source)
    if parts:
        raise UsageError("a program has all of its dump", "give the paths of all parts, and no program")
    return PromptKernel(attach(drgn.get_default_prog() if source is None else source))


def as_int(value: Any) -> int:
    """An address or number as an int: ints, and drgn's objects.

    Of a pointer or an integer it is the value; of a structure, an array or a function the address.
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
    return int(value)


_BY_ADDRESS = {
    drgn.TypeKind.STRUCT,
    drgn.TypeKind.UNION,
    drgn.TypeKind.CLASS,
    drgn.TypeKind.ARRAY,
    drgn.TypeKind.FUNCTION,
}


def _show(text: str) -> None:
    sys.stdout.write(fitting(text, sys.stdout, "text") + "\n")


class Answer(Report):
    """A report that shows itself.

    It is the sequence of its first table's rows, and has the rows of each table as an attribute of its
    key. Where there is one row only, its values are attributes too.
    """

    @classmethod
    def of(cls, report: Report) -> Answer:
        """The same report."""
        return cls(**vars(report))

    @property
    def rows(self) -> Sequence[Any]:
        """The rows of the first table."""
        return self.tables[0].rows if self.tables else ()

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for table in self.tables:
                if table.key == name:
                    return table.rows
            if len(self.rows) == 1 and hasattr(self.rows[0], name):
                return getattr(self.rows[0], name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __dir__(self) -> List[str]:
        names = {*super().__dir__(), *(table.key for table in self.tables)}
        if len(self.rows) == 1:
            names.update(name for name in vars(self.rows[0]) if not name.startswith("_"))
        return sorted(names)

    def __repr__(self) -> str:
        return self.text(width=terminal_width(sys.stdout))

    __str__ = __repr__

    def text(self, *, color: bool = False, width: int = 0) -> str:
        """As the command line prints it."""
        return render(self, "text", color=color, width=width).rstrip("\n")

    def display_(self, *, color: bool = True) -> None:
        """Print it, in colour."""
        _show(self.text(color=color, width=terminal_width(sys.stdout)))

    def json(self) -> Dict[str, Any]:
        """The document that ``--json`` prints, parsed."""
        document: Dict[str, Any] = json.loads(render(self, "json"))
        return document

    def _repr_html_(self) -> str:
        of = inert(self)
        parts = [f"<p>{escape(line)}</p>" for line in of.head]
        parts += [_table_html(table) for table in of.tables]
        parts += [f"<p>note: {escape(note)}</p>" for note in of.notes]
        return "\n".join(parts)


def _table_html(table: Table) -> str:
    head = "".join(f"<th>{escape(column.title)}</th>" for column in table.columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align: {escape(c.align)}">{escape(value_text(getattr(row, c.key, None)))}</td>'
            for c in table.columns
        )
        + "</tr>\n"
        for row in table.rows
    )
    title = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


class Listing(Stream):
    """What a command lists, all of it: a sequence of mappings that shows itself."""

    @classmethod
    def of(cls, stream: Stream) -> Listing:
        """All that a stream brings, kept."""
        listing = cls(
            stream.command,
            stream.kernel,
            stream.key,
            stream.fields,
            stream.text_keys,
            list(stream),
            stream.notes,
        )
        listing.partial, listing.negative = stream.partial, stream.negative
        return listing

    @property
    def batches(self) -> Sequence[Batch]:
        """The results, column by column."""
        return list(self._batches)

    @property
    def rows(self) -> List[Mapping[str, Any]]:
        """The results one by one."""
        keys = [field.key for field in self.fields]
        return [
            dict(zip(keys, values))
            for batch in self.batches
            for values in zip(*(batch.values[key] for key in keys))
        ]

    def __len__(self) -> int:
        return sum(len(batch.values[self.fields[0].key]) for batch in self.batches)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __repr__(self) -> str:
        return self.text()

    def text(self) -> str:
        """As the command line prints it."""
        return "".join(render_stream(self, "text")).rstrip("\n")

    def display_(self) -> None:
        """Print it."""
        _show(self.text())

    def json(self) -> Dict[str, Any]:
        """The document that ``--json`` prints, parsed."""
        document: Dict[str, Any] = json.loads("".join(render_stream(self, "json")))
        return document

    def _repr_html_(self) -> str:
        keys = [field.key for field in self.fields]
        head = "".join(f"<th>{escape(inert(key))}</th>" for key in keys)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(value_text(row[key]))}</td>" for key in keys) + "</tr>\n"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


class BoundRegion:
    """One region of one kernel: where it lies, and what is in it."""

    def __init__(self, of: PromptKernel, region: Region) -> None:
        self._kernel = of
        self._region = region

    def __getattr__(self, name: str) -> Any:
        # What commands ask of regions: their names, and methods that are given a kernel.
        return getattr(self._region, name)

    def __dir__(self) -> List[str]:
        return sorted({*super().__dir__(), "key", "name", "macro", "kind"})

    @property
    def place(self) -> Any:
        """A Placement, with where it was read; or Absent or Unknown, with the reason."""
        return self._kernel.locate(self._region)

    @property
    def range(self) -> Optional[AddressRange]:
        """Its addresses, both ends inclusive; None if this kernel has none."""
        place = self.place
        return place.range if isinstance(place, Placement) else None

    @property
    def start(self) -> Optional[Address]:
        """Its first address."""
        return None if self.range is None else Address(self.range.start)

    @property
    def end(self) -> Optional[Address]:
        """Its last address."""
        return None if self.range is None else Address(self.range.end)

    @property
    def size(self) -> Size:
        """Bytes that are reserved for it."""
        return Size(0 if self.range is None else self.range.size)

    @property
    def slide(self) -> Optional[Displacement]:
        """How far KASLR moved it; None if nothing moves it."""
        place = self.place
        if not isinstance(place, Placement) or place.slide is None:
            return None
        return Displacement(place.slide)

    @property
    def reason(self) -> Optional[str]:
        """Why this kernel does not have it, or why that is not known."""
        return getattr(self.place, "reason", None)

    def __contains__(self, address: Any) -> bool:
        return self.range is not None and as_int(address) in self.range

    def show(self, **options: Any) -> Any:
        """What is in it: ``kvintro show``."""
        return self._kernel.run("show", self._region.key, **options)

    def table(self, name: str, **options: Any) -> Any:
        """One table of what is in it."""
        return self.show(table=name, **options)

    def areas(self, **options: Any) -> Any:
        """Its areas, of vmalloc."""
        return self.table("areas", **options)

    def explain(self) -> Any:
        """What it is for: ``kvintro explain``."""
        return self._kernel.run("explain", self._region.key)

    def __repr__(self) -> str:
        found = self.range
        if found is None:
            return f"<{self._region.key}: {value_text(self.reason)}>"
        moved = "" if not self.slide else f", moved by {value_text(self.slide)}"
        place = f"{found.start:016x}-{found.end:016x}"
        return f"<{self._region.key}: {place}, {value_text(self.size)}{moved}>"


class PromptKernel(Kernel):
    """A :class:`~kvintro.kernel.Kernel` with commands as methods, which takes drgn's objects for numbers.

    What it has read it keeps. Commands on a running kernel read anew each time.
    """

    def __repr__(self) -> str:
        identity = self.identity
        return f"<kernel {value_text(identity.release or 'unknown')} of {value_text(identity.source)}>"

    @cached_property
    def plain(self) -> Kernel:
        """What commands are given: their regions are the ones that are compared with, and not bound."""
        return Kernel(self.source)

    @cached_property
    def regions(self) -> Regions:
        """All regions that this architecture can have, by attribute too: ``k.regions.vmalloc``."""
        return Regions(BoundRegion(self, region) for region in super().regions)  # type: ignore[misc]

    def run(self, command: str, *values: Any, **options: Any) -> Any:
        """Run a command.

        :param command: its name.
        :param values: its arguments; ints and drgn's objects stand for addresses.
        :param options: its options, without dashes: ``pid=1``, ``walk=True``.
        :raises UsageError: it has no such option.
        """
        args = make_parser(ALIASES.get(command, command)).parse_args(_command_line(command, values, options))
        return _kept(run_command(self, args))

    def page(self, *values: Any, **options: Any) -> Answer:
        """One page frame: ``kvintro page``.

        :param values: page frame numbers, pointers to struct page, addresses of the kernel; strings are what
            the command line takes. Say ``form="physical"`` for physical addresses, ``pid`` for a process's.
        """
        if not {"form", "from_", "pid"} & set(options):
            values = tuple(_page_word(value) for value in _flat(values))
        found: Answer = self.run("page", *values, **options)
        return found

    def read(self, address: Any, size: int) -> bytes:
        """Kernel virtual memory; see :meth:`Kernel.read`."""
        return super().read(as_int(address), size)

    def read_physical(self, address: Any, size: int) -> bytes:
        """Physical memory; see :meth:`Kernel.read_physical`."""
        return super().read_physical(as_int(address), size)

    def walk(self, address: Any, root: Optional[Any] = None) -> Walk:
        """Translate one address step by step; see :meth:`Kernel.walk`."""
        return super().walk(as_int(address), None if root is None else as_int(root))

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>"


def run_command(of: PromptKernel, args: argparse.Namespace) -> Union[Report, Stream]:
    """Run a parsed command on a kernel that is open already.

    :raises UsageError: the command line names another source.
    """
    for name in _SOURCE_OPTIONS:
        if getattr(args, name, None):
            raise UsageError(
                "this session has its program, and no other can be opened in it",
                "run kvintro from the shell for another dump",
            )
    return commands.run_command(Kernel(of.source) if of.source.live else of.plain, args)


def _kept(result: Union[Report, Stream]) -> Union[Answer, Listing]:
    return Listing.of(result) if isinstance(result, Stream) else Answer.of(result)


def _command_line(command: str, values: Sequence[Any], options: Mapping[str, Any]) -> List[str]:
    """The arguments that a person would type."""
    actions = _actions(command)
    places = [action for action in actions if not action.option_strings]
    line: List[str] = [command]
    for name, value in options.items():
        line += _option(command, actions, name, value)
    # Behind --, so that nothing is taken for an option.
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
    """A number that is no address of the kernel, nor a pointer, numbers a page frame."""
    if isinstance(value, str) or (
        isinstance(value, drgn.Object) and value.type_.kind == drgn.TypeKind.POINTER
    ):
        return value
    number = as_int(value)
    return f"pfn:{number:x}" if 0 <= number < 1 << 63 else number


def _actions(command: str) -> List[argparse.Action]:
    """A command's own arguments and options."""
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
    number = as_int(value)
    # What argparse takes for an int is decimal; everything else that is a number is an address.
    return f"{number:#x}" if action is None or action.type is None else str(number)


def _method(command: str) -> Callable[..., Any]:
    def method(self: PromptKernel, *values: Any, **options: Any) -> Any:
        return self.run(command, *values, **options)

    module = load_command(command)
    method.__name__ = method.__qualname__ = command
    method.__doc__ = f"{module.HELP}\n\nThe command of that name; see kvintro {command} --help."
    return method


def _add_methods() -> Tuple[str, ...]:
    names = tuple(name for name in (*command_names(), *ALIASES) if name not in _NOT_METHODS)
    for name in names:
        if not hasattr(PromptKernel, name):
            setattr(PromptKernel, name, _method(name))
    return names


COMMANDS = _add_methods()

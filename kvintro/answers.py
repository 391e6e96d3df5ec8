# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports and streams that display themselves: as text at a prompt, as HTML in a notebook."""

from __future__ import annotations

import json
import sys
from html import escape
from typing import Any, Dict, Generic, Iterator, List, Mapping, Sequence, Type, TypeVar, Union, overload

from kvintro.model import Batch, Report, Stream
from kvintro.render import render, render_stream
from kvintro.streams import fitting, in_its_colors, terminal_width

__all__ = ("Answer", "Listing")

Row = TypeVar("Row")
A = TypeVar("A", bound="Answer[Any]")
#: Number of lines that a notebook shows; the rest is folded.
_SHOWN = 60


class Answer(Report, Generic[Row]):
    """The result of a command.

    It is the sequence of its first table's rows. Each table's rows are also an attribute named by its key. If
    there is only one row, its values are attributes too.
    """

    @classmethod
    def of(cls: Type[A], report: Report) -> A:
        """Wrap a report."""
        return cls(**vars(report))

    @property
    def rows(self) -> Sequence[Row]:
        """The rows of the first table."""
        return self.tables[0].rows if self.tables else ()

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: Union[int, slice]) -> Union[Row, Sequence[Row]]:
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
        names = {name for name in super().__dir__() if not name.startswith("_")}
        names.update(table.key for table in self.tables)
        if len(self.rows) == 1:
            names.update(name for name in vars(self.rows[0]) if not name.startswith("_"))
        return sorted(names - {"of"})

    def __repr__(self) -> str:
        return self.text(width=terminal_width(sys.stdout))

    __str__ = __repr__

    def text(self, *, color: bool = False, width: int = 0) -> str:
        """Format the result as the command line prints it.

        :param color: use ANSI colours.
        :param width: columns of the terminal; 0 for no limit.
        """
        return render(self, "text", color=color, width=width).rstrip("\n")

    def display_(self, *, color: bool = True) -> None:
        """Print the result in colour."""
        _show(self.text(color=color, width=terminal_width(sys.stdout)))

    def json(self) -> Dict[str, Any]:
        """The document that ``--json`` prints, parsed."""
        document: Dict[str, Any] = json.loads(render(self, "json"))
        return document

    def _repr_html_(self) -> str:
        text = _text_html(self.text())
        return render(self, "svg") + text if self.command == "layout" and self.tables else text


class Listing(Stream):
    """The complete output of a listing command: a sequence of mappings that displays itself."""

    @classmethod
    def of(cls, stream: Stream) -> Listing:
        """Read a stream to its end and keep all of it."""
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
        """The results as one mapping each."""
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

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> List[Mapping[str, Any]]: ...
    def __getitem__(self, index: Union[int, slice]) -> Union[Mapping[str, Any], List[Mapping[str, Any]]]:
        return self.rows[index]

    def __repr__(self) -> str:
        return self.text()

    def text(self) -> str:
        """Format the result as the command line prints it."""
        return "".join(render_stream(self, "text")).rstrip("\n")

    def display_(self) -> None:
        """Print the result."""
        _show(self.text())

    def json(self) -> Dict[str, Any]:
        """The document that ``--json`` prints, parsed."""
        document: Dict[str, Any] = json.loads("".join(render_stream(self, "json")))
        return document

    def _repr_html_(self) -> str:
        return _text_html(self.text())


def _text_html(text: str) -> str:
    """Format text for a notebook. The lines after the first ones are folded."""
    lines = text.split("\n")
    found = _lines_html(lines[:_SHOWN])
    if len(lines) > _SHOWN:
        rest = _lines_html(lines[_SHOWN:])
        found += f"\n<details><summary>{len(lines) - _SHOWN} more lines</summary>{rest}</details>"
    return found


def _lines_html(lines: Sequence[str]) -> str:
    return f'<pre style="white-space: pre; overflow-x: auto">{escape(chr(10).join(lines))}</pre>'


def _show(text: str) -> None:
    sys.stdout.write(fitting(in_its_colors(text), sys.stdout, "text") + "\n")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the tables of a survey as NDJSON and, if pyarrow is installed, as Parquet."""

from __future__ import annotations

import dataclasses
import io
import os
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Type

from kvintro.convert.target import Target
from kvintro.model import Address, Displacement, Row, Size
from kvintro.render.json import ascii_json, plain
from kvintro.survey.files import Sink, new_file
from kvintro.survey.rows import TABLES, Answer, forms
from kvintro.text import printable

#: Rows that are written to a Parquet file at once.
_BATCH = 10000
_RANGES = {"uint64": (0, (1 << 64) - 1), "int64": (-(1 << 63), (1 << 63) - 1)}
_ARROW = {
    Address: "uint64",
    Size: "uint64",
    Displacement: "int64",
    int: "int64",
    float: "float64",
    bool: "bool_",
    str: "string",
    object: "string",
}


def names() -> List[str]:
    """Names of the files that a survey writes, besides the answers."""
    return [f"{table}.{form}" for table in TABLES for form in ("ndjson", "parquet")]


def columns(table: str) -> Dict[str, str]:
    """The type in Parquet of each column of a table."""
    return {"path": "string", **{key: _ARROW[form] for key, (form, _) in forms(TABLES[table]).items()}}


class Writer:
    """Writes all tables to a directory, dump by dump. The files appear when :meth:`commit` is called.

    :ivar parquet: whether Parquet is written.
    :ivar clipped: number of values that were too large for their column in Parquet, where they are null.
    :raises NotWritten: a file cannot be written.
    """

    def __init__(self, directory: str) -> None:
        self.clipped = 0
        self._stack = ExitStack()
        self._targets: List[Target] = []
        self._lines: Dict[str, io.BufferedWriter] = {}
        self._parquet: Dict[str, _Parquet] = {}
        arrow = _arrow()
        self.parquet = arrow is not None
        try:
            for table in TABLES:
                self._lines[table] = io.BufferedWriter(self._sink(directory, f"{table}.ndjson"), 1 << 16)
                if arrow is not None:
                    self._parquet[table] = _Parquet(self._sink(directory, f"{table}.parquet"), table, arrow)
        except BaseException:
            self._stack.close()
            raise

    def _sink(self, directory: str, name: str) -> Sink:
        target = self._stack.enter_context(new_file(os.path.join(directory, name)))
        self._targets.append(target)
        return Sink(target)

    def add(self, path: str, answer: Answer) -> None:
        """Write the rows of one dump."""
        for table in TABLES:
            rows = [answer.dump] if table == "dumps" else answer.tables[table]
            for row in rows:
                values = {"path": printable(path), **_values(row)}
                line = ascii_json({key: plain(value) for key, value in values.items()})
                self._lines[table].write(line.encode() + b"\n")
                if self.parquet:
                    self.clipped += self._parquet[table].add(values)

    def commit(self) -> None:
        """Give the files their names.

        :raises NotWritten: that failed.
        """
        for lines in self._lines.values():
            lines.flush()
        for parquet in self._parquet.values():
            parquet.close()
        for target in self._targets:
            target.commit()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._stack.close()


def _values(row: Row) -> Dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow


class _Parquet:
    """One file."""

    def __init__(self, sink: Sink, table: str, arrow: Any) -> None:
        self._kinds = columns(table)
        self._arrow = arrow
        self._schema = arrow.schema([(key, getattr(arrow, kind)()) for key, kind in self._kinds.items()])
        self._writer = arrow.parquet.ParquetWriter(sink, self._schema)
        self._rows: List[Mapping[str, Any]] = []

    def add(self, values: Mapping[str, Any]) -> int:
        """Add a row and return how many of its values did not fit."""
        row = {key: self._value(kind, values[key]) for key, kind in self._kinds.items()}
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self._write()
        return sum(row[key] is None and values[key] is not None for key in row)

    @staticmethod
    def _value(kind: str, value: Any) -> Any:
        if kind in _RANGES and value is not None:
            least, most = _RANGES[kind]
            return int(value) if least <= value <= most else None
        return ascii_json(plain(value)) if isinstance(value, (list, tuple, dict)) else value

    def _write(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Write the rest."""
        self._write()
        self._writer.close()

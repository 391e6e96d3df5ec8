# SPDX-License-Identifier: LGPL-2.1-or-later
"""Streams: one line per result as it arrives, or one JSON document written in pieces.

There may be millions of results, so values are formatted a column at a time.
"""

from __future__ import annotations

from typing import Any, Iterator, List, Sequence

from kvintro.model import Address, Batch, Stream
from kvintro.render.csv import cell_text, csv_line
from kvintro.render.json import ascii_json, plain

# Values of one field. Those that are not None have the type of the first of them.
Column = Sequence[Any]


def _texts(values: Column, width: int) -> List[str]:
    """Format values of one type as text of equal width."""
    form = f"%{width}s"
    sample = next((v for v in values if v is not None), None)
    if sample is None:
        return [form % "-"] * len(values)
    if isinstance(sample, int):
        # The fastest way to write numbers.
        number = "%016x" if isinstance(sample, Address) else f"%{width}x"
        nothing = form % "-"
        return [nothing if v is None else number % v for v in values]
    distinct = set(values)
    if 2 * len(distinct) > len(values):
        return [form % ("-" if v is None else v) for v in values]
    known = {v: form % ("-" if v is None else v) for v in distinct}
    return [known[v] for v in values]


def stream_text(stream: Stream) -> Iterator[str]:
    """One line per result, without a header; ``-`` for an absent value."""
    widths = {field.key: field.width for field in stream.fields}
    for note in stream.notes:
        yield f"# {note}\n"
    for batch in stream:
        columns = [_texts(batch.values[key], widths[key]) for key in stream.text_keys]
        form = "  ".join(["%s"] * len(columns)) + "\n"
        yield "".join([form % line for line in zip(*columns)])


def _json_texts(values: Column) -> List[str]:
    sample = next((v for v in values if v is not None), None)
    if sample is None:
        return ["null"] * len(values)
    if isinstance(sample, Address):
        number = '"0x%016x"'
        return ["null" if v is None else number % v for v in values]
    if isinstance(sample, int) and not isinstance(sample, bool):
        return ["null" if v is None else str(v) for v in values]
    if isinstance(sample, str):
        known = {v: ascii_json(v) for v in set(values)}
        return [known[v] for v in values]
    if isinstance(sample, tuple) and all(isinstance(part, str) for part in sample):
        known = {v: ascii_json(plain(v)) for v in set(values)}
        return [known[v] for v in values]
    return [ascii_json(plain(v)) for v in values]


def _json_rows(stream: Stream, batch: Batch) -> str:
    columns = [_json_texts(batch.values[field.key]) for field in stream.fields]
    form = "    {" + ", ".join(f'"{field.key}": %s' for field in stream.fields) + "}"
    return ",\n".join([form % row for row in zip(*columns)])


def stream_json(stream: Stream) -> Iterator[str]:
    """One document with the same members as a report's."""
    head = {"schema": f"kvintro.{stream.command}/1", "kernel": plain(stream.kernel)}
    yield ascii_json(head, indent=2)[:-2] + f',\n  "{stream.key}": [\n'
    first = True
    for batch in stream:
        rows = _json_rows(stream, batch)
        if rows:
            yield rows if first else ",\n" + rows
            first = False
    tail = {"notes": list(stream.notes), "partial": stream.partial}
    yield "\n  ],\n" + ascii_json(tail, indent=2)[2:] + "\n"


def stream_csv(stream: Stream) -> Iterator[str]:
    """A header, then one line per result."""
    keys = [field.key for field in stream.fields]
    yield csv_line(keys)
    form = csv_line(["%s"] * len(keys))
    for batch in stream:
        columns = [_csv_cells(batch.values[key]) for key in keys]
        yield "".join([form % line for line in zip(*columns)])


def _csv_cells(values: Column) -> List[str]:
    sample = next((v for v in values if v is not None), None)
    if isinstance(sample, Address):
        return ["" if v is None else "0x%016x" % v for v in values]  # noqa: UP031
    if isinstance(sample, int) and not isinstance(sample, bool):
        return ["" if v is None else str(int(v)) for v in values]
    if isinstance(sample, str) or (isinstance(sample, tuple) and all(isinstance(v, str) for v in sample)):
        known = {v: cell_text(v) for v in set(values)}
        return [known[v] for v in values]
    return [cell_text(v) for v in values]

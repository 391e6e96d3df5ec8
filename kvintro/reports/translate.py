# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses in all their forms: a few with everything that is to be said, or a stream of many."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence

from kvintro.errors import KvintroError, Unavailable, UsageError
from kvintro.kernel import Kernel
from kvintro.model import Batch, Column, Report, Stream, StreamField, Table
from kvintro.queries.translate import FORMS, Input, Translation, Translator

COLUMNS = (
    Column("input", "input"),
    Column("virtual", "virtual"),
    Column("physical", "physical"),
    Column("pfn", "pfn", "right"),
    Column("page", "struct page"),
    Column("page_size", "mapped by"),
    Column("region", "region"),
    Column("state", "state"),
    Column("symbol", "symbol"),
)

_WIDTHS = {"input": -18, "virtual": 16, "physical": 16, "pfn": 10, "page": 16, "region": -14, "state": -13}
_LINE = ("input", "virtual", "physical", "pfn", "page", "region", "state", "note")


def translate(kernel: Kernel, translator: Translator, texts: Sequence[str]) -> Report:
    """A few addresses.

    :raises UsageError: one of the texts is no address.
    """
    rows = [translator.translate(translator.parse(text)) for text in texts]
    return Report(
        command="translate",
        kernel=kernel.identity,
        tables=(Table("results", COLUMNS, rows),),
        notes=tuple(kernel.source.warnings),
        partial=any(row.state == "not-in-dump" for row in rows),
        negative=any(row.state != "mapped" for row in rows),
    )


def translate_stream(
    kernel: Kernel, translator: Translator, chunks: Iterable[Sequence[str]], *, walk: bool = False
) -> Stream:
    """Many addresses.

    :param chunks: texts, as many at a time as there are.
    :param walk: say of each all that there is to say, at a tenth of the speed.
    """
    return Stream(
        "translate",
        kernel.identity,
        "results",
        [StreamField(f.name, _WIDTHS.get(f.name, 0)) for f in fields(Translation)],
        _LINE,
        _batches(translator, chunks, walk),
        tuple(kernel.source.warnings),
    )


def _batches(translator: Translator, chunks: Iterable[Sequence[str]], walk: bool) -> Iterator[Batch]:
    import numpy

    for texts in chunks:
        array = None
        joined = "".join(texts)
        # int() takes these too.
        if not walk and "_" not in joined and "+" not in joined:
            # A symbol among them, or nonsense, or more than 64 bits: one by one then.
            with suppress(ValueError, OverflowError):
                array = numpy.array([int(text, 16) for text in texts], numpy.uint64)
        if array is None:
            yield _slowly(translator, texts)
            continue
        forms = translator.forms_of(array)
        columns = translator.columns(texts, array, forms)
        apart = translator.one_by_one(array, forms, columns["state"])
        for i in numpy.flatnonzero(apart).tolist():
            row = translator.translate(Input(texts[i], int(array[i]), FORMS[int(forms[i])]))
            for key, column in columns.items():
                column[i] = getattr(row, key)
        yield _batch(columns)


def _slowly(translator: Translator, texts: Sequence[str]) -> Batch:
    columns: Dict[str, List[Any]] = {f.name: [] for f in fields(Translation)}
    for text in texts:
        try:
            row = translator.translate(translator.parse(text))
        except (UsageError, Unavailable) as error:
            row = _invalid(text, error)
        for key, column in columns.items():
            column.append(getattr(row, key))
    return _batch(columns)


def _invalid(text: str, error: KvintroError) -> Translation:
    none: Dict[str, Any] = {f.name: None for f in fields(Translation)}
    none.update(input=text, taken_as="nothing", state="invalid", note=error.what, walk=())
    return Translation(**none)


def _batch(columns: Mapping[str, List[Any]]) -> Batch:
    states = set(columns["state"])
    return Batch(columns, partial="not-in-dump" in states, negative=bool(states - {"mapped"}))

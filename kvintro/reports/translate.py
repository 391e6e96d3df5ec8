# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses in all their forms: details of a few, or a stream of many."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple, TypedDict

from kvintro.errors import KvintroError, Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import Batch, Column, Report, Stream, StreamField, Table
from kvintro.queries.translate import FORMS, Input, Translation, Translator
from kvintro.queries.translate_many import ManyAnswers

COLUMNS = (
    Column("input", "input", spare=2),
    Column("virtual", "virtual"),
    Column("physical", "physical"),
    Column("pfn", "pfn", "right"),
    Column("page", "struct page", spare=1),
    Column("page_size", "mapped by", spare=3),
    Column("region", "region"),
    Column("state", "state"),
    Column("symbol", "symbol"),
)


class TranslateExtra(TypedDict, total=False):
    """Further values of the report.

    :ivar walk: whether to show the entry of each level.
    """

    walk: bool


TranslateReport = Report[Tuple[Table[Translation]], TranslateExtra]

_WIDTHS = {"input": -18, "virtual": 16, "physical": 16, "pfn": 10, "page": 16, "region": -14, "state": -13}
_LINE = ("input", "virtual", "physical", "pfn", "page", "region", "state", "note")


def translate(kernel: Kernel, translator: Translator, texts: Sequence[str]) -> TranslateReport:
    """Translate a few addresses in detail.

    :raises UsageError: one of the texts is not an address.
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
    """Translate many addresses.

    :param chunks: lists of texts; each list is as long as all before it together.
    :param walk: give all details of each address, at a tenth of the speed.
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

    many = ManyAnswers(translator)
    for texts in chunks:
        array = None
        joined = "".join(texts)
        # int() also accepts these characters.
        if not walk and "_" not in joined and "+" not in joined:
            # If a text is a symbol, invalid or longer than 64 bits, the texts are translated one by one.
            with suppress(ValueError, OverflowError):
                array = numpy.array([int(text, 16) for text in texts], numpy.uint64)
        if array is None:
            yield _slowly(translator, texts)
            continue
        forms = many.forms_of(array)
        columns = many.columns(texts, array, forms)
        apart = many.one_by_one(array, forms, columns["state"])
        for i in numpy.flatnonzero(apart).tolist():
            asked = Input(texts[i], int(array[i]), FORMS[int(forms[i])])
            row = translator.translate(translator.plain(asked))
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tables of a survey, and the answer about one dump, which another process wrote as JSON.

That process parsed an untrusted dump, so its answer is not trusted either: :func:`checked` accepts only
values of the declared types.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from kvintro.model import Address, Displacement, Randomised, Row, Size
from kvintro.regions.modules import ModuleRow
from kvintro.regions.vmalloc import SumRow
from kvintro.render.inert import inert
from kvintro.reports.check import CheckRow, FindingRow
from kvintro.reports.layout import RegionRow
from kvintro.reports.pages import TypeRow

#: Increase this when the questions or the tables change, so that older answers are not reused.
VERSION = 1
WHOLE, PARTLY, FAILED = "whole", "partly", "failed"


@dataclass(frozen=True)
class DumpRow:
    """One dump.

    :ivar sha256: of the whole file; None if it could not be read.
    :ivar state: ``whole`` if every question was answered, ``partly`` if something could not be read (the
        table ``notes`` says what), ``failed`` if there is only an error.
    :ivar copies: how many of the other files that were named have the same content.
    :ivar complete: whether the dump is complete; None if its format does not say.
    :ivar memory: bytes of memory in it.
    :ivar boot_time: in UTC.
    :ivar uptime: seconds.
    :ivar panic: the kernel's message; empty if it did not panic.
    :ivar defects: number of findings of ``check``; None if it was not answered.
    :ivar unknown_rules: number of rules that could not be decided.
    """

    sha256: Optional[str]
    size: Optional[Size]
    state: str
    error: Optional[str]
    remedy: Optional[str]
    copies: int
    format: Optional[str] = None
    complete: Optional[bool] = None
    memory: Optional[Size] = None
    release: Optional[str] = None
    build_id: Optional[str] = None
    arch: Optional[str] = None
    paging_levels: Optional[int] = None
    page_size: Optional[int] = None
    kaslr: Optional[bool] = None
    isolation: Optional[bool] = None
    types: Optional[str] = None
    symbols: Optional[str] = None
    host: Optional[str] = None
    boot_time: Optional[str] = None
    dump_time: Optional[str] = None
    uptime: Optional[int] = None
    panic: Optional[str] = None
    defects: Optional[int] = None
    warnings: Optional[int] = None
    notices: Optional[int] = None
    unknown_rules: Optional[int] = None


@dataclass(frozen=True)
class NoteRow:
    """A remark about an answer.

    :ivar question: what was asked; ``source`` for remarks about the dump itself.
    :ivar missing: whether something could not be read.
    """

    question: str
    note: str
    missing: bool


#: Every table and the class of its rows. Each row also has the path of its dump.
TABLES: Mapping[str, Type[Row]] = {
    "dumps": DumpRow,
    "notes": NoteRow,
    "regions": RegionRow,
    "bases": Randomised,
    "rules": CheckRow,
    "findings": FindingRow,
    "pages": TypeRow,
    "callers": SumRow,
    "modules": ModuleRow,
}


@dataclass(frozen=True)
class Answer:
    """What is known of one dump.

    :ivar dump: its row, without copies.
    :ivar tables: the rows of all other tables.
    :ivar lasting: whether the same dump would be answered in the same way again.
    """

    dump: DumpRow
    tables: Mapping[str, List[Row]]
    lasting: bool = True


class Malformed(ValueError):
    """An answer does not have the declared form."""


@cache
def forms(row: Type[Row]) -> Mapping[str, Tuple[type, bool]]:
    """The type of each field, and whether it may be None. ``object`` stands for lists and mappings."""
    found = {}
    hints = typing.get_type_hints(row)
    for field in dataclasses.fields(row):
        hint, optional = hints[field.name], False
        if typing.get_origin(hint) is Union:
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            optional = True
        found[field.name] = (
            hint if isinstance(hint, type) and not typing.get_args(hint) else object,
            optional,
        )
    return found


def checked(text: str) -> Answer:
    """The answer in a JSON text.

    :raises Malformed: it has another form.
    """
    try:
        document = json.loads(text, parse_constant=_no_constant)
        tables = {
            name: [_row(TABLES[name], row) for row in document[name]] for name in TABLES if name != "dumps"
        }
        return Answer(_row(DumpRow, document["dump"]), tables, document["lasting"] is True)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}"[:200]) from None


def _no_constant(name: str) -> None:
    raise Malformed(f"{name} is not a number")


def _row(row: Type[Row], values: Mapping[str, Any]) -> Row:
    fields = forms(row)
    if set(values) != set(fields):
        raise Malformed(f"{row.__name__} has other fields")
    # Strings are escaped here once, for all outputs.
    return inert(row(**{name: _value(*fields[name], values[name]) for name in fields}))


def _value(form: type, optional: bool, value: object) -> object:
    if value is None and optional:
        return None
    if form is Address and isinstance(value, str) and value.startswith("0x") and len(value) == 18:
        return Address(int(value, 16))
    if form in (int, Size, Displacement) and isinstance(value, int) and not isinstance(value, bool):
        return form(value)
    if form is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if form is object and isinstance(value, (list, dict)):
        return value
    if form in (str, bool) and isinstance(value, form):
        return value
    raise Malformed(f"{value!r:.40} where {form.__name__} was expected")


def failed(error: str, remedy: str, *, lasting: bool, known: Optional[Mapping[str, Any]] = None) -> Answer:
    """The answer about a dump that could not be read.

    :param known: sha256 and size, if they are known.
    """
    found: Dict[str, Any] = {"sha256": None, "size": None, **(known or {})}
    row = DumpRow(state=FAILED, error=error, remedy=remedy or None, copies=0, **found)
    return Answer(inert(row), {name: [] for name in TABLES if name != "dumps"}, lasting)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""No string of a kernel can control a terminal, mislead a reader or run in a spreadsheet.

Every string of every report is made hostile, field by field, and written in every format.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Set, Tuple

import pytest

import kvintro
from kvintro.commands import load_command
from kvintro.errors import KvintroError
from kvintro.kernels import Kernel
from kvintro.model import Address, Batch, Report, Stream, Table
from kvintro.parser import parse
from kvintro.prompt import Answer, Listing
from kvintro.render import FORMATS, render, render_stream
from tests.cores.test_schema import LINES
from tests.hostile import OWN_PAINT, assert_inert

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

#: Clipboard, title, clear screen, foreign colours, C1, overrides, right-to-left, marks, fillers, DEL.
HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07\x1b]0;t\x1b\\\x1b[2J\x1b[31m\x9b1m\x7f\r\n\t\u202e\u2066"
    "\u05d0\u0627\u0663a\u0301\u0489\ufe0f\U000e0100\u3164\u115f\u2800\U0001f3fb\xad\u200b\xa0"
)
FORMULA = "=2+5+cmd|'/c calc'!A1;=1; @x;\"+1\";\t-1"
_OURS = re.compile(r"\x1b\[[0-9;]*m")


def check_inert(text: str, *, color: bool) -> None:
    """Assert that all characters are printable, one column wide and left to right, except our own colours."""
    if color:
        assert all(OWN_PAINT.fullmatch(code) for code in _OURS.findall(text)), "a colour that is not ours"
        text = _OURS.sub("", text)
    assert_inert(text)


def _poisoned(value: Any, bad: str, path: Tuple[Any, ...]) -> Any:
    """The value with a hostile string at ``path``."""
    if not path:
        return bad
    first, *rest = path
    if isinstance(value, Mapping):
        return {
            (bad if rest == ["key"] and k == first else k): _deeper(k, v, first, bad, rest)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return tuple(_deeper(i, v, first, bad, rest) for i, v in enumerate(value))
    return _replaced(value, first, _poisoned(getattr(value, first), bad, tuple(rest)))


def _deeper(at: Any, value: Any, first: Any, bad: str, rest: List[Any]) -> Any:
    return _poisoned(value, bad, tuple(rest)) if at == first and rest != ["key"] else value


def _replaced(value: Any, name: str, new: Any) -> Any:
    import copy

    found = copy.copy(value)
    object.__setattr__(found, name, new)
    return found


def _strings(value: Any, path: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Paths of the strings in a value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield (*path, key, "key")
            yield from _strings(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _strings(item, (*path, number))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _strings(getattr(value, field.name), (*path, field.name))


def _short(report: Report) -> Report:
    """A few rows of each table: those with the most values."""
    tables = []
    for table in report.tables:
        rows = sorted(table.rows, key=lambda row: -len(list(_strings(row))))[:2]
        tables.append(dataclasses.replace(table, rows=rows))
    extra = dict(report.extra)
    if "sections" in extra:
        extra["sections"] = [
            dataclasses.replace(s, report=None if s.report is None else _short(s.report))
            for s in extra["sections"]
        ]
    return dataclasses.replace(report, tables=tables, extra=extra, notes=("a note",))


def _places(report: Report) -> Iterator[Tuple[Any, ...]]:
    """One path of each kind; the same field in another row takes the same code."""
    seen: Set[Tuple[Any, ...]] = set()
    for path in _strings(report):
        kind = tuple("#" if isinstance(part, int) else part for part in path)
        if kind not in seen and path[0] != "command":
            seen.add(kind)
            yield path


def _written(report: Report) -> Iterator[Tuple[str, bool]]:
    for form in (*FORMATS, "map"):
        for color in (False, True) if form in ("text", "map") else (False,):
            try:
                text = render(report, form, color=color, width=0 if color else 90)
            except KvintroError:
                continue
            except (KeyError, ValueError, AttributeError):
                # Our own words, which renderers look up; with other words there is no output.
                continue
            yield text, color
            if form == "json":
                assert text.isascii()


LINES_ASKED = [line for line in LINES if line[0] != "report"]


@pytest.mark.parametrize("line", LINES_ASKED, ids=" ".join)
def test_every_string_of_every_report(kernel: Kernel, line: List[str]) -> None:
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    args = parse(["-c", "x", *line])
    found = load_command(args.command).run(kernel, args)
    if isinstance(found, Stream):
        _check_stream(found)
        return
    report = _short(found)
    checked = 0
    for path in _places(report):
        bad = _poisoned(report, HOSTILE, path)
        for text, color in _written(bad):
            check_inert(text, color=color)
            checked += 1
    assert checked > 20
    everything = report
    for path in _places(report):
        if path[0] in ("head", "notes", "kernel"):
            everything = _poisoned(everything, HOSTILE, path)
    answer: Answer[Any] = Answer.of(everything)
    check_inert(repr(answer), color=False)
    check_inert(answer._repr_html_(), color=False)


def _check_stream(stream: Stream) -> None:
    listing = Listing.of(stream)
    batches = [
        Batch({k: [*map(_hostile_value, v[:3])] for k, v in batch.values.items()})
        for batch in listing.batches[:1]
    ]
    hostile = Stream(
        stream.command, stream.kernel, stream.key, stream.fields, stream.text_keys, batches, [HOSTILE]
    )
    for form in ("text", "csv", "json"):
        check_inert("".join(render_stream(hostile, form)), color=False)
    check_inert(Listing.of(hostile)._repr_html_(), color=False)


def _hostile_value(value: Any) -> Any:
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, tuple):
        return tuple(map(_hostile_value, value))
    return value


@pytest.mark.parametrize("line", [["layout"], ["page", "init_task"], ["user", "--all"]], ids=" ".join)
def test_no_cell_is_a_formula(kernel: Kernel, line: List[str]) -> None:
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    args = parse(["-c", "x", *line])
    report = _short(load_command(args.command).run(kernel, args))
    for path in _places(report):
        if path[0] != "tables":
            continue
        text = render(_poisoned(report, FORMULA, path), "csv")
        for delimiter in ",;\t":
            for cells in list(csv.reader(io.StringIO(text), delimiter=delimiter))[1:]:
                for cell in cells:
                    assert not re.match(r"[\s\"]*[=+@]|[\s\"]*-[^-\d]", cell), cells


def test_numbers_stay_numbers() -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        number: int = -1
        share: float = -0.5
        address: Any = dataclasses.field(default_factory=lambda: Address(4096))
        flag: bool = True
        nothing: Any = None
        words: Tuple[str, ...] = ("RW", "NX")
        names: Tuple[str, ...] = ("a b", "c")
        counts: Any = dataclasses.field(default_factory=lambda: {"4K": 2})
        text: str = '-1, "x"'

    text = render(Report("x", None, [Table("rows", (), [Row()])]), "csv")
    header, cells = csv.reader(io.StringIO(text))
    assert dict(zip(header, cells)) == {
        "number": "-1",
        "share": "-0.5",
        "address": "0x0000000000001000",
        "flag": "true",
        "nothing": "",
        "words": "RW NX",
        "names": '["a b", "c"]',
        "counts": '{"4K": 2}',
        "text": '\'-1, "x"',
    }


@pytest.mark.parametrize("line", LINES_ASKED, ids=" ".join)
def test_no_cell_is_pythons(kernel: Kernel, line: List[str]) -> None:
    """Cells contain numbers, texts, words or JSON, and no Python syntax."""
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    args = parse(["-c", "x", "--csv", *line])
    found = load_command(args.command).run(kernel, args)
    try:
        text = "".join(render_stream(found, "csv")) if isinstance(found, Stream) else render(found, "csv")
    except KvintroError:
        return
    header, *rows = csv.reader(io.StringIO(text)) if text else [[]]
    for cells in rows[:2000]:
        assert len(cells) == len(header)
        for cell in cells:
            assert cell not in ("None", "True", "False")
            assert not re.search(r"\bNone\b|object at 0x|\w+\(\w+=|[{\[(]'", cell), cell
            if re.match(r'[{\[]["\d{\[]', cell):
                json.loads(cell)


def _renderers() -> Iterator[Tuple[Path, ast.Module]]:
    for path in sorted((Path(kvintro.__file__).parent).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_there_is_one_way_to_a_renderer() -> None:
    """All rendering goes through kvintro.render, which makes all strings inert first."""
    allowed = {"kvintro.render", "kvintro.render.inert", "kvintro.render.values"}
    names = {"AddedFormat", "FORMATS", "added_formats", "render", "render_pieces", "render_stream"}
    #: Constants, and functions of a text, a number or a row; none takes a report. The JSON is that of a
    #: survey, whose rows are made inert when they are read.
    harmless = {
        "kvintro.render.json": {"ascii_json", "plain"},
        "kvintro.render.colors": {"region_style"},
        "kvintro.render.drawing": {"weight"},
        "kvintro.render.pages": {"SIGNS"},
        "kvintro.render.text": {"BOLD", "CYAN", "DIM", "GREEN", "RED", "YELLOW", "columns_of", "wrapped"},
    }
    for path, tree in _renderers():
        if path.parent.name == "render":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvintro.render"):
                if {alias.name for alias in node.names} <= harmless.get(node.module or "", set()):
                    continue
                assert node.module in allowed, f"{path} imports {node.module}"
                if node.module == "kvintro.render":
                    assert {a.name for a in node.names} <= names, path
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("kvintro.render") for a in node.names), path


def _exhaust(stream: Stream, form: str) -> None:
    for _ in render_stream(stream, form):
        pass


def test_only_render_is_given_reports_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format except JSON is made from the result of ``inert``."""
    import kvintro.render as module

    seen: List[str] = []

    def refuse(value: Any) -> Any:
        seen.append(type(value).__name__)
        raise InterruptedError

    monkeypatch.setattr(module, "inert", refuse)
    monkeypatch.setattr(module, "InertStream", refuse)
    report: Report[Any, Any] = Report("layout", None, [])
    stream = Stream("ptdump", None, "ranges", (), (), ())
    asked: List[Callable[[], Any]] = [partial(render, report, form) for form in (*FORMATS, "map")]
    asked += [partial(_exhaust, stream, form) for form in ("text", "csv", "json")]
    refused = 0
    for ask in asked:
        try:
            ask()
        except InterruptedError:
            refused += 1
    assert refused == len(seen) == len(asked) - 2

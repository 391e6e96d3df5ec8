# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command fits terminals of several widths: no line is too long, and no word or address is cut."""

from __future__ import annotations

import re
from typing import List, Set

import pytest

from kvintro.errors import KvintroError
from kvintro.kernels import Kernel
from kvintro.model import Report, Stream
from kvintro.queries.names import region_named
from kvintro.render import render
from tests.captures import LINES, WIDTHS, found, text_of

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

#: The characters of a drawing, whose size depends on the width.
_DRAWN = re.compile("[─│╎░▒▓█·┌┐└┘├┤]+|[·DVMK]+")
_STRIP = re.compile(r"^physical memory, .*?^$", re.S | re.M)
_HIDDEN = "not shown for lack of width: "
_NEXT = "next: kvintro show vmalloc, kvintro explain vmalloc, kvintro identify ADDRESS, kvintro help"
#: Text in the format of a kernel's own file, for comparison line by line.
EXACT = ("--maps",)


def _words(text: str) -> Set[str]:
    """Words without the characters of drawings. Lists without spaces are broken after commas."""
    words = re.split(r"[\s,│╎]+", _STRIP.sub("", text))
    return {word.strip("()") for word in words if word and not _DRAWN.fullmatch(word)}


def _titles(report: Report) -> Set[str]:
    return {word for table in report.tables for column in table.columns for word in _words(column.title)}


def _too_long(text: str, width: int) -> List[str]:
    """Lines that are wider than the terminal although they have a place to break them."""
    return [line for line in text.split("\n") if len(line) > width and " " in line.strip()]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_fits(kernel: Kernel, line: List[str]) -> None:
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    if set(EXACT) & set(line):
        pytest.skip("its lines are those of the kernel's own file")
    try:
        result, form = found(kernel, line)
    except KvintroError as error:
        pytest.skip(error.what)
    if isinstance(result, Stream):
        pytest.skip("its lines are those of the kernel's own file")
    unlimited = _words(text_of(result, form, 0)) | _titles(result) | _words(_HIDDEN + _NEXT)
    for width in WIDTHS:
        text = text_of(result, form, width)
        assert not _too_long(text, width), f"{width} columns"
        assert _words(text) <= unlimited, f"{width} columns"
        assert len(text) > 20


def test_colours_take_no_room(kernel: Kernel) -> None:
    result, form = found(kernel, ["layout"])
    assert isinstance(result, Report)
    for width in (0, *WIDTHS):
        colored = render(result, form, color=True, width=width)
        assert re.sub("\x1b\\[[0-9;]*m", "", colored) == render(result, form, width=width)


def test_what_to_type_next_is_said_on_terminals_only(kernel: Kernel) -> None:
    result, form = found(kernel, ["layout"])
    assert "next: kvintro show vmalloc" in text_of(result, form, 80)
    assert "next:" not in text_of(result, form, 0)


def test_keys_are_shown_and_accepted(kernel: Kernel) -> None:
    """Every key that the map prints is one that `show` takes."""
    result, form = found(kernel, ["layout", "--no-holes"])
    assert isinstance(result, Report)
    text = text_of(result, form, 80)
    for row in result.tables[0].rows:
        assert re.search(rf"(^| ){row.key}( |$)", text, re.M), row.key
        assert region_named(kernel, row.key).key == row.key
        assert region_named(kernel, row.name).key == row.key

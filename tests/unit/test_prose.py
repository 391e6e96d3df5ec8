# SPDX-License-Identifier: LGPL-2.1-or-later
"""Awkward phrases in docs, help texts, messages, comments and docstrings.

The list is short on purpose. Each pattern is a phrase that a native speaker reads twice, and each has a plain
form. True uses are in :data:`ALLOWED`.
"""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.conftest import ROOT

#: Patterns, and what to write instead. Case does not matter.
PATTERNS = {
    r"\b(?:leave|leaves|leaving|left) (?:\S+ ){0,3}?away\b": "omit, hide, exclude",
    r"\bso many (?:of|rows|pages|bytes|entries|things)\b": "N rows, at most N, this many",
    r"(?<!there )\b(?:is|are|was|were) no (?:[a-z-]+ )?"
    r"(?:number|address|dump|file|page|range|name|node|type|layout|region|hole|end|table|symbol)s?\b": (
        "is not a number"
    ),
    r"\bis told by\b": "X shows, X decides, is inferred from X",
    r"\bwhat is (?:asked|left out|mapped|shown|there) is\b": "name the thing",
    r"\b(?:three|two|other|several) doors\b|\brooms? (?:of|above|below)\b|\bthe house\b": (
        "entry point, layer, package"
    ),
    r"(?:^|[.:\x22\x27] ?)(?:in use|mapped|absent) (?:is|are)\b": "subject first: N bytes are in use",
    r": not so\b": "say what is the case",
    r"\bleft out by its maker\b": "excluded when dumped",
    r"\bmakes? no sense\b": "is invalid: X; X cannot be N",
    r"\b(?:lies?|lay) (?:in|among|above|around|behind|below|between)\b": "is in",
    r"\b(?:lies?|lay) (?:inside|nowhere|outside|where|within)\b": "is inside",
    r"\bwhat lies\b": "name the thing",
    r"\b(?:goes|go) with (?:-|a\b)|\bbelongs to --": "needs --other, give it with --other",
    r"\b(?:bigger|longer|larger|fewer|more \S+) than any\b": "too large, too many",
    r"\bnothing (?:says|leads)\b|\bsays? nothing of\b|\bto be had\b": "is not known, cannot be found",
    r"\bshows? as not in the dump\b": "is shown as not in the dump",
    r"\b(?:not|be) believed\b": "is rejected, is valid",
    r"\b(?:run|runs) in a circle\b": "contains a cycle",
    r"\b(?:anew|lately)\b|\btroubles\b": "again, recently, problems",
    r"\bleaves? behind\b|\bleft behind\b": "no file remains",
    r"\bof which (?:CPU|architecture) it is\b|\bof no architecture\b": "name its CPU, its architecture",
}
#: Correct uses, by a part of the line.
ALLOWED = (
    "leave unused stretches away",  # CONTRIBUTING.md shows what not to write
    "so many rows |",
    "its BUILD-ID is no number",
    "is told by where it lies",
)
#: Files with our own text.
WHERE = (
    "*.md",
    "docs/*.md",
    "vmcores/*.md",
    "kvintro/**/*.py",
    "tools/*.py",
    "vmcores/*.py",
    "vmcores/lab/*.py",
)
_COMPILED = {re.compile(pattern, re.I): instead for pattern, instead in PATTERNS.items()}


def prose_of_markdown(text: str) -> Iterator[Tuple[int, str]]:
    """Numbered lines without examples (fenced blocks, and blocks that are indented by four columns)."""
    fenced = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def prose_of_python(text: str) -> Iterator[Tuple[int, str]]:
    """Numbered lines of comments and strings."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield from enumerate(token.string.split("\n"), token.start[0])


def problems(path: Path, text: str) -> List[str]:
    """Awkward phrases in a file, one line each."""
    prose = prose_of_markdown if path.suffix == ".md" else prose_of_python
    return [
        f"{path}:{number}: {found[0].strip()!r}; write: {instead}"
        for number, line in prose(text)
        if not any(part in line for part in ALLOWED)
        for pattern, instead in _COMPILED.items()
        for found in pattern.finditer(line)
    ]


def test_prose_is_plain() -> None:
    files = sorted({path for pattern in WHERE for path in ROOT.glob(pattern)})
    assert len(files) > 150
    found = [line for path in files for line in problems(path.relative_to(ROOT), path.read_text())]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    "line",
    [
        "# Columns that say nothing are left away.",
        '"""So many rows of each table."""',
        'error = f"{text} is no number"',
        'error = f"{text} is no page frame number"',
        "# What a number is, is told by where it stands.",
        '"""The three doors find commands."""',
        '"""Plain values that pass between the rooms of the house."""',
        'print("Mapped are 84 KB")',
        'print(f"{title}: not so")',
        'error = f"{count} CPUs make no sense"',
        '"""The memory area lies outside of its tree."""',
        "# what lies after the gap is unknown",
        'error = "--compress goes with --to kdump"',
        'error = "the name is longer than any"',
        'error = "nothing says where it ends"',
        'error = "the list runs in a circle"',
    ],
)
def test_what_is_found(line: str) -> None:
    assert problems(Path("some.py"), line + "\n")
    assert problems(Path("some.md"), line + "\n")


@pytest.mark.parametrize(
    "line",
    [
        "# there is no number for it; it is no longer a page",
        "# left as it is; so many that they do not fit; a room_of_names",
        "# a kernel that lies consistently; sizes that lie; it goes with the others; more than any of them",
        'x = left.away(is_no=1)  # "mapped" is a state',
        "so_many = 'rooms'",
    ],
)
def test_what_is_not(line: str) -> None:
    assert not problems(Path("some.py"), line + "\n")


def test_examples_are_not_prose() -> None:
    assert not problems(Path("some.md"), "```\nit is no number\n```\n    it is no number\n")

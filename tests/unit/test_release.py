# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make release` refuses bad trees, and the version is the same in all files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import List

import pytest

import kvintro
from tests.conftest import ROOT
from tools.release import HOMEPAGES, PLACES, VERSION, found, problems


def test_the_version_is_the_same_everywhere() -> None:
    assert VERSION.fullmatch(kvintro.__version__)
    assert {place: found(ROOT, place) for place in PLACES} == dict.fromkeys(PLACES, kvintro.__version__)


def test_the_homepage_is_the_same_everywhere() -> None:
    assert len({found(ROOT, place, HOMEPAGES) for place in HOMEPAGES}) == 1


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checked files without problems."""
    for name in {*PLACES, *HOMEPAGES}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
        text = (tmp_path / name).read_text().replace(".example", ".org")
        if name == "CHANGELOG.md":
            text = re.sub(r"(## \[Unreleased\]\n).*?(?=^## \[)", r"\1\n", text, flags=re.M | re.S)
        (tmp_path / name).write_text(text)
    return tmp_path


def _clean(*_: str) -> str:
    return ""


def test_nothing_is_wrong(tree: Path) -> None:
    assert list(problems(tree, _clean)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("kvintro/version.py", r'"[\d.]+"', '"1.2"', "is not a version such as 1.2.3"),
        ("CITATION.cff", r"^version: [\d.]+$", "version: 9.9.9", "the version is 9.9.9"),
        ("debian/changelog", r"^kvintro \([^)]*\)", "kvintro (9.9.9-1)", "the version is 9.9.9"),
        ("CHANGELOG.md", r"^## \[Unreleased\]\n", "## [Unreleased]\n\n- a line\n", "has lines"),
        ("CHANGELOG.md", r" - \d{4}-\d\d-\d\d$", "", "the version is missing"),
        ("CITATION.cff", r"date-released: \S+", "date-released: 2000-01-01", "released on 2000-01-01"),
        ("pyproject.toml", r"https://[^/\"]+", "https://kvintro.example", "are placeholders"),
        ("debian/changelog", r"<[^>]+>", "<kvintro@kvintro.example>", "are placeholders"),
        ("packaging/kvintro.spec", r"URL: +\S+", "URL: https://other.org/", "the homepage is https://other"),
    ],
)
def test_one_thing_is_wrong(tree: Path, name: str, old: str, new: str, said: str) -> None:
    text, count = re.subn(old, new, (tree / name).read_text(), count=1, flags=re.M)
    assert count == 1
    (tree / name).write_text(text)
    assert any(said in line for line in problems(tree, _clean))


@pytest.mark.parametrize(("word", "said"), [("status", "not committed"), ("tag", "exists")])
def test_what_git_says(tree: Path, word: str, said: str) -> None:
    def git(*arguments: str) -> str:
        return "something" if arguments[0] == word else ""

    lines: List[str] = list(problems(tree, git))
    assert len(lines) == 1 and said in lines[0]

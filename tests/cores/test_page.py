# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page of ``kvintro report`` is complete and self-contained, and no string in a dump becomes markup."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from html.parser import HTMLParser
from typing import Any, Dict, List, Set, Tuple

import pytest

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Report
from kvintro.parser import parse
from kvintro.render import render
from kvintro.reports.report import full
from tests.conftest import Core
from tests.hostile import poisoned_report

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

# Elements that have no end tag.
VOID = {"meta", "link", "input", "br", "img", "path", "rect", "polygon"}


class Page(HTMLParser):
    """The parts of the parsed page that these tests need."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: List[Tuple[str, Dict[str, str]]] = []
        self.texts: List[str] = []
        self.scripts: List[str] = []
        self._open: List[str] = []
        self.unbalanced: List[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open and self._open[-1] == "script" else self.texts).append(data)

    @property
    def ids(self) -> List[str]:
        """All ids."""
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]

    def tags(self) -> Set[str]:
        """All kinds of elements."""
        return {tag for tag, _ in self.elements}


@pytest.fixture(scope="module")
def report(kernel: Kernel) -> Report:
    return full(kernel)


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render(report, "html"))


def test_every_part_was_made(report: Report) -> None:
    for section in report.extra["sections"]:
        assert not section.problem.startswith("internal error"), section.key


def test_well_formed(page: Page) -> None:
    assert not page.unbalanced
    assert len(page.ids) == len(set(page.ids))


def test_links_lead_somewhere(page: Page) -> None:
    ids = set(page.ids)
    for tag, attrs in page.elements:
        if tag == "a":
            assert attrs["href"].startswith("#")
            assert attrs["href"][1:] in ids
        for name in ("aria-labelledby", "data-table"):
            if name in attrs:
                assert set(attrs[name].split()) <= ids, attrs


def test_self_contained(page: Page) -> None:
    for _, attrs in page.elements:
        assert not any(name in attrs for name in ("src", "srcset", "action", "onclick", "onload"))
        assert attrs.get("href", "#")[:1] == "#" or attrs["href"] == "data:,"


def test_every_region_has_its_place(report: Report, page: Page) -> None:
    layout = report.extra["sections"][0].report
    for row in layout.tables[0].rows:
        assert f"region-{row.key}" in page.ids
        if row.start is not None:
            assert any(f"{row.start:016x}" in text for text in page.texts)


def test_what_the_address_box_knows(report: Report, page: Page) -> None:
    data = json.loads(next(text for text in page.scripts if text.startswith("{")))
    following = 0
    for start, end, _, _ in data["regions"]:
        assert int(start, 16) == following
        following = int(end, 16) + 1
    assert following == 1 << 64
    ids = set(page.ids)
    for start, end, name, link in data["parts"]:
        assert int(start, 16) <= int(end, 16) < 1 << 64
        assert name
        assert link in ids


def test_the_rules_of_the_direct_map_and_the_image(core: Core, page: Page) -> None:
    """Against the segments of RAM and of the image in /proc/kcore of the same boot."""
    data = json.loads(next(text for text in page.scripts if text.startswith("{")))
    rules = [[int(word, 16) for word in rule] for rule in data["linear"]]
    assert len(rules) >= 2
    lines = (line.split() for line in core.truth("kcore-phdrs").splitlines())
    loads = [[int(word, 16) for word in words[2:6]] for words in lines if words[:1] == ["LOAD"]]
    compared = 0
    for at, physical, _, size in loads:
        for start, end, offset in rules:
            if physical != (1 << 64) - 1 and start < at + size and at <= end:
                assert (at - offset) % (1 << 64) == physical
                compared += 1
    assert compared >= 2


def test_symbols_of_the_image(core: Core, page: Page) -> None:
    """Against /proc/kallsyms of the same boot."""
    data = json.loads(next(text for text in page.scripts if text.startswith("{")))
    found = [(name, int(at, 16)) for name, what, at, _ in data["names"] if what.startswith("symbol ")]
    assert len(found) > 4
    with gzip.open(core.truth_directory / "kallsyms.gz", "rt") as file:
        truth = {words[2]: int(words[0], 16) for words in map(str.split, file)}
    # The truth has the symbols that some test needs.
    compared = [(name, at) for name, at in found if name in truth]
    assert len(compared) > 4
    assert all(truth[name] == at for name, at in compared)


def test_modules_can_be_found(core: Core, page: Page) -> None:
    """Against /proc/modules of the same boot."""
    data = json.loads(next(text for text in page.scripts if text.startswith("{")))
    found = {(name, int(at, 16)) for name, what, at, _ in data["names"] if what == "module"}
    lines = [line.split() for line in core.truth("modules").splitlines()]
    assert found == {(words[0], int(words[5], 16)) for words in lines}


def test_commands_can_be_pasted(core: Core, report: Report, page: Page) -> None:
    """Each command names the source, and the command line accepts it; a strange name stays one word."""
    commands = [attrs["data-command"] for _, attrs in page.elements if "data-command" in attrs]
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "kvintro"
        args = parse(words[1:])
        assert args.core == [str(core.path)]
        if words[3] in ("show", "explain") and words[4] != "--all":
            assert words[4] in {row.key for row in report.extra["sections"][0].report.tables[0].rows}
    text = render(poisoned_report(report), "html")
    (source,) = {
        shlex.split(attrs["data-command"])[2]
        for _, attrs in Page(text).elements
        if "data-command" in attrs
    }  # fmt: skip
    assert "document.title" in source


def test_nothing_in_a_dump_becomes_markup(report: Report, page: Page) -> None:
    text = render(poisoned_report(report), "html")
    hostile = Page(text)
    assert not hostile.unbalanced
    assert hostile.tags() <= page.tags()
    for _, attrs in hostile.elements:
        assert not any(name.startswith("on") for name in attrs)
    scripts = [t for t in hostile.scripts if not t.startswith("{")]
    assert scripts == [t for t in page.scripts if not t.startswith("{")]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    # It is present as text.
    assert sum("document.title='owned'" in t for t in hostile.texts) > 50


def test_other_reports_are_pages_too(kernel: Kernel, report: Report) -> None:
    for section in report.extra["sections"]:
        if section.report is not None:
            own = Page(render(poisoned_report(section.report), "html"))
            assert not own.unbalanced, section.key
            assert len(own.ids) == len(set(own.ids))


def test_no_one_table(report: Report) -> None:
    with pytest.raises(UsageError):
        render(report, "csv")


def test_as_text_and_json(report: Report) -> None:
    text = render(report, "text")
    for section in report.extra["sections"]:
        if section.report is not None:
            assert render(section.report, "text").rstrip("\n") in text
    document = json.loads(render(report, "json"))
    assert document["schema"] == "kvintro.report/1"
    assert document["sections"][0]["report"]["schema"] == "kvintro.layout/1"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Explanations: every region has one, every name leads to one, and they can be read without a kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict

import pytest
from hypothesis import given as generate
from hypothesis import strategies as st

from kvintro.arch import Architecture, architectures
from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.commands import load_command
from kvintro.errors import UsageError
from kvintro.parser import parse
from kvintro.readers.command_line import given, split_options
from kvintro.regions import regions_of
from kvintro.regions.explained import RELEASES, explanation, explanation_of, introduction
from kvintro.render import render
from kvintro.reports.explain import explain, paragraphs
from tests.synthetic import Memory, kernel_of, vmcoreinfo

REGIONS = regions_of(ARCHITECTURE)


@pytest.mark.parametrize("region", REGIONS, ids=lambda r: r.key)
def test_every_region_is_explained(region) -> None:  # type: ignore[no-untyped-def]
    text = explanation_of(region, ARCHITECTURE)
    assert text is not None
    for section in ("purpose", "users", "translation", "attacker", "debugger", "changed"):
        assert paragraphs(getattr(text, section)), section
    assert text.definitions
    assert any(d.kind == "macro" for d in text.definitions)
    # The region's own macro is explained, except if the table's name for it belongs to another region.
    assert {d.kind for d in text.definitions} <= {"macro", "variable", "config", "boot"}


@pytest.mark.parametrize("key", [*(r.key for r in REGIONS), "hole"])
def test_statements_name_their_sources(key: str) -> None:
    """A file of the kernel and a name in it, or a commit with its subject; every release is cited."""
    text = explanation(key, ARCHITECTURE)
    assert text is not None
    told = {release for source in text.sources for release in source.releases}
    assert told == set(RELEASES)
    for source in text.sources:
        assert source.what and source.where
        assert set(source.releases) <= set(RELEASES)
        files = [where for where in source.where if not where.startswith("commit ")]
        # Statements from a commit alone do not cite a release.
        assert bool(files) is bool(source.releases)
        for where in source.where:
            assert re.match(r"commit [0-9a-f]{12} \S+.* \S", where) or re.match(
                r"[\w/.-]+/[\w.-]+:\S", where
            ), where


@pytest.mark.parametrize("arch", architectures(), ids=lambda arch: arch.name)
def test_every_architecture_has_its_own_texts(arch: Architecture) -> None:
    assert introduction(arch)
    for region in regions_of(arch):
        text = explanation_of(region, arch)
        assert text is not None, region.key
        assert not text.definitions or text.sources, region.key
    # What only x86-64 has is in no other introduction.
    assert ("LDT" in introduction(arch)) is (arch is ARCHITECTURE)


def test_what_was_wrong_stays_right() -> None:
    """Common misconceptions, and earlier mistakes in these texts."""
    told = {
        key: " ".join(
            (
                *paragraphs(text.purpose + text.users + text.translation + text.attacker + text.changed),
                *(d.what for d in text.definitions),
            )
        )
        for key in (*(r.key for r in REGIONS), "hole")
        for text in [explanation(key, ARCHITECTURE)]
        if text is not None
    }
    assert "up to 6.8" in told["ldt_remap"] and "The opposite is nearer the truth" in told["ldt_remap"]
    assert "two first places: 1 bit" in told["modules"]
    assert "none after vmemmap" in told["hole"]
    assert "one page below the last permanent slot" in told["fixmap"]
    assert "PCI_P2PDMA" in told["direct_map"] and "else 0" in told["direct_map"]
    assert "guard page after it" in told["vmalloc"]
    assert "LAM_SUP" in told["non_canonical"]
    assert "IDT is a page of the kernel image" in told["cpu_entry_area"]
    introduction = " ".join(explain(None).extra["introduction"])
    assert "at least one level of the page tables lacks the USER bit" in introduction


def test_no_name_means_two_regions() -> None:
    seen: Dict[str, str] = {}
    for key in (*(r.key for r in REGIONS), "hole"):
        text = explanation(key, ARCHITECTURE)
        assert text is not None
        for name in (key, *text.also):
            assert seen.setdefault(name, key) == key, name


def test_names_lead_to_regions() -> None:
    for name, key in (
        ("physmap", "direct_map"),
        ("LDT", "ldt_remap"),
        ("PAGE_OFFSET", "direct_map"),
        ("kernel text", "kernel_image"),
        ("cpu-entry-area", "cpu_entry_area"),
        ("hole", "hole"),
    ):
        (row,) = explain(None, [name]).tables[0].rows
        assert row.key == key


def test_an_address_leads_to_its_region() -> None:
    kernel = kernel_of(Memory(), vmcoreinfo())
    (row,) = explain(kernel, ["fffffe0000001000"]).tables[0].rows
    assert row.key == "cpu_entry_area"
    # Without a kernel, the places of regions are unknown.
    with pytest.raises(UsageError):
        explain(None, ["fffffe0000001000"])


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="no region stack"):
        explain(None, ["stack"])


def test_the_order_asked_for_is_kept() -> None:
    rows = explain(None, ["vsyscall", "user"]).tables[0].rows
    assert [row.key for row in rows] == ["vsyscall", "user"]


def test_text_is_wrapped() -> None:
    for width in (0, 60, 200):
        text = render(explain(None, everything=True), "text", width=width)
        assert max(map(len, text.splitlines())) <= (width if 0 < width < 100 else 100) + 20
    assert "\x1b[" not in text


def test_json_without_a_kernel() -> None:
    document = json.loads(render(explain(None), "json"))
    assert document["schema"] == "kvintro.explain/1"
    assert document["kernel"] is None
    assert {row["key"] for row in document["regions"]} == {*(r.key for r in REGIONS), "hole"}
    assert document["notes"]


def test_what_a_source_does_not_tell_stays_open() -> None:
    """A kernel without symbols and types: the texts are the same, and no value is made up."""
    document = json.loads(render(explain(kernel_of(Memory(), vmcoreinfo()), everything=True), "json"))
    assert document["partial"]
    for row in document["regions"]:
        for definition in row["definitions"]:
            assert definition["here"] is None
    kasan = next(row for row in document["regions"] if row["key"] == "kasan_shadow")
    assert kasan["state"] == "unknown"
    assert kasan["here"][0].startswith("Not known: ")


@generate(st.text())
def test_any_command_line_splits(text: str) -> None:
    for option in split_options(text):
        assert option in text or set("\"'\\") & set(text)


def test_boot_options_by_name() -> None:
    found = split_options('quiet no-kaslr nokaslr debug_pagealloc=on init="/sbin/init -x" mem=1G memmap=2G')
    assert given(found, "nokaslr") == ["nokaslr"]
    assert given(found, "no_kaslr") == ["no-kaslr"]
    assert given(found, "debug-pagealloc=") == ["debug_pagealloc=on"]
    assert given(found, "mem=") == ["mem=1G"]
    assert given(found, "init=") == ["init=/sbin/init -x"]
    assert given(found, "nopti") == []


@pytest.mark.parametrize("masked", ["/dev/null", "an empty file", "none at all", "what is readable"])
def test_the_texts_are_there_where_the_kernel_cannot_be_read(
    masked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, /proc/kcore exists and is readable, but empty."""
    path = tmp_path / "kcore"
    if masked in ("an empty file", "what is readable"):
        path.write_bytes(b"\x7fELF" if masked == "what is readable" else b"")
    opened = open

    def instead(name: Any, *rest: Any, **more: Any) -> Any:
        place = masked if masked.startswith("/") else path
        return opened(place if name == "/proc/kcore" else name, *rest, **more)

    monkeypatch.setattr("builtins.open", instead)
    args = parse(["explain", "vmalloc"])
    assert load_command("explain").needs_source(args) is (masked == "what is readable")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``diff`` of real kernels: equal parts are reported as equal, and differences match the truth of both."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set

import pytest

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.cli import main
from kvintro.errors import NotADump
from kvintro.kernels import Kernel
from kvintro.model import Report
from kvintro.queries.audit import checks_of
from kvintro.render import render
from kvintro.reports.diff import PARTS, RegionFacts, Side, diff, side_of_json, side_of_kernel
from kvintro.reports.layout import layout
from kvintro.reports.report import full
from tests.conftest import VMCORES, Core, _open

SAMPLES = [Core(meta.parent) for meta in sorted(VMCORES.glob("*/meta.json"))]
SHIPPED = [core for core in SAMPLES if core.architecture == "amd64"]


def side(core: Core) -> Side:
    return side_of_kernel(_open(core.path), core.name)


def configuration(core: Core) -> Set[str]:
    """Options that are on in the kernel's configuration."""
    return {f"CONFIG_{name}" for name, value in core.config.items() if value == "y"}


def kinds(report: Report) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for row in report.tables[0].rows:
        found.setdefault(row.kind, []).append(row.text)
    return found


def test_a_kernel_and_itself(kernel: Kernel) -> None:
    one, two = side_of_kernel(kernel, "A"), side_of_kernel(kernel, "B")
    report = diff(one, two)
    moved = any(facts.slide for facts in one.regions.values())
    # The only finding is that both are of the same boot.
    assert list(kinds(report)) == (["same"] if moved else [])
    complete = not kernel.code_only
    assert report.extra["same"] is (True if complete else None)
    assert report.partial is not complete
    text = render(report, "text")
    assert ("nothing differs in what could be compared" if report.partial else "nothing differs\n") in text
    assert all(not table.rows for table in report.tables[1:])
    if complete:
        assert report.extra["not_compared"] == []
        assert all(report.extra["compared"].values())
        assert set(report.extra["compared"]) == {"regions", *(part.name for part in PARTS.values())}


def test_a_saved_report_is_as_good_as_the_dump(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_text(render(full(kernel), "json"))
    saved, fresh = side_of_json(str(path)), side_of_kernel(kernel, "B")
    for field in ("regions", "rights", "callers", "modules", "types", "rules", "options", "config"):
        assert getattr(saved, field) == getattr(fresh, field), field
    assert not set(kinds(diff(saved, fresh))) - {"same"}


def test_a_saved_layout(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_text(render(layout(kernel), "json"))
    report = diff(side_of_json(str(path)), side_of_kernel(kernel, "B"))
    assert not set(kinds(report)) - {"same"}
    assert any("only has regions" in note for note in report.notes)
    assert list(report.extra["compared"]) == ["regions"]


def test_a_layout_that_an_older_version_saved(kernel: Kernel, tmp_path: Path) -> None:
    now, before = tmp_path / "now.json", tmp_path / "before.json"
    document = json.loads(render(layout(kernel), "json"))
    now.write_text(json.dumps(document))
    for name in ("isolation", "paging", "page_size"):
        del document["kernel"][name]
    before.write_text(json.dumps(document))
    one, two = (diff(side_of_json(str(path)), side_of_kernel(kernel, "B")) for path in (now, before))
    assert one.extra["not_compared"] == two.extra["not_compared"]
    assert one.tables == two.tables


# a part that one side does not have is not equal


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["missing", "incomplete"])
def test_a_part_that_is_not_known(part: str, how: str) -> None:
    """A part that is unknown on one or both sides is never reported as equal."""
    whole = side(SHIPPED[0])
    change: Dict[str, Any] = {how: {part: "it was not there"}}
    if how == "missing":
        change[part] = None
    less = dataclasses.replace(whole, **change)
    for one, two, where in ((whole, less, "B"), (less, whole, "A"), (less, less, "A and B")):
        report = diff(one, two)
        assert report.extra["same"] is None and report.partial
        (lack,) = report.extra["not_compared"]
        assert lack.startswith(PARTS[part].name) and lack.endswith(f"it was not there (in {where})")
        if how == "missing":
            assert PARTS[part].name not in report.extra["compared"]


@pytest.mark.parametrize("key", ["release", "build_id", "paging_levels", "kaslr", "isolation"])
def test_an_identity_that_is_not_known(key: str) -> None:
    whole = side(SHIPPED[0])
    less = dataclasses.replace(whole, identity={**whole.identity, key: None})
    for one, two in ((whole, less), (less, whole), (less, less)):
        report = diff(one, two)
        assert report.extra["same"] is not True and report.partial, key


def test_every_field_of_a_side_is_compared_or_missed() -> None:
    """These tests must also remove each new field of :class:`Side`."""
    told = {"label", "identity", "regions", "missing", "incomplete", "saved_layout", *PARTS}
    assert {field.name for field in dataclasses.fields(Side)} == told


def test_a_region_that_is_not_known() -> None:
    whole = side(SHIPPED[0])
    for key, facts in whole.regions.items():
        unknown = RegionFacts(facts.key, facts.name, "unknown", reason="its bounds cannot be read")
        unread = dataclasses.replace(facts, mapped=None, reason="page tables of 4 KB are not in this source")
        for changed in (unknown, unread) if facts.state == "present" else (unknown,):
            less = dataclasses.replace(whole, regions={**whole.regions, key: changed})
            for one, two in ((whole, less), (less, whole), (less, less)):
                report = diff(one, two)
                assert report.extra["same"] is not True and report.partial, key
                assert any(lack.startswith(facts.name) for lack in report.extra["not_compared"]), key


def test_what_only_one_has_is_no_difference_where_the_other_is_incomplete() -> None:
    whole = side(SHIPPED[0])
    assert whole.modules
    gone = dict(whole.modules)
    name, _ = gone.popitem()
    less = dataclasses.replace(whole, modules=gone, incomplete={"modules": "the list is damaged"})
    for one, two in ((whole, less), (less, whole)):
        assert "module" not in kinds(diff(one, two))
    complete = dataclasses.replace(less, incomplete={})
    assert kinds(diff(whole, complete))["module"] == [f"only in A: {name}"]


@pytest.mark.parametrize("rule", [rule.key for rule in checks_of(ARCHITECTURE)])
def test_a_rule_that_is_unknown_is_not_compared(rule: str) -> None:
    whole = side(SHIPPED[0])
    assert whole.rules
    less = dataclasses.replace(whole, rules={**whole.rules, rule: ("unknown", "a rule")})
    report = diff(whole, less)
    assert report.extra["same"] is None
    assert report.extra["not_compared"] == ["rule: a rule: unknown (in B)"]


@pytest.mark.parametrize(
    ("types", "flags", "code"), [("auto", (), 0), ("none", (), 4), ("none", ("--exit-code",), 4)]
)
def test_exit_status(types: str, flags: Sequence[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SHIPPED[0].path)
    assert main(["--types", types, "diff", path, path, *flags]) == code
    out = capsys.readouterr().out
    assert ("not compared" in out or "differs in what could be compared" in out) is (code == 4)


def test_exit_status_of_a_difference_that_was_found() -> None:
    """A difference is an answer, even if other parts could not be compared."""
    one, two = (str(core.path) for core in SHIPPED[:2])
    assert main(["--types", "none", "diff", one, two, "--exit-code"]) == 1
    assert main(["--types", "none", "diff", one, two]) == 4


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(SHIPPED, 2)), ids=lambda core: core.name)
def test_two_kernels(a: Core, b: Core) -> None:
    one, two = side(a), side(b)
    report = diff(one, two)
    found = kinds(report)
    releases = {core.truth("release").strip() for core in (a, b)}
    assert ("kernel" in found) == (len(releases) == 2)
    for key, name in (("kaslr", "KASLR is"), ("pti", "page-table isolation is"), ("levels", "paging has")):
        said = any(text.startswith(name) for text in found.get("setting", ()))
        assert said == (a.meta[key] != b.meta[key]), key
    options = [set(core.truth("cmdline").split()) for core in (a, b)]
    said_options = {t.split()[2] for t in found.get("setting", ()) if t.startswith("boot option")}
    assert said_options == options[0] ^ options[1]
    built = [configuration(core) for core in (a, b)]
    said_config = {t.split()[0]: t.split()[-1] for t in found.get("setting", ()) if t.startswith("CONFIG_")}
    for name, where in said_config.items():
        assert (name in built[0], name in built[1]) == (where == "A", where == "B"), name
    for name in ("CONFIG_KASAN", "CONFIG_X86_ESPFIX64", "CONFIG_XEN_PV"):
        assert (name in said_config) == ((name in built[0]) != (name in built[1])), name
    modules = [{line.split()[0] for line in core.truth("modules").splitlines()} for core in (a, b)]
    only = [t for t in found.get("module", ()) if t.startswith("only in")]
    for name in modules[0] ^ modules[1]:
        assert any(name in text for text in only), name
    # With the sides exchanged, the same things differ.
    other = diff(two, one)
    assert {k: len(v) for k, v in kinds(other).items()} == {k: len(v) for k, v in found.items()}


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(SHIPPED, 2)), ids=lambda core: core.name)
def test_tables_add_up(a: Core, b: Core) -> None:
    one, two = side(a), side(b)
    report = diff(one, two, everything=True)
    tables: Dict[str, Any] = {table.key: table.rows for table in report.tables}
    assert {row.key for row in tables["regions"]} == {*one.regions, *two.regions}
    for key in ("vmalloc", "modules", "types", "rights"):
        for row in tables[key]:
            assert row.change == (row.b or 0) - (row.a or 0)
    frames = [sum(s.types.values()) << 12 for s in (one, two) if s.types]
    assert [sum(r.a or 0 for r in tables["types"]), sum(r.b or 0 for r in tables["types"])] == frames
    for form in ("text", "json", "csv", "html"):
        assert render(report, form)


def test_a_region_that_comes_and_goes() -> None:
    one = side(SHIPPED[0])
    some = next(facts for facts in one.regions.values() if facts.state == "present" and facts.mapped)
    gone = dataclasses.replace(
        some, state="absent", start=None, base=None, mapped=None, size=None, reason="why"
    )
    two = dataclasses.replace(one, regions={**one.regions, some.key: gone})
    assert f"{some.name} is only in A; in B why" in kinds(diff(one, two))["presence"]
    assert f"{some.name} is only in B; in A why" in kinds(diff(two, one))["presence"]


def test_more_rights_are_told() -> None:
    one = side(SHIPPED[0])
    assert one.rights is not None
    key = next(iter(one.rights))
    two = dataclasses.replace(one, rights={**one.rights, (key[0], "4K", "rwx", "WB"): 8192})
    assert kinds(diff(one, two))["rights"] == [f"{key[0]}: rwx only in B (8 KB)"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{",
        "[]",
        '{"schema": "kvintro.pages/1"}',
        '{"schema": "kvintro.layout/1"}',
        '{"schema": "kvintro.layout/1", "kernel": [], "regions": 3}',
        '{"schema": "kvintro.layout/1", "kernel": {}, "regions": [{"key": 1}]}',
        '{"schema": "kvintro.report/1", "kernel": {}, "sections": [{"key": "layout", "report": null}]}',
        "[" * 100000,
        '{"a":' * 100000,
    ],
)
def test_files_that_are_nothing_of_the_kind(text: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    path.write_text(text)
    with pytest.raises(NotADump):
        side_of_json(str(path))


def test_json(kernel: Kernel) -> None:
    one = side_of_kernel(kernel, "A")
    document = json.loads(render(diff(one, one), "json"))
    assert document["schema"] == "kvintro.diff/1"
    assert document["a"] == document["b"]
    assert document["kernel"] is None

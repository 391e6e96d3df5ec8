# SPDX-License-Identifier: LGPL-2.1-or-later
"""``diff`` of kernels of two architectures reports the difference, and compares the parts that both have."""

from __future__ import annotations

from typing import Dict, List, Set

import pytest

from kvintro.cli import main
from kvintro.regions import regions_of
from kvintro.reports.diff import Side, diff, side_of_kernel
from tests.conftest import VMCORES, Core, _open

ARCHITECTURES = ("arm64",)
SHIPPED_ONLY = ("arm64",)

OTHER = Core(VMCORES / "debian-6.12")


@pytest.fixture(scope="module")
def sides(core: Core) -> List[Side]:
    return [side_of_kernel(_open(one.path), one.name) for one in (OTHER, core)]


def names(core: Core, file: str) -> Set[str]:
    """The first words of the lines of a file."""
    return {line.split()[0] for line in core.truth(file).splitlines() if line.strip()}


def test_findings(core: Core, sides: List[Side]) -> None:
    one, two = sides
    for report in (diff(one, two), diff(two, one)):
        found: Dict[str, List[str]] = {}
        for row in report.tables[0].rows:
            found.setdefault(row.kind, []).append(row.text)
        assert "x86-64" in found["kernel"][0] and "aarch64" in found["kernel"][0]
        # Constants that differ between architectures are not reported.
        assert not {"base", "size"} & set(found)
        # KASAN's shadow is there by an option.
        kasan = "KASAN" in core.config
        assert [text.split(" is only")[0] for text in found.get("presence", ())] == ["KASAN shadow"] * kasan
        only = names(OTHER, "modules") ^ names(core, "modules")
        said = " ".join(text for text in found.get("module", ()) if text.startswith("only in"))
        assert {name for name in only if name in said.replace(",", " ").replace(":", " ").split()} == only
        assert report.extra["same"] is False
        if any(lack.startswith("boot options: ") for lack in report.extra["not_compared"]):
            assert _open(core.path).code_only
            continue
        options = set(OTHER.truth("cmdline").split()) ^ set(core.truth("cmdline").split())
        said_options = {t.split()[2] for t in found["setting"] if t.startswith("boot option")}
        assert said_options == options


def test_regions_of_one_architecture_are_not_missing(core: Core, sides: List[Side]) -> None:
    report = diff(*sides, everything=True)
    keys = [{r.key for r in regions_of(one.arch) if r.kind == "region"} for one in (OTHER, core)]
    assert keys[0] != keys[1]
    rows = {row.key: row for row in next(t.rows for t in report.tables if t.key == "regions")}
    assert (keys[0] | keys[1]) - set(rows) <= {"non_canonical"}
    for key in keys[0] - keys[1]:
        assert rows[key].b_start is None
    lacking = [lack for lack in report.extra["not_compared"] if "does not have it" in lack]
    assert not lacking
    assert report.extra["compared"]["rules"] > 10


def test_from_the_command_line(core: Core, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(OTHER.path), str(core.path), "--exit-code"]) == 1
    assert "different architectures: x86-64 and aarch64" in capsys.readouterr().out

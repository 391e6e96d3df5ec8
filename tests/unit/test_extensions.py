# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packages that add to kvintro: the example, broken ones, and root, which does not load any."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.conftest import ROOT

CORE = ROOT / "vmcores" / "debian-6.12" / "core.kdump"
EXAMPLE = ROOT / "examples" / "kvintro-example"
# Tests may run as root, and a root process does not look for packages unless isolation is patched.
_RUN = """
import sys
sys.path.append({site!r})
from kvintro import isolation
if {ordinary}:
    isolation.may_more_than_its_user = lambda: False
from kvintro.cli import main
sys.exit(main({words!r}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory in which the example is installed, as pip installs it."""
    shutil.copytree(EXAMPLE / "kvintro_example", tmp_path / "kvintro_example")
    text = (EXAMPLE / "pyproject.toml").read_text()
    points = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = ".*"\n)+)', text)
    assert len(points) == 4
    _installed(
        tmp_path,
        "kvintro-example",
        "".join(f"[{group}]\n{lines.replace(chr(34), '')}\n" for group, lines in points),
    )
    return tmp_path


def _installed(site: Path, name: str, entry_points: str) -> None:
    info = site / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entry_points)


def _kvintro(site: Path, *words: str, ordinary: bool = True) -> Tuple[int, str, List[str]]:
    """The exit status, standard output, and the lines of standard error."""
    if not CORE.exists():
        pytest.skip("the sample dump is not there")
    code = _RUN.format(site=str(site), words=["-c", str(CORE), *words], ordinary=ordinary)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_the_example_adds_all_four(site: Path) -> None:
    status, text, said = _kvintro(site, "hello", "--name", "tester")
    assert (status, said) == (0, [])
    assert "Hello" in text and "tester" in text and "6.12" in text
    status, text, said = _kvintro(site, "hello", "--json")
    assert json.loads(text)["greetings"][0]["name"] == "world"
    status, text, said = _kvintro(site, "layout", "--json")
    assert (status, said) == (0, [])
    regions = [row for row in json.loads(text)["regions"] if row["start"] is not None]
    last = regions[-1]
    assert (last["key"], last["start"], last["end"]) == (
        "error_pointers",
        "0xfffffffffffff001",
        "0xffffffffffffffff",
    )
    # The rows still cover all addresses exactly once.
    assert int(regions[-2]["end"], 16) + 1 == int(last["start"], 16)
    status, text, said = _kvintro(site, "--format", "markdown", "kaslr")
    assert (status, said) == (0, []) and text.startswith("| ") and "|---|" in text
    status, text, said = _kvintro(site, "--help")
    assert status == 0 and "hello" in text


def test_the_example_s_check_is_applied(site: Path) -> None:
    _, text, said = _kvintro(site, "check", "--json")
    assert said == []
    (rule,) = [row for row in json.loads(text)["checks"] if row["key"] == "even_levels"]
    assert rule["state"] == "ok"


def test_what_cannot_be_used_is_one_line(site: Path) -> None:
    (site / "kvintro_broken.py").write_text(
        "class Old:\n    interface = 0\n    help = configure = run = print\nclass Half:\n    interface = 1\n"
    )
    (site / "kvintro_raises.py").write_text("raise RuntimeError('no \\x1b[31mway')\n")
    points = {
        "gone": "kvintro_not_there:THING",
        "half": "kvintro_broken:Half",
        "layout": "kvintro_broken:Half",
        "old": "kvintro_broken:Old",
        "raises": "kvintro_raises:THING",
    }
    lines = "".join(f"{name} = {where}\n" for name, where in points.items())
    _installed(site, "kvintro-broken", f"[kvintro.commands]\n{lines}")
    status, text, said = _kvintro(site, "hello")
    assert status == 0 and "Hello" in text
    assert sorted(said) == [
        "kvintro: the command gone of kvintro-broken is ignored: No module named 'kvintro_not_there'",
        "kvintro: the command half of kvintro-broken is ignored: it has no help, configure, run",
        "kvintro: the command layout of kvintro-broken is ignored: the name is taken",
        "kvintro: the command old of kvintro-broken is ignored: it is written for version 0 of the "
        "interface and kvintro has version 1",
        "kvintro: the command raises of kvintro-broken is ignored: no \\x1b[31mway",
    ]
    assert _kvintro(site, "layout")[2] == [], "commands are not looked for where kvintro's own is named"


def test_an_error_names_the_package_that_has_it(site: Path) -> None:
    (site / "kvintro_fails.py").write_text(
        "class Fails:\n"
        "    interface, help = 1, 'fails'\n"
        "    def configure(self, parser): pass\n"
        "    def run(self, kernel, args): return 1 / 0\n"
        "THING = Fails()\n"
    )
    _installed(site, "kvintro-fails", "[kvintro.commands]\nfails = kvintro_fails:THING")
    assert _kvintro(site, "fails") == (
        3,
        "",
        [
            "kvintro: error in kvintro-fails: ZeroDivisionError('division by zero')",
            "  hint: --debug for the traceback, and please report it to that package's authors",
        ],
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="this is about root's process")
def test_root_does_not_look(site: Path) -> None:
    (site / "kvintro_example" / "__init__.py").write_text("open('/dev/full', 'w').write('imported')")
    status, _, said = _kvintro(site, "hello", ordinary=False)
    assert status == 2 and "no command hello" in said[0]
    _, text, said = _kvintro(site, "layout", ordinary=False)
    assert said == [] and "ffffffffffff001" not in text

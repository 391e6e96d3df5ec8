# SPDX-License-Identifier: LGPL-2.1-or-later
"""The examples in the documentation are what the commands print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "<!-- output -->" in path.read_text()
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_examples_are_up_to_date(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "gen_docs.py", "--check", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"run make docs: {run.stdout}{run.stderr}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_examples_worked(path: Path) -> None:
    """No example shows an error, unless the text above it announces one."""
    for block in re.findall(r"<!-- output -->\n```\w*\n(.*?)^```", path.read_text(), re.S | re.M):
        assert "internal error" not in block
        assert "\nkvintro: " not in block, block.split("\n")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target

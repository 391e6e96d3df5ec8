# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long text on a terminal goes through a pager, and nothing else does."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

LONG = ["explain", "--all", "--color", "never"]
SHORT = ["pte", "0"]


@pytest.fixture()
def pager(tmp_path: Path) -> Path:
    """A pager that prints a mark."""
    script = tmp_path / "pager"
    script.write_text('#!/bin/sh\necho "secure=$LESSSECURE"\nhead -n 3\n')
    script.chmod(0o755)
    return script


def on_a_terminal(arguments: "list[str]", keys: bytes = b"", **environment: str) -> Tuple[int, str]:
    """Exit status, and the output on a terminal of 24 lines."""
    leader, follower = pty.openpty()
    clean: Dict[str, str] = {
        k: v for k, v in os.environ.items() if k not in ("PAGER", "KVINTRO_PAGER", "LESS")
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "kvintro", *arguments],
        stdout=follower,
        stderr=follower,
        # less reads its keys from its controlling terminal.
        start_new_session=True,
        env={**clean, "LINES": "24", "COLUMNS": "100", "TERM": "dumb", **environment},
    )
    os.close(follower)
    os.write(leader, keys)
    shown = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(), shown.decode()


not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root gets no pager of a variable's choice")


@not_root
def test_long_text_is_paged(pager: Path) -> None:
    status, shown = on_a_terminal(LONG, PAGER=str(pager))
    assert status == 0
    assert "secure=1" in shown
    assert shown.count("\n") <= 5


@not_root
def test_the_own_variable_comes_first(pager: Path) -> None:
    assert "secure=1" in on_a_terminal(LONG, PAGER="false", KVINTRO_PAGER=str(pager))[1]


def test_what_is_not_paged(pager: Path) -> None:
    cases: List[Tuple[List[str], Dict[str, str]]] = [
        (SHORT, {"PAGER": str(pager)}),
        ([*LONG, "--no-pager"], {"PAGER": str(pager)}),
        ([*LONG, "--json"], {"PAGER": str(pager)}),
        (LONG, {"PAGER": "cat"}) if os.geteuid() else (SHORT, {}),
        (LONG, {"PAGER": "/nonexistent/pager"}) if os.geteuid() else (SHORT, {}),
    ]
    for arguments, environment in cases:
        status, shown = on_a_terminal(arguments, b"", **environment)
        assert status == 0
        assert "secure=" not in shown
        if arguments[0] == "explain":
            assert shown.count("\n") > 100


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is kept from other pagers")
def test_root_runs_no_pager_of_a_variables_choice(pager: Path) -> None:
    if shutil.which("less") is None:
        pytest.skip("less is missing")
    status, shown = on_a_terminal(LONG, b"q", PAGER=str(pager), KVINTRO_PAGER=str(pager))
    assert status == 0
    assert "secure=" not in shown


def test_a_pipe_is_not_paged(pager: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "kvintro", *LONG],
        capture_output=True,
        text=True,
        env={**os.environ, "PAGER": str(pager)},
        check=True,
    )
    assert "secure=" not in run.stdout
    assert run.stdout.count("\n") > 100

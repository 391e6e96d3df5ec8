# SPDX-License-Identifier: LGPL-2.1-or-later
"""If a right is missing, the error ends with a command to type, which works from a virtual environment."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from kvintro import isolation
from kvintro.cli import main
from kvintro.source import live
from tests.conftest import ROOT, VMCORES

SCRIPT = Path(sys.executable).parent / "kvintro"
#: The search path of sudo and cron.
BARE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user who may read neither /proc/kcore nor any dump."""
    opened, low = open, os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> Any:
        if path == live.KCORE:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *rest, **more)

    def refuse_low(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if not flags & os.O_PATH and str(path).startswith("/proc/self/fd/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return low(path, flags, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "open", refuse_low)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    # This process keeps its capabilities, because other tests need them.
    monkeypatch.setattr(isolation, "may_more_than_its_user", lambda: False)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    monkeypatch.delenv("KVINTRO_CORE", raising=False)


def _last_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> List[str]:
    assert main(arguments) == 3
    return shlex.split(capsys.readouterr().err.splitlines()[-1])


@pytest.mark.usefixtures("refused")
def test_the_running_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert _last_line(capsys, "layout", "--csv") == [str(SCRIPT), "--sudo", "layout", "--csv"]


@pytest.mark.usefixtures("refused")
def test_a_dump_of_root(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dump = tmp_path / "a dump's name"
    dump.symlink_to(VMCORES / "debian-6.12/core.kdump")
    expected = ["sudo", str(SCRIPT), "-c", str(dump), "kaslr"]
    assert _last_line(capsys, "-c", str(dump), "kaslr") == expected
    monkeypatch.setenv("KVINTRO_CORE", str(dump))
    assert _last_line(capsys, "kaslr") == expected, "sudo clears the environment"
    # Under sudo, both sides of diff are opened as the user, and so is the file of -s.
    assert _last_line(capsys, "diff", str(dump), str(dump))[0] != "sudo"
    # The command after sudo works in another directory, and with sudo's search path.
    run = subprocess.run(expected[1:], cwd="/", env=BARE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.usefixtures("refused")
def test_python_m(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "kvintro/__main__.py")])
    assert _last_line(capsys, "layout") == [sys.executable, "-m", "kvintro", "--sudo", "layout"]
    dump = str(VMCORES / "debian-6.12/core.kdump")
    words = _last_line(capsys, "-c", dump, "kaslr")
    assert words == ["sudo", sys.executable, "-I", "-m", "kvintro", "-c", dump, "kaslr"]
    run = subprocess.run(words[1:], cwd="/", env=BARE, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.usefixtures("refused")
def test_root_is_not_told_to_become_root(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "0")
    assert main(["-c", str(VMCORES / "debian-6.12/core.kdump"), "--keep-root", "kaslr"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 2

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Progress bars: on a terminal, for work of more than a second, and without traces afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import List, Tuple

import pytest

from tests.conftest import VMCORES

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

CORE = str(VMCORES / "debian-6.12" / "core.kdump")

# Wait for bars instead of sleeping, because the delay of a timer depends on the machine.
ITEMS = """
import sys, time
from kvintro import commands
commands._DELAY = {delay}
bars = []
enter = commands.Bar.__enter__
commands.Bar.__enter__ = lambda bar: bars.append(bar) or enter(bar)
for item in commands.watched(["one", "two", "three"], "part"):
    while {wait} and bars[0]._bar is None:
        time.sleep(0.01)
    {then}
"""

# The bar appears at once, and the test waits for it: the command must show one.
AT_ONCE = """
import sys, time
from kvintro import cli, commands
commands._DELAY = 0
enter = commands.Bar.__enter__
def enter_and_wait(bar):
    enter(bar)
    while sys.stderr.isatty() and bar._bar is None:
        time.sleep(0.01)
    return bar
commands.Bar.__enter__ = enter_and_wait
sys.exit(cli.main(sys.argv[1:]))
"""


def on_a_terminal(code: str, *arguments: str, columns: int = 60) -> Tuple[int, List[Tuple[float, str]]]:
    """Exit status, and the writes to standard error with the seconds since the start."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    written = []
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:
            break
        if not part:
            break
        written.append((time.monotonic() - started, part.decode()))
    os.close(leader)
    return process.wait(), written


def screen(text: str, columns: int = 60) -> Tuple[str, int, int]:
    """The last line on a terminal, the column of its cursor, and the longest line so far."""
    line = [" "] * columns
    column = longest = 0
    for character in text:
        if character == "\r":
            column = 0
        elif character == "\n":
            line = [" "] * columns
        else:
            assert character.isprintable(), repr(character)
            if column < columns:
                line[column] = character
            column += 1
            longest = max(longest, column)
    return "".join(line).rstrip(), column, longest


@pytest.mark.parametrize("columns", [60, 20, 0], ids=lambda columns: f"{columns} columns")
def test_what_takes_long_has_a_bar_that_goes_away(columns: int) -> None:
    code, written = on_a_terminal(ITEMS.format(delay=1, wait=True, then=""), columns=columns)
    assert code == 0
    assert written[0][0] >= 1
    text = "".join(part for _, part in written)
    if columns != 20:
        assert "three" in text and "2/3 parts" in text
    # A serial console reports 0 columns; these have 80.
    last, column, longest = screen(text, columns or 80)
    assert (last, column) == ("", 0)
    assert 0 < longest < (columns or 80)


def test_what_is_quick_has_none() -> None:
    assert on_a_terminal(ITEMS.format(delay=3600, wait=False, then="")) == (0, [])


def test_an_error_comes_behind_it() -> None:
    """An error during a bar is on a separate line."""
    code, written = on_a_terminal(ITEMS.format(delay=0.1, wait=True, then="raise SystemExit('it broke')"))
    assert code == 1
    text = "".join(part for _, part in written)
    assert "0/3 parts" in text
    shown = text.replace("\r\n", "\n").rstrip("\n")
    assert "\n" not in shown
    assert screen(shown)[0] == "it broke"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-c", CORE, "pages"], id="pages"),
        pytest.param(["-c", CORE, "check"], id="check"),
        pytest.param(["-c", CORE, "report"], id="report"),
        pytest.param(["diff", CORE, CORE], id="diff"),
    ],
)
def test_commands(arguments: List[str]) -> None:
    code, written = on_a_terminal(AT_ONCE, *arguments)
    text = "".join(part for _, part in written)
    assert code == 0, text
    assert "%|" in text
    last, column, longest = screen(text)
    assert (last, column) == ("", 0)
    assert longest < 60


def test_searching_memory(tmp_path: Path) -> None:
    """The search of memory without a note for VMCOREINFO has a bar."""
    path = tmp_path / "memory.raw"
    path.write_bytes(b"\x01" * (12 << 20))
    code, written = on_a_terminal(AT_ONCE, "-c", str(path), "info", columns=200)
    assert code == 3
    text = "".join(part for _, part in written).replace("\r\n", "\n")
    assert "looking for VMCOREINFO" in text
    shown, _, remedy = text.partition("\n")
    last, _, _ = screen(shown, 200)
    assert last.startswith(f"kvintro: {path} is not a kernel dump: ")
    assert remedy.startswith("  hint: ")


def test_none_where_no_one_looks() -> None:
    for command in ("check", "pages"):
        words = [sys.executable, "-c", AT_ONCE, "-c", CORE, command]
        assert subprocess.run(words, capture_output=True, check=True).stderr == b""

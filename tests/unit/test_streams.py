# SPDX-License-Identifier: LGPL-2.1-or-later
"""Standard streams without Unicode, and closed ones."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from functools import cache
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

import kvintro
from kvintro import streams
from tests.conftest import ROOT
from tests.hostile import assert_inert

SAMPLE = ROOT / "vmcores/debian-6.12/core.kdump"
#: Environments for a terminal without Unicode.
NARROW: Dict[str, Dict[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "latin": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
}
LINES = ["layout", "layout --map", "kaslr", "pages", "pages --color always", "layout --format svg"]
LINES += ["layout --format html", "explain", "layout --csv", "shell -e %kvintro\u2003layout\u2003--map"]


def run(line: str, *, shell: str = "", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """The command line on a sample; ``shell`` is appended to it."""
    words = [sys.executable, "-m", "kvintro", "-c", str(SAMPLE)]
    words += [word.replace("\u2003", " ") for word in line.split(" ")]
    if shell:
        words = ["bash", "-c", f'"$0" "$@" {shell}', *words]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        words, capture_output=True, check=False, env={**clean, "COLUMNS": "100", **environment}
    )


@cache
def wide(line: str) -> str:
    """The output on a terminal with Unicode."""
    return run(line, LC_ALL="C.UTF-8").stdout.decode()


@pytest.mark.parametrize("how", NARROW)
@pytest.mark.xdist_group("narrow")
def test_a_narrow_encoding_is_no_error(how: str) -> None:
    for line in LINES if how == "ascii" else LINES[:3]:
        found = run(line, **NARROW[how])
        assert found.returncode == 0, found.stderr
        assert found.stderr == b""
        encoding = "latin-1" if how == "latin" else "ascii"
        shown = found.stdout.decode(encoding)
        if "svg" in line or "html" in line:
            assert found.stdout.isascii()  # which every encoding has
            continue
        # The same number of columns on every line, as a drawing requires.
        assert [len(text) for text in shown.split("\n")] == [len(text) for text in wide(line).split("\n")]
        assert "\\u" not in shown


def test_files_are_utf8(tmp_path: Path) -> None:
    target = tmp_path / "map"
    assert run(f"layout --map -o {target}", LC_ALL="C").returncode == 0
    assert "┌" in target.read_text(encoding="utf-8")


def test_every_character_of_ours_has_a_fallback() -> None:
    for path in Path(kvintro.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        escaped = [chr(int(digits, 16)) for digits in re.findall(r"\\u([0-9a-f]{4})", text)]
        for char in {c for c in (*text, *escaped) if c > "\x7f" and c.isprintable()}:
            if path.name not in ("text.py", "csv.py"):  # they search for these characters
                assert char in streams._ASCII, f"{path}: {char}"
    assert all(len(char) == 1 and char.isascii() for char in streams._ASCII.values())


def test_the_fallback() -> None:
    def ascii_of(text: str) -> str:
        return text.encode("ascii", "kvintro").decode()

    assert ascii_of("├──┤ ≥ 12 ≤ 3 · é…") == "+--+ >=12 <=3 . \\xe9~"
    assert ascii_of("≥≥ x") == ">>=x"
    assert "≥ é".encode("latin-1", "kvintro") == b">=\xe9"


def test_a_pager_gets_what_the_terminal_takes(tmp_path: Path) -> None:
    from tests.unit.test_pager import on_a_terminal

    if os.geteuid() == 0:
        pytest.skip("root gets no pager of a variable's choice")
    script = tmp_path / "pager"
    script.write_text("#!/bin/sh\nexec cat\n")
    script.chmod(0o755)
    status, shown = on_a_terminal(
        ["-c", str(SAMPLE), "layout", "--map"], PAGER=str(script), PYTHONIOENCODING="ascii"
    )
    assert status == 0
    assert shown.isascii()


CLOSED: List[Tuple[str, str, int, str]] = [
    ("layout", ">&-", 3, "standard output is closed"),
    ("layout", ">&- <&-", 3, "standard output is closed"),
    ("layout", ">&- 2>&-", 3, ""),
    ("ptdump", ">&-", 3, "standard output is closed"),
    ("report", ">&-", 3, "standard output is closed"),
    ("shell -e 1", ">&-", 3, "standard output is closed"),
    ("--help", ">&-", 3, "standard output is closed"),
    ("layout", "2>&-", 0, ""),
    ("layout", "<&-", 0, ""),
    ("identify -", "<&-", 2, "standard input is closed"),
    ("translate -", "<&-", 2, "standard input is closed"),
    ("-c - info", "<&-", 3, "standard input is closed"),
    ("shell", "<&-", 2, "standard input is closed"),
    ("nonsense", "2>&-", 2, ""),
    ("nonsense", "2>/dev/full", 2, ""),
    ("--help", ">/dev/full", 3, "standard output: No space left on device"),
    ("layout", ">/dev/full", 3, "standard output: No space left on device"),
    ("layout", "1</dev/null", 3, "standard output: Bad file descriptor"),
]


@pytest.mark.parametrize(("line", "shell", "code", "said"), CLOSED, ids=str)
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "PYTHONUNBUFFERED"])
def test_closed_streams(line: str, shell: str, code: int, said: str, buffered: str) -> None:
    found = run(line, shell=shell, PYTHONUNBUFFERED=buffered)
    lines = found.stderr.decode().splitlines()
    assert found.returncode == code, lines
    assert len(lines) == (2 if said else 0), lines
    assert said in "\n".join(lines)
    if "2>" in shell and code:
        assert found.stdout == b""


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_file_needs_no_streams(shell: str, tmp_path: Path) -> None:
    target = tmp_path / "file"
    found = run(f"--json layout -o {target}", shell=shell)
    assert (found.returncode, found.stderr) == (0, b"")
    assert target.read_bytes() == run("--json layout").stdout


def test_nothing_is_written_to_a_file_that_took_a_stream_s_number() -> None:
    """A file that is opened while 0, 1 and 2 are closed would get one of these numbers."""
    program = "from kvintro import streams; streams.prepare(); print(open('/dev/null').fileno())"
    found = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" 2>&- <&-', sys.executable, program], capture_output=True, check=True
    )
    assert int(found.stdout) > 2


def test_progress_on_a_terminal_without_unicode() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = (
        "from kvintro import commands, streams; streams.prepare()\n"
        "bar = commands.Bar(2, 'part'); bar.at('a\\x1b[2J\\u202e'); bar._show(); bar.at('b\\x1b[2J')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=follower, env={**os.environ, "LC_ALL": "C"}
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        os.close(leader)
    assert process.returncode == 0
    assert b"a\\x1b[2J\\u202e" in shown
    assert b"b\\x1b[2J" in shown
    assert shown.isascii()
    assert b"\x1b[2J" not in shown


EVIL = "a\x1b]52;c;ZXZpbA==\x07\u202e\u05d0\u0301"


@pytest.mark.parametrize(
    "words",
    [
        ["shell", "-e", f"raise ValueError({EVIL!r})"],
        ["shell", "-e", f"raise kernel.__globals__['UsageError']({EVIL!r})"],
        ["shell", "-e", f"import logging; logging.getLogger('drgn').error({EVIL!r})"],
        ["shell", "-e", f"%kvintro identify '{EVIL}'"],
        ["identify", EVIL],
        ["layout", "-o", f"/nowhere/{EVIL}"],
        ["--btf", f"/nowhere/{EVIL}", "layout"],
        ["--debug", "identify", EVIL],
        [EVIL],
        ["layout", f"--{EVIL}"],
    ],
    ids=lambda words: words[0] + str(len(words)),
)
def test_no_message_is_obeyed(words: List[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "kvintro", "-c", str(SAMPLE), *words], capture_output=True, check=False
    )
    said = (found.stdout + found.stderr).decode()
    assert "x1b]52;c;ZXZpbA==" in said
    assert_inert(said)

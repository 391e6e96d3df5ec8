# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run the sessions in the documentation again, and compare or update them.

A block of a page that is indented by four spaces and has a line with ``>>>`` is a session at drgn's prompt.
All blocks of a page are one session. ``python -m tests.transcripts PAGE...`` updates pages.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

import drgn

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = "vmcores/debian-6.12/core.kdump"
_INDENT = "    "


class Session:
    """drgn's own prompt on a dump, without a terminal."""

    def __init__(self, path: str) -> None:
        from drgn.cli import default_globals
        from drgn.internal.repl import _InteractiveConsoleWithCommand

        import kvintro.plugin  # noqa: F401

        prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        prog.set_core_dump(path)
        self._globals: Dict[str, Any] = default_globals(prog)
        self._console = _InteractiveConsoleWithCommand(self._globals)
        self._more = False

    def say(self, line: str) -> List[str]:
        """Type a line; return the output."""
        from drgn.cli import _displayhook

        saved = sys.stdout, sys.stderr, sys.displayhook
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            # A file instead of a buffer, because programs in pipes also write to it.
            sys.stdout = sys.stderr = file
            sys.displayhook = _displayhook
            try:
                self._more = self._console.push(line)
            finally:
                sys.stdout, sys.stderr, sys.displayhook = saved
            file.seek(0)
            return file.read().splitlines()


def rewritten(text: str, session: Session) -> str:
    """A page with the current output of its sessions."""
    out: List[str] = []
    block: List[str] = []
    for line in [*text.split("\n"), ""]:
        if line.startswith(_INDENT) or (not line and block):
            block.append(line)
            continue
        out += _block(block, session)
        block = []
        out.append(line)
    return "\n".join(out[:-1])


def _block(lines: Sequence[str], session: Session) -> List[str]:
    said = [line[len(_INDENT) :] for line in lines]
    if not any(line.startswith(">>> ") for line in said):
        return list(lines)
    out: List[str] = []
    for line in said:
        if line.startswith((">>> ", "... ")) or line == "...":
            out.append(line)
            out += session.say(line[4:])
        elif not out:
            out.append(line)  # how the session was started
    blank = len(said) - len("\n".join(said).rstrip("\n").split("\n"))
    return [(_INDENT + line).rstrip() for line in out] + [""] * blank


def main(pages: Sequence[str]) -> None:
    """Write the pages."""
    os.chdir(ROOT)
    for page in pages:
        path = Path(page)
        path.write_text(rewritten(path.read_text(encoding="utf-8"), Session(SAMPLE)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

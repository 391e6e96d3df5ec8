#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fill the examples in docs/*.md and README.md with the output of the commands in them.

    tools/gen_docs.py [--check] [FILE...]

The line ``<!-- output -->`` marks the fenced block below it; the block's first line is ``$`` and a command
line for bash, which may contain pipes. Commands run in the root of the repository on the sample dumps, so
their output is the same everywhere. With --check nothing is written, and the exit status is 1 if a file is
out of date.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- output -->\n```[a-z]*\n\$ )(?P<command>[^\n]+)\n.*?(?=^```$)", re.S | re.M)
# The command as a user types it, from this tree.
_PROLOGUE = f'kvintro() {{ "{sys.executable}" -m kvintro "$@"; }}; '


def output_of(command: str) -> str:
    """The output of a command line to a pipe: standard output and standard error."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "PAGER", "KVINTRO_CORE")
    }
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        ["bash", "-c", _PROLOGUE + command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return run.stdout


def filled(text: str) -> str:
    """The text of a file with its examples filled."""
    return _BLOCK.sub(lambda m: f"{m[1]}{m['command']}\n{output_of(m['command'])}", text)


def files() -> List[Path]:
    """All files with examples."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if "<!-- output -->" in path.read_text()]


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is out of date")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    args = parser.parse_args()
    stale = 0
    for path in args.files or files():
        before = path.read_text()
        after = filled(before)
        if before != after:
            stale += 1
            print(f"{'stale' if args.check else 'made'}: {path.resolve().relative_to(ROOT)}")
            if not args.check:
                path.write_text(after)
    return int(bool(args.check and stale))


if __name__ == "__main__":
    sys.exit(main())

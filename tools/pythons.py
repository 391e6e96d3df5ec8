#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Print the paths of the oldest and the newest Python on this machine that kvintro supports, one per line.

Looks for python3.N in PATH and in pyenv's directory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, Tuple

OLDEST = (3, 9)
_ASK = "import sys, venv, ensurepip; print(*sys.version_info[:3])"


def _candidates() -> Iterator[Path]:
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        # pyenv's shims of unselected versions only print an error.
        if not directory.endswith("shims"):
            yield from sorted(Path(directory or ".").glob("python3.*"))
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(root.glob("versions/3.*/bin/python3"))


def found() -> Dict[Tuple[int, ...], Path]:
    """Every supported version that can make a virtual environment, with its path."""
    versions: Dict[Tuple[int, ...], Path] = {}
    for path in _candidates():
        if not re.fullmatch(r"python3(\.\d+)?", path.name):
            continue
        run = subprocess.run([str(path), "-c", _ASK], capture_output=True, text=True, check=False)
        version = tuple(map(int, run.stdout.split()))
        if run.returncode == 0 and version >= OLDEST:
            versions.setdefault(version, path)
    return versions


if __name__ == "__main__":
    versions = sorted(found().items())
    if not versions:
        sys.exit("no Python 3.9 or later with venv was found")
    for _, path in dict([versions[0], versions[-1]]).items():
        print(path)

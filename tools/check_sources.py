#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look up in the kernel's sources what the texts of ``kvintro explain`` cite.

    tools/check_sources.py 6.1=TREE 6.12=TREE 7.3=TREE

Each TREE is an unpacked source tree of that release. Prints each citation whose file or name is not there;
the exit status is 1 if there is one. Commits are not looked up.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator, List

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.queries.placements import HOLE
from kvintro.regions import regions_of
from kvintro.regions.explained import explanation


def missing(release: str, tree: Path) -> Iterator[str]:
    """Citations that do not hold in a tree."""
    for key in (*(region.key for region in regions_of(ARCHITECTURE)), HOLE):
        text = explanation(key)
        for source in text.sources if text else ():
            if release not in source.releases:
                continue
            for where in source.where:
                if where.startswith("commit "):
                    continue
                file, _, name = where.partition(":")
                path = tree / file
                if not path.exists():
                    yield f"{release}: {key}: {file} is not there"
                elif name not in path.read_text(errors="replace"):
                    yield f"{release}: {key}: {name} is not in {file}"


def main(arguments: List[str]) -> int:
    """Print what is missing."""
    if not arguments or not all("=" in argument for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    found = []
    for argument in arguments:
        release, _, tree = argument.partition("=")
        found += missing(release, Path(tree))
    print("\n".join(found) or "every citation is there")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look up the citations of the texts of ``kvintro explain`` in the kernel's sources.

    tools/check_sources.py 6.1=TREE 6.12=TREE 7.3=TREE

Each TREE is an unpacked source tree of that release. Prints each citation whose file or name does not exist.
The exit status is 1 if there is one, or if no text cites any of the releases. Commits are not looked up.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kvintro.arch import architectures
from kvintro.queries.placements import HOLE
from kvintro.regions import regions_of
from kvintro.regions.explained import explanation


def citations(release: str) -> Iterator[Tuple[str, str, str]]:
    """(explained region, file, name in that file) of each citation of a release."""
    texts = [
        (f"{arch.name} {key}", explanation(key, arch))
        for arch in architectures()
        for key in (*(region.key for region in regions_of(arch)), HOLE)
    ]
    for key, text in texts:
        for source in text.sources if text else ():
            for where in source.where if release in source.releases else ():
                if not where.startswith("commit "):
                    file, _, name = where.partition(":")
                    yield key, file, name


def main(arguments: List[str]) -> int:
    """Print the missing citations."""
    if not arguments or not all("=" in argument for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    looked_up, missing = 0, 0
    for argument in arguments:
        release, _, tree = argument.partition("=")
        for key, file, name in citations(release):
            looked_up += 1
            path = Path(tree, file)
            if not path.exists():
                print(f"{release}: {key}: {file} is not there")
            elif name not in path.read_text(errors="replace"):
                print(f"{release}: {key}: {name} is not in {file}")
            else:
                continue
            missing += 1
    print(f"{looked_up} citations looked up, {missing} missing")
    return 1 if missing or not looked_up else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

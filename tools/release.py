#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Check that this tree is ready for a release; ``make release`` runs this first.

    tools/release.py [--next]

Prints each problem in one line. The exit status is 1 if there is one. With --next it prints the next steps
for the maintainer. docs/versions.md describes a release.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
#: Files that contain the version, and its pattern.
PLACES = {
    "kvintro/version.py": r'^__version__ = "([^"]*)"$',
    "CITATION.cff": r"^version: (\S+)$",
    "docs/man/kvintro.1": r'^\.TH KVINTRO 1 "" "kvintro ([^"]*)"',
    "CHANGELOG.md": r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$",
    "debian/changelog": r"^kvintro \(([^)]*)-\d+\)",
    "packaging/kvintro.spec": r"^Version: +(\S+)$",
}
#: Files that contain the homepage, and its pattern. The others repeat that of pyproject.toml.
HOMEPAGES = {
    "pyproject.toml": r'^Homepage = "([^"]*)"$',
    "debian/control": r"^Homepage: (\S+)$",
    "debian/copyright": r"^Source: (\S+)$",
    "packaging/kvintro.spec": r"^URL: +(\S+)$",
}
Git = Callable[..., str]


def git(*arguments: str) -> str:
    """The output of git."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def problems(root: Path, git: Git) -> Iterator[str]:
    """Reasons against a release, one line each.

    :param git: runs git in the repository.
    """
    version = found(root, "kvintro/version.py") or ""
    if not VERSION.fullmatch(version):
        yield f"kvintro/version.py: {version!r} is not a version such as 1.2.3"
    for place in PLACES:
        there = found(root, place)
        if there != version:
            yield f"{place}: the version is {there or 'missing'}, and that of kvintro/version.py is {version}"
    changelog = (root / "CHANGELOG.md").read_text()
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if unreleased is None:
        yield "CHANGELOG.md: there is no heading [Unreleased]"
    elif unreleased[1].strip():
        yield f"CHANGELOG.md: [Unreleased] has lines; move them to [{version}]"
    dated = re.search(r"^## \[[\d.]+\] - (\S+)$", changelog, re.M)
    released = re.search(r"^date-released: (\S+)$", (root / "CITATION.cff").read_text(), re.M)
    if dated and released and dated[1] != released[1]:
        yield f"CITATION.cff: released on {released[1]}, and on {dated[1]} by CHANGELOG.md"
    homepage = found(root, "pyproject.toml", HOMEPAGES)
    for place in HOMEPAGES:
        there = found(root, place, HOMEPAGES)
        if there != homepage:
            yield f"{place}: the homepage is {there or 'missing'}, and that of pyproject.toml is {homepage}"
    # RFC 2606: these names are reserved.
    for place in (*HOMEPAGES, "debian/changelog"):
        if re.search(r"\.example\b", (root / place).read_text()):
            yield f"{place}: URLs or addresses are placeholders; put the real ones in"
    if git("status", "--porcelain", "--untracked-files=no").strip():
        yield "some changes are not committed"
    if git("tag", "--list", f"v{version}").strip():
        yield f"the tag v{version} exists; raise the version"


def found(root: Path, place: str, patterns: Mapping[str, str] = PLACES) -> Optional[str]:
    """The first version, or homepage, that a file names."""
    match = re.search(patterns[place], (root / place).read_text(), re.M)
    return match[1] if match else None


def main() -> int:
    """Print the problems, or the next steps; return the exit status."""
    version = found(ROOT, "kvintro/version.py")
    if sys.argv[1:] == ["--next"]:
        print(f"dist/ has kvintro {version}. What is left:")
        print(f"  git tag -s v{version} && git push origin v{version}")
        print("  twine upload dist/*")
        return 0
    lines = list(problems(ROOT, git))
    print("\n".join(lines) or f"kvintro {version} can be released")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())

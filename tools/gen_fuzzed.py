#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fill the table of docs/untrusted.md from the output of the fuzzing.

make test-fuzz THOROUGH=--thorough | tee FILE
tools/gen_fuzzed.py FILE
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fuzz.targets import TARGETS  # noqa: E402

PAGE = ROOT / "docs" / "untrusted.md"
_TABLE = re.compile(r"(<!-- fuzzed -->\n).*?(<!-- end -->)", re.S)
_LINE = re.compile(r"^[.F]*(.+): (\d+) cases, (\d+) refused, slowest ([\d.]+) s, (\d+) MB$", re.M)
_HEAD = "| damaged | cases | refused | slowest case, s | most memory, MB |\n|---|---|---|---|---|\n"


def main() -> int:
    """Write the table."""
    printed = Path(sys.argv[1])
    text = printed.read_text(encoding="utf-8")
    failed = re.search(r"^(?:=+ )?.*\b\d+ failed", text, re.M)
    if failed:
        print(f"{printed}: {failed[0]}", file=sys.stderr)
        return 1
    rows = _LINE.findall(text)
    table = _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    day = time.strftime("%Y-%m-%d", time.localtime(printed.stat().st_mtime))
    table += f"\n{sum(int(row[1]) for row in rows)} cases on {day}: no failure.\n"
    others = [target.name for target in TARGETS if target.name not in {row[0] for row in rows}]
    if others:
        table += f"Not in this run: {', '.join(others)}.\n"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_TABLE.sub(lambda m: m[1] + table + m[2], page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

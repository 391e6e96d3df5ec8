#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fill the table of docs/live.md from the records of runs in live guests.

KVINTRO_LIVE_RUNS=200 KVINTRO_LIVE_RECORD=FILE python -m pytest tests/vm/test_under_load.py
tools/gen_live.py FILE
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List

PAGE = Path(__file__).resolve().parent.parent / "docs" / "live.md"
_TABLE = re.compile(r"(<!-- ran -->\n).*?(<!-- end -->)", re.S)
_SUMMED = ("compared", "commands", "runs", "commands_partial", "partial", "refused", "wrong_count")
_HEAD = (
    "| kernel | levels | PTI | guests | compared | wrong | commands run | partial | refused | last run |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def main() -> int:
    """Write the table."""
    rows: Dict[str, Dict[str, Any]] = {}
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        row = rows.setdefault(found["entry"], {"guests": 0, "date": "", **dict.fromkeys(_SUMMED, 0)})
        row["guests"] += 1
        for key in _SUMMED:
            row[key] += found[key]
        row.update(release=found["release"], levels=found["levels"], pti="on" if found["pti"] else "off")
        row["date"] = max(row["date"], found["date"])
    out: List[str] = []
    for row in rows.values():
        out.append(
            f"| {row['release']} | {row['levels']} | {row['pti']} | {row['guests']} | {row['compared']} "
            f"| {row['wrong_count']} | {row['commands'] + row['runs']} "
            f"| {row['commands_partial'] + row['partial']} | {row['refused']} | {row['date']} |\n"
        )
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_TABLE.sub(lambda m: m[1] + _HEAD + "".join(out) + m[2], text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

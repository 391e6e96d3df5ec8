#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run every command of two checkouts on the same dumps, and list the differences in the output.

    tools/compare_checkouts.py OLD NEW CORE... [--form json] [--only layout,show] [--expected FILE]

Each checkout has its own virtual environment in .venv (``make lint`` makes it). The exit status is 1 if
there is a difference that FILE does not expect. FILE contains a JSON list of objects, each with regular
expressions that describe an expected difference, and the reason. A missing expression matches everything::

    [{"core": "debian", "command": "^show ", "form": "text", "line": "none", "reason": "says 'empty' now"}]

``where`` is a path in the JSON document (``regions[].mapped``), ``exit status`` or ``messages``.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

FORMS = ("json", "text")
#: Members that differ from run to run, because they contain durations.
_TIMES = {"seconds", "rate"}
_SHOWN = 4  # number of differences of one kind that are printed
#: Commands that print nothing to compare: their output is a screen, a file of gigabytes, or a directory.
_LEFT_OUT = {"shell", "browse", "convert", "survey"}


@dataclass(frozen=True)
class Outcome:
    """The output of one run."""

    status: int
    output: str
    messages: str


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    :ivar where: path in the document, or the name of another part that differs.
    :ivar line: old and new value.
    """

    core: str
    command: str
    form: str
    where: str
    line: str


@dataclass(frozen=True)
class Expected:
    """Expected differences, and the reason."""

    patterns: Mapping[str, "re.Pattern[str]"]
    reason: str

    def covers(self, found: Difference) -> bool:
        """Whether a difference is one of these."""
        return all(pattern.search(getattr(found, name)) for name, pattern in self.patterns.items())


def command_lines(layout: Mapping[str, object], saved: str, other: str) -> List[List[str]]:
    """All command lines that are compared. They are defined only here.

    :param layout: the core's own layout, whose regions and addresses are used.
    :param saved: file of the layout of another core, as JSON.
    :param other: another core; the same one if there is none.
    """
    regions = layout["regions"]
    assert isinstance(regions, list)
    keys = [row["key"] for row in regions if row["kind"] != "hole"]
    there = [row for row in regions if row["kind"] == "region" and row["state"] == "present"]
    starts = [row["used_start"] or row["start"] for row in there]
    middles = [f"{int(row['start'], 16) + row['size'] // 2:x}" for row in there]
    addresses = [*starts, *middles, "init_task", "linux_banner+3", "init_task+8", "1000", "8000000000000000"]
    kernel = [start for start in starts if start.startswith("0xf")]
    lines = [
        *(["layout", *options] for options in ([], ["--no-holes"], ["--pid", "1"])),
        ["explain"],
        *(["explain", key] for key in keys),
        ["kaslr"],
        ["translate", *addresses],
        ["translate", "--walk", *addresses],
        ["vtop", "--pid", "1", "--walk", "400000", *kernel],
        ["ptov", "1000", "100000", "1000000"],
        *(["pte", "8000000003a12163", "80000000076000e3", "7fffe00000000200", "67", "0", *o]
          for o in ([], ["--level", "pmd"], ["--level", "pgd", "--half", "kernel"])),
        ["identify", *addresses],
        *(["aliases", address] for address in ("1000", "init_task", "linux_banner", *kernel[:4])),
        ["ptdump"],
        ["ptdump", "--wx"],
        ["ptdump", "--root", "user"],
        ["ptdump", "--root", "efi"],
        ["ptdump", "--pid", "1", "--range", "0-800000000000"],
        *(["show", key] for key in keys),
        ["show", "vmalloc", "--top", "5", "--sort", "size"],
        ["show", "modules", "--table", "modules", "--match", "e"],
        ["show", "ldt_remap", "--pid", "1"],
        ["page", "init_task", "linux_banner", "phys:1000", "pfn:1000", "pfn:4000", "pfn:8000", *kernel],
        ["page", "--search", "pfn:8000"],
        *(["read", "init_task", *o] for o in ([], ["--size", "256"], ["--type", "struct list_head"])),
        ["search", "--string", "Linux version", "--limit", "20"],
        ["search", "--to", "init_task", "--in", "kernel_image", "--limit", "20"],
        *(["kmem", *o] for o in (["-v"], ["-p"], ["-p", "init_task"], ["init_task"])),
        ["pages"],
        *(["pages", "--by", by] for by in ("zone", "node", "order", "cache", "flags", "free")),
        ["pages", "--by", "flags", "--raw", "--top", "5"],
        ["user", "--all"],
        ["user", "1"],
        ["user", "1", "--maps"],
        ["check"],
        ["diff", other],
        ["diff", "--all", saved],
        ["report"],
        ["info"],
    ]  # fmt: skip
    # The answer to bad input is compared, too.
    lines += [["show", "no_such_region"], ["translate", "no_such_symbol"], ["user", "999999"], ["pte", "zz"]]
    return [[str(word) for word in line] for line in lines]


class Checkout:
    """A work tree with its virtual environment."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.program = self.path / ".venv/bin/kvintro"
        if not self.program.exists():
            raise SystemExit(f"{path} has no .venv/bin/kvintro; run make lint there")

    def run(self, core: Path, line: Sequence[str], form: str, places: Mapping[str, str]) -> Outcome:
        """Run one command line.

        :param places: texts that name paths of this run only, and their replacements.
        """
        words = [str(self.program), "-c", str(core), "--format", form, *line]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("KVINTRO_", "PYTHON"))}
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**environment, "COLUMNS": "160", "NO_COLOR": "1"},
            cwd="/",
            check=False,
        )
        texts = [data.decode("utf-8", "replace") for data in (done.stdout, done.stderr)]
        for place, name in places.items():
            texts = [text.replace(place, name) for text in texts]
        return Outcome(done.returncode, *texts)

    def commands(self) -> List[str]:
        """Names of all commands, one for each file."""
        files = (self.path / "kvintro" / "commands").glob("[a-z]*.py")
        return sorted(path.stem for path in files)


def _leaves(value: object, path: str = "") -> Iterator[Tuple[str, object]]:
    """All values in a document with their paths, and the length of each list."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _TIMES:
                yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        yield f"{path}[].length", len(value)
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _json_differences(old: str, new: str) -> Iterator[Tuple[str, str]]:
    try:
        one, two = dict(_leaves(json.loads(old))), dict(_leaves(json.loads(new)))
    except ValueError:
        yield "document", f"not JSON on {'one side' if old != new else 'both sides'}"
        return
    for path in dict.fromkeys((*one, *two)):
        if one.get(path, "(absent)") != two.get(path, "(absent)"):
            where = re.sub(r"\[\d+\]", "[]", path)
            yield where, f"{path}: {one.get(path, '(absent)')!r} -> {two.get(path, '(absent)')!r}"


def _text_differences(old: str, new: str) -> Iterator[Tuple[str, str]]:
    lines = difflib.unified_diff(old.split("\n"), new.split("\n"), lineterm="", n=0)
    for line in list(lines)[2:]:
        if not line.startswith("@@"):
            yield "text", line


def differences(old: Outcome, new: Outcome, form: str) -> Iterator[Tuple[str, str]]:
    """(where, what) of each difference between two runs."""
    if old.status != new.status:
        yield "exit status", f"{old.status} -> {new.status}"
    if old.messages != new.messages:
        for _, line in _text_differences(old.messages, new.messages):
            yield "messages", line
    if old.output != new.output:
        both = form == "json" and old.output and new.output
        yield from (_json_differences if both else _text_differences)(old.output, new.output)


def _compare_core(
    old: Checkout, new: Checkout, core: Path, other: Path, asked: argparse.Namespace, folder: Path
) -> Tuple[int, List[Difference]]:
    """The number of runs that were compared, and their differences."""
    saved = folder / "layout.json"
    places = {str(folder): "FOLDER"}
    found = old.run(core, ["layout"], "json", {})
    if found.status not in (0, 4):
        raise SystemExit(f"{core}: {found.messages.strip()}")
    saved.write_text(old.run(other, ["layout"], "json", {}).output)
    lines = command_lines(json.loads(found.output), str(saved), str(other))
    lines = [line for line in lines if not asked.only or line[0] in asked.only]
    runs = [(line, form) for line in lines for form in asked.form]
    out: List[Difference] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        pairs = [
            [pool.submit(side.run, core, line, form, places) for side in (old, new)] for line, form in runs
        ]
        for (line, form), pair in zip(runs, pairs):
            one, two = (future.result() for future in pair)
            command = " ".join(line).replace(str(folder), "FOLDER")
            out += [
                Difference(core.parent.name, command, form, *found) for found in differences(one, two, form)
            ]
    return len(runs), out


def _expected(path: Optional[str]) -> List[Expected]:
    if path is None:
        return []
    names = ("core", "command", "form", "where", "line")
    return [
        Expected({name: re.compile(item[name]) for name in names if item.get(name)}, item["reason"])
        for item in json.loads(Path(path).read_text())
    ]


def _list(found: Sequence[Difference], expected: Sequence[Expected]) -> int:
    """Print the differences; return the number of unexpected ones."""
    wanted: Counter[str] = Counter()
    groups: Dict[Tuple[str, str, str], List[Difference]] = {}
    for item in found:
        reason = next((e.reason for e in expected if e.covers(item)), None)
        if reason is None:
            groups.setdefault((item.command[:60], item.form, item.where), []).append(item)
        else:
            wanted[reason] += 1
    for (command, form, where), items in groups.items():
        cores = ", ".join(sorted({item.core for item in items}))
        print(f"{command} ({form}): {where}: {len(items)} differences on {cores}")
        for item in items[:_SHOWN]:
            print(f"    {item.line[:200]}")
    for reason, count in wanted.items():
        print(f"expected: {count} differences: {reason}")
    return sum(map(len, groups.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("cores", type=Path, nargs="+", metavar="CORE")
    parser.add_argument("--form", choices=FORMS, action="append", help="default: both")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these commands alone")
    parser.add_argument("--expected", metavar="FILE", help="differences that are wanted, and why")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    asked.form = asked.form or list(FORMS)
    expected = _expected(asked.expected)
    old, new = Checkout(asked.old), Checkout(asked.new)
    cores = [core.resolve() for core in asked.cores]
    count, found = 0, []
    with tempfile.TemporaryDirectory() as folder:
        listed = command_lines({"regions": []}, "", "")
        unlisted = {*old.commands(), *new.commands()} - {line[0] for line in listed} - _LEFT_OUT
        if unlisted:
            raise SystemExit(f"no command line is compared for {', '.join(sorted(unlisted))}")
        for number, core in enumerate(cores):
            runs, differ = _compare_core(old, new, core, cores[number - 1], asked, Path(folder))
            count += runs
            found += differ
    unexpected = _list(found, expected)
    print(f"{count} runs on {len(cores)} cores compared: {unexpected} differences that were not expected")
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())

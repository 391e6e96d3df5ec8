# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro survey``: ask the same questions of many dumps."""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import TYPE_CHECKING, List, Optional

from kvintro.commands import Bar, InputPath, standard_input

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "ask the same questions of many dumps: tables for DuckDB, and what stands out"
EXAMPLES = """\
Each dump is read in a process of its own, with limits. A dump that cannot be read becomes a row with its
error. DIR gets tables as NDJSON and Parquet, a page (summary.html), and the answers (answers/), by which the
same command goes on where it was interrupted. A dump counts once, even if it has several names or copies.

examples:
  kvintro survey /dumps/*/vmcore -o survey
  find /dumps -name vmcore -print0 | kvintro survey - -o survey
  kvintro survey /shared/*/vmcore -o survey --scheduler tcp://head:8786
"""
#: Largest list on standard input, in bytes.
_LARGEST_LIST = 64 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "dumps",
        nargs="+",
        metavar="DUMP",
        type=InputPath,
        help="a dump; - reads a list of dumps from standard input, separated by newlines or NULs",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="read N dumps at a time (default: one for each processor)",
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=600,
        metavar="SECONDS",
        help="stop reading a dump after this time (default: 600)",
    )
    parser.add_argument(
        "--memory",
        type=_megabytes,
        default=2048,
        metavar="MB",
        help="stop reading a dump that needs more memory than this (default: 2048)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let the workers of this Dask scheduler read the dumps",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:12]) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def _megabytes(text: str) -> int:
    if _positive(text) < 256:
        raise argparse.ArgumentTypeError("less than 256 MB is not enough for any dump")
    return int(text)


def needs_source(args: argparse.Namespace) -> bool:
    """Never: each dump is opened in a process of its own."""
    return False


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.survey.fleet import Limits, survey

    single = (
        args.core,
        args.qemu,
        args.symbols,
        args.btf,
        args.vmcoreinfo,
        args.vmcoreinfo_at,
        args.snapshot,
    )
    if any(value is not None for value in (*single, args.format_in)) or args.debuginfod or args.sudo:
        raise UsageError(
            "survey opens the dumps that it is given, and each by its own content",
            "omit options that describe one source: kvintro survey DUMP... -o DIR",
        )
    dumps = _dumps(args.dumps)
    if args.scheduler is not None and args.jobs is not None:
        raise UsageError("the workers decide how many dumps they read at a time", "omit --jobs")
    limits = Limits(
        timeout=args.timeout,
        memory=args.memory,
        jobs=args.jobs or len(os.sched_getaffinity(0)),
        types=args.types,
        sandbox=not args.no_sandbox,
        scheduler=args.scheduler,
    )
    # The report goes to standard output.
    directory, args.output = args.output, None

    def watch(total: int) -> Bar:
        return Bar(total, "dump")

    if directory is not None:
        return survey(dumps, directory, limits, watch)
    with tempfile.TemporaryDirectory(prefix="kvintro-") as temporary:
        return survey(dumps, temporary, limits, watch)


def _dumps(names: List[str]) -> List[str]:
    """The names of dumps, with those on standard input in place of ``-``.

    :raises UsageError: there is none.
    """
    from kvintro.errors import UsageError

    found: List[str] = []
    for name in names:
        found += _listed() if name == "-" else [str(name)]
    if not found:
        raise UsageError("the list on standard input is empty", "name a dump")
    return found


def _listed() -> List[str]:
    from kvintro.errors import UsageError

    with open(standard_input(), "rb", closefd=False) as file:
        data = file.read(_LARGEST_LIST + 1)
    if len(data) > _LARGEST_LIST:
        raise UsageError("the list on standard input is too long", "name the dumps in parts")
    return [os.fsdecode(line) for line in data.split(b"\0" if b"\0" in data else b"\n") if line]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro diff``: compare two kernels, or one kernel at two times."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, Iterator, Optional, Sequence

from kvintro.commands import InputPath, searched, watched

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "what differs between two dumps, or between a dump and the running kernel"
EXAMPLES = """\
A and B are dumps, or files that `kvintro --json layout` or `kvintro --json report` wrote. Without B, A is
compared with the source that -c or --qemu names, or else with the running kernel.

examples:
  kvintro diff monday.vmcore tuesday.vmcore
  kvintro --sudo diff vmcore                     the dump (A) and the running kernel (B)
  kvintro --json report -o before.json           and later:
  kvintro diff before.json --exit-code           exits with 1 if anything differs
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument("a", metavar="A", type=InputPath, help="a dump or a saved layout or report")
    parser.add_argument(
        "b",
        metavar="B",
        type=InputPath,
        nargs="?",
        help="the same (default: the source that -c or --qemu names, or the running kernel)",
    )
    parser.add_argument("--all", action="store_true", dest="everything", help="also list what is the same")
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit with 1 if anything differs, with 4 if something could not be compared",
    )


def needs_source(args: argparse.Namespace) -> bool:
    """Not if both sides are named: ``run`` opens them itself."""
    return args.b is None


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.reports.diff import diff, side_of_kernel

    if args.b is not None and (args.core or args.qemu or args.symbols or args.btf):
        raise UsageError(
            "A and B are both given, so no other source can be used",
            "omit -c, --qemu, -s and --btf, or omit B",
        )
    a = _side(args.a, args)
    if args.b is not None:
        b = _side(args.b, args)
    else:
        assert kernel is not None
        b = side_of_kernel(kernel, kernel.source.label, progress=_progress)
    report = diff(a, b, everything=args.everything)
    negative = args.exit_code and report.extra["same"] is False
    # A difference decides the exit code, even if something else could not be compared.
    return dataclasses.replace(report, negative=negative, partial=report.partial and not negative)


def _progress(parts: Sequence[str]) -> Iterator[str]:
    return watched(parts, "part")


def _side(path: str, args: argparse.Namespace) -> Any:
    from kvintro.opening import open_kernel
    from kvintro.reports.diff import side_of_json, side_of_kernel
    from kvintro.source import Request
    from kvintro.source.files import open_file

    with open_file(path) as file:
        saved = file.read(1) == b"{"
    if saved:
        return side_of_json(path)
    kernel = open_kernel(Request(core=path, types=args.types, search=searched))
    return side_of_kernel(kernel, path, progress=_progress)

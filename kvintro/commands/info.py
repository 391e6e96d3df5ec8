# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro info``: identify a dump."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

from kvintro.commands import kcore_can_be_read, searched

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report
    from kvintro.source import OtherDump

HELP = "identify a dump: its format, its kernel, and what each command can do with it"
EXAMPLES = """\
examples:
  kvintro -c vmcore info
  kvintro -c memory.lime info
  kvintro -c vmcore info --bug-report          what to add to a bug report
  kvintro -c vmcore --json info | jq -r '.facts[] | select(.key == "release").value'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "--bug-report",
        dest="bug_report",
        action="store_true",
        help="show what a bug report needs: versions, and facts about the dump without addresses, paths and "
        "names of hosts; -o FILE writes the same text",
    )


def needs_source(args: argparse.Namespace) -> bool:
    """A bug report can also be about no kernel."""
    named = args.core or args.qemu or getattr(args, "sudo", False)
    return bool(named) or not args.bug_report or kcore_can_be_read()


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.bug_report import bug_report
    from kvintro.reports.info import info

    if args.bug_report:
        return bug_report(kernel, searched)
    assert kernel is not None
    return info(kernel, searched)


def run_on_other(dump: OtherDump, args: argparse.Namespace) -> Report:
    """The report on a dump of an architecture whose page tables kvintro does not know."""
    from kvintro.reports.bug_report import bug_report
    from kvintro.reports.info import info_of_other

    return bug_report(dump, searched) if args.bug_report else info_of_other(dump)

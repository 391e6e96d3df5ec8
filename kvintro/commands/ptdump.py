# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro ptdump``: whole page tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import AddressRange, Stream

HELP = "page tables as ranges, as the kernel's own ptdump prints them"
EXAMPLES = """\
the text is that of /sys/kernel/debug/page_tables/kernel (ends are exclusive), to be compared with diff:
  kvintro -c vmcore ptdump | diff page_tables/kernel -

examples:
  kvintro -c vmcore ptdump --wx                    what is writable and executable
  kvintro -c vmcore ptdump --range modules
  kvintro -c vmcore ptdump --range ffffffff81000000-ffffffff82000000
  kvintro -c vmcore ptdump --pid 1 --root user     what process 1 runs on in user mode, under PTI
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "--root",
        choices=("kernel", "user", "efi"),
        default="kernel",
        help="kernel: what the kernel runs on; user: what user mode does under page-table isolation; "
        "efi: what firmware does",
    )
    parser.add_argument("--pid", type=int, metavar="PID", help="the tables of this process")
    parser.add_argument(
        "--range", metavar="A-B", help="only from A up to but not including B; or the key of a region"
    )
    parser.add_argument("--wx", action="store_true", help="only what is both writable and executable")


def run(kernel: Kernel, args: argparse.Namespace) -> Stream:
    """The dump."""
    from kvintro.errors import UsageError
    from kvintro.queries.roots import efi_root, kernel_root, process_root, user_half
    from kvintro.reports.ptdump import ptdump

    if args.root == "efi":
        if args.pid is not None:
            raise UsageError("firmware's page tables belong to no process", "omit --pid or --root efi")
        root = efi_root(kernel)
    else:
        root = kernel_root(kernel) if args.pid is None else process_root(kernel, args.pid)
        if args.root == "user":
            root = user_half(kernel, root)
    return ptdump(kernel, root, wanted=_range(kernel, args.range), only_wx=args.wx)


def _range(kernel: Kernel, text: Optional[str]) -> Optional[AddressRange]:
    from kvintro.errors import UsageError
    from kvintro.model import AddressRange, NoRange, Placement

    if text is None:
        return None
    keys = [region.key for region in kernel.regions]
    if text in keys:
        found = kernel.locate(text)
        if not isinstance(found, Placement):
            raise UsageError(f"this kernel has no {text}: {found.reason}", "choose another range")
        return found.range
    try:
        start, end = (int(part, 16) for part in text.split("-"))
        # The top of the address space has no address behind it.
        return AddressRange(start, (end or 1 << 64) - 1 if end != (1 << 64) - 1 else end)
    except (ValueError, NoRange):
        raise UsageError(
            f"{text} is no range", f"give A-B in hex, or one of {', '.join(sorted(keys))}"
        ) from None

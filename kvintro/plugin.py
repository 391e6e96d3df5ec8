# SPDX-License-Identifier: LGPL-2.1-or-later
"""``%kvintro`` at drgn's prompt: the command line's commands on the program of the session.

drgn imports this module, through the entry point ``drgn.plugins``, whenever a program is opened. So it
imports only modules that are already loaded, and must not fail. What a command needs is imported when it
runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    from drgn import Program

_HELP = """\
Runs a command of kvintro on the program of this session: **layout**, **translate**, **ptdump**, **show** and
all others that **%kvintro --help** lists, with the same options. Pipes and redirection work. The report is
returned, and so is **_** at the prompt.

A program without debuginfo is given the symbols and types that the kernel carries.
"""


def run(prog: Program, arguments: Sequence[str]) -> Any:
    """Run one command line: print what the command line would print, and return the report.

    :raises drgn.commands.CommandError: the command line would exit with status 2 or 3.
    """
    from drgn.commands import CommandError

    from kvintro.delivery import deliver
    from kvintro.errors import KvintroError
    from kvintro.model import Raw, Stream
    from kvintro.parser import parse
    from kvintro.prompt import Answer, Listing, kernel, run_command
    from kvintro.text import printable

    try:
        args = parse(arguments)
        result = run_command(kernel(prog), args)
        if isinstance(result, Raw):
            deliver(result, args)
            return None
        if isinstance(result, Stream):
            # A stream that reads stdin may be endless, and is printed as it arrives. Others are kept.
            found: Any = result if "-" in arguments else Listing.of(result)
        else:
            found = Answer.of(result)
        deliver(found, args)
    except SystemExit:
        return None  # --help was printed
    except KvintroError as error:
        remedy = f"\n  hint: {printable(error.remedy)}" if error.remedy else ""
        raise CommandError(printable(error.what) + remedy) from None
    return found


def _register() -> None:
    from drgn.commands import parse_shell_command
    from drgn.commands.linux import linux_kernel_custom_command

    def _cmd_kvintro(prog: Program, name: str, args: Sequence[str], **_: Any) -> Any:
        return run(prog, args)

    linux_kernel_custom_command(
        name="kvintro",
        description="show the kernel's virtual address space",
        usage="**kvintro** *COMMAND* [*OPTION*...] [*ARGUMENT*...]",
        long_description=_HELP,
        parse=parse_shell_command,
    )(_cmd_kvintro)


_register()

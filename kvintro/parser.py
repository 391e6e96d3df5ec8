# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options and arguments of the command line."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from itertools import groupby
from typing import Any, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

from kvintro.commands import (
    ALIASES,
    FORWARDING,
    InputPath,
    added_commands,
    command_names,
    known_names,
    load_command,
)
from kvintro.errors import NoSuchSource, NotWritten, UsageError
from kvintro.installation import components
from kvintro.model import DUMP_FORMATS
from kvintro.render import FORMATS, added_formats
from kvintro.text import did_you_mean, printable

EPILOG = """\
kvintro help COMMAND shows what a command is for, examples and its options.

A dump is named with -c CORE, or as the first argument: kvintro CORE COMMAND. The environment variable
KVINTRO_CORE names one for all commands. Without a dump and --qemu, kvintro reads the running kernel, which
needs root: kvintro --sudo COMMAND works wherever kvintro is installed. Types and symbols come from the kernel
itself. No debuginfo is needed, and nothing is downloaded unless --debuginfod is given.

exit status: 0 success, 1 a negative answer, 2 wrong usage, 3 the source cannot be opened, 4 a partial report
"""


def physical_address(text: str) -> int:
    """Parse an address as ``info`` writes it: hex with or without 0x.

    :raises argparse.ArgumentTypeError: the text is not such an address.
    """
    try:
        value = int(text, 16) if not text.startswith(("-", "+")) else -1
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 52:
        raise argparse.ArgumentTypeError(f"invalid physical address: {text}")
    return value


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs of prose. Keeps examples, which are indented lines, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        out: List[str] = []
        for paragraph in text.rstrip("\n").split("\n\n"):
            out.append("")
            for indented, lines in groupby(paragraph.split("\n"), key=lambda line: line.startswith(" ")):
                if indented:
                    out += [part for line in lines for part in _example(line, width)]
                else:
                    out += textwrap.wrap(" ".join(lines), width, break_on_hyphens=False)
        return "\n".join(out[1:])


def _example(line: str, width: int) -> List[str]:
    """A command and its description, which goes below the command if there is no room beside it."""
    command, gap, what = re.fullmatch(r"( *\S.*?)(?:( {2,})(\S.*))?", line).groups()  # type: ignore[union-attr]
    if gap is None or len(line) <= width:
        return [line]
    if len(command) + 3 + len(what) <= width:
        return [f"{command}{' ' * (width - len(command) - len(what))}{what}"]
    return [command, *textwrap.wrap(what, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, and suggests what was meant.

    :ivar examples: text that a command's help shows before its options.
    :ivar common: groups of options that every command has; a command's own help does not repeat them.
    """

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.examples = ""
        self.common: List[argparse._ArgumentGroup] = []

    def format_help(self) -> str:
        """Purpose and usage of a command, examples, and its own options."""
        if not self.common:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_text(f"{(self.description or '')[:1].upper()}{(self.description or '')[1:]}.")
        hidden = {id(action) for group in self.common for action in group._group_actions}
        own = [action for action in self._actions if id(action) not in hidden]
        exclusive = [g for g in self._mutually_exclusive_groups if id(g._group_actions[0]) not in hidden]
        formatter.add_usage(self.usage, own, exclusive)
        formatter.add_text(self.examples)
        for group in self._action_groups:
            if group not in self.common:
                formatter.start_section(group.title)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        formatter.add_text(_COMMON)
        return formatter.format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Like argparse's own, but with the nearest choices as the remedy."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        command = isinstance(action, argparse._SubParsersAction)
        if command and value in ("help", "version"):
            raise UsageError(f"{value} must be the first argument", f"kvintro {value}")
        if command:
            what, rest = f"there is no command {printable(value)}", "kvintro help lists the commands"
        else:
            what = f"argument {'/'.join(action.option_strings) or action.dest}: invalid choice: {value!r}"
            rest = f"choose from {', '.join(names)}"
        raise UsageError(what, f"{did_you_mean(str(value), names)}{rest}")

    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            (file or sys.stderr).write(message)  # argparse would ignore errors here
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotWritten(f"standard output: {error.strerror}", "send it elsewhere") from None

    def error(self, message: str) -> NoReturn:
        missing = message.partition("arguments are required: ")[2]
        if missing and self.examples:
            _, word, examples = self.examples.rstrip("\n").rpartition("examples:")
            raise UsageError(f"{self.prog} needs {missing}", word + examples)
        raise UsageError(message, f"{self.prog} --help")


class _Version(argparse.Action):
    """Shows versions. Imports drgn only then, for drgn's own."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        first, *others = components()
        lines = [" ".join(first), *(f"{name}: {text}" for name, text in others)]
        # Like argparse's own, but with a remedy if it cannot be written.
        parser._print_message("\n".join(lines) + "\n", sys.stdout)
        parser.exit()


_COMMON = """\
options of every command (kvintro --help explains them): -c CORE, --qemu ADDR, -s VMLINUX, --json, --csv,
--format FORMAT, -o FILE, --color, --no-pager and others
"""


class _Formats:
    """Names for ``--format``. Looks up those of other packages only when they are needed."""

    def __contains__(self, name: object) -> bool:
        return name in FORMATS or name in added_formats()

    def __iter__(self) -> Iterator[str]:
        return iter((*FORMATS, *added_formats()))


def make_parser(only: Optional[str] = None) -> argparse.ArgumentParser:
    """Make the parser of the whole command line.

    :param only: load the options of this command only, for a fast start.
    """
    parser = _Parser(
        prog="kvintro",
        description="Shows the Linux kernel's virtual address space as it really is.",
        epilog=EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "-V", "--version", action=_Version, nargs=0, help="show kvintro's version and those of what it uses"
    )
    _add_common(parser)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    own = [*command_names(), *FORWARDING]
    for name in own if only in own else [*own, *added_commands()]:
        module = load_command(name) if only in (None, name) else None
        sub = commands.add_parser(
            name,
            aliases=[alias for alias, command in ALIASES.items() if command == name],
            help=module.HELP if module else None,
            description=module.HELP if module else None,
            formatter_class=_Formatter,
        )
        if module:
            sub.examples = getattr(module, "EXAMPLES", "")
            module.configure(sub)
            # Also accepted after the command's name. An option not given there must not reset an earlier one.
            sub.common = _add_common(sub, default=argparse.SUPPRESS)
    return parser


class _Option(NamedTuple):
    group: str
    names: Tuple[str, ...]
    rest: Dict[str, Any]


def _option(group: str, *names: str, **rest: Any) -> _Option:
    return _Option(group, names, rest)


#: Options of every command. The ``form`` options exclude one another and belong to ``output``.
_OPTIONS = (
    _option(
        "source",
        "-c",
        "--core",
        dest="core",
        action="append",
        type=InputPath,
        metavar="CORE",
        help="a dump: ELF vmcore, kdump, raw memory, LiME, AVML, a guest saved by QEMU or libvirt; - reads "
        "standard input; repeat it for each part of a split kdump",
    ),
    _option(
        "source",
        "--qemu",
        dest="qemu",
        metavar="ADDR",
        help="a running QEMU guest, by the address of its QMP socket",
    ),
    _option(
        "source",
        "-s",
        "--symbols",
        dest="symbols",
        type=InputPath,
        metavar="VMLINUX",
        help="use the debuginfo (DWARF) in this file",
    ),
    _option(
        "source", "--btf", dest="btf", type=InputPath, metavar="FILE", help="read types from this file of BTF"
    ),
    _option(
        "source",
        "--types",
        dest="types",
        choices=("auto", "btf", "dwarf", "none"),
        help="where types come from (default: auto, the kernel's BTF unless -s is given)",
    ),
    _option(
        "source",
        "--vmcoreinfo",
        dest="vmcoreinfo",
        type=InputPath,
        metavar="FILE",
        help="VMCOREINFO as text, for dumps without the note",
    ),
    _option(
        "source",
        "--vmcoreinfo-at",
        dest="vmcoreinfo_at",
        metavar="ADDR",
        type=physical_address,
        help="if memory holds several kernels, use the one whose VMCOREINFO is at ADDR (info lists them)",
    ),
    _option(
        "source",
        "--format-in",
        dest="format_in",
        choices=DUMP_FORMATS,
        help="the format of the dump, if its content does not show it",
    ),
    _option(
        "source",
        "--snapshot",
        dest="snapshot",
        metavar="NAME",
        help="the snapshot of a qcow2 disk image to read, if several have the guest's memory",
    ),
    _option(
        "source",
        "--no-cache",
        dest="no_cache",
        action="store_true",
        help="do not keep an unpacked dump for the next command, nor use one that was kept",
    ),
    _option(
        "source",
        "--debuginfod",
        dest="debuginfod",
        action="store_true",
        help="allow the download of debuginfo",
    ),
    _option(
        "source",
        "--sudo",
        dest="sudo",
        action="store_true",
        help="open /proc/kcore with sudo, and do nothing else as root",
    ),
    _option(
        "source",
        "--keep-root",
        dest="keep_root",
        action="store_true",
        help="under sudo, stay root (default: become the user who called sudo once the source is open)",
    ),
    _option(
        "source",
        "--no-sandbox",
        dest="no_sandbox",
        action="store_true",
        help="read a dump without a sandbox (default: this process can then write only output and temporary "
        "files, and cannot open sockets)",
    ),
    _option(
        "form", "--json", dest="format", action="store_const", const="json", help="same as --format json"
    ),
    _option("form", "--csv", dest="format", action="store_const", const="csv", help="same as --format csv"),
    _option(
        "form",
        "--format",
        dest="format",
        choices=_Formats(),
        metavar=f"{{{','.join(FORMATS)}}}",
        help="output format (default: text)",
    ),
    _option(
        "output", "-o", "--output", dest="output", metavar="FILE", help="write to FILE; - is standard output"
    ),
    _option(
        "output",
        "--color",
        dest="color",
        choices=("auto", "always", "never"),
        help="when to use colour (default: auto)",
    ),
    _option(
        "output",
        "--no-pager",
        dest="no_pager",
        action="store_true",
        help="write long text directly to the terminal (default: $PAGER shows it)",
    ),
    _option("output", "--debug", dest="debug", action="store_true", help="show a traceback on errors"),
)
_DEFAULTS = {
    "types": "auto",
    "color": "auto",
    "debug": False,
    "debuginfod": False,
    "no_pager": False,
    "sudo": False,
    "keep_root": False,
    "no_sandbox": False,
}


def _add_common(
    parser: argparse.ArgumentParser, default: Optional[str] = None
) -> List[argparse._ArgumentGroup]:
    """Add the options of every command and return their groups."""
    source, output = (parser.add_argument_group(title) for title in ("source", "output"))
    groups = {"source": source, "output": output, "form": output.add_mutually_exclusive_group()}
    for group, names, rest in _OPTIONS:
        groups[group].add_argument(*names, default=default or _DEFAULTS.get(rest["dest"]), **rest)
    return [source, output]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    :raises UsageError: the command line is wrong.
    """
    arguments = plain_arguments(arguments)
    parser = make_parser(only=None if {"-h", "--help"} & set(arguments) else named_command(arguments))
    try:
        args, unknown = parser.parse_known_args(arguments)
    except SystemExit:
        _flush()  # --help and --version
        raise
    if args.command is None:
        parser.error("which command? for instance: kvintro layout")
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", f"kvintro {args.command} --help")
    if args.output == "-":
        args.output = None
    args.format = args.format or getattr(load_command(args.command), "FORMAT", "text")
    return args


def plain_arguments(arguments: Sequence[str]) -> List[str]:
    """Replace ``help``, ``version`` and a dump before the command with options.

    :raises UsageError: there is no such command or file.
    """
    words = list(arguments)
    known = set(known_names())
    if not words or words[0].startswith("-") or words[0] in known or words[0] in added_commands():
        return words
    if words[0] == "help":
        return [*words[1:2], "--help"]
    if words[0] == "version":
        return ["--version"]
    if os.path.isfile(words[0]):
        return ["-c", *words]
    if os.sep in words[0]:
        raise NoSuchSource(f"{printable(words[0])}: there is no such file", "check the path of the dump")
    return words


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NotWritten(f"standard output: {error.strerror or error}", "send it elsewhere") from error


def named_command(arguments: Sequence[str]) -> Optional[str]:
    """The command that a command line names, if any."""
    words = [word for word in arguments if not word.startswith("-")]
    own = set(known_names())
    for known in (own, added_commands()) if words and not own.intersection(words) else (own,):
        for word in words:
            if word in known:
                return ALIASES.get(word, word)
    return None

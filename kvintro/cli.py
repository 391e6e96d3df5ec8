# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import traceback
from typing import Any, Callable, Iterable, List, NoReturn, Optional, Sequence, TextIO

from kvintro import __version__, isolation, streams
from kvintro.bus_error import end_on_bus_error
from kvintro.commands import ALIASES, InputPath, command_names, load_command, run_command, searched
from kvintro.errors import (
    EXIT_INTERRUPTED,
    EXIT_NEGATIVE,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_SOURCE,
    KvintroError,
    NotWritten,
    UsageError,
)
from kvintro.model import DUMP_FORMATS, Report, Stream
from kvintro.output import refuse_inputs, written_file
from kvintro.pager import show_paged
from kvintro.render import FORMATS, render, render_stream
from kvintro.text import printable

EPILOG = """\
Without -c and --qemu the running kernel is shown (needs root). Types and symbols come from the kernel
itself; no debuginfo is needed and nothing is downloaded unless --debuginfod asks for it.

exit status: 0 fine, 1 the answer is no, 2 usage, 3 the source cannot be opened, 4 the report is partial
"""


def physical_address(text: str) -> int:
    """An address as ``info`` writes it: hex with or without 0x.

    :raises argparse.ArgumentTypeError: it is none.
    """
    try:
        value = int(text, 16) if not text.startswith(("-", "+")) else -1
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 52:
        raise argparse.ArgumentTypeError(f"invalid physical address: {text}")
    return value


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        try:
            (file or sys.stderr).write(message)  # argparse passes errors over
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotWritten(f"standard output: {error.strerror}", "send it elsewhere") from None

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


def make_parser(only: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    :param only: load this one command's options, as start-up need not load the others.
    """
    parser = _Parser(
        prog="kvintro",
        description="Shows the Linux kernel's virtual address space as it really is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kvintro {__version__}")
    _add_common(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in command_names():
        module = load_command(name) if only in (None, name) else None
        sub = commands.add_parser(
            name,
            aliases=[alias for alias, command in ALIASES.items() if command == name],
            help=module.HELP if module else None,
            description=module.HELP if module else None,
            epilog=getattr(module, "EXAMPLES", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.configure(sub)
            # Accepted behind the command's name too; what is not given there must not undo what was before.
            _add_common(sub, default=argparse.SUPPRESS)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: Optional[str] = None) -> None:
    """Options of every command."""
    defaults = {
        "types": "auto",
        "color": "auto",
        "debug": False,
        "debuginfod": False,
        "no_pager": False,
        "sudo": False,
        "keep_root": False,
    }

    def option(group: "argparse._ActionsContainer", *names: str, dest: str, **rest: Any) -> None:
        group.add_argument(*names, dest=dest, default=default or defaults.get(dest), **rest)

    source = parser.add_argument_group("source")
    option(
        source,
        "-c",
        "--core",
        dest="core",
        action="append",
        type=InputPath,
        metavar="CORE",
        help="a dump: ELF vmcore, kdump, raw memory, LiME, AVML; - for standard input; once for each part "
        "of a split kdump",
    )
    option(source, "--qemu", dest="qemu", metavar="ADDR", help="a running QEMU guest, by its QMP socket")
    option(
        source,
        "-s",
        "--symbols",
        dest="symbols",
        type=InputPath,
        metavar="VMLINUX",
        help="debuginfo (DWARF) to use",
    )
    option(source, "--btf", dest="btf", type=InputPath, metavar="FILE", help="types from a file of BTF")
    option(
        source,
        "--types",
        dest="types",
        choices=("auto", "btf", "dwarf", "none"),
        help="where types come from (auto: the kernel's BTF unless -s is given)",
    )
    option(
        source,
        "--vmcoreinfo",
        dest="vmcoreinfo",
        type=InputPath,
        metavar="FILE",
        help="VMCOREINFO text, for dumps without the note",
    )
    option(
        source,
        "--vmcoreinfo-at",
        dest="vmcoreinfo_at",
        metavar="ADDR",
        type=physical_address,
        help="of several kernels in the memory the one whose VMCOREINFO is there (info lists them)",
    )
    option(
        source,
        "--format-in",
        dest="format_in",
        choices=DUMP_FORMATS,
        help="what the dump is, where its content does not tell",
    )
    option(
        source,
        "--debuginfod",
        dest="debuginfod",
        action="store_true",
        help="allow debuginfo to be downloaded",
    )
    option(
        source,
        "--sudo",
        dest="sudo",
        action="store_true",
        help="have sudo open /proc/kcore, and nothing else as root",
    )
    option(
        source,
        "--keep-root",
        dest="keep_root",
        action="store_true",
        help="run by sudo, stay root; without this, become who called sudo once the source is open",
    )
    output = parser.add_argument_group("output")
    form = output.add_mutually_exclusive_group()
    option(form, "--json", dest="format", action="store_const", const="json", help="same as --format json")
    option(form, "--csv", dest="format", action="store_const", const="csv", help="same as --format csv")
    option(form, "--format", dest="format", choices=FORMATS, help="default: text")
    option(output, "-o", "--output", dest="output", metavar="FILE", help="write to FILE")
    option(output, "--color", dest="color", choices=("auto", "always", "never"), help="default: auto")
    option(
        output,
        "--no-pager",
        dest="no_pager",
        action="store_true",
        help="write long text straight to the terminal (otherwise $PAGER shows it)",
    )
    option(output, "--debug", dest="debug", action="store_true", help="show a traceback on errors")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code.

    :param argv: its words; by default those of this process, which then is ours alone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if argv is None:
        streams.prepare()
        _isolate(arguments)
    try:
        return _run(arguments)
    except BrokenPipeError:
        return EXIT_OK  # The reader went away, which is its right.
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug and argv is not None:
            raise
        return _complain(error, debug)
    finally:
        if argv is None:
            streams.let_go()


def _complain(error: Exception, debug: bool) -> int:
    """Say what went wrong on standard error; returns the exit code."""
    lines = traceback.format_exc().split("\n") if debug else []
    if isinstance(error, KvintroError):
        code, what, hint = error.exit_code, error.what, error.remedy
    else:
        code, hint = EXIT_SOURCE, "--debug for the traceback, and please report it"
        what = f"internal error: {' '.join(repr(error).split())[:300]}"
    lines += [f"kvintro: {what}"] + ([f"  hint: {hint}"] if hint else [])
    with contextlib.suppress(OSError):  # nobody hears it
        for line in lines:
            print(printable(line), file=sys.stderr)
    return code


def _isolate(arguments: Sequence[str]) -> None:
    root = os.geteuid() == 0
    if root:
        isolation.narrow_search_path()
        isolation.forget_paths_of_locales()
    # An ordinary user's prompt is drgn's own, with the plugins that this user has.
    if root or _named(arguments) != "shell":
        isolation.disable_drgn_plugins()


def exit_code(report: "Report | Stream") -> int:
    """What the process ends with after this report: the one place that decides."""
    if report.partial:
        return EXIT_PARTIAL
    return EXIT_NEGATIVE if report.negative else EXIT_OK


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """A command line.

    :raises UsageError: it makes no sense.
    """
    parser = make_parser(only=None if {"-h", "--help"} & set(arguments) else _named(arguments))
    try:
        args, unknown = parser.parse_known_args(arguments)
    except SystemExit:
        _flush()  # --help and --version
        raise
    if args.command is None:
        parser.error("which command? for instance: kvintro layout")
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", f"kvintro {args.command} --help")
    args.format = args.format or getattr(load_command(args.command), "FORMAT", "text")
    return args


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NotWritten(f"standard output: {error.strerror or error}", "send it elsewhere") from error


def _named(arguments: Sequence[str]) -> Optional[str]:
    return next((ALIASES.get(a, a) for a in arguments if a in command_names() or a in ALIASES), None)


_AS_USER = "choose another file; under sudo it is written as the user who called sudo"
_REMEDIES = {
    errno.ENOSPC: "make room there, or choose another file",
    errno.EDQUOT: "make room there, or choose another file",
    errno.EISDIR: "name a file in it",
    errno.ENOENT: "name a file in a directory that exists",
    errno.ENOTDIR: "name a file in a directory that exists",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _AS_USER),
}


def deliver(result: "Report | Stream", args: argparse.Namespace, *, paged: bool = False) -> int:
    """Write what a command found to where the command line says; returns the exit code.

    :param paged: show what is longer than the terminal in a pager.
    :raises NotWritten: there it cannot be written.
    :raises UsageError: it would go onto a file that is read.
    """
    refuse_inputs(args)
    try:
        return _deliver(result, args, paged)
    except BrokenPipeError:
        raise
    except OSError as error:
        place = "standard output" if args.output is None else args.output
        remedy = _REMEDIES.get(error.errno or 0, "choose another file")
        raise NotWritten(f"{place}: {error.strerror or error}", remedy) from error


def _deliver(result: "Report | Stream", args: argparse.Namespace, paged: bool) -> int:
    if args.output is not None:
        parts = _parts(result, args.format, color=False, width=0)
        with written_file(args.output) as file:
            file.writelines(parts)
    else:
        color, width = _color(args.color, sys.stdout), terminal_width(sys.stdout)
        if paged and isinstance(result, Report) and args.format in ("text", "map") and not args.no_pager:
            text = render(result, args.format, color=color, width=width)
            if show_paged(text, sys.stdout):
                return exit_code(result)
        _write(_parts(result, args.format, color=color, width=width), sys.stdout, args.format)
    return exit_code(result)


def _run(arguments: List[str]) -> int:
    args = parse(arguments)
    if args.output is None and streams.is_closed(sys.stdout):
        sys.stdout.write("")  # says so before anything is opened
    refuse_inputs(args)
    module = load_command(args.command)
    kernel = None
    give_up = _rights_are_given_up(args)
    end_on_bus_error()
    if not hasattr(module, "needs_source") or module.needs_source(args):
        from kvintro.kernel import open_kernel
        from kvintro.source import Request

        kernel = open_kernel(
            Request(
                core=args.core,
                qemu=args.qemu,
                vmlinux=args.symbols,
                btf=args.btf,
                types=args.types,
                vmcoreinfo=args.vmcoreinfo,
                vmcoreinfo_at=args.vmcoreinfo_at,
                form=args.format_in,
                debuginfod=args.debuginfod,
                sudo=args.sudo,
                opened=give_up,
                search=searched,
            )
        )
    else:
        give_up()
    if args.command == "shell":
        from kvintro.repl import start

        assert kernel is not None
        return start(kernel, args)
    return deliver(run_command(kernel, args), args, paged=True)


def _rights_are_given_up(args: argparse.Namespace) -> Callable[[], None]:
    """What gives up root and capabilities, unless they are to be kept."""
    if args.keep_root or not isolation.may_more_than_its_user():
        return lambda: None
    from kvintro.source.privileges import give_up_rights

    return give_up_rights


def _write(parts: Iterable[str], file: TextIO, form: str) -> None:
    for part in parts:
        file.write(streams.fitting(part, file, form))
        file.flush()


def _parts(result: "Report | Stream", form: str, *, color: bool, width: int) -> Iterable[str]:
    """What is written, piece by piece as it comes. A report is rendered before anything is opened."""
    if isinstance(result, Stream):
        return render_stream(result, form)
    return [render(result, form, color=color, width=width)]


def _color(choice: str, stream: TextIO) -> bool:
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal that a stream is, 0 if it is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else 0

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shlex
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Callable, List, Optional, Sequence

from kvintro import isolation, streams
from kvintro.bus_error import end_on_bus_error
from kvintro.commands import InputPath, load_command, run_command, searched, unpacked
from kvintro.delivery import deliver
from kvintro.entry_points import package_of, unforeseen
from kvintro.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOURCE,
    KvintroError,
    NotPermitted,
    UsageError,
)
from kvintro.output import refuse_inputs
from kvintro.parser import named_command, parse
from kvintro.text import printable

if TYPE_CHECKING:
    from kvintro.source import Request

_REPORT = """\
this is a bug in kvintro. Please report the command, its traceback (add --debug), and the text of
kvintro info --bug-report (with the same -c). Read them first, and replace addresses, and names of
hosts, users and files, with other words. The traceback alone helps too."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return the exit code.

    :param argv: words of the command; by default those of this process, whose streams and search path are
        then changed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    as_root = os.geteuid() == 0
    if argv is None:
        # A report can have a million values, but no cycles. The default is to search much more often.
        gc.set_threshold(10_000)
        streams.prepare()
        _isolate(arguments)
    try:
        return _run(arguments, own_process=argv is None)
    except BrokenPipeError:
        return EXIT_OK  # the reader closed the pipe, which is no error
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug and argv is not None:
            raise
        return _complain(error, debug, [] if as_root else _with_rights(error, arguments))
    finally:
        if argv is None:
            streams.let_go()


def _with_rights(error: Exception, arguments: Sequence[str]) -> List[str]:
    """Return the words of the same command with the missing rights, or none if rights do not help.

    sudo searches only its own directories, so the program is named by its full path.
    """
    # diff opens its dumps with the user's rights.
    if not isinstance(error, NotPermitted) or not error.by or named_command(arguments) == "diff":
        return []
    module = os.path.basename(sys.argv[0]) == "__main__.py"
    program = [sys.executable, "-m", "kvintro"] if module else [os.path.abspath(sys.argv[0])]
    if error.by == "sudo":
        # For python -m, -I keeps root's process from searching the working directory.
        return ["sudo", *program[:1], *(["-I"] if module else []), *program[1:], *arguments]
    return [*program, error.by, *arguments]


def _complain(error: Exception, debug: bool, instead: Sequence[str] = ()) -> int:
    """Report an error on standard error and return the exit code.

    :param instead: words of a command to suggest.
    """
    lines = traceback.format_exc().split("\n") if debug else []
    if isinstance(error, KvintroError):
        code, what, hint = error.exit_code, error.what, error.remedy
    else:
        code, what = EXIT_SOURCE, unforeseen(error)
        hint = _REPORT
        if package_of(error):
            hint = "--debug for the traceback, and please report it to that package's authors"
    first, *rest = hint.split("\n")
    lines += [f"kvintro: {what}"] + ([f"  hint: {first}"] if hint else []) + [f"  {line}" for line in rest]
    lines += [f"  {shlex.join(instead)}"] if instead else []
    with contextlib.suppress(OSError):  # standard error is closed
        for line in lines:
            print(printable(line), file=sys.stderr)
    return code


def _isolate(arguments: Sequence[str]) -> None:
    root = os.geteuid() == 0
    if root:
        isolation.narrow_search_path()
        isolation.forget_paths_of_locales()
    # An ordinary user's shell is drgn's own prompt, with the user's plugins.
    if root or named_command(arguments) != "shell":
        isolation.disable_drgn_plugins()
    if named_command(arguments) != "shell":
        # When numpy is imported, its OpenBLAS starts a thread for each processor, and kvintro never uses it.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _run(arguments: List[str], *, own_process: bool) -> int:
    args = parse(arguments)
    _name_source(args, arguments)
    if args.output is None and streams.is_closed(sys.stdout):
        sys.stdout.write("")  # raises before anything is opened
    refuse_inputs(args)
    module = load_command(args.command)
    if args.command == "shell" and args.output is not None:
        raise UsageError(
            "kvintro shell writes no file", "give -o to a command at its prompt: %kvintro layout -o FILE"
        )
    if args.command == "browse":
        from kvintro.browse.start import check

        check(args)
    kernel = None
    give_up = _rights_are_given_up(args)
    if own_process and _parses_dumps_only(args):
        give_up = _sandboxed(args, give_up)
    end_on_bus_error()
    if not hasattr(module, "needs_source") or module.needs_source(args):
        from kvintro.opening import open_kernel
        from kvintro.source import UnknownTables

        try:
            kernel = open_kernel(_request(args, give_up, describe_others=hasattr(module, "run_on_other")))
        except UnknownTables as error:
            if error.dump is None:
                raise
            return deliver(module.run_on_other(error.dump, args), args, paged=True)
    else:
        give_up()
    if args.command == "shell":
        from kvintro.repl import start

        assert kernel is not None
        return start(kernel, args)
    if args.command == "browse":
        from kvintro.browse.start import start as browse

        assert kernel is not None
        return browse(kernel, args)
    return deliver(run_command(kernel, args), args, paged=True)


def _request(args: argparse.Namespace, give_up: Callable[[], None], *, describe_others: bool) -> Request:
    from kvintro.source import Request

    return Request(
        core=args.core,
        qemu=args.qemu,
        vmlinux=args.symbols,
        btf=args.btf,
        types=args.types,
        vmcoreinfo=args.vmcoreinfo,
        vmcoreinfo_at=args.vmcoreinfo_at,
        form=args.format_in,
        snapshot=args.snapshot,
        cache=not args.no_cache,
        debuginfod=args.debuginfod,
        sudo=args.sudo,
        opened=give_up,
        search=searched,
        unpacking=unpacked,
        describe_others=describe_others,
    )


def _name_source(args: argparse.Namespace, arguments: List[str]) -> None:
    """Use the dump in ``KVINTRO_CORE`` if the command line names no source.

    :param arguments: words of the command line. The dump is added, because sudo clears the environment.
    """
    core = os.environ.get("KVINTRO_CORE")
    if not core or args.core or args.qemu or args.sudo:
        return
    args.core = [InputPath(core)]
    module = load_command(args.command)
    if hasattr(module, "needs_source") and not module.needs_source(args):
        args.core = None
    else:
        arguments[:0] = ["-c", core]


def _rights_are_given_up(args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that gives up root and capabilities, unless they are to be kept."""
    if args.keep_root or not isolation.may_more_than_its_user():
        return lambda: None
    from kvintro.source.privileges import give_up_rights

    return give_up_rights


def _parses_dumps_only(args: argparse.Namespace) -> bool:
    """Whether the command needs only dumps and its output: no sockets, and no other files to write."""
    if args.no_sandbox or args.debuginfod or args.qemu or args.command in ("shell", "browse"):
        return False
    return bool(args.core) or (args.command == "diff" and args.b is not None)


def _sandboxed(args: argparse.Namespace, give_up: Callable[[], None]) -> Callable[[], None]:
    """Return a function that gives up rights, and then what parsing a dump does not need."""

    def limit() -> None:
        from kvintro.source import sandbox, spool
        from kvintro.source.cache import user_cache

        give_up()
        cache = None if args.no_cache else user_cache()
        directories = [str(cache.directory)] if cache is not None else []
        directories += [os.path.dirname(os.path.realpath(args.output))] if args.output else []
        with contextlib.suppress(OSError):  # there is no directory for temporary files
            directories += [tempfile.gettempdir(), spool.spool_directory()]
        sandbox.enter(directories)

    return limit

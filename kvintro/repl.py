# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro shell``: drgn's own prompt and script runner, for a kernel that kvintro opened."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from typing import Any, Dict, Optional

import drgn

from kvintro import prompt
from kvintro.commands import standard_input
from kvintro.errors import KvintroError, NoSuchSource
from kvintro.kernels import Kernel
from kvintro.source.attached import adopt
from kvintro.text import printable

_BANNER = """
>>> from kvintro import kernel
>>> k = kernel(prog)
Every command of kvintro is a method of k, and %kvintro COMMAND runs it as the shell would."""


def start(kernel: Kernel, args: argparse.Namespace) -> int:
    """Run the prompt, or the given code instead, and return the exit code."""
    _load_commands()
    adopt(kernel.source)
    drgn.set_default_prog(kernel.prog)
    if args.code is not None:
        words = [args.script] if args.script else []
        return _batch(kernel, args.code, "<string>", ["-e", *words, *args.arguments])
    if args.script not in (None, "-"):
        return _script(kernel, args.script, args.arguments)
    if args.script == "-" or not os.isatty(standard_input()):
        with open(standard_input(), encoding="utf-8", errors="surrogateescape", closefd=False) as file:
            return _batch(kernel, file.read(), "<stdin>", ["-", *args.arguments])
    _interactive(kernel)
    return 0


def _load_commands() -> None:
    """Load drgn's commands and ours. drgn would load them as plugins, but not for root."""
    for name in ("drgn.commands._builtin", "drgn.commands._crash", "kvintro.plugin"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _globals(kernel: Kernel, names: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    from drgn.cli import default_globals

    found = default_globals(kernel.prog) if names is None else names
    found["k"] = prompt.Kernel(kernel.source)
    found["kernel"] = prompt.kernel
    return found


def _interactive(kernel: Kernel) -> None:
    from drgn.cli import run_interactive, version_header

    if os.geteuid() == 0:
        sys.meta_path.insert(0, _NotFromHere())
    sys.stderr.write(version_header() + "\n")
    run_interactive(
        kernel.prog,
        banner_func=lambda banner: banner + _BANNER,
        globals_func=lambda names: _globals(kernel, names),
    )


class _NotFromHere:
    """Keeps root's prompt from importing modules in the working directory, which drgn adds to the path."""

    def find_spec(self, *_: Any) -> None:
        while "" in sys.path:
            sys.path.remove("")


def _batch(kernel: Kernel, code: str, name: str, argv: "list[str]") -> int:
    sys.argv = argv
    names = _globals(kernel)
    if code.startswith("%"):
        from drgn.commands import run_command

        return _guarded(lambda: run_command(kernel.prog, code[1:], globals=names))
    names["__file__"] = name
    return _guarded(lambda: exec(compile(code, name, "exec"), names))


def _script(kernel: Kernel, path: str, arguments: "list[str]") -> int:
    try:
        with open(path, "rb") as file:
            code = file.read()
    except OSError as error:
        raise NoSuchSource(f"{path}: {error.strerror}", "check the path of the script") from None
    sys.argv = [path, *arguments]
    if os.geteuid() != 0:
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    names = {"prog": kernel.prog, "k": _globals(kernel, {})["k"], "__name__": "__main__", "__file__": path}
    return _guarded(lambda: exec(compile(code, path, "exec"), names))


def _say(text: str) -> None:
    """Write lines to standard error. Text of an exception may contain strings of the kernel."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in text.split("\n")))


def _guarded(run: Any) -> int:
    """Run code as python would: an exception prints its traceback, without the frames of kvintro."""
    try:
        run()
    except (KvintroError, BrokenPipeError):
        raise
    except Exception as error:
        from drgn.commands import CommandError

        if isinstance(error, CommandError):
            _say(f"kvintro: {error}")
            return 1
        trace = error.__traceback__
        for _ in range(2):
            trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
        _say("".join(traceback.format_exception(type(error), error, trace)).rstrip("\n"))
        return 1
    return 0

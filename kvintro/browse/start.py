# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starts the browser if the terminal and the installed packages allow it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import select
import signal
import sys
import termios
import threading
import time
from typing import Callable, List

from kvintro.bus_error import end_on_bus_error
from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.streams import takes_unicode

# Disable mouse, bracketed paste and focus events; restore the keyboard, the main screen and the cursor.
_PLAIN_SCREEN = (
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1004l\x1b[<u\x1b[?1049l\x1b[?25h"
)


def check(args: argparse.Namespace) -> None:
    """Check that the browser can run, before anything is opened.

    :raises UsageError: Textual is not installed, or there is no terminal.
    """
    if args.output is not None:
        raise UsageError("kvintro browse writes no file", "give -o to a command in it: :layout -o FILE")
    if importlib.util.find_spec("textual") is None:
        raise UsageError("kvintro browse needs Textual", "pip install 'kvintro[browse]'")
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError("kvintro browse needs a terminal", "run it without redirection")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise UsageError("this terminal cannot place a cursor (TERM is dumb)", "run it in another one")


def start(kernel: Kernel, args: argparse.Namespace) -> int:
    """Run the browser and return the exit code."""
    from kvintro.browse.app import LAST, Browser, is_light
    from kvintro.browse.session import Session

    if not os.environ.get("NO_COLOR"):
        os.environ.pop("NO_COLOR", None)  # Textual asks only whether it is set
    session = Session(kernel, source_words(args))
    ascii_only = not takes_unicode(sys.stdout)
    app = Browser(session, light=is_light(), ascii_only=ascii_only, begin=args.place or "")
    end_on_bus_error(before=_restoring(sys.stdin.fileno()))
    threading.Thread(target=_end_without, args=(sys.stdin.fileno(), LAST), daemon=True).start()
    app.run()
    error = getattr(app, "_exception", None)
    if isinstance(error, Exception):
        raise error
    return app.return_code or 0


def _end_without(terminal: int, last: float) -> None:
    """End after ``last`` seconds when the terminal is gone, even if no SIGHUP arrives.

    Textual would read its end again and again, and wait forever to write to it.
    """
    poll = select.poll()
    poll.register(terminal, 0)  # reports POLLHUP only
    poll.poll()
    time.sleep(last)
    os._exit(128 + signal.SIGHUP)


def _restoring(terminal: int) -> Callable[[], object]:
    """Return a function that restores the terminal to its current state, for exits that Textual misses."""
    before = termios.tcgetattr(terminal)

    def restore() -> None:
        os.write(2, _PLAIN_SCREEN)
        termios.tcsetattr(terminal, termios.TCSANOW, before)

    return restore


def source_words(args: argparse.Namespace) -> List[str]:
    """The part of the command line that names the source."""
    words: List[str] = []
    for core in args.core or ():
        words += ["-c", core]
    for option, value in (("--qemu", args.qemu), ("-s", args.symbols), ("--btf", args.btf)):
        words += [option, value] if value else []
    if args.types != "auto":
        words += ["--types", args.types]
    if args.vmcoreinfo:
        words += ["--vmcoreinfo", args.vmcoreinfo]
    if args.vmcoreinfo_at is not None:
        words += ["--vmcoreinfo-at", f"{args.vmcoreinfo_at:x}"]
    if args.format_in:
        words += ["--format-in", args.format_in]
    if args.snapshot:
        words += ["--snapshot", args.snapshot]
    return words

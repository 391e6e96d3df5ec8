# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per subcommand: ``HELP``, ``configure(parser)`` and ``run(kernel, args) -> Report``.

A command that can do without a kernel also has ``needs_source(args) -> bool``; where that says no, ``kernel``
is None. ``run`` may return a :class:`~kvintro.model.Stream` in place of a report.

The three doors (:mod:`kvintro.cli`, ``kvintro shell``, ``%kvintro`` in drgn) find commands by the names of
these files, and by the aliases here.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import sys
import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    TypeVar,
    Union,
)

from kvintro.errors import Unavailable, UsageError
from kvintro.text import printable

if TYPE_CHECKING:
    import argparse

    from kvintro.kernel import Kernel
    from kvintro.model import Report, Stream
    from kvintro.source.vmcoreinfo import Piece

T = TypeVar("T")

#: Other names that people know a command by; ``args.command`` says which was used.
ALIASES: Dict[str, str] = {"vtop": "translate", "ptov": "translate"}


class InputPath(str):
    """A file that the command line names to be read: output never goes onto it.

    The ``type`` of every such argument.
    """


def command_names() -> List[str]:
    """Names of all subcommands."""
    return [info.name for info in pkgutil.iter_modules(__path__)]


def add_addresses(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    """The addresses that a command is asked about, and what numbers among them may be said to be."""
    parser.add_argument(
        "addresses",
        nargs="+",
        metavar="ADDR",
        help="hex with or without 0x, symbol, symbol+offset; - for a list on standard input",
    )
    parser.add_argument("--from", dest="form", choices=forms, help="what the numbers are")


def standard_input() -> int:
    """The descriptor of standard input, for commands that read a list there.

    :raises UsageError: it is closed.
    """
    if sys.stdin is None:
        raise UsageError("standard input is closed", "give it a file: < FILE")
    return sys.stdin.fileno()


#: Seconds after which a bar is shown.
_DELAY = 1.0


class Bar:
    """How far something is, on a terminal's standard error, once it has taken longer than a second.

    tqdm's own ``delay`` shows nothing while the first item takes long, and does not erase what ``refresh``
    showed before; so here it is made by a timer.

    :param total: how much there is to do.
    :param unit: what that is counted in.
    :param scale: whether large numbers are to be written short.
    """

    def __init__(self, total: int, unit: str, *, scale: bool = False) -> None:
        self._settings: Dict[str, Any] = {"total": total, "unit": unit, "unit_scale": scale}
        self._lock = threading.Lock()
        self._bar: Any = None
        self._done = 0
        self._what = ""
        self._timer = threading.Timer(_DELAY, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._timer.cancel()
            if self._bar is not None:
                self._bar.close()

    def _show(self) -> None:
        from tqdm import tqdm

        with self._lock:
            if self._timer.finished.is_set():
                return  # it ended just now
            # A serial console knows no width.
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            self._bar = tqdm(
                **self._settings,
                initial=self._done,
                postfix=self._what,
                leave=False,
                file=sys.stderr,
                ncols=columns - 1,
                # Items take very different times: how long the rest will take is not known.
                bar_format="{l_bar}{bar:20}| {n_fmt}/{total_fmt} {unit}s{postfix}",
            )

    def at(self, what: str) -> None:
        """What is worked on now."""
        with self._lock:
            self._what = printable(what)
            if self._bar is not None:
                self._bar.set_postfix_str(self._what)

    def did(self, count: int = 1) -> None:
        """So much more is done."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)


def watched(items: Sequence[T], unit: str, name: Callable[[T], str] = str) -> Iterator[T]:
    """The items, with a :class:`Bar` while they are dealt with.

    :param unit: what one item is called.
    :param name: what to show beside the bar while an item is at work.
    """
    with Bar(len(items), unit) as bar:
        for item in items:
            bar.at(name(item))
            yield item
            bar.did()


def searched(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    """Memory piece by piece, with a :class:`Bar` while it is looked through for VMCOREINFO."""
    with Bar(size, "byte", scale=True) as bar:
        bar.at("looking for VMCOREINFO")
        for address, data in pieces:
            yield address, data
            bar.did(len(data))


def load_command(name: str) -> Any:
    """The module of one subcommand, by its name or an alias."""
    return importlib.import_module(f"{__name__}.{ALIASES.get(name, name)}")


#: How often a running kernel is asked that changes while it is read, and for how many seconds at most.
ATTEMPTS = 3
_PATIENCE = 10.0
_CHANGING = "what could not be read was asked for again: it changes all the time, or is not to be read here"


def run_command(kernel: Optional[Kernel], args: argparse.Namespace) -> Union[Report, Stream]:
    """Run a parsed command.

    A running kernel changes under the reader: a list is followed into what has just been freed, a page table
    is gone. What comes out partial, or not at all, is asked again a few times, of all that is cached anew;
    what still is partial then is marked as such. Lists that come as they are read are not.
    """
    module = load_command(args.command)
    if kernel is not None:
        kernel.source.check_size()
    if kernel is None or not kernel.source.live:
        found: Union[Report, Stream] = module.run(kernel, args)
        return found
    from drgn import FaultError

    from kvintro.model import Report

    started = time.monotonic()
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1
        try:
            found = module.run(kernel, args)
        except Unavailable:
            if last:
                raise
        except FaultError as error:
            if last:
                raise Unavailable(f"the kernel changed while it was read: {error}", "try it again") from error
        else:
            if not isinstance(found, Report) or not found.partial:
                return found
            if last or time.monotonic() - started > _PATIENCE:
                return dataclasses.replace(found, notes=(*found.notes, _CHANGING))
        kernel = type(kernel)(kernel.source)
    raise AssertionError

# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per subcommand: ``HELP``, ``configure(parser)`` and ``run(kernel, args) -> Report``.

A command that can run without a kernel also has ``needs_source(args) -> bool``; if that returns False,
``kernel`` is None. ``run`` may return a :class:`~kvintro.model.Stream` instead of a report.

The three entry points (:mod:`kvintro.cli`, ``kvintro shell``, ``%kvintro`` in drgn) find commands by the
names of these files, and by the aliases here.
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
    ClassVar,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    TypeVar,
    Union,
)

from kvintro.entry_points import COMMANDS, added
from kvintro.errors import Unavailable, UsageError
from kvintro.text import printable

if TYPE_CHECKING:
    import argparse

    from kvintro.kernels import Kernel
    from kvintro.model import Report, Stream
    from kvintro.source.unpack import Piece as Unpacked
    from kvintro.source.vmcoreinfo import Piece

T = TypeVar("T")

#: Other names of commands; ``args.command`` is the name that was used.
ALIASES: Dict[str, str] = {
    "vtop": "translate",
    "ptov": "translate",
    "rd": "read",
    "vm": "user",
    "mach": "info",
}
#: Commands whose options decide which other command answers. Only the command line has them.
FORWARDING = ("kmem",)


class InputPath(str):
    """The ``type`` of every argument that names a file to read; output never overwrites such a file."""


class AddedCommand(Protocol):
    """A subcommand of another package; the entry point's name is the command's.

    :ivar interface: ``1``.
    :ivar help: one line, for people.
    """

    interface: int
    help: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the options and arguments."""

    def run(self, kernel: Kernel, args: argparse.Namespace) -> Report:
        """Ask the kernel."""


class _Added:
    """A command of another package in the form of a module here."""

    def __init__(self, command: AddedCommand) -> None:
        self.HELP = command.help
        self.configure = command.configure
        self.run = command.run


def command_names() -> List[str]:
    """Names of kvintro's own subcommands, without :data:`ALIASES` and :data:`FORWARDING`."""
    return [info.name for info in pkgutil.iter_modules(__path__) if info.name not in FORWARDING]


def known_names() -> List[str]:
    """Names of kvintro's own subcommands, and their other names."""
    return [*command_names(), *ALIASES, *FORWARDING]


def added_commands() -> Mapping[str, AddedCommand]:
    """Subcommands of other packages by name."""
    return added(COMMANDS, ("help", "configure", "run"), tuple(known_names()))


def process(text: str) -> Union[int, str]:
    """The ``type`` of every argument that names a process: its pid, or the name of its command."""
    return int(text) if text.isdecimal() else text


def kcore_can_be_read() -> bool:
    """False if it is masked, as in containers (an empty file, /dev/null), or if lockdown forbids reading."""
    try:
        with open("/proc/kcore", "rb") as file:
            return file.read(1) != b""
    except OSError:
        return False


def add_addresses(parser: argparse.ArgumentParser, forms: Sequence[str]) -> None:
    """Add the addresses to ask about, and ``--from``, which says how to interpret numbers among them."""
    parser.add_argument(
        "addresses",
        nargs="+",
        metavar="ADDR",
        help="hex with or without 0x, symbol or symbol+offset; - reads a list from standard input",
    )
    parser.add_argument("--from", dest="form", choices=forms, help="how to interpret the numbers")


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
    """A progress bar on standard error, if that is a terminal, once the work has taken longer than a second.

    tqdm's own ``delay`` shows nothing while the first item takes long, and does not erase what ``refresh``
    showed before, so a timer makes the bar here.

    :param total: the amount of work.
    :param unit: the unit of that amount.
    :param scale: whether to shorten large numbers, as 1.5M.
    """

    #: While something else has the whole terminal: called with the share of the work done, as in ``45%``.
    instead: ClassVar[Optional[Callable[[str], None]]] = None

    def __init__(self, total: int, unit: str, *, scale: bool = False) -> None:
        self._settings: Dict[str, Any] = {"total": total, "unit": unit, "unit_scale": scale}
        self._lock = threading.Lock()
        self._bar: Any = None
        self._done = 0
        self._what = ""
        self._timer = threading.Timer(_DELAY, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Bar:
        if Bar.instead is None and sys.stderr.isatty():
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
            # A serial console does not report a width.
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            # Other items take very different times, so there is no estimate of the time left.
            steady = ", {rate_fmt}, {remaining} left" if self._settings["unit_scale"] else ""
            self._bar = tqdm(
                **self._settings,
                initial=self._done,
                postfix=self._what,
                leave=False,
                file=sys.stderr,
                ncols=columns - 1,
                bar_format="{l_bar}{bar:20}| {n_fmt}/{total_fmt} {unit}s" + steady + "{postfix}",
            )

    def at(self, what: str) -> None:
        """Show what is being worked on now."""
        with self._lock:
            self._what = printable(what)
            if self._bar is not None:
                self._bar.set_postfix_str(self._what)

    def did(self, count: int = 1) -> None:
        """Add to the work done."""
        with self._lock:
            self._done += count
            if Bar.instead is not None and self._settings["total"]:
                Bar.instead(f"{100 * self._done // self._settings['total']}%")
            if self._bar is not None:
                self._bar.update(count)


def watched(items: Sequence[T], unit: str, name: Callable[[T], str] = str) -> Iterator[T]:
    """Yield the items, and show a :class:`Bar` meanwhile.

    :param unit: the name of one item.
    :param name: the text to show beside the bar while an item is worked on.
    """
    with Bar(len(items), unit) as bar:
        for item in items:
            bar.at(name(item))
            yield item
            bar.did()


def searched(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    """Yield memory piece by piece, and show a :class:`Bar` while it is searched for VMCOREINFO."""
    with Bar(size, "byte", scale=True) as bar:
        bar.at("looking for VMCOREINFO")
        for address, data in pieces:
            yield address, data
            bar.did(len(data))


def unpacked(pieces: Iterable[Unpacked], size: int) -> Iterator[Unpacked]:
    """Yield what is unpacked, with how much of the packed file was read, and show a :class:`Bar`."""
    with Bar(size, "byte", scale=True) as bar:
        bar.at("unpacking")
        before = 0
        for position, data in pieces:
            yield position, data
            bar.did(max(0, position - before))
            before = max(before, position)


def load_command(name: str) -> Any:
    """The module of one subcommand, by its name or an alias."""
    name = ALIASES.get(name, name)
    if name not in command_names() and name in added_commands():
        return _Added(added_commands()[name])
    return importlib.import_module(f"{__name__}.{name}")


#: How many times a running kernel that changes while it is read is asked, and for how many seconds at most.
ATTEMPTS = 3
_PATIENCE = 10.0
_CHANGING = "some data could not be read even after retries: it keeps changing, or cannot be read here"


def _mistake(kernel: Kernel) -> str:
    from kvintro.reports.excluded import mistake_of

    return kernel.once(mistake_of)


def _of_dump(module: Any, kernel: Kernel, args: argparse.Namespace) -> Union[Report, Stream]:
    """The answer from a dump. If pages that it needs were excluded by mistake, it says so first."""
    from kvintro.model import Report

    try:
        found: Union[Report, Stream] = module.run(kernel, args)
    except Unavailable as error:
        error.remedy = _mistake(kernel) or error.remedy
        raise
    if not isinstance(found, Report) or not found.partial:
        return found
    mistake = _mistake(kernel)
    if not mistake or mistake in found.notes:
        return found
    return dataclasses.replace(found, head=(*found.head, mistake), notes=(mistake, *found.notes))


def run_command(kernel: Optional[Kernel], args: argparse.Namespace) -> Union[Report, Stream]:
    """Run a parsed command.

    A running kernel changes while it is read: a list leads into freed memory, or a page table disappears.
    So if the report is partial, or fails, the command runs again a few times with nothing cached. A report
    that is still partial then says so. A :class:`~kvintro.model.Stream` is not retried, since its first
    lines may already be written.
    """
    module = load_command(args.command)
    if kernel is not None:
        kernel.source.check_size()
        if isinstance(getattr(args, "pid", None), str):
            from kvintro.queries.names import pid_named

            args.pid = pid_named(kernel, args.pid)
    found: Union[Report, Stream]
    if kernel is None:
        found = module.run(kernel, args)
        return found
    if not kernel.source.live:
        return _of_dump(module, kernel, args)
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
        kernel = kernel.fresh()
    raise AssertionError

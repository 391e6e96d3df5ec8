# SPDX-License-Identifier: LGPL-2.1-or-later
"""Drives ``kvintro browse`` by its keys, with and without a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any, Awaitable, Callable, List

from textual import events
from textual.keys import key_to_character
from textual.pilot import Pilot

from kvintro.browse.app import Browser
from kvintro.browse.places import Place
from kvintro.browse.session import Session
from kvintro.kernels import Kernel

#: Most queues of messages that a key passes before it asks a question, and an answer before it is shown.
_HOPS = 10


async def settled(app: Browser, pilot: Pilot[int]) -> None:
    """Wait until the worker has answered all requests and the screen shows the answers.

    Each pause waits until every queue has been emptied once, however busy the machine is.
    """
    quiet = 0
    while quiet < _HOPS:
        # While the worker works, this thread sleeps, because only one of them can run.
        await (pilot.pause(0) if app.idle else asyncio.sleep(0.02))
        quiet = quiet + 1 if app.idle else 0
    await pilot.pause()


class Driver:
    """A browser without a terminal."""

    def __init__(self, app: Browser, pilot: Pilot[int]) -> None:
        self.app = app
        self._pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys, and wait for the answer to each."""
        for key in keys:
            await self._pilot.press(key)
            await settled(self.app, self._pilot)

    async def tap(self, key: str) -> None:
        """Press a key without waiting for an answer."""
        await self._pilot.press(key)

    async def burst(self, *keys: str) -> None:
        """Press keys all at once, as a terminal sends a paste, and wait for the last answer."""
        for key in keys:
            self.app.post_message(events.Key(key, key_to_character(key)))
        await settled(self.app, self._pilot)

    async def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal."""
        await self._pilot.resize_terminal(columns, lines)
        await settled(self.app, self._pilot)

    async def type(self, text: str) -> None:
        """Type into the open input, and press Enter."""
        await self._pilot.press(*(_KEYS.get(char, char) for char in text))
        await self.press("enter")

    async def goto(self, text: str) -> None:
        """Press ``g``, type a text and press Enter."""
        await self.press("g")
        await self.type(text)

    async def follow(self, kind: str) -> None:
        """Put the cursor on the first line with a link of this kind, and press Enter."""
        listing = self.app.detail
        listing.select(0)
        while listing.link is None or listing.link.kind != kind:
            before = listing.cursor
            listing.select(before + 1)
            assert listing.cursor > before, f"nothing leads to a {kind}: {self.detail}"
        await self.press("enter")

    async def until(self, happened: Callable[[], bool], timeout: float = 120) -> None:
        """Wait for something that happens without a key."""
        end = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < end, self.screen
            await self._pilot.pause(0.01)

    @property
    def screen(self) -> str:
        """The text of the whole screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)

    @property
    def head(self) -> str:
        """The first line of the screen."""
        self.app._show_head()
        return str(self.app._head.render())

    @property
    def map(self) -> str:
        """The left pane."""
        return "\n".join(line.text for line in self.app.map.lines)

    @property
    def detail(self) -> str:
        """The right pane."""
        return "\n".join(line.text for line in self.app.detail.lines)

    @property
    def place(self) -> Place:
        """The current place."""
        assert self.app.stop is not None
        return self.app.stop.place


_KEYS = {"_": "underscore", ":": "colon", "+": "plus", "-": "minus", "=": "equals_sign", " ": "space"}


def browse(kernel: Kernel, walk: Callable[[Driver], Awaitable[None]], **options: Any) -> None:
    """Run a test in a browser."""
    size = options.pop("size", (120, 40))

    async def run() -> None:
        app = Browser(Session(kernel, ["-c", "core"]), **options)
        async with app.run_test(size=size) as pilot:
            await settled(app, pilot)
            await walk(Driver(app, pilot))

    asyncio.run(run())


class Terminal:
    """``kvintro browse`` in a pseudo-terminal of 80 by 24.

    :ivar written: everything that it has written.
    """

    def __init__(self, core: str, *, before: str = "", **environment: str) -> None:
        program = f"import sys; {before}from kvintro.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", program, "-c", core, "browse"]
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.modes = self.current_modes
        everything = {**os.environ, "TERM": "xterm-256color", **environment}
        self.process = subprocess.Popen(
            words, stdin=self._slave, stdout=self._slave, stderr=self._slave, env=everything
        )
        self.written = b""

    @property
    def current_modes(self) -> List[Any]:
        """The terminal's modes."""
        return termios.tcgetattr(self._slave)

    def read(self, until: bytes = b"") -> None:
        """Read until it writes what a regular expression matches, or ends."""
        begin, limit = len(self.written), time.monotonic() + 120
        while not until or not re.search(until, self.written[begin:]):
            assert time.monotonic() < limit, (until, self.written[-1000:])
            ended = self.process.poll() is not None
            if select.select([self._master], [], [], 0.1)[0]:
                self.written += os.read(self._master, 1 << 16)
            elif ended:
                return

    def drain(self, seconds: float) -> None:
        """Read what it writes in this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._master], [], [], left)[0]:
                self.written += os.read(self._master, 1 << 16)

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def end(self) -> int:
        """Read everything, and return the exit status."""
        self.read()
        return self.process.wait(timeout=60)

    def hang_up(self) -> None:
        """Take the terminal away. The process is not its session's leader, so no signal tells it."""
        os.close(self._slave)
        os.close(self._master)

    def close(self) -> None:
        """Close the terminal."""
        os.close(self._master)
        os.close(self._slave)

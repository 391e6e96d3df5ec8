# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro browse``, driven by its keys and compared with what the kernels reported about themselves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from drgn.helpers.linux.pid import for_each_task
from textual import events
from textual.command import CommandList

from kvintro.browse.lines import Sheet
from kvintro.browse.places import Place, Tab
from kvintro.browse.session import Session, View
from kvintro.browse.stretches import Stretch
from kvintro.cli import main
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from kvintro.model import Report
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.browsing import Driver, Terminal, browse, settled
from tests.conftest import VMCORES, Core
from tests.hostile import assert_inert, poisoned
from tests.unreliable import Unreliable

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")


def test_from_the_map_to_a_page_and_back(core: Core, kernel: Kernel) -> None:
    """Enter alone goes from a region to an area, to its pages and to a page frame; b goes back."""
    known = {f"{int(line.split('-')[0], 16):016x}" for line in core.truth("vmallocinfo").splitlines()}

    async def walk(go: Driver) -> None:
        await go.goto("vmalloc")
        # /proc/vmallocinfo also has areas of modules, and areas that no longer existed when the dump was
        # taken.
        listed = set(re.findall("[0-9a-f]{16}", go.detail))
        assert len(known & listed) > len(known) // 2
        await go.follow("range")
        area = go.place
        assert f"{area.start:016x}" in known
        await go.press("2")
        pages = go.detail.split()
        await go.press("right", "right", "enter")
        # The number in the list can be typed after g, too.
        assert go.place.title.startswith("pfn ") and go.place.title[4:] in pages
        assert "struct page" in go.detail
        await go.press("b")
        assert go.place == area
        await go.press("b")
        assert go.place.title == "vmalloc"
        await go.press("f")
        assert go.place == area

    browse(kernel, walk)


def test_a_page_leads_to_its_owner(core: Core, kernel: Kernel) -> None:
    """From a page frame of /proc/PID/pagemap to the process that maps it, and to its areas."""
    line = next(line for line in core.truth("workload").splitlines() if " anon " in line)
    pid, _, _, start, *_ = line.split()
    lines = core.truth("pagemap").splitlines()
    entry = next(line.split() for line in lines if line.split()[:2] == [pid, start])
    pfn = int(entry[2], 16) & (1 << 55) - 1
    maps = core.truth(f"proc/{pid}/maps").splitlines()

    async def walk(go: Driver) -> None:
        await go.goto(f"pfn:{pfn:x}")
        links = [link for row in go.app.detail.lines for link in row.links]
        assert int(pid) in [link.value for link in links if link.kind == "pid"]
        await go.follow("pid")
        assert go.place.pid == int(pid)
        for area in maps[:5]:
            assert f"{int(area.split('-')[0], 16):016x}" in go.detail

    browse(kernel, walk)


def test_the_map_goes_down_to_the_pages_that_qemu_says(core: Core, kernel: Kernel) -> None:
    """From the whole address space through the tables to one entry; its page is that of QEMU's monitor."""
    said = json.loads(core.truth("gva2gpa.json"))
    session = Session(kernel)
    places = {key: kernel.place(key).range for key in ("direct_map", "kernel_image", "vmalloc", "modules")}
    compared = 0
    for key, where in places.items():
        inside = [text for text, physical in said.items() if physical and int(text, 16) in where]
        for text in inside[:: max(len(inside) // 5, 1)]:
            address, physical = int(text, 16), int(said[text], 16)
            stretch = Stretch(where.start, where.end, key, key)
            for _ in range(6):
                boxes = session.stretch(stretch)
                # The boxes cover the whole shown range without gaps.
                assert (boxes[0].start, boxes[-1].end) == (stretch.start, stretch.end)
                assert all(box.end + 1 == after.start for box, after in zip(boxes, boxes[1:]))
                box = next(box for box in boxes if box.start <= address <= box.end)
                if not box.zooms:
                    break
                stretch = Stretch(box.start, box.end, key, "")
            assert box.link is not None and box.link.kind == "pfn", (text, box)
            base = int(box.link.value) << kernel.page_shift
            assert base + (address & box.size - 1) == physical, text
            compared += 1
    assert compared > 8


# One core is enough for the tests below.


@pytest.fixture(scope="module")
def sample() -> Kernel:
    return open_kernel(Request(core=str(VMCORES / "debian-6.12/core.kdump")))


def test_keys_of_the_panes(sample: Kernel) -> None:
    async def walk(go: Driver) -> None:
        app = go.app
        assert app.map.has_focus
        while go.place.title != "vmalloc":
            await go.press("down")
        assert "kernel_clone+" in go.detail
        await go.press("tab")
        assert app.detail.has_focus
        await go.press("2")
        assert app.stop is not None and app.stop.tab == 1
        await go.press("right_square_bracket")
        assert app.stop.tab == 2
        await go.press("left_square_bracket", "1", "escape")
        assert app.map.has_focus and app.stop.tab == 0
        regions = go.map
        await go.press("enter")
        assert go.map != regions and "pud table" in go.map
        await go.press("right")
        assert "pmd table" in go.map
        await go.press("left", "left")
        assert go.map == regions and go.place.title == "vmalloc"
        await go.press("z")
        assert not app.detail.is_on_screen and app.map.size.width > 100
        await go.press("z", "f1")
        assert len(app.screen_stack) == 2
        await go.press("x", "t")
        assert app.theme == "textual-light"
        await go.press("q")
        assert app.return_code == 0

    browse(sample, walk)


def test_keys_of_a_table(sample: Kernel) -> None:
    """Filter, sort, copy, and the command line that prints the same."""

    async def walk(go: Driver) -> None:
        app = go.app
        await go.goto("vmalloc")
        everything = len(app.detail.lines)
        await go.press("slash")
        await go.type("ioremap")
        rows = [line for line in app.detail.lines if line.link is not None and not line.head]
        assert 0 < len(rows) < everything
        assert all("ioremap" in line.text for line in rows)
        await go.press("s", "enter", "S", "tab", "tab", "y")
        assert app.clipboard == rows_first(go)
        await go.press("c")
        line = app.clipboard
        assert line.startswith("kvintro -c core show vmalloc --match ")
        await go.press("x", "escape")
        assert len(app.detail.lines) >= everything - 1
        await go.press("r")
        assert "does not change" in str(list(app._notifications)[-1].message)
        await go.press("question_mark")
        assert go.place.title == "about vmalloc"

    browse(sample, walk)


def rows_first(go: Driver) -> str:
    """The address at the cursor of the right pane."""
    link = go.app.detail.link
    assert link is not None
    return f"{link.value:x}"


def test_commands_types_and_physical_memory(sample: Kernel) -> None:
    async def walk(go: Driver) -> None:
        app = go.app
        await go.press("colon")
        await go.type("kaslr --json")
        assert '"schema": "kvintro.kaslr/1"' in go.detail
        await go.press("colon")
        await go.type("-c other layout")
        assert "another source cannot be opened" in go.detail
        await go.press("colon")
        await go.type("shell")
        assert "needs a terminal of its own" in go.detail
        await go.goto("init_task")
        await go.press("4")
        assert "struct task_struct" in go.detail
        await go.follow("command")
        assert "last_wakee" in go.detail
        await go.press("escape", "p")
        assert "without memory" in go.map or "slab" in go.map
        sizes = []
        for _ in range(6):
            link = app.map.link
            if link is None or link.kind != "cells":
                break
            sizes.append((link.end or 0) + 1 - int(link.value))
            await go.press("enter")
            if sizes[-1] == 4096:
                break
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 4096
        assert go.place.title.startswith("physical") and "struct page" in go.detail

    browse(sample, walk)


def test_the_palette_finds_a_question(sample: Kernel) -> None:
    async def walk(go: Driver) -> None:
        await go.tap("ctrl+p")
        await go.press(*"writable")
        await go.until(lambda: "Is anything writable and executable?" in go.screen)
        await go.press("down", "enter")
        await go.until(lambda: go.place.title == ":ptdump --wx")
        await settled(go.app, go._pilot)
        assert "none" in go.detail

    browse(sample, walk)


def test_the_palette_may_close_while_it_is_filled(sample: Kernel) -> None:
    """Textual then does not find the palette's list."""

    async def walk(go: Driver) -> None:
        await go.tap("ctrl+p")
        await go.app.screen.query(CommandList).remove()
        await go.tap("w")
        await go.tap("escape")
        await go.until(lambda: len(go.app.screen_stack) == 1)
        await go.press("down")
        assert go.app.map.cursor == 1

    browse(sample, walk)


def test_keys_that_follow_each_other_quickly(sample: Kernel) -> None:
    """A key that arrives while a dialog closes does not close what is below it."""

    async def walk(go: Driver) -> None:
        await go.tap("f1")
        for _ in range(2):
            go.app.screen.post_message(events.Key("x", None))
        await go.until(lambda: len(go.app.screen_stack) == 1)
        await go.press("down")
        assert go.app.map.cursor == 1

    browse(sample, walk)


def test_keys_that_arrive_together(sample: Kernel) -> None:
    """Each key goes to what the keys before it opened or closed, as if they had arrived one by one."""

    async def walk(go: Driver) -> None:
        app = go.app
        await go.burst("tab", "g", *"vmalloc", "enter")
        assert go.place.title == "vmalloc" and len(app.screen_stack) == 1
        await go.burst("slash", *"ioremap", "enter", "end", "home", "s", "down", "enter", "S")
        assert app.stop is not None
        assert (app.stop.view.match, app.stop.view.sort, app.stop.view.reverse) == ("ioremap", "end", True)
        await go.burst("g", *"f", "escape", "g", "ctrl+c", "f1", "ctrl+c", "f1", "x", "escape")
        await go.burst("colon", *"info", "enter", "b", "2")
        assert [stop.place.title for stop in app.stops[-2:]] == ["vmalloc", ":info"]
        assert go.place.title == "vmalloc" and app.stop is not None and app.stop.tab == 1
        app.post_message(events.Key("g", "g"))
        app.post_message(events.Paste("init_taskk\n"))
        await go.burst("backspace", "enter")
        assert go.place.title == "init_task"
        # The command line is that of the region under the cursor, however soon the key follows.
        await go.burst("tab", "home", "down", "down", "c")
        copied = app.clipboard
        await go.burst("x", "c")
        assert app.clipboard == copied != ""
        # A line that leads to the place itself does not lengthen the path.
        await go.burst("x", "g", *"jiffies", "enter")
        await go.burst("home", "enter", "enter")
        assert [stop.place.title for stop in app.stops].count("jiffies") == 1

    browse(sample, walk)


def test_keys_wait_for_the_place_that_is_looked_for(sample: Kernel) -> None:
    """Keys typed after ``g`` and a target act on that target, however long the search takes."""

    async def walk(go: Driver) -> None:
        app, find = go.app, go.app.session.find
        found = threading.Event()

        def slowly(text: str) -> Any:
            assert found.wait(60)
            return find(text)

        app.session.find = slowly  # type: ignore[method-assign]

        async def typed(*keys: str) -> List[Tuple[str, int]]:
            """Titles and tabs of the stops that these keys add."""
            begin, screens = app.at, len(app.screen_stack)
            found.clear()
            for key in ("g", *keys):
                await go.tap(key)
            assert (app.at, len(app.screen_stack)) == (begin, screens)
            found.set()
            await settled(app, go._pilot)
            return [(stop.place.title, stop.tab) for stop in app.stops[begin + 1 :]]

        assert await typed(*"init", "underscore", *"task", "enter", "4") == [("init_task", 3)]
        both = ("slash", *"ioremap", "enter", "g", *"jiffies", "enter", "2")
        assert await typed(*"vmalloc", "enter", *both) == [("vmalloc", 0), ("jiffies", 1)]
        assert app.stops[-2].view.match == "ioremap"
        # If nothing is found, they are dropped. Escape and Ctrl-C drop them, too.
        assert await typed(*"nosuch", "enter", "4") == [] and app.stops[-1].tab == 1
        assert await typed(*"vmalloc", "enter", "4", "escape") == [] and app.stops[-1].tab == 1
        assert await typed(*"vmalloc", "enter", "4", "ctrl+c", "3") == [] and app.stops[-1].tab == 2

    browse(sample, walk)


def test_what_can_be_gone_to(sample: Kernel) -> None:
    session = Session(sample)
    init_task = sample.symbol("init_task")
    for text, title in {
        "init_task": "init_task",
        "init_task+10": "init_task+10",
        f"{init_task:x}": "task: 0 (swapper/0)",
        f"0x{init_task:x}": "task: 0 (swapper/0)",
        "pfn:1000": "pfn 1000",
        "phys:1000": "physical 1000",
        "loop": "module loop",
        "kernel image": "kernel_image",
        "kv-memory": "pid 165 kv-memory",
        "pid:165": "pid 165 kv-memory",
    }.items():
        assert title in [found.place.title for found in session.find(text)], text
    both = [found.place.title for found in session.find("165")]
    assert {"pid 165 kv-memory", "physical 165", "pfn 165"} <= set(both)
    # A kernel thread has only its task.
    thread = next(task for task in for_each_task(sample.prog) if not task.mm.value_())
    (found,) = session.find(f"pid:{thread.pid.value_()}")
    assert [tab.title for tab in found.place.tabs] == ["Task"]
    assert f"{thread.value_():016x}" in found.place.tabs[0].command


def test_who_points_here(sample: Kernel) -> None:
    """The last tab of an object and of a page has the structures that contain their addresses."""
    task = next(task for task in for_each_task(sample.prog) if task.pid.value_() == 165)
    start, memory = task.value_(), task.mm.value_()

    async def walk(go: Driver) -> None:
        # Every task is in lists, and its mm_struct has an owner.
        await go.goto(f"{start + 64:x}")
        assert go.place.tabs[-1].command[:3] == ("search", "--to", f"{start:016x}")
        await go.press(str(len(go.place.tabs)))
        owner = memory + sample.prog.type("struct mm_struct").member("owner").offset
        assert f"{owner:016x}" in go.detail
        await go.follow("virtual")
        assert go.place.start != start
        await go.goto(f"phys:{sample.walk(start).physical:x}")
        await go.press(str(len(go.place.tabs)))
        assert f"{owner:016x}" in go.detail
        await go.press("c")
        assert go.app.clipboard.startswith("kvintro -c core search --to ")

    browse(sample, walk)


def test_hostile_strings_stay_text(sample: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every string of every report is hostile; the texts of the panes, the path and the tabs are inert."""
    asked = Session._asked

    def hostile(self: Session, *args: Any) -> Report:
        report: Report = poisoned(asked(self, *args))
        return report

    monkeypatch.setattr(Session, "_asked", hostile)

    async def walk(go: Driver) -> None:
        for text in ("vmalloc", "modules", "pid:1", "ffffffff99810940", "pfn:78bf"):
            await go.goto(text)
            assert go.app.stop is not None
            for number in range(len(go.place.tabs)):
                await go.press(str(number + 1))
                assert_inert(go.detail)
                assert_inert(go.place.title)
            if text == "modules":
                await go.press("1")
                await go.follow("range")
                assert "{{7*7}}" in go.place.title
        await go.press("u")
        assert "<script>" in go.map
        assert_inert(go.map)

    browse(sample, walk)


def test_missing_tables_are_said_to_be_missing(sample: Kernel) -> None:
    """Without the tables of vmalloc, the map shows all regions, and says what is unknown about this one."""
    kernel = sample.fresh()
    vmalloc = kernel.place("vmalloc").range
    entry = next(step for step in kernel.walk(vmalloc.start).steps if step.level == kernel.form.levels)
    assert entry.value is not None
    table = kernel.form.table_address(entry.value)
    read = kernel.read_physical

    def without(address: int, size: int) -> bytes:
        if table <= address < table + 4096:
            raise NotInDump(address, size, physical=True)
        return read(address, size)

    kernel.read_physical = without  # type: ignore[method-assign]

    async def walk(go: Driver) -> None:
        assert "direct map" in go.map and "vmalloc" in go.map
        await go.goto("vmalloc")
        for number in range(len(go.place.tabs)):
            await go.press(str(number + 1))
            assert go.detail.strip()
        assert go.app.return_code is None

    browse(kernel, walk)
    session = Session(kernel)
    where = Stretch(vmalloc.start, vmalloc.start + (1 << 30) - 1, "vmalloc", "")
    assert [box.kind for box in session.stretch(where)] == ["lost"]


# A running kernel


def test_a_truncated_dump_shows_what_is_there(tmp_path: Path) -> None:
    """Without symbols the answers come before the first layout of the screen."""
    dump = tmp_path / "core.kdump"
    dump.write_bytes((VMCORES / "arm64-6.12/core.kdump").read_bytes()[: 2 << 20])
    kernel = open_kernel(Request(core=str(dump)))

    async def walk(go: Driver) -> None:
        assert "vmalloc " in go.map and "mapped: not known" in go.map
        assert max(line.width for line in go.app.map.lines) <= go.app.map.size.width
        await go.press("u")
        assert "cannot be read without types" in " ".join(go.map.split())

    browse(kernel, walk, size=(80, 24))


def test_unread_page_tables_are_not_zero(tmp_path: Path) -> None:
    """The tables of the direct map are behind the end of this dump."""
    dump = tmp_path / "core.kdump"
    dump.write_bytes((VMCORES / "arm64-6.12/core.kdump").read_bytes()[:10_000_000])
    kernel = open_kernel(Request(core=str(dump)))

    async def walk(go: Driver) -> None:
        await go.goto("direct_map")
        assert "not in this source" in go.detail and "0 B" not in go.detail

    browse(kernel, walk, size=(80, 24))


@pytest.fixture
def running() -> Unreliable:
    return Unreliable(Core(VMCORES / "debian-6.12"))


def _rename(running: Unreliable, kernel: Kernel, pid: int, name: bytes) -> None:
    """Give a process another name, as prctl(PR_SET_NAME) does."""
    task = next(task for task in for_each_task(kernel.prog) if task.pid.value_() == pid)
    where = kernel.walk(task.comm.address_of_().value_()).physical
    assert where is not None
    running.written[where] = name + b"\0"


def test_r_reads_a_running_kernel_again(running: Unreliable, sample: Kernel) -> None:
    """What the kernel changed since is shown and marked, in both panes; the cursor stays on its process."""

    async def walk(go: Driver) -> None:
        app = go.app
        await go.goto("jiffies_64")
        await go.press("4")
        word = sample.symbol("jiffies_64")
        physical = sample.walk(word).physical
        assert physical is not None
        await go.press("r")
        assert not app.detail.changed and "nothing changed" in go.head
        running.written[physical] = b"\x11\x22\x33\x44"
        await go.press("r")
        assert ["44332211" in line.text for line in app.detail.changed] == [True]
        assert "1 changed" in go.head
        await go.press("r")
        assert not app.detail.changed
        await go.press("u")
        while go.place.pid != 165:
            await go.press("down")
        assert "kv-memory" in go.map
        _rename(running, sample, 165, b"renamed")
        await go.press("r")
        assert [line.text.split()[:2] for line in app.map.changed] == [["165", "renamed"]]
        assert "kv-memory" not in go.map and go.place.pid == 165
        shown = go.screen
        assert re.search(r"^\* *165 renamed", shown, re.M), shown

    browse(running.kernel(), walk)


def test_a_keeps_reading(running: Unreliable, sample: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvintro.browse.app._AGAIN", 0.01)

    async def walk(go: Driver) -> None:
        await go.press("u")
        await go.tap("a")
        assert "again every 2 s" in go.head or go.app.questions.busy
        _rename(running, sample, 165, b"renamed")
        await go.until(lambda: "renamed" in go.map)
        await go.tap("a")
        await go.press("b")  # waits for the answer to the last question
        _rename(running, sample, 165, b"once more")
        assert "once more" not in go.map and "again" not in go.head
        await go.press("r")
        assert "once more" in go.map

    browse(running.kernel(), walk)


def test_a_key_is_answered_while_a_question_runs(sample: Kernel) -> None:
    """This also holds for a command that never ends; Escape cancels it."""

    async def walk(go: Driver) -> None:
        app = go.app
        ends = []

        def forever() -> None:
            try:
                while True:
                    pass
            finally:
                ends.append(1)

        app._ask("long", "counting", forever, print)
        pilot = go._pilot
        before = app.map.cursor
        await pilot.press("down", "down")
        assert app.map.cursor == before + 2
        assert app.questions.busy == "counting" and not ends
        await pilot.press("escape")
        await settled(app, pilot)
        assert ends and app.questions.idle
        assert go.detail.strip()

    browse(sample, walk)


@pytest.mark.skipif(
    sys.gettrace() is not None and sys.version_info < (3, 12),
    reason="before Python 3.12, a traced thread loops while an exception waits for another thread",
)
def test_keys_work_while_the_thread_is_blocked(sample: Kernel) -> None:
    """A call that does not return, such as a read of a slow disk, cannot be interrupted; keys work, q too."""
    returns = threading.Event()

    async def walk(go: Driver) -> None:
        app = go.app
        app._ask("long", "reading", returns.wait, print)
        while go.app.questions.busy != "reading":
            await asyncio.sleep(0.001)
        for key in ("down", "down", "z", "z", "t", "tab", "tab"):
            await go.tap(key)
        assert app.map.cursor == 2 and app.map.has_focus and app.theme == "textual-light"
        await go.until(lambda: go.detail == "reading…")  # instead of the contents of another region
        await go.tap("f1")
        assert len(app.screen_stack) == 2
        await go.tap("ctrl+c")
        assert len(app.screen_stack) == 1
        await go.tap("escape")
        assert "cancelled" in str(list(app._notifications)[-1].message)
        assert app.questions.busy == "reading" and go.detail == "cancelled"
        await go.tap("down")
        returns.set()
        await settled(app, go._pilot)
        assert go.place.title == "ldt_remap" and go.detail.strip()

    browse(sample, walk)


def test_small_and_plain_terminals(sample: Kernel) -> None:
    """At 80 by 24 in ASCII, everything on the screen is ASCII."""

    async def walk(go: Driver) -> None:
        await go.goto("modules")
        assert go.app.map.size.width < 25  # the details get the space
        text = go.app.export_screenshot()
        shown = re.sub("<[^>]*>", "", text.partition("</defs>")[2]).replace("&#160;", " ")
        assert shown.isascii() and "qemu_fw_cfg" in shown
        # The last column does not fit; right scrolls to it, and left back.
        assert "pages" not in go.screen
        await go.press("down", *["right"] * 6)
        assert "pages" in go.screen and "start" not in go.screen
        await go.press("left")
        assert "pages" not in go.screen and "start" in go.screen

    browse(sample, walk, size=(80, 24), ascii_only=True)


def test_details_are_read_for_the_width_of_their_pane(sample: Kernel) -> None:
    """Whatever changes that width: the focus, a pane alone, the size of the terminal."""

    async def walk(go: Driver) -> None:
        app, sheet = go.app, go.app.session.sheet
        widths: List[int] = []

        def asked(tab: Tab, place: Place, view: View) -> Sheet:
            widths.append(view.width)
            return sheet(tab, place, view)

        app.session.sheet = asked  # type: ignore[method-assign]
        seen = set()
        await go.goto("init_task")
        for key in ("4", "tab", "tab", "z", "z", 130, "tab", 90, "tab", "z", 70):
            await (go.resize(key, 24) if isinstance(key, int) else go.press(key))
            assert widths[-1] == app._room(app.detail), key
            seen.add(widths[-1])
        assert len(seen) > 5

    browse(sample, walk, size=(80, 24))


# The command line


def test_without_textual_one_line_says_so() -> None:
    code = "import sys; sys.modules['textual'] = None; from kvintro.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "-c", str(VMCORES / "debian-6.12/core.kdump"), "browse"]
    found = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert found.stderr == ("kvintro: kvintro browse needs Textual\n  hint: pip install 'kvintro[browse]'\n")


def test_without_a_terminal_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", str(VMCORES / "debian-6.12/core.kdump"), "browse"]) == 2
    assert "needs a terminal" in capsys.readouterr().err


def test_no_color_means_no_colour() -> None:
    """No colour is sent, not even a grey or the default one. The cursor is reversed."""
    terminal = Terminal(str(VMCORES / "debian-6.12/core.kdump"), NO_COLOR="1", COLORTERM="truecolor")
    # Each view, dialog and pane, and then what appears in it.
    for keys, shown in (
        (b"", b"vmalloc"),
        (b"p", b"reserved"),
        (b"u", b"kv-memory"),
        (b"g", b"go to"),
        (b"init_task\r", b"swapper/0"),
        (b"4", b"ASCII"),
        (b"\x1bOP", b"zoom into the map"),
        (b"x", b"Keys"),
        (b"gvmalloc\r", b"caller"),
        (b"c", b"copied"),
        (b"x", b"Keys"),
        (b"\x10", b"Copy the address"),
    ):
        terminal.press(keys)
        terminal.read(shown)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    terminal.close()
    codes = {
        int(n or 0) for code in re.findall(rb"\x1b\[([\d;:]*)m", terminal.written) for n in code.split(b";")
    }
    assert 7 in codes and codes <= set(range(10)), codes
    assert not re.search(rb"\x1b\](4|1\d);", terminal.written)


ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize(
    ("end", "code"),
    [(b"q", 0), *((number, 128 + number) for number in ENDING), ("crash", 3), ("cut", 3)],
    ids=str,
)
def test_the_terminal_is_left_as_it_was(end: Any, code: int, tmp_path: Path) -> None:
    """After it ends by its key, a signal, a crash, or because the mapped dump was cut (SIGBUS)."""
    crash = "import kvintro.browse.app as a; a.Browser._show_left = lambda *x: 1 / 0; "
    core = str(VMCORES / "debian-6.12/core.kdump")
    dump = str(shutil.copy(core, tmp_path)) if end == "cut" else ""
    terminal = Terminal(dump or core, before=crash if end == "crash" else "")
    if end != "crash":
        terminal.read(b"vmalloc")
        if dump:
            os.truncate(dump, 8192)
        if isinstance(end, signal.Signals):
            terminal.process.send_signal(end)
        else:
            terminal.press(b"p" if dump else end)
    assert terminal.end() == code
    assert terminal.current_modes == terminal.modes
    terminal.close()
    written = terminal.written
    assert written.rfind(b"\x1b[?1049l") > written.rfind(b"\x1b[?1049h") >= 0
    assert written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l")
    if dump:
        assert b"was truncated while it was read" in written
    if end == "crash":
        assert b"kvintro: internal error: ZeroDivisionError" in written
        assert b"Traceback" not in written


def test_it_ends_when_the_terminal_is_gone() -> None:
    """Without a signal, and although nothing can be written to the terminal any more."""
    terminal = Terminal(str(VMCORES / "debian-6.12/core.kdump"))
    terminal.read(b"vmalloc")
    terminal.hang_up()
    assert terminal.process.wait(timeout=60) == 128 + signal.SIGHUP

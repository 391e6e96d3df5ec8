# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records a session of ``kvintro browse`` as a drawing that moves: from the map to the owner of a page."""

from __future__ import annotations

import re
from typing import List, Tuple

from kvintro.kernels import Kernel
from tests.browsing import Driver, browse

_SIZE = (112, 30)  # columns and lines
_SECONDS = 3.5  # for each screen
_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_BODY = re.compile(r"</style>(.*)</svg>", re.DOTALL)

Frame = Tuple[str, str]


async def _to_page(go: Driver, physical: int) -> None:
    """Zoom into the picture of physical memory, down to one page."""
    listing = go.app.map
    for _ in range(8):
        while listing.line is not None and (listing.line.links[-1].end or 0) < physical:
            await go.press("down")
        while listing.link is not None and (listing.link.end or 0) < physical:
            await go.press("right")
        link = listing.link
        assert link is not None and link.end is not None
        await go.press("enter")
        if link.end - int(link.value) < 4096:
            return


async def _walk(go: Driver, physical: int, frames: List[Frame]) -> None:
    def take(title: str) -> None:
        frames.append((title, go.app.export_screenshot(title=title, simplify=True)))

    take("kvintro browse: the map of the kernel's address space")
    while go.place.title != "vmalloc":
        await go.press("down")
    take("Down: a region, and what is in it")
    await go.press("enter", "enter")
    take("Enter: its page tables, level by level")
    await go.press("p")
    take("p: physical memory by type of page")
    await _to_page(go, physical)
    take("Enter, Enter, Enter: one page, and who maps it")
    await go.follow("pid")
    take("Enter: the process, and its areas")
    await go.press("b", "5")
    take("Backspace: back to the page; 5: its memory")
    await go.goto("init_task")
    await go.press("1", "4")
    take("g init_task: memory, in which each word is identified")
    await go.follow("command")
    take("Enter: the same memory as its type")


def frames_of(kernel: Kernel, physical: int) -> List[Frame]:
    """The title and the screen of each step.

    :param physical: a page that a process owns.
    """
    frames: List[Frame] = []

    async def walk(go: Driver) -> None:
        await _walk(go, physical, frames)

    browse(kernel, walk, size=_SIZE)
    return frames


def drawing(frames: List[Frame]) -> str:
    """One drawing that shows the screens one after the other."""
    whole = len(frames) * _SECONDS
    share = 100 / len(frames)
    style = [
        ".screen{visibility:hidden;animation:screens " + f"{whole:g}s step-end infinite}}",
        f"@keyframes screens{{0%{{visibility:visible}}{share:.3f}%{{visibility:hidden}}}}",
        # Readers who want no motion see the first screen.
        "@media (prefers-reduced-motion:reduce){.screen{animation:none}"
        ".screen:first-of-type{visibility:visible}}",
    ]
    bodies: List[str] = []
    for number, (_, text) in enumerate(frames):
        found, body = _STYLE.search(text), _BODY.search(text)
        assert found is not None and body is not None
        style.append(_compact(_FONT.sub("", found[1])))
        delay = f"animation-delay:{number * _SECONDS:g}s"
        bodies.append(f'<g class="screen" style="{delay}">{_compact(body[1])}</g>')
    view = re.search(r'viewBox="([^"]+)"', frames[0][1])
    assert view is not None
    titles = "; ".join(title for title, _ in frames)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view[1]}" role="img" aria-label="{titles}">'
    return "\n".join((head, f"<style>{''.join(style)}</style>", *bodies, "</svg>", ""))


def _compact(text: str) -> str:
    return re.sub(r"\s*\n\s*", "\n", text).strip()

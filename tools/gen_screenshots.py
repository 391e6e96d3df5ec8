#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make docs/images/ from the sample dumps: the map as a drawing, the report's page, a session of ``browse``.

    tools/gen_screenshots.py [--session]

The report's page needs Chromium, its driver, and Python's selenium (pip install '.[browser]'). With
--session, only the session is made, which needs only Textual.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvintro.kernels import Kernel  # noqa: E402
from kvintro.opening import open_kernel  # noqa: E402
from kvintro.render import render  # noqa: E402
from kvintro.reports.layout import layout  # noqa: E402
from kvintro.reports.report import full  # noqa: E402
from kvintro.source import Request  # noqa: E402
from tests.browser.conftest import ARGUMENTS  # noqa: E402
from tests.conftest import Core  # noqa: E402
from tools.browse_session import drawing, frames_of  # noqa: E402

if TYPE_CHECKING:
    from selenium import webdriver

TARGET = ROOT / "docs" / "images"
_WIDTH, _HEIGHT = 1280, 1340


def kernel(name: str) -> Kernel:
    """Open a sample dump under a name that is the same on every machine."""
    return open_kernel(Request(core=str(Path("vmcores") / name / "core.kdump")))


def write(target: Path, text: str) -> None:
    """Write a drawing."""
    target.write_text(text, encoding="utf-8")
    print(f"made: {target.relative_to(ROOT)}")


def anonymous_page(core: Core) -> int:
    """Physical address of a page of the dump's workload, by its /proc/PID/pagemap."""
    line = next(line for line in core.truth("workload").splitlines() if " anon " in line)
    pid, _, _, start, *_ = line.split()
    lines = (line.split() for line in core.truth("pagemap").splitlines())
    entry = next(words for words in lines if words[:2] == [pid, start])
    return (int(entry[2], 16) & (1 << 55) - 1) << 12


def shoot(browser: webdriver.Chrome, page: str, target: Path, *, dark: bool) -> None:
    """Take a picture of the upper part of a page."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        browser.get(Path(file.name).as_uri())
        clip = {"x": 0, "y": 0, "width": _WIDTH, "height": _HEIGHT, "scale": 1}
        shot = browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
        )
    target.write_bytes(base64.b64decode(shot["data"]))
    print(f"made: {target.relative_to(ROOT)}")


def main() -> int:
    """Make all images."""
    TARGET.mkdir(parents=True, exist_ok=True)
    debian, oracle = kernel("debian-6.12"), kernel("oracle-6.12")
    page = anonymous_page(Core(ROOT / "vmcores" / "debian-6.12"))
    write(TARGET / "browse.svg", drawing(frames_of(debian, page)))
    if "--session" in sys.argv[1:]:
        return 0
    from selenium import webdriver

    driver = shutil.which("chromedriver")
    if driver is None:
        print("chromedriver is missing (Debian: apt install chromium chromium-driver)", file=sys.stderr)
        return 3
    write(TARGET / "map.svg", render(layout(debian), "svg"))
    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            *ARGUMENTS,
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={_WIDTH},{_HEIGHT}",
        ):
            options.add_argument(argument)
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            shoot(browser, render(full(debian), "html"), TARGET / "report.png", dark=False)
            shoot(browser, render(full(oracle), "html"), TARGET / "report-dark.png", dark=True)
        finally:
            browser.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main())

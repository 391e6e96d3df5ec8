# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real browser without a window. What is missing for one is named when these tests are skipped.

Needs chromium and chromium-driver (Debian's names) and Python's selenium.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterator

import pytest

#: A browser that opens no window and asks the network for nothing of its own accord.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that keeps what pages write to its console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Python's selenium is missing")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    for name, found in (("chromium", binary), ("chromedriver (package chromium-driver)", driver)):
        if found is None:
            pytest.skip(f"{name} is missing")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # Root has no sandbox of its own in containers; pages here are ours, and ask for nothing.
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture()
def opened(browser: Any, tmp_path: Path) -> Any:
    """A function that opens a page's text, and fails the test if the page complains on its console."""

    def visit(text: str) -> Any:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    yield visit
    assert browser.get_log("browser") == []

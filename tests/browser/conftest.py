# SPDX-License-Identifier: LGPL-2.1-or-later
"""A headless browser. If something is missing for it, these tests are skipped and name it.

Needs chromium and chromium-driver (Debian's names) and Python's selenium.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Iterator

import pytest

#: Options for a browser without a window that does not use the network by itself.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that records the console output of pages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Python's selenium is missing")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    for name, found in (("chromium", binary), ("chromedriver (package chromium-driver)", driver)):
        if found is None:
            pytest.skip(f"{name} is missing")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    # Root cannot use the sandbox in containers. The pages are ours, and load nothing.
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture()
def opened(browser: Any, tmp_path: Path) -> Any:
    """A function that opens a page's text, and fails the test if the page writes errors to its console."""

    def visit(text: str) -> Any:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    yield visit
    assert browser.get_log("browser") == []

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page in a browser: drawing, sorting, filtering, searching, by mouse and keyboard; no dump's markup."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest

from kvintro.kernels import Kernel
from kvintro.model import Report
from kvintro.opening import open_kernel
from kvintro.render import render
from kvintro.reports.diff import diff, side_of_kernel
from kvintro.reports.report import full
from kvintro.source import Request
from tests.conftest import VMCORES
from tests.hostile import poisoned_report

Opened = Callable[[str], Any]


@pytest.fixture(scope="module")
def report(kernel: Kernel) -> Report:
    return full(kernel)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report, "html")


@pytest.fixture(scope="module")
def one_report() -> Report:
    """The page behaves the same for every core, so one core is enough."""
    return full(open_kernel(Request(core=str(VMCORES / "debian-6.12" / "core.kdump"))))


@pytest.fixture(scope="module")
def one_page(one_report: Report) -> str:
    return render(one_report, "html")


def rows_of(report: Report, section: str) -> List[Any]:
    found = next(s for s in report.extra["sections"] if s.key == section)
    return list(found.report.tables[0].rows)


def column(browser: Any, table: str, index: int) -> List[str]:
    """Texts of the visible cells of a column."""
    script = (
        "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
        ".filter(r => !r.hidden).map(r => r.cells[arguments[1]].textContent)"
    )
    found: List[str] = browser.execute_script(script, table, index)
    return found


def test_it_is_drawn(opened: Opened, page: str, report: Report) -> None:
    browser = opened(page)
    drawing = browser.find_element("css selector", "#layout svg")
    assert drawing.size["width"] > 800
    assert drawing.size["height"] > 400
    bands = browser.find_elements("css selector", "#layout svg a")
    assert len(bands) == sum(r.kind == "region" and r.state == "present" for r in rows_of(report, "layout"))
    # Nothing sticks out of the page to the right.
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def test_a_band_leads_to_its_section(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    browser.find_element("css selector", 'svg a[href="#region-vmalloc"]').send_keys("\n")
    assert browser.execute_script("return location.hash") == "#region-vmalloc"
    top = browser.execute_script(
        "return document.getElementById('region-vmalloc').getBoundingClientRect().top"
    )
    header = browser.execute_script("return document.querySelector('.top').getBoundingClientRect().bottom")
    assert header <= top + 1 or browser.execute_script(
        "return scrollY + innerHeight >= document.documentElement.scrollHeight - 2"
    )


def test_sorting(opened: Opened, one_page: str, one_report: Report) -> None:
    browser = opened(one_page)
    heads = browser.find_elements("css selector", "#layout-regions th")
    size = next(i for i, h in enumerate(heads) if h.text.strip() == "size")
    exact = (
        "return [...document.getElementById('layout-regions').tBodies[0].rows]"
        ".map(r => BigInt(r.cells[arguments[0]].dataset.v).toString())"
    )
    heads[size].find_element("tag name", "button").click()
    assert heads[size].get_attribute("aria-sort") == "descending"
    found = [int(v) for v in browser.execute_script(exact, size)]
    assert found == sorted(found, reverse=True)
    assert sorted(found) == sorted(r.size for r in rows_of(one_report, "layout") if r.start is not None)
    # Pressing the same button with the keyboard reverses the order.
    heads[size].find_element("tag name", "button").send_keys(" ")
    assert heads[size].get_attribute("aria-sort") == "ascending"
    assert [int(v) for v in browser.execute_script(exact, size)] == sorted(found)
    heads[0].find_element("tag name", "button").click()
    assert heads[size].get_attribute("aria-sort") == "none"
    starts = column(browser, "layout-regions", 0)
    assert starts == sorted(starts)


def test_filtering(opened: Opened, one_page: str, one_report: Report) -> None:
    browser = opened(one_page)
    box = browser.find_element("css selector", 'input[data-table="layout-regions"]')
    box.send_keys("unused")
    holes = sum(r.key == "hole" for r in rows_of(one_report, "layout"))
    names = column(browser, "layout-regions", 5)
    assert len(names) == holes
    assert all("unused" in name for name in names)
    assert f"{holes} of" in browser.find_element("css selector", "#layout output").text
    box.send_keys(" nosuchthing")
    assert column(browser, "layout-regions", 5) == []
    box.clear()
    box.send_keys(" ")
    assert len(column(browser, "layout-regions", 4)) > holes


def look_up(browser: Any, text: str) -> str:
    box = browser.find_element("id", "address")
    box.clear()
    box.send_keys(text, "\n")
    found: str = browser.find_element("id", "answer").text
    return found


def test_the_address_box(opened: Opened, page: str, report: Report) -> None:
    browser = opened(page)
    placed = [r for r in rows_of(report, "layout") if r.start is not None]
    ask = (
        "document.getElementById('address').value = arguments[0];"
        "document.getElementById('address').form.requestSubmit();"
        "return document.getElementById('answer').innerText"
    )
    for before, row, after in zip([None, *placed], placed, [*placed[1:], None]):
        for address in {row.start, row.end, (row.start + row.end) // 2}:
            said = browser.execute_script(ask, f"0x{address:x}")
            assert f"{address:016x}" in said
            assert row.name in said
            for neighbour in (before, after):
                assert neighbour is None or f"{neighbour.start:016x}" in said
    direct = next(r for r in placed if r.key == "direct_map")
    assert "\n12345 by the rule" in look_up(browser, f"{direct.start + 0x12345:x}")


def test_the_address_box_knows_what_lies_inside(opened: Opened, one_page: str, one_report: Report) -> None:
    browser = opened(one_page)
    areas = [r for r in rows_of(one_report, "vmalloc") if r.caller][:5]
    assert areas
    for area in areas:
        said = look_up(browser, f"{area.start + 0x10:x}")
        assert area.caller in said
        assert f"{area.start:016x}" in said


def test_the_answer_opens_by_key_and_link_and_closes(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    browser.find_element("tag name", "body").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "address"
    answer = browser.find_element("id", "answer")
    assert "ffffffffa0000000" in look_up(browser, "ffffffffa0000000")
    answer.find_element("css selector", "button.close").click()
    assert answer.text == ""
    look_up(browser, "1000")
    browser.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert answer.text == ""
    browser.execute_script("location.hash = '#addr=ffffffffff600000'")
    browser.execute_async_script("setTimeout(arguments[0])")
    assert "ffffffffff600000" in answer.text


def test_a_table_says_what_the_terminal_says(opened: Opened, page: str, report: Report) -> None:
    """Bounds of slots and of mapped memory, and that there was no panic."""
    browser = opened(page)
    for section, table, key in (("kaslr", "kaslr-bases", "bound"), ("layout", "layout-regions", "at_least")):
        bounded = [row for row in rows_of(report, section) if getattr(row, key) and row.state != "off"]
        text = browser.execute_script("return document.getElementById(arguments[0]).textContent", table)
        slots = [row for row in bounded if section == "layout" or row.slots is not None]
        assert sum(text.count(sign) for sign in "\u2265\u2264") >= len(slots)
    facts = {row.key: row for row in rows_of(report, "info")}
    if facts["panic"].value == "":
        dump = browser.execute_script("return document.getElementById('info').textContent")
        assert "panicnone" in dump.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize("text", ["hello", "0x", "1" * 17, "ffff ffff", "<b>x</b>"])
def test_no_addresses(opened: Opened, one_page: str, text: str) -> None:
    browser = opened(one_page)
    assert "Not an address" in look_up(browser, text)


def test_keyboard_alone(opened: Opened, one_page: str) -> None:
    """Tab order from the top of the page: the link that skips the header, the sections, the box."""
    browser = opened(one_page)
    body = browser.find_element("tag name", "body")
    body.send_keys("\t")
    seen = []
    for _ in range(12):
        active = browser.switch_to.active_element
        seen.append((active.tag_name, active.get_attribute("href") or active.get_attribute("id")))
        active.send_keys("\t")
    assert seen[0][1].endswith("#content")
    assert ("input", "address") in seen
    assert any((href or "").endswith("#layout") for _, href in seen)


def test_everything_has_a_name_for_screen_readers(opened: Opened, page: str) -> None:
    browser = opened(page)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('a, button, input, svg, [role]')].filter(e => "
        "!(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() || "
        "(e.id && document.querySelector(`label[for=${e.id}]`)) || e.getAttribute('role') === 'status'))"
        ".map(e => e.outerHTML.slice(0, 100))"
    )
    assert unnamed == []
    headings = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    )
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(headings, headings[1:]))


def test_dark_and_print(opened: Opened, page: str) -> None:
    browser = opened(page)
    color = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(color)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert browser.execute_script(color) != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    hidden = "return getComputedStyle(document.querySelector('.top')).display"
    assert browser.execute_script(hidden) == "none"
    # A4 less its margins: nothing is cut off.
    sheet = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    cut = (
        "return [...document.querySelectorAll('.scroll')]"
        ".filter(e => e.offsetParent && e.scrollWidth > 718).map(e => e.querySelector('table').id)"
    )
    assert browser.execute_script(cut) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 50000


def test_a_page_without_a_map(opened: Opened) -> None:
    """The page of a comparison names both kernels, and has no address box."""
    debian = open_kernel(Request(core=str(VMCORES / "debian-6.12" / "core.kdump")))
    report = diff(side_of_kernel(debian, "one.core"), side_of_kernel(debian, "two.core"))
    browser = opened(render(report, "html"))
    head = browser.find_element("css selector", "main .subtitle").text
    assert "one.core" in head
    assert "two.core" in head
    assert not browser.find_element("id", "lookup").is_displayed()


def test_a_hostile_dump(opened: Opened, report: Report) -> None:
    browser = opened(render(poisoned_report(report), "html"))
    assert "owned" not in browser.title or "document.title" in browser.title
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.scripts.length") == 2
    assert "document.title='owned'" in browser.find_element("id", "content").text
    look_up(browser, "ffffffffff600000")
    assert browser.execute_script("return document.images.length") == 0
    assert "<script>" in browser.find_element("id", "answer").text


def test_the_policy_holds(opened: Opened, page: str, browser: Any) -> None:
    """The policy prevents injected markup from running."""
    opened(page)
    browser.execute_script(
        "const made = document.createElement('script'); made.textContent = 'document.title = \"owned\"';"
        "document.body.append(made);"
    )
    assert browser.title != "owned"
    # The browser reports this on its console; it is not an error of the page.
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))

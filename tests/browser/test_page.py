# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page in a browser: drawing, sorting, filtering, searching, by mouse and keyboard; no dump's markup."""

from __future__ import annotations

import contextlib
import gzip
from typing import Any, Callable, Iterator, List

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
    assert drawing.size["width"] > 600
    assert drawing.size["height"] > 400
    bands = browser.find_elements("css selector", "#layout svg a")
    assert len(bands) == sum(r.kind == "region" and r.state == "present" for r in rows_of(report, "layout"))
    # Nothing sticks out of the page to the right.
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


ESCAPE = "\ue00c"
BAND = 'svg a[href="#region-{}"]'


def focused(browser: Any) -> str:
    """What identifies the element with the focus: its id, its link, or its class."""
    found: str = browser.execute_script(
        "const at = document.activeElement; return at.id || at.getAttribute('href') || at.className"
    )
    return found


def hash_of(browser: Any) -> str:
    found: str = browser.execute_script("return location.hash")
    return found


def waits_for(browser: Any, script: str, *arguments: Any) -> None:
    """Wait until a script returns true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120, 0.02).until(lambda b: b.execute_script(f"return {script}", *arguments))


@contextlib.contextmanager
def narrow(browser: Any) -> Iterator[None]:
    """The browser with the screen of a phone."""
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_band_opens_the_panel_beside_the_map(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    panel = browser.find_element("id", "panel")
    assert not panel.is_displayed()
    band = browser.find_element("css selector", BAND.format("kernel_image"))
    band.click()
    assert panel.is_displayed()
    assert hash_of(browser) == "#region-kernel_image"
    said = panel.text
    for what in ("kernel image", "It is at", "RIGHTS IN KERNEL IMAGE", "r-x", "noinstr text"):
        assert what in said
    # The map is beside it, and is not scrolled away.
    assert band.rect["x"] + band.rect["width"] <= panel.rect["x"]
    assert browser.execute_script("return arguments[0].getBoundingClientRect().top >= 0", band)
    assert band.get_attribute("aria-current") == "true"
    # Another region takes its place; the first one goes back to its section.
    browser.find_element("css selector", BAND.format("vmalloc")).send_keys("\n")
    assert "vmalloc and ioremap" in panel.text
    assert "It is at" in panel.text
    assert band.get_attribute("aria-current") is None
    articles = "return [...document.querySelectorAll('#explain article')].map(a => a.id)"
    assert "region-kernel_image" in browser.execute_script(articles)
    assert "region-vmalloc" not in browser.execute_script(articles)


def test_the_panel_closes_and_gives_the_focus_back(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    panel = browser.find_element("id", "panel")
    before = browser.execute_script(
        "return [...document.querySelectorAll('#explain article')].map(a => a.id)"
    )
    band = browser.find_element("css selector", BAND.format("direct_map"))
    for close in ("key", "button"):
        band.send_keys("\n")
        assert focused(browser) == "close"
        assert panel.is_displayed()
        if close == "key":
            browser.switch_to.active_element.send_keys(ESCAPE)
        else:
            panel.find_element("css selector", "button.close").click()
        assert not panel.is_displayed()
        assert focused(browser) == "#region-direct_map"
        assert hash_of(browser) == ""
    after = browser.execute_script("return [...document.querySelectorAll('#explain article')].map(a => a.id)")
    assert after == before


def test_links_restore_what_was_open(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    address = browser.current_url
    browser.find_element("css selector", BAND.format("modules")).send_keys("\n")
    browser.find_element("css selector", BAND.format("fixmap")).send_keys("\n")
    browser.back()
    waits_for(browser, "document.querySelector('#panel article').id === 'region-modules'")
    browser.back()
    waits_for(browser, "!document.getElementById('panel').open")
    for part, element in (("region-vmemmap", "panel"), ("addr=virtio_blk", "answer")):
        browser.get("about:blank")
        browser.get(f"{address}#{part}")
        assert browser.find_element("id", element).is_displayed()
    assert "virtio_blk" in browser.find_element("id", "answer").text
    # A section is a place in the page, below the header.
    browser.execute_script("location.hash = 'region-vmemmap'")
    waits_for(browser, "document.getElementById('panel').open")
    browser.execute_script("location.hash = 'kaslr'")
    waits_for(browser, "!document.getElementById('panel').open")
    places = (
        "return [document.getElementById('kaslr').getBoundingClientRect().top,"
        "document.querySelector('.top').getBoundingClientRect().bottom]"
    )
    top, header = browser.execute_script(places)
    assert header - 1 <= top < header + 100


def test_the_sidebar_marks_the_current_section(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    current = "document.querySelector('#sections [aria-current]')?.getAttribute('href') === arguments[0]"
    waits_for(browser, current, "#layout")
    for section in ("rights", "pages", "layout"):
        browser.find_element("css selector", f'#sections a[href="#{section}"]').click()
        waits_for(browser, current, f"#{section}")
    assert len(browser.find_elements("css selector", "[aria-current]")) == 1


def test_a_phone(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    with narrow(browser):
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        waits_for(browser, f"innerWidth === 390 && {fits}")
        sections, menu = browser.find_element("id", "sections"), browser.find_element("id", "menu")
        assert not sections.is_displayed()
        menu.click()
        assert sections.is_displayed()
        assert menu.get_attribute("aria-expanded") == "true"
        menu.send_keys(ESCAPE)
        assert not sections.is_displayed()
        # The bands fill the screen; what KASLR moved is below them.
        band, moved = (browser.find_element("css selector", what) for what in (".kv-map .band", "svg + svg"))
        assert 200 < band.rect["width"] < 390
        assert moved.rect["y"] > band.rect["y"] + 300
        # The first columns say what a row is about, and a hint that there are more.
        table = browser.find_element("id", "layout-regions")
        heads = [head for head in table.find_elements("tag name", "th") if head.is_displayed()]
        assert [head.text.strip() for head in heads[:3]] == ["name", "start", "size"]
        waits_for(browser, "document.querySelector('#layout .table-head.wider') !== null")
        assert "sideways" in browser.find_element("css selector", "#layout .table-head").text
        # The first column and its heading stay when the table is moved sideways.
        at_left = (
            "const table = arguments[0], head = table.tHead.rows[0].cells[0], edge = table.parentElement;"
            "edge.scrollLeft = 200; head.scrollIntoView({block: 'center'});"
            "const box = head.getBoundingClientRect();"
            "return document.elementFromPoint(edge.getBoundingClientRect().left + 30, box.top + 10).innerText"
        )
        assert browser.execute_script(at_left, table).strip() == "name"
        # The panel is over the page, and nothing else can get the focus.
        browser.find_element("css selector", BAND.format("modules")).send_keys("\n")
        assert browser.execute_script("return document.getElementById('panel').matches(':modal')")
        assert browser.find_element("id", "panel").rect["width"] == 390
        browser.switch_to.active_element.send_keys(ESCAPE)
        assert not browser.find_element("id", "panel").is_displayed()
        assert focused(browser) == "#region-modules"


def test_a_panel_stays_open_if_the_screen_changes(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    browser.find_element("css selector", BAND.format("modules")).send_keys("\n")
    modal = "document.getElementById('panel').matches(':modal')"
    with narrow(browser):
        waits_for(browser, modal)
    waits_for(browser, f"document.getElementById('panel').open && !{modal}")


def test_a_command_is_copied(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    buttons = browser.find_elements("css selector", ".section-head .copy")
    assert len(buttons) == len(browser.find_elements("css selector", "main section"))
    browser.execute_script(
        "navigator.clipboard.writeText = (words) => { window.copied = words; return Promise.resolve(); }"
    )
    buttons[0].click()
    said = "document.getElementById('said').textContent"
    waits_for(browser, f"{said} === 'Copied'")
    copied = browser.execute_script("return window.copied")
    assert copied.startswith("kvintro -c ")
    assert copied.endswith("core.kdump layout")
    # Without a clipboard the command is shown.
    browser.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    buttons[1].click()
    waits_for(browser, f"{said}.endsWith('core.kdump check')")


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
    heads[1].find_element("tag name", "button").click()
    assert heads[size].get_attribute("aria-sort") == "none"
    starts = column(browser, "layout-regions", 1)
    assert starts == sorted(starts)


def test_filtering(opened: Opened, one_page: str, one_report: Report) -> None:
    browser = opened(one_page)
    box = browser.find_element("css selector", 'input[data-table="layout-regions"]')
    box.send_keys("unused")
    holes = sum(r.key == "hole" for r in rows_of(one_report, "layout"))
    names = column(browser, "layout-regions", 0)
    assert len(names) == holes
    assert all("unused" in name for name in names)
    assert f"{holes} of" in browser.find_element("css selector", "#layout output").text
    box.send_keys(" nosuchthing")
    assert column(browser, "layout-regions", 0) == []
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


def found(browser: Any, words: str) -> List[Any]:
    """(what it is, name, address) of the results for words that are typed after the key /."""
    browser.find_element("tag name", "body").send_keys("/")
    assert focused(browser) == "address"
    browser.switch_to.active_element.send_keys(words)
    script = (
        "return [...document.querySelectorAll('#answer dt')].map(t => [t.textContent,"
        "t.nextElementSibling.querySelector('a')?.textContent,"
        "t.nextElementSibling.querySelector('a')?.getAttribute('href')])"
    )
    results: List[Any] = browser.execute_script(script)
    browser.switch_to.active_element.send_keys(ESCAPE)
    browser.execute_script("document.activeElement.blur()")
    return results


def test_the_box_finds_names(opened: Opened, one_page: str, one_report: Report) -> None:
    browser = opened(one_page)
    truth = VMCORES / "debian-6.12" / "truth"
    with gzip.open(truth / "kallsyms.gz", "rt") as file:
        symbols = {words[2]: words[0] for words in map(str.split, file)}
    symbol = symbols["__start_rodata"]
    assert found(browser, "__start_rodata")[0] == [
        "symbol of the kernel image", "__start_rodata", f"#addr={symbol}"
    ]  # fmt: skip
    name, address = next(
        (words[0], words[5]) for words in map(str.split, (truth / "modules").read_text().splitlines())
    )
    assert found(browser, name.upper())[0] == ["module", name, f"#addr={address[2:]}"]
    assert found(browser, "fixm")[0] == ["region", "fixmap", "#region-fixmap"]
    area = next(row for row in rows_of(one_report, "vmalloc") if row.caller)
    areas = found(browser, area.caller)
    assert all(what == "vmalloc and ioremap" and area.caller in name for what, name, _ in areas)
    assert f"#addr={area.start:016x}" in [link for _, _, link in areas]
    assert found(browser, "page_offset_b")[0][:2] == [
        "variable of direct map of physical memory",
        "page_offset_base",
    ]
    # A result leads to the answer about its address.
    browser.find_element("tag name", "body").send_keys("/")
    browser.switch_to.active_element.send_keys("__start_rodata")
    browser.find_element("css selector", "#answer a").click()
    waits_for(browser, "document.querySelector('#answer > p')?.textContent === arguments[0]", symbol)
    assert "rodata" in browser.find_element("id", "answer").text


def test_the_box_finds_physical_addresses(opened: Opened, one_page: str) -> None:
    """Against the segments of /proc/kcore of the same boot: the image, and RAM in the direct map."""
    browser = opened(one_page)
    lines = (VMCORES / "debian-6.12" / "truth" / "kcore-phdrs").read_text().splitlines()
    loads = [(int(words[2], 16), int(words[3], 16)) for words in map(str.split, lines) if words[0] == "LOAD"]
    known = [(at, physical) for at, physical in loads if physical != (1 << 64) - 1]
    assert len(known) > 2
    for at, physical in known:
        results = found(browser, f"0x{physical + 0x10:x}")
        assert ["as physical", f"{at + 0x10:016x}", f"#addr={at + 0x10:016x}"] in results
    # Nothing is known at an address where there is no RAM.
    assert not any(what == "as physical" for what, _, _ in found(browser, "123456789000"))


def test_the_answer_covers_no_heading(opened: Opened, one_page: str) -> None:
    browser = opened(one_page)
    top = "return document.getElementById('layout-h').getBoundingClientRect().top"
    before = browser.execute_script(top)
    look_up(browser, "ffffffff81000000")
    header = browser.find_element("css selector", ".top").rect["height"]
    assert browser.find_element("css selector", "#answer button.close").is_displayed()
    assert browser.execute_script(top) >= min(header, before)
    # A heading that a link leads to is below the answer.
    padding = "parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop)"
    waits_for(browser, f"{padding} > arguments[0]", header)
    browser.execute_script("location.hash = 'rights'")
    waits_for(browser, "document.getElementById('rights-h').getBoundingClientRect().top < innerHeight")
    assert browser.find_element("id", "answer").is_displayed()
    assert browser.execute_script(top.replace("layout", "rights")) >= header - 1


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


@pytest.mark.parametrize("text", ["hello", "0xg", "1" * 17, "ffff ffff", "<b>x</b>"])
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
    browser.execute_script("location.hash = 'region-vmalloc'")
    waits_for(browser, "document.getElementById('panel').open")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    shown = (
        "return [...document.querySelectorAll('.top, #sections, #panel, .copy, .hint, summary')]"
        ".filter(e => getComputedStyle(e).display !== 'none').length"
    )
    assert browser.execute_script(shown) == 0
    # Every section is there, and all that was folded.
    assert browser.execute_script("return [...document.querySelectorAll('details')].every(d => d.open)")
    assert browser.execute_script("return document.querySelector('#explain #region-vmalloc') !== null")
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
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_element("id", "panel").is_displayed()
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 50000


def test_a_page_without_a_map(opened: Opened) -> None:
    """The page of a comparison names both kernels, and has no search box."""
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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other entry points, on real dumps: ``%kvintro`` at drgn's prompt, ``kvintro shell`` and the Python
API."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stdout
from html import unescape
from pathlib import Path
from typing import Any, Iterator, List

import drgn
import pytest
from drgn.commands import CommandError, run_command

import kvintro.plugin
from kvintro import kernel as kernel_of
from kvintro.commands import ALIASES, command_names
from kvintro.model import Report
from kvintro.prompt import Answer, Kernel, Listing
from tests.conftest import Core
from tests.cores.showing import needs

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")


@pytest.fixture(scope="module")
def prog(core: Core) -> drgn.Program:
    """The dump as drgn's own command line opens it, without debuginfo."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    prog.set_core_dump(str(core.path))
    return prog


@pytest.fixture(scope="module")
def k(prog: drgn.Program) -> Kernel:
    found = kernel_of(prog)
    assert isinstance(found, Kernel)
    return found


def _cli(*arguments: str, code: int = 0, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


# %kvintro


def _percent(prog: drgn.Program, command: str) -> Any:
    out = io.StringIO()
    with redirect_stdout(out):
        found = run_command(prog, command)
    return found, out.getvalue()


def test_percent_kvintro_prints_what_the_command_line_prints(core: Core, prog: drgn.Program) -> None:
    found, text = _percent(prog, "kvintro layout")
    ours = _cli("-c", str(core.path), "layout", code=4 if found.partial else 0)
    # The header names the dump, and drgn has its absolute path.
    assert text.splitlines()[2:] == ours.splitlines()[2:]
    assert isinstance(found, Report)
    assert [row.key for row in found.tables[0].rows if row.kind == "region"]


def test_percent_kvintro_returns_a_negative_answer(prog: drgn.Program) -> None:
    # The last addresses are unused, for error pointers.
    found, text = _percent(prog, "kvintro translate fffffffffffff000")
    assert found.negative
    assert "unmapped" in text


def test_redirection_and_pipes(prog: drgn.Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command(prog, f"kvintro layout --json > {tmp_path}/layout.json")
    assert json.loads((tmp_path / "layout.json").read_text())["schema"] == "kvintro.layout/1"
    run_command(prog, f"kvintro layout | head -1 > {tmp_path}/head")
    assert len((tmp_path / "head").read_text().splitlines()) == 1
    (tmp_path / "addresses").write_text("init_task\nffff800000000000\n")
    run_command(prog, f"kvintro translate - < {tmp_path}/addresses > {tmp_path}/answers")
    assert capfd.readouterr().out == ""
    assert len((tmp_path / "answers").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "command",
    ["kvintro", "kvintro nonsense", "kvintro translate", "kvintro -c other layout", "kvintro shell"],
)
def test_an_error_does_not_end_the_session(prog: drgn.Program, command: str) -> None:
    with pytest.raises(CommandError):
        _percent(prog, command)


def test_help_does_not_end_the_session(prog: drgn.Program) -> None:
    found, text = _percent(prog, "kvintro layout --help")
    assert found is None
    assert "--no-holes" in text


def test_the_plugin_is_light() -> None:
    """drgn imports it for every program, even if %kvintro is not used."""
    code = (
        "import sys, drgn.commands.linux; before = set(sys.modules); import kvintro.plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == ["kvintro", "kvintro.plugin", "kvintro.version"]


def test_stock_drgn_loads_the_plugin(core: Core) -> None:
    """By drgn's own plugin mechanism, here named by the environment instead of an entry point."""
    code = (
        "import drgn\n"
        "from drgn.commands import run_command\n"
        "prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))\n"
        f"prog.set_core_dump({str(core.path)!r})\n"
        "run_command(prog, 'kvintro translate init_task --format csv')\n"
    )
    environment = {"DRGN_PLUGINS": "kvintro=kvintro.plugin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert "mapped" in done.stdout


def test_a_session_of_stock_drgn(core: Core, k: Kernel, tmp_path: Path) -> None:
    """``drgn -c CORE`` on a terminal, as a user starts it: an entry point provides the command."""
    ours, theirs = pty.openpty()
    session = subprocess.Popen(
        [sys.executable, "-m", "drgn", "--architecture", "x86_64", "-c", str(core.path)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    lines = ("%kvintro translate init_task | tail -1", "hex(_.physical)", "%kvintro no_such", "quit()")
    os.write(ours, "".join(f"{line}\n" for line in lines).encode())
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal is read as this error
        while part := os.read(ours, 1 << 16):
            said += part
    os.close(ours)
    assert session.wait(timeout=600) == 0
    text = said.decode()
    row = k.translate("init_task")[0]
    assert f"{row.virtual:016x}  {row.physical:016x}" in text
    assert f"'{row.physical or 0:#x}'" in text
    assert "there is no command no_such" in text
    assert "Traceback" not in text


# The Python API


def test_every_command_is_a_method(k: Kernel) -> None:
    for name in {*command_names(), *ALIASES} - {"browse", "shell", "survey"}:
        assert callable(getattr(k, name)), name
        assert name in dir(k)
        assert getattr(Kernel, name).__doc__


def test_answers_are_the_reports_of_the_command_line(core: Core, k: Kernel) -> None:
    answer = k.layout()
    ours = json.loads(_cli("-c", str(core.path), "--json", "layout", code=4 if answer.partial else 0))
    assert answer.json()["regions"] == ours["regions"]
    assert len(answer) == len(ours["regions"]) == len(answer.regions)
    assert answer[0].key == "user"
    assert repr(answer).splitlines()[0].startswith("Linux ")


def test_drgn_objects_stand_for_addresses(k: Kernel, prog: drgn.Program) -> None:
    task = prog["init_task"]
    symbol = prog.symbol("init_task")
    by_name = k.translate("init_task").physical
    assert by_name == k.translate(task).physical == k.translate(task.address_of_()).physical
    assert by_name == k.translate(symbol.address).physical == k.translate(symbol).physical
    assert by_name == k.walk(task).physical
    assert k.read(task.comm, 9) == b"swapper/0"
    assert [row.physical for row in k.translate([task, symbol.address])] == [by_name, by_name]


def test_pages_by_their_numbers(k: Kernel, prog: drgn.Program) -> None:
    """A page frame number, the struct page that drgn's helper finds for it, and the physical address."""
    from drgn.helpers.linux import find_task, pfn_to_page, virt_to_pfn  # type: ignore[attr-defined]

    # drgn requires more lines than VMCOREINFO has.
    needs(k._kernel, "mem_section")
    number = virt_to_pfn(find_task(prog, 1).mm)
    page = pfn_to_page(number)
    assert k.page(number).pfn == k.page(number.value_()).pfn == number.value_()
    assert k.page(page).pfn == k.page(page.value_()).pfn == number.value_()
    assert k.page(page).page == k.translate(page).page == page.value_()
    assert k.translate(page).pfn == number.value_()
    assert k.page(number.value_() << 12, form="physical").pfn == number.value_()
    assert [row.pfn for row in k.page([number, page])] == [number.value_()] * 2


def test_options_are_keyword_arguments(k: Kernel) -> None:
    from kvintro.errors import UsageError

    assert k.translate("init_task", walk=True).walk
    assert k.vtop("init_task", walk=True).walk
    assert len(k.layout(holes=False)) < len(k.layout(holes=True)) == len(k.layout())
    assert isinstance(k.ptdump(range="kernel_image"), Listing)
    assert k.pte(0x8000000003A12163, level="pte").rows
    with pytest.raises(UsageError, match="no option"):
        k.run("layout", color_of_the_sky="blue")
    with pytest.raises(TypeError):
        k.layout(color_of_the_sky="blue")  # type: ignore[call-arg]
    with pytest.raises(UsageError):
        k.translate()


def test_a_notebook_shows_what_a_prompt_shows(k: Kernel) -> None:
    """Holes, reasons, notes and walks. Long output is folded and not cut; the layout has its drawing."""
    for answer in (
        k.layout(),
        k.translate("init_task", 0xFFFF800000000000, walk=True),
        k.explain("vmalloc"),
        k.show("vmalloc"),
        k.ptdump(range="kernel_image"),
    ):
        html = answer._repr_html_()
        pieces = re.findall(r"<pre[^>]*>(.*?)</pre>", html, re.S)
        assert unescape("\n".join(pieces)) == answer.text()
        lines = answer.text().count("\n") + 1
        assert ("<details>" in html) == (lines > 60)
    svg = k.layout()._repr_html_().partition("<pre")[0]
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")


def test_rows_print_addresses_as_people_write_them(k: Kernel) -> None:
    row = k.translate("init_task")[0]
    assert f"virtual={row.virtual:#x}" in repr(row).replace("0x000", "0x")
    assert f"{row.virtual}" == str(int(row.virtual or 0))


def test_completion_shows_what_a_person_uses(k: Kernel) -> None:
    for thing in (k, k.regions.vmalloc, k.layout()):
        assert not [name for name in dir(thing) if name.startswith("_")]
    # read() returns bytes; the command is rd() there.
    commands = {*command_names(), *ALIASES} - {"browse", "read", "shell"}
    assert set(dir(k)) - commands == {
        *("identity", "prog", "regions", "run", "symbol", "value"),
        *("read", "read_physical", "translate_array", "walk", "walk_array"),
        *(
            "image_offset",
            "image_slide",
            "isolation",
            "levels",
            "linear_offset",
            "max_pfn",
            "page_offset_base",
        ),
        *("phys_base", "pti", "root"),
    }


def test_a_listing_can_be_read_more_than_once(k: Kernel) -> None:
    listing = k.ptdump(range="vmalloc")
    assert len(listing) == len(listing.rows) == len(listing.json()["ranges"]) > 0
    assert listing[0]["start"] == listing.json()["ranges"][0]["start"] or listing[0]["start"] >= 0
    assert repr(listing)


def test_regions_are_attributes(k: Kernel) -> None:
    layout = {row.key: row for row in k.layout() if row.kind == "region"}
    assert isinstance(k.regions, tuple)
    for region in k.regions:
        assert getattr(k.regions, region.key) is region
        row = layout.get(region.key)
        if row is not None and row.state == "present":
            assert (region.start, region.end) == (row.start, row.end)
            assert row.start in region
        assert region.key in repr(region)
    assert "vmalloc" in dir(k.regions)
    with pytest.raises(AttributeError):
        k.regions.nonsense  # noqa: B018


def test_what_is_in_a_region(k: Kernel) -> None:
    areas = k.regions.vmalloc.areas(top=3)
    assert isinstance(areas, Answer)
    assert len(areas) == 3


def test_a_kernel_by_its_path(core: Core) -> None:
    assert kernel_of(str(core.path)).layout().regions


def test_types_are_installed_once(prog: drgn.Program, k: Kernel) -> None:
    import kvintro.types

    assert kvintro.types.install(prog) is kvintro.types.install(prog)
    assert kernel_of(prog)._source is k._source


# kvintro shell


def _scripts(tmp_path: Path) -> Iterator[List[str]]:
    code = "import sys; print(sys.argv[1:], k.translate('init_task').state, prog['init_task'].pid.value_())"
    path = tmp_path / "script.py"
    path.write_text(code)
    yield ["-e", code]
    yield [str(path)]
    yield ["-"]


def test_shell_runs_scripts(core: Core, tmp_path: Path) -> None:
    for arguments in _scripts(tmp_path):
        text = _cli(
            "-c", str(core.path), "shell", *arguments, "x", stdin=(tmp_path / "script.py").read_text()
        )
        assert text == "['x'] mapped 0\n"


def test_shell_runs_percent_commands(core: Core) -> None:
    text = _cli("-c", str(core.path), "shell", "-e", "%kvintro translate init_task | cat")
    assert "init_task" in text


def test_shell_ends_as_its_script_does(core: Core) -> None:
    _cli("-c", str(core.path), "shell", "-e", "raise SystemExit(7)", code=7)
    _cli("-c", str(core.path), "shell", "-e", "1 / 0", code=1)
    _cli("-c", str(core.path), "shell", "-e", "k.translate('no_such_symbol')", code=2)
    _cli("-c", str(core.path), "shell", "/no/such/script", code=3)


def test_the_plugin_registers_one_command() -> None:
    from drgn.commands import DEFAULT_COMMAND_NAMESPACE

    assert "kvintro" in DEFAULT_COMMAND_NAMESPACE._commands
    assert kvintro.plugin.run is not None


def test_roots_prompt_does_not_import_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """drgn has it on the search path while the prompt runs."""
    from kvintro.repl import _NotFromHere

    (tmp_path / "planted_here.py").write_text("raise SystemExit('loaded')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "meta_path", [_NotFromHere(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError):
        __import__("planted_here")

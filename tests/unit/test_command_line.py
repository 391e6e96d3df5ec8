# SPDX-License-Identifier: LGPL-2.1-or-later
"""Help, suggestions, and how a command line names a dump."""

from __future__ import annotations

import platform
import re
import shlex
from pathlib import Path
from typing import Any, List

import drgn
import pytest

import kvintro
from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.cli import main
from kvintro.commands import FORWARDING, command_names
from kvintro.commands.kmem import INSTEAD
from kvintro.errors import NoSuchSource, UsageError
from kvintro.parser import parse, plain_arguments
from kvintro.queries.names import region_key
from kvintro.regions import regions_of
from kvintro.streams import in_its_colors
from kvintro.text import closest, did_you_mean


def test_the_nearest_names() -> None:
    assert closest("layuot", ["layout", "kaslr"]) == ["layout"]
    assert closest("VMALOC", ["vmalloc", "vmemmap"]) == ["vmalloc"]
    assert closest("x" * 100000, ["x" * 20]) == []
    assert did_you_mean("vmaloc", ["vmalloc"]) == "did you mean vmalloc? "
    assert did_you_mean("qqq", ["vmalloc"]) == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["layuot"], "did you mean layout?"),
        (["pages", "--by", "zoen"], "did you mean zone?"),
        (["layout", "--color", "alway"], "did you mean always?"),
        (["translate"], "kvintro -c vmcore translate"),
        (["page"], "kvintro -c vmcore page"),
    ],
)
def test_hints(arguments: List[str], hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(arguments)
    assert hint in error.value.remedy


@pytest.mark.parametrize("name", [*command_names(), *FORWARDING, None])
@pytest.mark.parametrize("width", ["60", "80", "100"])
def test_help_fits(
    name: Any, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as end:
        parse(["help", name] if name else ["help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    # Examples can be typed literally, and argparse does not break an option's choices.
    whole = re.compile(r"  (sudo \S+ -v |find .* \| )?kvintro.*|.* \{.*")
    prose = [line for line in text.split("\n") if not whole.match(line)]
    assert max(map(len, prose)) <= int(width)
    if name:
        # The purpose, examples, the command's own options, and one line for the common ones.
        order = [
            text.find(word) for word in ("usage:", "examples:", "-h, --help", "options of every command")
        ]
        assert order == sorted(order) and order[0] > 0 and -1 not in order
        assert "--vmcoreinfo-at" not in text


@pytest.mark.parametrize("arguments", [["version"], ["-V"], ["--version"]])
def test_version(arguments: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    said = capsys.readouterr().out
    assert said.startswith(f"kvintro {kvintro.__version__}\ndrgn: {drgn.__version__} (using Python ")
    assert f"Python {platform.python_version()}" in said
    for package in ("numpy", "tqdm", "cramjam", "lz4"):
        assert package in said


def test_what_a_crash_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("kvintro.reports.pte.pte", crash)
    assert main(["pte", "0"]) == 3
    said = capsys.readouterr().err
    assert "internal error: RuntimeError('a bug')" in said
    assert "--debug" in said and "info --bug-report" in said and "replace addresses" in said


def test_a_dump_before_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(b"")
    assert parse([str(dump), "layout"]).core == [str(dump)]
    monkeypatch.chdir(tmp_path)
    assert plain_arguments(["vmcore", "kaslr"]) == ["-c", "vmcore", "kaslr"]
    (tmp_path / "layout").write_bytes(b"")
    assert plain_arguments(["layout"]) == ["layout"], "a command's name is the command"
    with pytest.raises(NoSuchSource, match="there is no such file"):
        parse(["./missing", "layout"])


def test_a_dump_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVINTRO_CORE", str(tmp_path / "named"))
    assert main(["layout"]) == 3
    assert "named" in capsys.readouterr().err
    assert main(["-c", str(tmp_path / "other"), "layout"]) == 3
    assert "other" in capsys.readouterr().err
    # Two sides are named, so a third source is one too many.
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 3
    assert str(tmp_path / "a") in capsys.readouterr().err


def test_processes_by_name() -> None:
    assert parse(["user", "1"]).pid == 1
    assert parse(["user", "bash"]).pid == "bash"
    assert parse(["user"]).pid is None
    assert parse(["layout", "--pid", "systemd"]).pid == "systemd"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("physmap", "direct_map"),
        ("lowmem", "direct_map"),
        ("text", "kernel_image"),
        ("LDT remap for PTI", "ldt_remap"),
        ("cpu-entry-area", "cpu_entry_area"),
        ("PAGE_OFFSET", "direct_map"),
        ("hole", "hole"),
        ("nonsense", None),
    ],
)
def test_names_of_regions(name: str, key: Any) -> None:
    assert region_key(regions_of(ARCHITECTURE), ARCHITECTURE, name) == key


def test_sixteen_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\x1b[1;38;5;33mdirect_map\x1b[0m \x1b[38;5;196mX\x1b[0m \x1b[38;5;238m.\x1b[0m"
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert in_its_colors(text) == text
    monkeypatch.setenv("TERM", "linux")
    assert in_its_colors(text) == "\x1b[1;94mdirect_map\x1b[0m \x1b[31mX\x1b[0m \x1b[90m.\x1b[0m"
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert in_its_colors(text) == text


@pytest.mark.parametrize("word", ["help", "version"])
def test_help_and_version_come_first(word: str) -> None:
    with pytest.raises(UsageError, match=f"{word} must be the first argument") as refused:
        parse(["-c", "vmcore", word])
    assert refused.value.remedy == f"kvintro {word}"


@pytest.mark.parametrize("option", INSTEAD)
def test_options_of_crash_name_the_command_that_answers(option: str) -> None:
    with pytest.raises(UsageError, match=f"kmem has no option {option}") as refused:
        parse(["kmem", option])
    # The command exists, and has the options.
    assert parse(shlex.split(refused.value.remedy.partition(" names ")[0])[1:]).command


def test_kmem_takes_crashs_forms_only() -> None:
    for words in (["-v", "-p"], ["-l"], ["-s"], ["-c"]):
        with pytest.raises(UsageError) as refused:
            parse(["kmem", *words])
        assert refused.value.remedy == "kvintro kmem --help"
    with pytest.raises(NoSuchSource):
        parse(["./missing", "kmem", "-v"])

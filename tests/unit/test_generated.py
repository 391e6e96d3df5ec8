# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual page, the completions and every command's help are made from the parser and up to date."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys

import pytest

from kvintro.commands import command_names, known_names, load_command
from kvintro.parser import make_parser
from tests.conftest import ROOT
from tools import gen_methods


def test_manual_and_completions_are_up_to_date() -> None:
    pytest.importorskip("shtab", reason="Python's shtab is missing (pip install '.[docs]')")
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "gen_man.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"run make docs: {run.stdout}{run.stderr}"


def test_methods_are_up_to_date() -> None:
    """Compared as syntax trees, because the file is formatted after it is made."""

    def tree(text: str) -> "tuple[set[str], list[str]]":
        module = ast.parse(text)
        imports = {
            f"{node.module}:{alias.name}:{alias.asname}"
            for node in ast.walk(module)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        return imports, [ast.dump(node) for node in module.body if isinstance(node, ast.ClassDef)]

    assert tree(gen_methods.TARGET.read_text()) == tree(gen_methods.source()), "run make docs"


def test_the_manual_has_every_command() -> None:
    text = (ROOT / "docs" / "man" / "kvintro.1").read_text().replace("\\-", "-")
    for name in known_names():
        assert name in text
    for action in make_parser()._actions:
        for option in action.option_strings:
            assert option in text


def test_the_manual_is_good_troff() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is missing")
    run = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "error", ROOT / "docs" / "man" / "kvintro.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("word", ["lay", "exp"])
def test_bash_completes_commands(word: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is missing")
    script = (
        f"source completions/kvintro.bash; COMP_WORDS=(kvintro {word}); COMP_CWORD=1; "
        "$(complete -p kvintro | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
    )
    run = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [name for name in command_names() if name.startswith(word)]


@pytest.mark.parametrize("name", command_names())
def test_help_has_examples(name: str) -> None:
    module = load_command(name)
    assert module.HELP
    assert not module.HELP.endswith(".")
    assert "examples:" in module.EXAMPLES


@pytest.mark.parametrize("name", command_names())
def test_every_command_has_a_page(name: str) -> None:
    page = ROOT / "docs" / f"{name}.md"
    if name == "shell":
        page = ROOT / "docs" / "prompt.md"
    assert page.exists(), f"docs/{name}.md is missing"
    assert f"kvintro {name}" in page.read_text() or f"kvintro -c vmcore {name}" in page.read_text()

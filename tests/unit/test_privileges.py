# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root only opens files; and code that root's process does not load."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from kvintro import isolation
from kvintro.errors import NotPermitted
from kvintro.source import privileges

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can give up root")
NOBODY = 65534


def _status() -> Dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def _in_child(function: Any) -> Any:
    """The result of a function in a separate process."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sender, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    return json.loads(data)


@needs_root
def test_root_is_given_up_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))

    def child() -> Dict[str, Any]:
        # The user "nobody" may be unable to read the interpreter of this test. Root is given up anyway.
        with contextlib.suppress(NotPermitted):
            privileges.give_up_rights()
        status = _status()
        try:
            os.setuid(0)
            back = True
        except PermissionError:
            back = False
        return {**{key: status[key] for key in ("Uid", "Gid", "CapPrm", "CapEff")}, "back": back}

    found = _in_child(child)
    assert found["Uid"].split() == [str(NOBODY)] * 4
    assert found["Gid"].split() == [str(NOBODY)] * 4
    assert int(found["CapPrm"], 16) == int(found["CapEff"], 16) == 0
    assert not found["back"]


@needs_root
def test_what_root_opened_stays_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("content")
    secret.chmod(0o600)
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    monkeypatch.setattr(privileges, "KERNEL_FILES", (str(secret), "/no/such/file"))

    def child() -> "list[str]":
        privileges.hold_kernel_files()
        with contextlib.suppress(NotPermitted):
            privileges.give_up_rights()
        found = []
        for _ in range(2):  # from the beginning each time
            with privileges.open_kernel_file(str(secret)) as file:
                found.append(file.read().decode())
        try:
            open(secret, "rb").close()
        except PermissionError:
            found.append("not permitted")
        return found

    assert _in_child(child) == ["content", "content", "not permitted"]


@needs_root
@pytest.mark.parametrize("environment", [{}, {"SUDO_UID": "0", "SUDO_GID": "0"}])
def test_root_itself_stays_root(monkeypatch: pytest.MonkeyPatch, environment: Dict[str, str]) -> None:
    for name in ("SUDO_UID", "SUDO_GID", "PKEXEC_UID", "DOAS_USER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert privileges.invoker() is None


@needs_root
@pytest.mark.parametrize("uid", ["", "x", "-1", str(1 << 32), "4294967295"])
def test_a_sudo_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, uid: str) -> None:
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", "1")
    with pytest.raises(NotPermitted):
        privileges.invoker()


@needs_root
@pytest.mark.parametrize("keep", [False, True])
def test_the_files_that_are_written_belong_to_who_called_sudo(tmp_path: Path, keep: bool) -> None:
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(parent.stat().st_mode | 0o711)
    target = tmp_path / "report"
    environment = {**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    options = ["--keep-root"] if keep else []
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", *options, "pte", "8000000003a12163", "-o", str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "may not read" in done.stderr:
        pytest.skip("the interpreter of this test lies where nobody may not read")
    assert done.returncode == 0, done.stderr
    assert target.stat().st_uid == (0 if keep else NOBODY)


def test_an_ordinary_user_gives_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("SUDO_UID", "1000")
    assert privileges.invoker() is None


# Code that is not loaded


def test_the_search_path_of_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, named = tmp_path / "here", tmp_path / "named"
    for directory in (here, named):
        directory.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", f"{named}::")
    kept = [entry for entry in sys.path if entry and os.path.isdir(entry)]
    monkeypatch.setattr(sys, "path", ["", str(here), str(named), os.path.dirname(os.__file__), *kept])
    isolation.narrow_search_path()
    assert "" not in sys.path
    assert str(here) not in sys.path
    assert str(named) not in sys.path
    assert os.path.dirname(os.__file__) in sys.path


@needs_root
@pytest.mark.parametrize("how", ["PYTHONPATH", "working directory", "DRGN_PLUGINS"])
def test_root_loads_nothing_from_the_environment(tmp_path: Path, how: str) -> None:
    """Files in places where a user could put them: a module that kvintro imports late, and a drgn plugin."""
    planted = "import os; os.write(2, b'LOADED'); raise SystemExit(99)\n"
    for name in ("numpy", "_drgn", "drgn"):
        (tmp_path / f"{name}.py").write_text(planted)
    environment = {**os.environ}
    if how == "PYTHONPATH":
        environment["PYTHONPATH"] = str(tmp_path)
    elif how == "DRGN_PLUGINS":
        environment["DRGN_PLUGINS"] = f"planted={tmp_path}/numpy.py"
    import kvintro

    package = Path(kvintro.__file__).parent
    core = package.parent / "vmcores/debian-6.12/core.kdump"
    if not core.exists():
        pytest.skip("the sample dump is not there")
    # Like the installed command: its own directory is not on the path, and a hook finds the package.
    start = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('kvintro', {str(package / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(package)!r}]); "
        "module = importlib.util.module_from_spec(spec); sys.modules['kvintro'] = module; "
        "spec.loader.exec_module(module); "
        "from kvintro.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, "-c", str(core), "layout"],
        env=environment,
        cwd=tmp_path if how == "working directory" else "/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LOADED" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_no_plugins_of_drgn_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRGN_PLUGINS", "x=y")
    monkeypatch.delenv("DRGN_DISABLE_PLUGINS", raising=False)
    isolation.disable_drgn_plugins()
    assert os.environ["DRGN_DISABLE_PLUGINS"] == "*"
    assert "DRGN_PLUGINS" not in os.environ


@needs_root
@pytest.mark.parametrize("variable", ["LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"])
def test_root_reads_no_catalogue_that_the_environment_names(tmp_path: Path, variable: str) -> None:
    """gettext joins a language's name to a path: an absolute one leads anywhere, and a pipe would hang."""
    messages = tmp_path / "LC_MESSAGES"
    messages.mkdir()
    os.mkfifo(messages / "messages.mo")
    clean = {k: v for k, v in os.environ.items() if k not in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")}
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", "--help"],
        env={**clean, variable: str(tmp_path)},
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0


@needs_root
@pytest.mark.parametrize("option", ["--vmcoreinfo", "--btf", "-s", "diff A", "diff B", "-o"])
def test_root_reads_no_file_that_who_called_sudo_may_not(tmp_path: Path, option: str) -> None:
    """The content of root's files must not appear in any output, including messages."""
    core = Path(__file__).parents[2] / "vmcores/debian-6.12/core.kdump"
    if not core.exists():
        pytest.skip("the sample dump is not there")
    secret = tmp_path / "secret"
    secret.write_text("OSRELEASE=SECRET\n{}")
    secret.chmod(0o600)
    for parent in (*list(tmp_path.parents)[:2], tmp_path):
        parent.chmod(parent.stat().st_mode | 0o711)
    words = {"diff A": ["diff", str(secret), str(core)], "diff B": ["diff", str(core), str(secret)]}
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", *words.get(option, ["-c", str(core), option, str(secret), "info"])],
        env={**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "may not read" in done.stderr:
        pytest.skip("the interpreter of this test lies where nobody may not read")
    assert done.returncode == 3
    assert "permission denied" in done.stderr.lower()
    assert "SECRET" not in done.stderr + done.stdout
    assert secret.read_text() == "OSRELEASE=SECRET\n{}"

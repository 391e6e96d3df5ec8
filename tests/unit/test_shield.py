# SPDX-License-Identifier: LGPL-2.1-or-later
"""What other processes of the same user can take from a process with a file that root opened.

The kernel is the reference: a second process tries everything that the kernel offers. If the tests run as
root, both processes belong to another user. Otherwise both belong to the user who runs the tests, and tests
whose setup needs root are skipped.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from kvintro.errors import KvintroError, NotPermitted, SourceError
from kvintro.source import privileges

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to set up another user's process")
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)
CORE = Path(__file__).parents[2] / "vmcores/debian-6.12/core.kdump"
CAP_DAC_READ_SEARCH, CAP_SYS_RAWIO = 2, 17


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _checked(result: int) -> bool:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


def _attacks(pid: int, descriptor: int, place: int) -> Dict[str, bool]:
    """The ways to a process's descriptors and memory that are open to the caller."""
    theirs, buffer = Vector(place, 8), ctypes.create_string_buffer(8)
    ours = Vector(ctypes.addressof(buffer), 8)

    def opened(name: str, flags: int) -> bool:
        file = os.open(f"/proc/{pid}/{name}", flags)
        return bool(os.read(file, 1)) if flags == os.O_RDONLY else True

    def pidfd_getfd() -> bool:
        pidfd = LIBC.syscall(434, pid, 0)  # pidfd_open(2), Linux 5.3
        return _checked(pidfd) and _checked(LIBC.syscall(438, pidfd, descriptor, 0))

    ways: Dict[str, Callable[[], bool]] = {
        "pidfd_getfd": pidfd_getfd,
        "process_vm_readv": lambda: _checked(
            LIBC.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        ),
        "fd/": lambda: bool(os.listdir(f"/proc/{pid}/fd")),
        "fd/N, its name": lambda: bool(os.readlink(f"/proc/{pid}/fd/{descriptor}")),
        "fd/N, opened": lambda: bool(os.stat(f"/proc/{pid}/fd/{descriptor}")),
        "fdinfo": lambda: opened(f"fdinfo/{descriptor}", os.O_RDONLY),
        "mem": lambda: opened("mem", os.O_RDWR),
        "environ": lambda: opened("environ", os.O_RDONLY),
        "maps": lambda: opened("maps", os.O_RDONLY),
        "ptrace": lambda: _checked(LIBC.ptrace(16, pid, None, None)),  # PTRACE_ATTACH; last, as it stops it
    }
    found = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except OSError:
            found[name] = False
    return found


def _reporting(function: Callable[[int], object]) -> Tuple[int, Any]:
    """Run a function in a child; returns its process id and the first line that it writes to its argument."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            function(sender)
        except BaseException as error:
            os.write(sender, (json.dumps({"error": repr(error)}) + "\n").encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as file:
        line = file.readline()
    found = json.loads(line)
    assert "error" not in found, found
    return child, found


def _become_ordinary() -> None:
    """As root, become a process like one that a user's shell starts."""
    if ROOT:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: it was lost when the user changed


def _taken(victim: Callable[[], int]) -> Dict[str, bool]:
    """What an ordinary process can take from a child that runs a function, which returns a descriptor."""

    def hold(sender: int) -> None:
        memory = ctypes.create_string_buffer(8)
        descriptor = victim()
        os.write(sender, (json.dumps([descriptor, ctypes.addressof(memory)]) + "\n").encode())
        time.sleep(600)

    def attack(sender: int) -> None:
        _become_ordinary()
        os.write(sender, (json.dumps(_attacks(child, *held)) + "\n").encode())

    child, held = _reporting(hold)
    try:
        attacker, found = _reporting(attack)
        os.waitpid(attacker, 0)
        return dict(found)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that stands for /proc/kcore."""
    path = tmp_path / "kcore"
    path.write_text("content")
    path.chmod(0o600)
    return path


@pytest.fixture
def called_by_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    monkeypatch.setenv("SUDO_GID", str(NOBODY))
    # NOBODY may be unable to read the interpreter of this test.
    monkeypatch.setattr(privileges, "_check_installation", lambda user: None)


def test_an_ordinary_process_can_be_taken_from(secret: Path) -> None:
    """The attacks are effective: without a shield they succeed."""
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text().strip() != "0":
        pytest.skip("kernel.yama.ptrace_scope forbids all of this already")

    def victim() -> int:
        descriptor = os.open(secret, os.O_RDONLY)
        _become_ordinary()
        return descriptor

    assert all(_taken(victim).values())


def test_a_shielded_process_keeps_what_it_has(secret: Path) -> None:
    def victim() -> int:
        descriptor = os.open(secret, os.O_RDONLY)
        _become_ordinary()
        privileges.shield()
        return descriptor

    assert not any(_taken(victim).values())


@needs_root
@pytest.mark.usefixtures("called_by_sudo")
def test_nobody_takes_what_root_opened(secret: Path) -> None:
    def victim() -> int:
        descriptor = os.open(secret, os.O_RDONLY)
        privileges.give_up_rights()
        return descriptor

    assert not any(_taken(victim).values())


def _with_capabilities() -> None:
    """Become an ordinary user's process with ambient capabilities, like a service's or setpriv(1)'s."""
    LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    _become_ordinary()
    bits = 1 << CAP_DAC_READ_SEARCH | 1 << CAP_SYS_RAWIO
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _checked(LIBC.capset(header, (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)))
    for capability in (CAP_DAC_READ_SEARCH, CAP_SYS_RAWIO):
        _checked(LIBC.prctl(47, 2, capability, 0, 0))  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE


@needs_root
def test_capabilities_are_given_up_by_whoever_has_them(secret: Path) -> None:
    def victim() -> int:
        _with_capabilities()
        descriptor = os.open(secret, os.O_RDONLY)
        privileges.give_up_rights()
        return descriptor

    assert not any(_taken(victim).values())

    def child(sender: int) -> None:
        _with_capabilities()
        os.close(os.open(secret, os.O_RDONLY))
        before = _sets()
        privileges.give_up_rights()
        try:
            os.close(os.open(secret, os.O_RDONLY))
            again = True
        except PermissionError:
            again = False
        os.write(sender, (json.dumps([before, _sets(), again]) + "\n").encode())

    process, (before, after, again) = _reporting(child)
    os.waitpid(process, 0)
    assert all(before.values())
    assert not any(after.values())
    assert not again


def _sets() -> Dict[str, int]:
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return {key: int(lines[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")}


@needs_root
@pytest.mark.usefixtures("called_by_sudo")
def test_root_that_keeps_its_capabilities_when_its_user_changes(secret: Path) -> None:
    """SECBIT_NO_SETUID_FIXUP, as some container runtimes and capsh(1) set it."""

    def child(sender: int) -> None:
        _checked(LIBC.prctl(28, 4, 0, 0, 0))  # PR_SET_SECUREBITS
        privileges.give_up_rights()
        os.write(sender, (json.dumps([_sets(), os.getresuid()]) + "\n").encode())

    process, (sets, users) = _reporting(child)
    os.waitpid(process, 0)
    assert not any(sets.values())
    assert users == [NOBODY] * 3


def test_a_shielded_process_writes_no_core_dump(tmp_path: Path) -> None:
    def dumped(shielded: bool) -> bool:
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)
            resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            if shielded:
                privileges.shield()
            os.abort()
        return os.WCOREDUMP(os.waitpid(child, 0)[1])

    if not dumped(False):
        pytest.skip("this host writes no core dumps at all")
    assert not dumped(True)


def test_no_descriptor_of_a_source_is_inherited() -> None:
    """A pager inherits neither ours nor those of drgn and libkdumpfile."""
    if not CORE.exists():
        pytest.skip("the sample dump is not there")

    def child(sender: int) -> None:
        import gc

        from kvintro.opening import open_kernel
        from kvintro.source import Request

        gc.collect()  # descriptors that other tests left open would be closed meanwhile
        before = set(os.listdir("/proc/self/fd"))
        kernel = open_kernel(Request(core=str(CORE)))
        privileges.hold_kernel_files()
        new = [int(name) for name in os.listdir("/proc/self/fd") if name not in before]
        held = [n for n in new if os.path.exists(f"/proc/self/fd/{n}")]
        inherited = [os.readlink(f"/proc/self/fd/{n}") for n in held if os.get_inheritable(n)]
        os.write(sender, (json.dumps([len(held), inherited, kernel.source.kind]) + "\n").encode())

    process, (held, inherited, kind) = _reporting(child)
    os.waitpid(process, 0)
    assert kind == "core"
    assert held > 1
    assert inherited == []


# sudo's helper


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sudo that does not ask for a password or change the user: it runs programs as the test's user."""
    script = tmp_path / "bin/sudo"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return script


def _by_sudo(path: str) -> Any:
    def child(sender: int) -> None:
        try:
            with privileges.open_by_sudo(path) as file:
                found: List[Any] = [file.read().decode(), os.get_inheritable(file.fileno())]
        except OSError as error:
            found = ["OSError", error.errno]
        except KvintroError as error:
            found = [type(error).__name__, error.what]
        os.write(sender, (json.dumps([*found, LIBC.prctl(3, 0, 0, 0, 0)]) + "\n").encode())

    process, found = _reporting(child)
    os.waitpid(process, 0)
    return found


@needs_root
@pytest.mark.usefixtures("sudo")
def test_what_sudo_opens(secret: Path) -> None:
    assert _by_sudo(str(secret)) == ["content", False, 0]
    assert _by_sudo("/no/such/file") == ["OSError", 2, 0]


@pytest.mark.skipif(ROOT, reason="as root the made-up sudo is root's, too")
@pytest.mark.usefixtures("sudo")
def test_a_sudo_that_is_not_roots(secret: Path) -> None:
    assert _by_sudo(str(secret))[0] == "NotPermitted"


def test_a_sudo_that_refuses(sudo: Path, secret: Path) -> None:
    sudo.write_text("#!/bin/sh\nexit 1\n")
    kind, what, dumpable = _by_sudo(str(secret))
    assert (kind, dumpable) == ("NotPermitted", 0)
    assert what == f"sudo did not open {secret}"


def test_no_sudo(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/directory")
    assert _by_sudo(str(secret))[:2] == ["NotPermitted", "sudo cannot be run: no such file or directory"]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
        found.bind("")
        found.listen(8)
        yield found


@needs_root
def test_only_roots_descriptor_is_taken(listener: socket.socket, secret: Path, tmp_path: Path) -> None:
    """Another process connects first, with a file of its own."""
    other = tmp_path / "other"
    other.write_text("stranger")

    def send(path: Path, stranger: bool) -> None:
        def child(sender: int) -> None:
            descriptor = os.open(path, os.O_RDONLY)
            if stranger:
                _become_ordinary()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(listener.getsockname())
                socket.send_fds(connection, [struct.pack("i", 0)], [descriptor])
            os.write(sender, b"[]\n")

        os.waitpid(_reporting(child)[0], 0)

    send(other, stranger=True)
    assert privileges._received(listener) is None
    send(other, stranger=True)
    send(secret, stranger=False)
    descriptor = privileges._received(listener)
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == b"content"


def test_the_helper_sends_nothing_to_another_process(listener: socket.socket, secret: Path) -> None:
    """As if another process had taken the name of the socket."""
    name = listener.getsockname()[1:].hex()
    done = subprocess.run(
        [sys.executable, "-I", "-c", privileges._OPEN_AS_ROOT, str(secret), name, str(os.getpid() + 1)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "not the process that asked" in done.stderr
    listener.setblocking(False)
    connection, _ = listener.accept()
    with connection:
        assert socket.recv_fds(connection, 4, 1)[:2] == (b"", [])


# QEMU's socket


@pytest.fixture
def place() -> Iterator[Path]:
    """A path for a socket, of at most 107 bytes, in a directory that all users may use."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory) / "qmp"


def _listening(path: Path, stranger: bool, backlog: int = 8) -> socket.socket:
    """A socket on which a child, perhaps of another user, listens; it is passed back."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            if stranger:
                _become_ordinary()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as found:
                found.bind(str(path))
                found.listen(backlog)
                socket.send_fds(theirs, [b"x"], [found.fileno()])
        finally:
            os._exit(0)
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    ours.close()
    return socket.socket(fileno=descriptors[0])


@needs_root
@pytest.mark.parametrize("how", ["named", "linked"])
def test_root_does_not_listen_to_strangers(place: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports who listens; the owner of the socket's file does not matter."""
    from kvintro.source.qmp import connect

    for name in ("SUDO_UID", "PKEXEC_UID", "DOAS_USER"):
        monkeypatch.delenv(name, raising=False)
    path = place
    opened: List[int] = []
    with _listening(place, stranger=True):
        os.chown(place, 0, 0)
        if how == "linked":
            path = place.with_name("link")
            path.symlink_to(place)
        with pytest.raises(NotPermitted) as caught:
            connect(str(path), opened=lambda: opened.append(1))
        assert str(NOBODY) in caught.value.what
        assert not opened
        # The user who called sudo may name their own socket or root's, but not another user's.
        monkeypatch.setenv("SUDO_UID", str(NOBODY))
        monkeypatch.setenv("SUDO_GID", str(NOBODY))
        connect(str(path), opened=lambda: opened.append(1)).close()
        assert opened
        monkeypatch.setenv("SUDO_UID", str(NOBODY - 1))
        with pytest.raises(NotPermitted):
            connect(str(path))


def test_rights_are_given_up_before_anything_is_said(place: Path) -> None:
    """QEMU greets at once, but kvintro does not read that yet."""
    from kvintro.source.qmp import connect

    with _listening(place, stranger=False) as listening:
        heard: List[bytes] = []

        def opened() -> None:
            connection, _ = listening.accept()
            connection.setblocking(False)
            connection.send(b"{")
            try:
                heard.append(connection.recv(1))
            except BlockingIOError:
                heard.append(b"nothing")

        with connect(str(place), opened=opened) as connection:
            assert connection.recv(10) == b"{"
            assert not connection.get_inheritable()
        assert heard == [b"nothing"]


def test_a_monitor_that_is_in_use(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU serves one client; the others are connected and wait."""
    from kvintro.source import qmp
    from kvintro.source.guest import open_qemu
    from kvintro.source.qmp import connect

    monkeypatch.setattr(qmp, "_ANSWER", 0.2)
    with _listening(place, stranger=False, backlog=1), connect(str(place)) as first, connect(str(place)):
        with pytest.raises(SourceError) as caught:  # it waits, and receives nothing
            open_qemu(str(place), first)
        assert "one client at a time" in caught.value.what
        with pytest.raises(SourceError) as caught:  # the queue is full
            connect(str(place))
        assert "one client at a time" in caught.value.what

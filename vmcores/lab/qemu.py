"""One QEMU process: started, watched, dumped and always ended."""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Sequence, Type, TypeVar

from lab.common import LabError, say, until
from lab.machine import AMD64, Machine

Result = TypeVar("Result")

#: Where the console of a guest that failed is left, beside its directory.
FAILED_CONSOLE = "kvintro-failed-console.log"
#: Emulation, because KVM is not everywhere: the lab must give the same dump on every machine.
ACCELERATION = ["-accel", "tcg,thread=multi"]


class GuestDied(LabError):
    """The guest's kernel panicked or QEMU ended; one boot in some dozens does under emulation.

    What was seen most: ``Oops: int3``. A CPU ran the breakpoint of a jump label that the other one was just
    patching, and was done with when the trap was looked into.
    """


class NotReady(GuestDied):
    """The guest did not print a line in time: it hangs, or something else was printed into the line."""


ATTEMPTS = 3
#: Seconds in which QEMU answers, on a machine that has much else to do.
PATIENCE = 120.0
#: Loaded before a fork: afterwards only the call itself is safe.
LIBC = ctypes.CDLL(None)


def persistently(attempt: Callable[[], Result]) -> Result:
    """Boot again when a guest dies, but not for ever."""
    for remaining in reversed(range(ATTEMPTS)):
        try:
            return attempt()
        except GuestDied as error:
            if not remaining:
                raise
            say(f"{error}: once more")
    raise AssertionError


def _die_with_parent() -> None:
    """Have the kernel end QEMU when this program is killed: no guest is ever left running."""
    pr_set_pdeathsig = 1
    LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL)


class Qemu:
    """A guest in a directory of its own, which also takes its console, its stream and its dumps."""

    def __init__(self, directory: Path, options: Sequence[str], machine: Machine = AMD64) -> None:
        # Names are relative to the directory, so that options hold no path.
        self.options: List[str] = [
            *ACCELERATION,
            *["-nodefaults", "-no-reboot", "-display", "none"],
            *["-serial", "file:console.log"],
            *machine.channel,
            *["-qmp", "unix:qmp,server=on,wait=off"],
            *options,
        ]
        self.directory = directory
        self.machine = machine
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._socket: Optional[socket.socket] = None
        self._pending = b""

    def __enter__(self) -> "Qemu":
        with (self.directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.machine.qemu, *self.options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  the lab has one thread
            )
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        """Everything the guest has printed so far."""
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _last_words(self) -> str:
        lines = [line for line in self.console().splitlines() if line.strip()]
        log = (self.directory / "qemu.log").read_text(errors="replace").strip()
        return " / ".join([*lines[-3:], log] if log else lines[-3:])

    def wait_for(self, marker: str, timeout: float) -> float:
        """Wait until the guest prints a line; returns the seconds it took."""
        start = time.monotonic()
        self.wait_for_match(rf"^{re.escape(marker)}\s*$", timeout)
        return time.monotonic() - start

    def wait_for_match(self, pattern: str, timeout: float) -> "re.Match[str]":
        """Wait until the guest has printed what matches."""
        for _ in until(timeout):
            text = self.console()
            found = re.search(pattern, text, re.MULTILINE)
            if found:
                return found
            failed = re.search(r"KVINTRO-FAILED: .*|Kernel panic.*", text)
            if failed:
                time.sleep(0.5)  # let it print the rest
                oops = re.search(r"(?:Oops|BUG|general protection fault).*", self.console())
                (self.directory / "console.log").replace(self.directory.parent / FAILED_CONSOLE)
                words = [match.group().strip() for match in (oops, failed) if match]
                raise GuestDied(
                    f"the guest failed: {', '.join(words)} "
                    f"(its console: {self.directory.parent / FAILED_CONSOLE})"
                )
            if not self.running:
                raise GuestDied(f"QEMU ended: {self._last_words()}")
        raise NotReady(f"the guest was not ready within {timeout:.0f} s: {self._last_words()}")

    # --- QMP

    def _receive(self) -> Dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._pending:
            data = self._socket.recv(1 << 16)
            if not data:
                raise LabError(f"QEMU closed its monitor: {self._last_words()}")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        message: Dict[str, Any] = json.loads(line)
        return message

    def _connect(self) -> socket.socket:
        """Connect to the monitor as soon as QEMU listens."""
        # The path of a socket is limited to 108 bytes and the directory may be deep.
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in until(PATIENCE):
                if not self.running:
                    raise GuestDied(f"QEMU ended: {self._last_words()}")
                made = socket.socket(socket.AF_UNIX)
                made.settimeout(PATIENCE)
                try:
                    made.connect(f"/proc/self/fd/{fd}/qmp")
                    return made
                except (FileNotFoundError, ConnectionRefusedError):
                    made.close()
        finally:
            os.close(fd)
        raise LabError(f"QEMU has no monitor after {PATIENCE:.0f} s: {self._last_words()}")

    def command(
        self, name: str, arguments: Optional[Dict[str, Any]] = None, timeout: float = PATIENCE
    ) -> Any:
        """One QMP command; its answer, events skipped."""
        if self._socket is None:
            self._socket = self._connect()
            self._receive()
            self.command("qmp_capabilities")
        self._socket.settimeout(timeout)
        request = {"execute": name, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            try:
                answer = self._receive()
            except socket.timeout:
                raise LabError(f"QEMU did not answer {name} within {timeout:.0f} s") from None
            if "error" in answer:
                raise LabError(f"QEMU refused {name}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, line: str, cpu: int = 0) -> str:
        """One command of the human monitor, on one CPU."""
        arguments = {"command-line": line, "cpu-index": cpu}
        answer = self.command("human-monitor-command", arguments)
        return str(answer).replace("\r\n", "\n")

    def stop_idle(self) -> int:
        """Stop the guest at a moment when a CPU idles in the kernel; returns that CPU.

        Through its page tables the monitor's translations find all that the kernel has.
        """
        for _ in until(PATIENCE):
            self.command("stop")
            blocks = re.split(r"^CPU#\d+\s*$", self.monitor("info registers -a"), flags=re.MULTILINE)
            for cpu, block in enumerate(blocks[1:]):
                if all(re.search(word, block) for word in self.machine.idle):
                    return cpu
            self.command("cont")
        raise NotReady(f"no CPU of the guest was idle within {PATIENCE:.0f} s")

    def translate(self, address: int, cpu: int) -> Optional[int]:
        """What QEMU's own walk makes of a virtual address."""
        match = re.search(r"gpa: (0x[0-9a-f]+)", self.monitor(f"gva2gpa {address:#x}", cpu))
        return int(match.group(1), 16) if match else None

    def dump(self, name: str, format_name: str = "elf") -> None:
        """Write the guest's memory to a file in the directory."""
        arguments = {"paging": False, "protocol": f"file:{name}", "format": format_name}
        self.command("dump-guest-memory", arguments, timeout=600)


def read_stream(path: Path) -> Dict[str, bytes]:
    """The files that the guest's probe sent: see guest/probe.c for the format."""
    data = path.read_bytes()
    files: Dict[str, List[bytes]] = {}
    position = 0
    while True:
        end = data.find(b"\n", position)
        word = data[position:end].split(b" ") if end > 0 else []
        if len(word) != 3 or word[0] != b"KV1":
            raise LabError(f"the guest's stream breaks off at byte {position} of {len(data)}")
        name, size = word[1].decode(), int(word[2])
        if name == ".":
            return {key: b"".join(parts) for key, parts in files.items()}
        files.setdefault(name, []).append(data[end + 1 : end + 1 + size])
        position = end + 1 + size

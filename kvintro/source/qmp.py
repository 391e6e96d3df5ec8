# SPDX-License-Identifier: LGPL-2.1-or-later
"""Client of QEMU's monitor, with the QEMU Machine Protocol (QEMU's docs/interop/qmp-spec.rst).

Any program may listen on a socket, and it may send without end. So only answers and a bounded number of bytes
of events are read. Each answer is limited in size and time.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Callable, Dict, List, Optional, Tuple, Union

from kvintro.errors import NoSuchSource, NotADump, NotPermitted, SourceError
from kvintro.source.privileges import invoker, peer_uid

#: The remedy if no guest answers.
REMEDY = "start QEMU with -qmp unix:PATH,server=on,wait=off and name PATH"
_GONE = f"is the guest running? {REMEDY}"
_GREETING = b'{"QMP":'
_MAX_GREETING = 4096  # bytes; QEMU's has about 150
_MAX_ANSWER = 64 << 10  # bytes; the default limit
_MAX_EVENTS = 8 << 20  # bytes per connection
_EVENT = 160  # bytes that an event counts as at least; QEMU's events have about that size
_ANSWER = 10  # seconds; QEMU's monitor answers at once
_CHUNK = 64 << 10

Arguments = Dict[str, Union[str, int, bool]]


class Refused(Exception):
    """QEMU refused a command."""


def connect(address: str, *, opened: Callable[[], None] = lambda: None) -> socket.socket:
    """Connect to a guest's QMP socket, without reading or writing yet.

    A Unix socket is connected before ``opened`` is called, as its directory may be root's; a network address
    after it. Root connects only to its own sockets and to those of the user who called sudo, as it should not
    read data from other users. The owner is that of the established connection, so a replaced link or file
    makes no difference.

    :param address: path of a socket, or HOST:PORT.
    :param opened: called once everything that may need root is open.
    :raises SourceError: nothing answers there, or the socket belongs to another user.
    """
    network = _host_and_port(address)
    try:
        if network is not None:
            opened()
            return socket.create_connection(network, _ANSWER)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_ANSWER)
            connection.connect(address)
            _check_owner(address, connection)
            opened()
        except BaseException:
            connection.close()
            raise
        return connection
    except (socket.timeout, BlockingIOError):  # TimeoutError since Python 3.10; the queue is full
        raise _busy(address) from None
    except (OSError, ValueError) as error:
        raise NoSuchSource(f"no QEMU answers at {address}: {_reason(error)}", REMEDY) from error


def _host_and_port(address: str) -> Optional[Tuple[str, int]]:
    """The network address, parsed as by drgn; None if it is a path."""
    host, colon, port = address.rpartition(":")
    if address.startswith(("/", ".")) or not colon or not (port.isascii() and port.isdigit()):
        return None
    return (host or "localhost", int(port)) if 1 <= int(port) <= 65535 else None


def _check_owner(address: str, connection: socket.socket) -> None:
    if os.geteuid() != 0:
        return
    owner, caller = peer_uid(connection), invoker()
    if owner not in (0, caller.uid if caller is not None else 0):
        raise NotPermitted(
            f"the socket {address} is of user {owner}, and root does not listen to other users",
            f"run it as that user: sudo -u '#{owner}' kvintro ...",
        )


def _busy(address: str) -> SourceError:
    return SourceError(
        f"QEMU does not answer at {address} within {_ANSWER} s; it talks to one client at a time",
        "end the other client (libvirt is one), or give QEMU a second -qmp socket",
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


class Monitor:
    """A connection to QEMU's monitor. The constructor reads the greeting. Call :meth:`close` at the end.

    :param address: its name in messages.
    :param connection: a new connection; the object takes ownership.
    :raises SourceError: the other side is not QEMU, or does not answer.
    """

    def __init__(self, address: str, connection: socket.socket) -> None:
        self._address = address
        self._connection = socket.socket(fileno=connection.detach())
        self._buffer = bytearray()
        self._events_left = _MAX_EVENTS
        self._failed: Optional[SourceError] = None
        try:
            self._await_greeting()
            self.ask("qmp_capabilities")
        except Refused:
            raise self._fails("it refuses to talk") from None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(
        self,
        command: str,
        arguments: Optional[Arguments] = None,
        *,
        limit: int = _MAX_ANSWER,
        descriptors: Optional[List[int]] = None,
    ) -> object:
        """Send a command and return the answer.

        :param limit: maximum size of the answer in bytes.
        :param descriptors: file descriptors to send with the command.
        :raises Refused: QEMU refused the command.
        :raises SourceError: QEMU is gone or silent, or its answer is invalid. The connection cannot be used
            any more.
        """
        if self._failed is not None:
            raise self._failed
        question = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\r\n"
        deadline = time.monotonic() + _ANSWER
        try:
            self._connection.settimeout(_ANSWER)
            if descriptors:
                socket.send_fds(self._connection, [question], descriptors)
            else:
                self._connection.sendall(question)
            return self._answer(deadline, limit)
        except socket.timeout:  # TimeoutError since Python 3.10
            self._failed = _busy(self._address)
            raise self._failed from None
        except OSError as error:
            raise self._fails(_reason(error), _GONE) from None

    def command_line(self, line: str, *, limit: int = _MAX_ANSWER) -> str:
        """The output of a command of the human monitor.

        :raises Refused: as :meth:`ask`.
        :raises SourceError: as :meth:`ask`.
        """
        return str(self.ask("human-monitor-command", {"command-line": line}, limit=limit))

    def _fails(self, what: str, remedy: str = REMEDY) -> SourceError:
        self._failed = NotADump(f"the guest at {self._address} cannot be read: {what}", remedy)
        self._connection.close()
        return self._failed

    def _await_greeting(self) -> None:
        deadline = time.monotonic() + _ANSWER
        try:
            while b"\n" not in self._buffer and len(self._buffer) < _MAX_GREETING:
                if not self._receive(deadline):
                    raise NoSuchSource(f"{self._address} closes the connection at once", REMEDY)
                if not self._buffer.startswith(_GREETING[: len(self._buffer)]):
                    break
            line, newline, self._buffer = self._buffer.partition(b"\n")
            if newline and line.startswith(_GREETING):
                return
        except socket.timeout:
            self._connection.close()
            raise _busy(self._address) from None
        except OSError as error:
            self._connection.close()
            raise NoSuchSource(f"no QEMU answers at {self._address}: {_reason(error)}", _GONE) from None
        self._connection.close()
        raise NoSuchSource(f"the program that listens at {self._address} does not speak QMP", REMEDY)

    def _receive(self, deadline: float) -> int:
        """Receive bytes into the buffer; returns their number, 0 at the end.

        :raises socket.timeout: nothing was received before the deadline.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout
        self._connection.settimeout(left)
        data = self._connection.recv(_CHUNK)
        self._buffer += data
        return len(data)

    def _answer(self, deadline: float, limit: int) -> object:
        while True:
            line = self._line(deadline, limit)
            try:
                # Keep numbers as text: converting a long one takes quadratic time.
                message = json.loads(line, parse_int=str, parse_float=str)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                raise self._fails("its answer is not QMP")
            if "return" in message:
                return message["return"]
            if "error" in message:
                error = message["error"]
                raise Refused(str(error.get("desc", "") if isinstance(error, dict) else error)[:200])
            if "event" not in message:
                raise self._fails("its answer is not QMP")
            self._events_left -= max(len(line), _EVENT)
            if self._events_left < 0:
                raise self._fails("it sends too many events")

    def _line(self, deadline: float, limit: int) -> bytes:
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[: end + 1])
                del self._buffer[: end + 1]
                if len(line) <= limit:
                    return line
            searched = len(self._buffer)
            if end >= 0 or searched > limit:
                raise self._fails(f"its answer has more than {limit >> 10} KB")
            if not self._receive(deadline):
                raise self._fails("it closed the connection", _GONE)

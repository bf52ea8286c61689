"""A non-blocking socket that carries control messages, and file descriptors between processes of a node."""

from __future__ import annotations

import collections
import errno
import os
import selectors
import socket
from collections.abc import Callable

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.loop import Loop
from llumnix.engine.transport.messages import MAX_MESSAGE_BYTES, Message, Note, decode, encode

_READ_BYTES = 1 << 16
_MAX_FDS = 8
_KEEPALIVE_S = 30


class ControlSocket:
    """Owned by the loop's thread. `on_message` gets each message and its descriptors, `on_end` the reason.

    Neither is called from within another call of it, nor after `close`, which the owner answers an end with.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._on_message = on_message
        self._on_end = on_end
        self._in = bytearray()
        self._fds: list[int] = []
        self._out: collections.deque[tuple[bytes, list[int]]] = collections.deque()
        self._closed = False
        self._connecting = False
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # An idle peer is asked for nothing: this notices in the end that its node is gone.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        loop.watch(sock, selectors.EVENT_READ, self._ready)

    @classmethod
    def connect(
        cls,
        loop: Loop,
        family: str,
        where: tuple[str, int],
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[str], None],
    ) -> ControlSocket:
        """Begins to connect; a failure comes through `on_end`, messages sent meanwhile wait."""
        sock = socket.socket(socket.AF_UNIX if family == "unix" else _family(where[0]), socket.SOCK_STREAM)
        sock.setblocking(False)
        self = cls(loop, sock, on_message, on_end)
        error = sock.connect_ex("\0" + where[0] if family == "unix" else where)
        self._connecting = error != 0
        if error in (0, errno.EINPROGRESS):
            self._watch()
        else:
            loop.unwatch(sock)
            loop.call_soon(self._end, f"the peer cannot be reached: {os.strerror(error)}")
        return self

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Queues a message and sends what the socket takes; `fds` become this object's, to be closed."""
        if self._closed:
            _close_all(fds)
            return
        self._out.append((encode(message), list(fds)))
        if not self._connecting:
            self._flush()

    def close(self) -> None:
        """At once; what is queued is dropped."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._socket)
            self._socket.close()
            _close_all(self._fds)
            for _, fds in self._out:
                _close_all(fds)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            if self._connecting:
                error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    self._end(f"the peer cannot be reached: {os.strerror(error)}")
                    return
                self._connecting = False
            self._flush()
        if events & selectors.EVENT_READ and not self._closed:
            self._read()

    def _flush(self) -> None:
        try:
            while self._out:
                data, fds = self._out[0]
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
                _close_all(fds)
                if sent < len(data):
                    self._out[0] = (data[sent:], [])
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self._loop.call_soon(self._end, f"the connection to the peer broke: {error.strerror}")
            return
        self._watch()

    def _watch(self) -> None:
        writes = selectors.EVENT_WRITE if self._out or self._connecting else 0
        self._loop.watch(self._socket, selectors.EVENT_READ | writes, self._ready)

    def _read(self) -> None:
        try:
            data = self._receive()
            self._in += data
            while not self._closed and (frame := self._next_frame()) is not None:
                self._deliver(decode(frame))
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"the connection to the peer broke: {error.strerror}")
            return
        except TransportError as error:
            self._end(str(error))
            return
        if not data:
            self._end("the peer hung up")

    def _receive(self) -> bytes:
        if self._socket.family != socket.AF_UNIX:
            return self._socket.recv(_READ_BYTES)
        data, fds, _, _ = socket.recv_fds(self._socket, _READ_BYTES, _MAX_FDS)
        self._fds += fds
        return data

    def _next_frame(self) -> bytes | None:
        if len(self._in) < 4:
            return None
        size = int.from_bytes(self._in[:4], "little")
        if size > MAX_MESSAGE_BYTES:
            raise TransportError(f"the peer sent a control message of {size} bytes.")
        if len(self._in) < 4 + size:
            return None
        frame = bytes(self._in[4 : 4 + size])
        del self._in[: 4 + size]
        return frame

    def _deliver(self, message: Message) -> None:
        fds: list[int] = []
        if isinstance(message, Note) and message.num_fds:
            if not 0 < message.num_fds <= len(self._fds):
                raise TransportError("the peer announced file descriptors that did not come.")
            fds, self._fds = self._fds[: message.num_fds], self._fds[message.num_fds :]
        self._on_message(message, fds)

    def _end(self, reason: str) -> None:
        if not self._closed:
            self._on_end(reason)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _close_all(fds: list[int] | tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)

"""A proxy on loopback that stands between our sessions and one server, and fails on demand."""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from contextlib import suppress

# asm-generic/socket.h; the socket module does not name them.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_READ_BYTES = 65536
# BPF_RET | BPF_K of linux/filter.h with 0: keep nothing of any packet.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)


class Proxy:
    """
    Passes bytes on, in two threads for each connection.

    :ivar port: where it listens.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._healed = threading.Event()
        self._delay_seconds = 0.0
        threading.Thread(target=self._accept, name=f"proxy {port}", daemon=True).start()

    def cut(self) -> None:
        """Deliver half of whatever comes next on each connection of now, then close it."""
        for link in self._open_links():
            link.is_cutting = True

    def delay(self, seconds: float) -> None:
        """Keep everything for so long before it is passed on, until `heal`."""
        self._healed.clear()
        self._delay_seconds = seconds

    def swallow(self) -> None:
        """
        Make each connection of now half-open: its ends hear nothing more, not even that it is over.

        The kernel drops their packets before it would acknowledge them, as when a machine is lost.
        """
        for link in self._open_links():
            link.swallow()

    def heal(self) -> None:
        """Stop delaying. What is cut or swallowed stays so."""
        self._delay_seconds = 0.0
        self._healed.set()

    def drop_links(self) -> None:
        """Close every connection."""
        self.heal()
        for link in self._open_links():
            link.close()
        with self._lock:
            self._links.clear()

    def close(self) -> None:
        """End it."""
        # Wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_links()

    def _open_links(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self._server, timeout=5)
            except OSError:  # the server is down, and so is what leads to it
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            with self._lock:
                self._links.append(link)
            for receive, send in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(link, receive, send), daemon=True).start()

    def _pump(self, link: _Link, receive: socket.socket, send: socket.socket) -> None:
        try:
            while data := receive.recv(_READ_BYTES):
                if self._delay_seconds:
                    self._healed.wait(self._delay_seconds)
                if link.is_swallowed:
                    return
                if link.is_cutting:
                    send.sendall(data[: len(data) // 2])
                    break
                send.sendall(data)
        except OSError:  # one end is gone: the other end hears of it
            pass
        if not link.is_swallowed:
            link.close()


class _Link:
    """A connection of ours, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._ends = (client, server)
        self._lock = threading.Lock()
        self._is_closed = False
        self.is_cutting = False
        self.is_swallowed = False

    def swallow(self) -> None:
        program = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
        with self._lock:
            if self._is_closed:
                return
            self.is_swallowed = True
            for end in self._ends:
                end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for end in self._ends:
                if self.is_swallowed:
                    end.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, bytes(4))
                # Wakes the thread that reads from it.
                with suppress(OSError):  # the other end was quicker
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

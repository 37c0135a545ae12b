"""A TCP proxy that can be cut, slowed and silenced."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    sent: bytes = b""
    silent: bool = False


class Proxy:
    """Forwards a port of this machine to another one.

    Args:
        port: Where clients come in.
        target: Port that they are led to; may be given later.
    """

    def __init__(self, port: int, target: int = 0) -> None:
        self.port = port
        self.target = target
        #: Seconds by which each piece of data is late.
        self.delay = 0.0
        self._open = True
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> int:
        """Break every connection and refuse new ones; returns how many were broken."""
        self._open = False
        return self.break_links()

    def mend(self) -> None:
        """Let connections through again, at once."""
        self._open, self.delay = True, 0.0

    def break_links(self) -> int:
        """Break every connection; new ones are welcome. Returns how many there were."""
        count = len(self._links)
        self._call(self._break_all)
        return count

    def silence(self, having_sent: bytes = b"") -> int:
        """Swallow all data of present connections from now on, without closing them.

        Args:
            having_sent: Only of those whose client has sent this.

        Returns:
            How many connections that are.
        """
        links = [link for link in self._links if having_sent in link.sent]
        for link in links:
            link.silent = True
        return len(links)

    def _call(self, function: object) -> None:
        done = threading.Event()

        def run() -> None:
            function()  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5)

    def _break_all(self) -> None:
        for link in self._links:
            for writer in link.writers:
                writer.transport.abort()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        link = _Link([writer])
        self._links.add(link)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            link.writers.append(there_writer)
            await asyncio.gather(
                self._pump(link, reader, there_writer, outward=True),
                self._pump(link, there_reader, writer, outward=False),
            )
        except OSError:
            pass
        finally:
            self._links.discard(link)
            for end in link.writers:
                end.transport.abort()

    async def _pump(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        outward: bool,
    ) -> None:
        while data := await reader.read(65_536):
            if outward:
                link.sent = (link.sent + data)[-4096:]
            if self.delay:
                await asyncio.sleep(self.delay)
            if link.silent:
                continue
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

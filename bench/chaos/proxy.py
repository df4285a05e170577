"""A TCP proxy that makes a server slow or mute: what passes takes its time, waits until a pause is over, or is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CHUNK = 65536


class Proxy:
    """Forwards connections on a port of 127.0.0.1 to a server, from a thread of its own, while the block lasts.

    ``latency_s`` is added to each round trip, half on either way; it may change at any time and never reorders. While paused,
    nothing passes and no connection is closed.
    """

    def __init__(self, host: str, port: int) -> None:
        self.latency_s = 0.0
        self.port = 0
        self._target = host, port
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def pause(self) -> None:
        """Let nothing pass."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def resume(self) -> None:
        """Let everything pass that has waited, in order."""
        self._loop.call_soon_threadsafe(self._open.set)

    def keeps_answer(self, request: bytes) -> bool:
        """Whether what a client has sent is not answered, and nothing that comes on its connection any more.

        Clients send a request and wait for its answer, so what comes back belongs to what went in last.
        """
        return False

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection(*self._target)
            is_mute = False

            def goes_in(data: bytes) -> bool:
                nonlocal is_mute
                is_mute |= self.keeps_answer(data)
                return True

            await asyncio.gather(self._forward(reader, back, goes_in), self._forward(there, writer, lambda _: not is_mute))
        except OSError:
            writer.close()
        finally:
            self._tasks.discard(task)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[bytes], bool]
    ) -> None:
        """Pass on what comes, and may pass, until the sender closes or the receiver is gone."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        sending = asyncio.ensure_future(self._send(waiting, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(_CHUNK):
                    if passes(data):
                        await waiting.put((self._loop.time() + self.latency_s / 2, data))
            await waiting.put((0.0, b""))
            await sending
        finally:
            sending.cancel()
            writer.close()

    async def _send(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                moment, data = await waiting.get()
                await asyncio.sleep(max(0.0, moment - self._loop.time()))
                await self._open.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()

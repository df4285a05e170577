"""Slots of concurrency limits, as the code of a run asks for them. Threads and coroutines that wait do nothing meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from orchestrator import clock, futures
from orchestrator.engine import protocol, termination
from orchestrator.exceptions import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError

if TYPE_CHECKING:
    from orchestrator.engine.link import Link, Word
    from orchestrator.engine.protocol import Wanted


class NotRecorded(ConcurrencySlotAcquisitionError):
    """Limits hold only for runs that are recorded, and this one is not."""


class NoRoom(ConcurrencySlotAcquisitionError):
    """The slots are not free, and the caller does not want to wait."""


class Slots:
    """Slots that are asked for, held and given back, as often as need be; all of them or none.

    ``say`` is told in a sentence, by the thread that waits or that heard of it, what is waited for and that this is over;
    ``missing`` are the names without a limit, as of the last time.
    """

    def __init__(self, link: Link, run: str, wanted: Wanted, say: Callable[[str], object]) -> None:
        self._link = link
        self._run = run
        self._wanted = wanted
        self._say = say
        self._call: int | None = None
        self._since: float | None = None
        self.is_held = False
        self.missing: list[str] = []

    def ask(self, tell: Callable[[Word], object]) -> None:
        """Ask without waiting: ``tell`` gets every word about it, mostly from another thread, and passes it to ``hear``."""
        if self._is_unlimited:
            tell(("granted", "\n".join(self._wanted.names)))
            return
        self._call = self._link.new_call()
        self._link.acquire(self._call, self._run, self._wanted, tell)

    def hear(self, word: Word) -> bool:
        """Take in a word from the recorder: whether the slots are held now.

        Raises ConcurrencySlotAcquisitionError when they never will be: NoRoom for one that is not patient, NotRecorded where
        nobody is there to ask.
        """
        kind, detail = word
        if kind == "lost" and self._wanted.of == "tag":
            kind, detail = "granted", "\n".join(self._wanted.names)  # a task goes on like everything else of its run
        if kind == protocol.WAITS:
            self._since = clock.monotonic()
            self._say(f"Waits for {self._slots} of {detail}.")
            return False
        if kind != "granted":
            raise self._refusal(kind, detail)
        self.is_held = True
        self.missing = detail.split("\n") if detail else []
        if len(self.missing) == len(self._wanted.names):
            self._call = None  # nothing is held that could be given back
        if self._since is not None:
            self._say(f"Has {self._slots} after {clock.monotonic() - self._since:.2f} s.")
        return True

    def take(self, timeout: float | None = None) -> None:
        """Wait in this thread until the slots are held. Raises as ``hear`` does, and after ``timeout`` seconds."""
        if self.is_held or self._is_unlimited:
            return
        words: SimpleQueue[Word | None] = SimpleQueue()
        deadline = None if timeout is None else clock.monotonic() + timeout
        try:
            with termination.interruptibly(lambda: words.put(None)), ExitStack() as waiting:
                self.ask(words.put)
                while not self.is_held:
                    word = words.get(timeout=None if deadline is None else max(0.0, deadline - clock.monotonic()))
                    if word is not None and not self.hear(word):
                        waiting.enter_context(futures.giving_way.get()())
        except Empty:
            self.release()
            raise self._too_late(timeout) from None
        except BaseException:
            self.release()
            raise

    async def take_async(self, timeout: float | None = None) -> None:
        """As ``take``, in a coroutine: the others go on."""
        if self.is_held or self._is_unlimited:
            return
        import asyncio

        loop = asyncio.get_running_loop()
        words: asyncio.Queue[Word] = asyncio.Queue()

        def tell(word: Word) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                loop.call_soon_threadsafe(words.put_nowait, word)

        try:
            async with asyncio.timeout(timeout) as limit:
                self.ask(tell)
                while not self.hear(await words.get()):
                    pass
        except BaseException as problem:
            self.release()
            if isinstance(problem, TimeoutError) and limit.expired():
                raise self._too_late(timeout) from None
            raise

    def release(self) -> None:
        """Give the slots back, or wait for them no longer. Waits for nobody; does nothing where nothing was asked for."""
        call, self._call = self._call, None
        self.is_held = False
        self._since = None
        if call is not None:
            self._link.release(call, self._run)

    @property
    def _is_unlimited(self) -> bool:
        """Most tags are there for people, and ask for nothing."""
        limited = self._link.limited_tags
        return self._wanted.of == "tag" and limited is not None and limited.isdisjoint(self._wanted.names)

    @property
    def _slots(self) -> str:
        return "a slot" if self._wanted.occupy == 1 else f"{self._wanted.occupy} slots"

    def _too_late(self, timeout: float | None) -> AcquireConcurrencySlotTimeoutError:
        names = ", ".join(f"'{name}'" for name in self._wanted.names)
        return AcquireConcurrencySlotTimeoutError(
            f"There was no room for {self._slots} of {names} within {timeout:g} seconds.", hint=self._whose
        )

    @property
    def _whose(self) -> str:
        return f"Who has them: orch gcl inspect '{self._wanted.names[0]}'"

    def _refusal(self, kind: str, detail: Any) -> Exception:
        if kind == "error":
            return detail if isinstance(detail, Exception) else ConcurrencySlotAcquisitionError(str(detail))
        if kind == "lost":
            return NotRecorded(f"There is nobody to ask for {self._slots}: the recorder is gone ({detail}).")
        if kind == "superseded":
            return ConcurrencySlotAcquisitionError("The run has ended or is somebody else's by now; it gets no slots.")
        if kind == "missing":
            return ConcurrencySlotAcquisitionError(
                f"There is no global limit '{detail}'.", hint=f"Create it with: orch gcl create '{detail}' --limit N"
            )
        if kind == "no_decay":
            return ConcurrencySlotAcquisitionError(
                f"Global limit '{detail}' limits how many at a time, and not how many a second.",
                hint=f"Make it a rate limit with: orch gcl update '{detail}' --slot-decay-per-second D",
            )
        if kind == "impossible":
            return ConcurrencySlotAcquisitionError(f"{self._slots} can never be had: {detail}.")
        if kind == "full":
            return NoRoom(f"There was no room for {self._slots} of {detail}.", hint=self._whose)
        return ConcurrencySlotAcquisitionError(f"The recorder answered {kind!r} to a call for slots.")

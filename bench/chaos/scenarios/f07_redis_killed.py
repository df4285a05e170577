"""F7: Redis dies of SIGKILL under load and comes back: a configured server, and the private one, which its users revive."""

from __future__ import annotations

import os
import signal
import time

from bench.chaos.servers import Server
from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World, spread
from orchestrator.store import embedded

RESUME_S = 5.0


class Private(Server):
    """The private server of the world's home. Nobody starts it again but those who miss it."""

    @property
    def url(self) -> str:
        """Its socket, whether it runs or not: the world's own client uses it as it would a configured server."""
        return embedded.url(self.folder.parent) or self._last

    _last = ""

    def start(self, *, wait: bool = True) -> Private:
        """Start it as a newcomer's first command does."""
        from orchestrator.settings import Settings

        self._last = embedded.ensure(Settings(home=self.folder.parent))
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """SIGKILL of the server process, if it runs."""
        found = embedded.status(self.folder.parent) if self.answers() else None
        if found is not None:
            os.kill(found.pid, number)

    def answers(self) -> bool:
        """Whether it says PONG."""
        return embedded.running(self.folder.parent)


def run(trial: Trial) -> Outcome:
    """Each kind of server 20 times (quick: the configured one twice, the private one once)."""
    parts, problems, facts = [], [], {}
    for kind, times in (("configured", 2), ("private", 1)) if trial.quick else (("configured", 20), ("private", 20)):
        line, found, waits = _play(trial.part(kind[0]), kind == "private", times)
        parts.append(f"{kind}: {line}")
        problems += [f"{kind}: {problem}" for problem in found]
        facts[kind] = waits
    return Outcome("; ".join(parts), problems, {"resumed_s": facts})


def _play(trial: Trial, private: bool, times: int) -> tuple[str, list[str], list[float]]:
    server = Private(trial.home / "data") if private else Server(trial.home / "redis")
    variables = {"ORCH_REDIS_URL": ""} if private else {}
    waits: list[float] = []
    with World(trial, server=server) as world:
        world.staff(workers=2, schedulers=1, variables=variables)
        world.submit(8.0)
        for number in range(times):
            world.pass_time(2.0 if trial.quick else 5.0)
            server.kill()
            if not private:
                world.pass_time(world.chance.uniform(0.1, 2.0))
                server.start()
            else:
                world.wait_until(server.answers, 30, "somebody to revive the private server")
            pong = time.monotonic()
            try:
                world.wait_until(lambda: any(e.phase == "start" and e.at > pong for e in world.effects()), 30)  # noqa: B023
            except TimeoutError:
                return "", ["nothing has started 30 s after PONG"], waits
            began = min(e.at for e in world.effects() if e.phase == "start" and e.at > pong)
            waits.append(began - pong)
            trial.say(f"{number + 1} of {times}: a run started {waits[-1]:.1f} s after PONG")
        problems = world.quiesce()
        problems += world.close_fleet()
        verdict = world.verdict(may_restart=True)
    problems += verdict.problems
    problems += [f"resumed only {wait:.1f} s after PONG" for wait in waits if wait > RESUME_S + (5 if trial.quick else 0)]
    line = f"killed {times} times, {verdict.runs:,} runs acknowledged, {verdict.lost} lost, {verdict.doubled} double-completed"
    return f"{line}, first start after PONG {spread(waits)}", problems, waits


SCENARIO = Scenario("F7", "Redis killed", "0 acknowledged lost; resumes within 5 s of PONG; no process restarted by hand", run)

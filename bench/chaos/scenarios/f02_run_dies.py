"""F2: a run's own process dies, each time in one of the ways that there are."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from bench.chaos.trial import Outcome, Scenario, Trial
from bench.chaos.world import World, spread
from orchestrator.models import NewRun, Run

SAYS = {
    "SIGKILL": "SIGKILL",
    "exit(3)": "status 3",
    "_exit(3)": "status 3",
    "out of memory": "out of memory",
    "segfault": "SIGSEGV",
}
"""What a state's message must hold, by the way in which the process died."""

ENDS = {"exit(3)": "Crashed", "out of memory": "Failed"}
"""Ways that are exceptions of Python, SystemExit and MemoryError: the run's own code left, and no process died."""

WITHIN_S = 1.0


def run(trial: Trial) -> Outcome:
    """Each death 40 times (quick: 2): half of the runs have a budget of one start, the others complete the second time."""
    times = 2 if trial.quick else 40
    with World(trial) as world:
        world.staff(workers=1 if trial.quick else 2, schedulers=1, slots=4)
        deployment = world.deploy("die", name="deaths")
        deaths = [(how, budget) for how in SAYS for budget in (1, 3)] * (times // 2)
        trial.chance().shuffle(deaths)
        waiting = iter(deaths)

        def new(chance: Random) -> NewRun:
            how, budget = next(waiting)
            parameters = {"how": how, "until_attempt": 1}
            milliseconds = chance.randint(50, 500)
            return world.new_run(deployment=deployment, milliseconds=milliseconds, crash_budget=budget, parameters=parameters)

        submitter = world.submit(10.0, new, total=len(deaths))
        world.wait_until(lambda: submitter.is_done, 60)
        problems = world.quiesce()
        problems += world.close_fleet()
        runs = world.read_runs(world.submitted)
        moments = world.moments("die ")
    seen: dict[str, list[float]] = defaultdict(list)
    for id_, found in runs.items():
        how = str(found.parameters["how"])
        late_s, complaints = _judge(found, how, moments[id_, 1])
        seen[how] += late_s
        problems += complaints
    everything = [value for values in seen.values() for value in values]
    if len(everything) < len(deaths):
        problems.append(f"{len(deaths) - len(everything)} of {len(deaths)} deaths were seen by nobody")
    return Outcome(
        f"{len(deaths)} processes died of {', '.join(SAYS)}; Crashed or queued again after {spread(everything)}, reason told",
        problems,
        {"seconds": {how: sorted(values) for how, values in seen.items()}},
    )


def _judge(found: Run, how: str, died: float) -> tuple[list[float], list[str]]:
    """How long after the death the run was said to be dead, and what is wrong with what was said."""
    wanted = ENDS.get(how) or ("Crashed" if found.crash_budget == 1 else "Completed")
    if found.state.name != wanted:
        return [], [f"run {found.id} that died of {how} is {found.state.name}, not {wanted}: {found.state.message}"]
    entries = [entry for entry in found.history if entry.attempt == 1 and SAYS[how] in entry.message]
    if not entries:
        told = [f"{entry.name}: {entry.message}" for entry in found.history]
        return [], [f"run {found.id} died of {how}, and no state says '{SAYS[how]}': {told}"]
    late_s = entries[0].at.timestamp() - died
    return [late_s], [f"run {found.id} died of {how}, and that was told {late_s:.2f} s later"] if late_s > WITHIN_S else []


SCENARIO = Scenario(
    "F2",
    "a run's process dies",
    "Crashed, or started again, within 1 s; the state's message names signal, exit status or 'out of memory'",
    run,
)

"""`make chaos`, or `python -m bench.chaos [F7 F8 ...]`: play faults under load, judge by an outside ledger. Linux only.

Each scenario is played in a process and a folder of its own; whatever is left of it afterwards is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.chaos.fleet import MARK, sweep
from bench.chaos.scenarios import all_scenarios
from bench.chaos.trial import CannotRun, Outcome, Scenario, Trial
from bench.measure import machine
from bench.stage import ROOT

_OK, _NOT_OK, _CANNOT = "OK", "NOT OK", "could not run"
_SHOWN = 20


def main() -> int:
    """0 if everything that was asked for went as expected; with REQUIRE_ALL=1 also only if all of it could run here."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="F7", help="which scenarios to play; all of them if none is named")
    parser.add_argument("--list", action="store_true", help="list the scenarios, what is done and what is expected")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of everything that is left to chance")
    parser.add_argument("--quick", action="store_true", help="a few seconds each, with leases of 1 s")
    parser.add_argument("--keep", action="store_true", help="keep each scenario's folder: ledger, Redis's data, log")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "chaos.json", help="where the JSON goes")
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scenarios = _chosen(parser, options.only)
    if options.list:
        for scenario in scenarios:
            print(f"{scenario.id:7} {scenario.title}\n        expected: {scenario.expected}")
        return 0
    if options.play:
        return _play(scenarios[0], options.play, options.seed, options.quick)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Home folders hold Unix sockets at times: short names. What is left there after a failure is for whoever looks into it.
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    records = []
    for scenario in scenarios:
        home = Path(tempfile.mkdtemp(prefix=f"{scenario.id}-", dir=build))
        records.append(_record(scenario, home, options.seed, options.quick))
        is_fine = records[-1]["verdict"] != _NOT_OK
        if is_fine and not options.keep:
            shutil.rmtree(home)
        _tell(records[-1], None if is_fine and not options.keep else home)
        report = {"machine": machine(), "scenarios": records}
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(json.dumps(report, indent=2) + "\n")
    failed = [record["id"] for record in records if record["verdict"] == _NOT_OK]
    missing = [record["id"] for record in records if record["verdict"] == _CANNOT]
    if missing and os.environ.get("REQUIRE_ALL") == "1":
        print(f"REQUIRE_ALL=1: {', '.join(missing)} could not run here, which counts as failed.")
        failed += missing
    return 1 if failed else 0


def _chosen(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[Scenario]:
    known = {scenario.id: scenario for scenario in all_scenarios()}
    wanted = [name.upper() for name in names]
    for name in wanted:
        if name not in known:
            parser.error(f"there is no scenario {name}; there are {', '.join(known)}")
    return [known[name] for name in wanted] if wanted else list(known.values())


def _record(scenario: Scenario, home: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Play one scenario in a process of its own, to its end or its time limit; what there is to tell of it."""
    print(f"{scenario.id} {scenario.title}, seed {seed} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "bench.chaos", scenario.id, "--seed", str(seed), "--play", str(home)]
    limit = (scenario.quick_limit if quick else scenario.limit).total_seconds()
    began = time.monotonic()
    told: dict[str, Any]
    try:
        player = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])],
            cwd=ROOT,
            env={**os.environ, MARK: str(home)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        player.wait(limit)
        told = json.loads((home / "outcome.json").read_text())
    except subprocess.TimeoutExpired:
        told = {"verdict": _NOT_OK, "line": "not at its end", "problems": [f"it took more than {limit:g} s"], "facts": {}}
    except OSError:
        told = {
            "verdict": _NOT_OK,
            "line": "no outcome",
            "problems": [f"its process ended with {player.returncode}"],
            "facts": {},
        }
    finally:
        sweep(home)
        player.wait(10)
    seconds = round(time.monotonic() - began, 1)
    return {
        **{name: getattr(scenario, name) for name in ("id", "title", "expected")},
        **told,
        "seed": seed,
        "quick": quick,
        "seconds": seconds,
    }


def _play(scenario: Scenario, home: Path, seed: int, quick: bool) -> int:
    """In the scenario's own process: write its outcome to ``home/outcome.json``."""
    verdict = _OK
    trial = Trial(seed, quick, home, lambda sentence: print(f"  {sentence}", file=sys.stderr, flush=True))
    try:
        missing = [program for program in scenario.needs if shutil.which(program) is None]
        if missing:
            raise CannotRun(f"needs {', '.join(missing)} on the PATH")
        outcome = scenario.run(trial)
        verdict = _NOT_OK if outcome.problems else _OK
    except CannotRun as reason:
        verdict, outcome = _CANNOT, Outcome(str(reason))
    except Exception as error:
        verdict, outcome = _NOT_OK, Outcome(f"broke off: {error}", [traceback.format_exc()])
    (home / "outcome.json").write_text(json.dumps({"verdict": verdict, **asdict(outcome)}, default=str))
    return 0


def _tell(record: dict[str, Any], kept: Path | None) -> None:
    for problem in record["problems"][:_SHOWN]:
        print(f"  {problem}")
    if len(record["problems"]) > _SHOWN:
        print(f"  and {len(record['problems']) - _SHOWN} more")
    print(f"{record['id']} {record['title']}: {record['line']}; seed {record['seed']}  {record['verdict']}", flush=True)
    if kept:
        print(f"  Ledger, Redis's data and log are kept in {kept}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

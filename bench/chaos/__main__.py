"""`make chaos`, or `python -m bench.chaos [--seed N] [--quick]`: kill under load, judge by an outside ledger. Linux only."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from bench.chaos.judge import Verdict
from bench.chaos.scenario import NARROW, Plan, run
from bench.stage import ROOT


def main() -> int:
    """0 if no run was lost or counted twice and every invariant holds, and the kills were enough to mean something."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of run times and kills")
    parser.add_argument("--quick", action="store_true", help="ten seconds of load, a kill each second, leases of 3 s")
    options = parser.parse_args()
    plan = Plan(options.seed)
    if options.quick:
        second = timedelta(seconds=1)
        plan = Plan(options.seed, load=10 * second, hits=5, kill_every=second, lease=3 * second, runs_per_s=12)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    print(f"seed {plan.seed}", file=sys.stderr, flush=True)
    home = Path(tempfile.mkdtemp(prefix="chaos-", dir=build))
    verdict = run(plan, home)
    if verdict.hits < plan.hits:
        verdict.problems.append(f"only {verdict.hits} kills hit a lease; at least {plan.hits} are needed")
    (build / "chaos.json").write_text(json.dumps({"seed": plan.seed, **asdict(verdict)}, indent=2) + "\n")
    for problem in verdict.problems[:20]:
        print(problem)
    print(_line(verdict, plan))
    if verdict.problems:
        print(f"Ledger, Redis's data and logs are kept in {home}")
        return 1
    shutil.rmtree(home)
    return 0


def _line(verdict: Verdict, plan: Plan) -> str:
    """The whole outcome on one line."""
    return (
        f"chaos: {verdict.runs:,} runs, {verdict.hits} kills hit a lease (of {verdict.kills}), {verdict.lost} lost, "
        f"{verdict.doubled} double-completed, {verdict.at_once} attempts at once, {verdict.restarted} restarted after a kill "
        f"(p99 {verdict.recovery_p99_s:.1f} s), at most {verdict.most_at_once.get('', 0)} of {plan.pool_limit} and "
        f"{verdict.most_at_once.get(NARROW, 0)} of {plan.narrow_limit} at once; seed {plan.seed}  "
        f"{'NOT OK' if verdict.problems else 'OK'}"
    )


if __name__ == "__main__":
    sys.exit(main())

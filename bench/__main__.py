"""`make bench`, or `python -m bench [--only NAME] [--quick]`: measure, print a table, write build/bench.json."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from typing import Any

from bench.measure import Measure, machine, table
from bench.stage import ROOT

SUBJECTS = ("latency", "throughput", "drain", "metrics", "tasks", "startup", "limits", "idle", "storage")


def main() -> int:
    """Measure what was asked for. Only a subject that cannot be measured at all makes it fail."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="this subject; can be given again")
    parser.add_argument("--quick", action="store_true", help="fewer runs; figures vary more")
    options = parser.parse_args()
    measures: list[Measure] = []
    broken = 0
    where: dict[str, Any] = machine()
    if where["load"] > where["cores"] / 2:
        print(
            f"The machine is busy (load {where['load']:.1f} on {where['cores']} cores): figures are too poor.", file=sys.stderr
        )
    for subject in options.only or SUBJECTS:
        start = time.monotonic()
        print(f"{subject} ...", end=" ", file=sys.stderr, flush=True)
        try:
            measures += import_module(f"bench.{subject}").measure(options.quick)
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        except Exception:
            broken += 1
            print(f"could not be measured:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    if not options.only and not broken:
        _write(measures, where, options.quick)
    print(table(measures))
    return 1 if broken else 0


def _write(measures: list[Measure], where: dict[str, Any], quick: bool) -> None:
    path = ROOT / "build" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    figures = [{**asdict(measure), "holds": measure.holds} for measure in measures]
    path.write_text(json.dumps({"machine": where, "quick": quick, "measures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

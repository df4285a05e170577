"""``log_prints``: what user code prints becomes lines of the run's log."""

from __future__ import annotations

import builtins
import io
import sys
from typing import Any

from orchestrator.context import FlowRunContext, TaskRunContext
from orchestrator.logging.loggers import get_run_logger

_print = builtins.print


def install() -> None:
    """From now on ``print`` asks whether it is called inside a run with ``log_prints``. Elsewhere it is what it was."""
    if builtins.print is _print:
        builtins.print = _print_or_log


def _print_or_log(*values: Any, file: Any = None, **options: Any) -> None:
    context = TaskRunContext.get() or FlowRunContext.get()
    if context is None or not context.log_prints or file not in (None, sys.stdout):
        _print(*values, file=file, **options)
        return
    text = io.StringIO()
    _print(*values, file=text, **{**options, "end": ""})
    get_run_logger(context).info("%s", text.getvalue())

"""Where the records of runs go: into the run's log, and to the terminal of whoever started the flow by hand."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

from orchestrator import clock, settings
from orchestrator.context import recorded_run
from orchestrator.logging.loggers import FLOW_RUNS, TASK_RUNS, RunLogger

_FIELDS = ("flow_run_id", "flow_run_name", "flow_name", "task_run_id", "task_run_name", "task_name")
_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1", logging.DEBUG: "2"}

_prepared = False


def prepare(*, console: bool) -> None:
    """Set up the loggers of runs, once a process. ``console``: this process's stderr belongs to a person."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    chosen = settings.load()
    handlers: list[logging.Handler] = [RunLogHandler()]
    if console:
        handlers.append(ConsoleHandler())
        handlers[-1].setFormatter(JsonFormatter() if chosen.log_format == "json" else TextFormatter())
    for logger in (FLOW_RUNS, TASK_RUNS):
        logger.setLevel(chosen.log_level)
        logger.propagate = False  # they are on the terminal already
        for handler in handlers:
            logger.addHandler(handler)


def say(logger: RunLogger, level: int, message: str) -> None:
    """Log a line of the engine's own. Where nobody but the run's log listens, without the 20 us of a log record."""
    of = logger.logger
    fields: Mapping[str, Any] = logger.extra or {}
    link = fields.get("orch_link")
    if link is None or len(of.handlers) != 1 or type(of.handlers[0]) is not RunLogHandler or of.filters:
        logger.log(level, message)
    else:
        run = fields.get("flow_run_id") or fields["orch_run"]
        link.log(run, clock.now_ms(), level, of.name, message, _part(fields, run))


class RunLogHandler(logging.Handler):
    """Sends records to the recorder, which puts them into the run's log. Costs a few microseconds and never blocks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note the record for the run that it names, or else for the one that runs here."""
        fields = record.__dict__
        link = fields.get("orch_link")
        run = fields.get("flow_run_id") or fields.get("orch_run")
        if run is None:
            found = recorded_run()
            if found is None:
                return
            link, run = found
        if link is None:
            return
        try:
            link.log(run, int(record.created * 1000), record.levelno, record.name, _message(record), _part(fields, run))
        except Exception:
            self.handleError(record)


class ConsoleHandler(logging.StreamHandler[IO[str]]):
    """Writes to whatever is stderr at the time."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


class TextFormatter(logging.Formatter):
    """``14:00:00.123 | INFO    | Flow run 'brave-otter' - message``."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line for people, with colour on a terminal."""
        fields = record.__dict__
        whose = ""
        if fields.get("task_run_name"):
            whose = f"Task run '{fields['task_run_name']}' - "
        elif fields.get("flow_run_name"):
            whose = f"Flow run '{fields['flow_run_name']}' - "
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")  # noqa: DTZ006 - a person's clock
        level = f"{record.levelname:<7}"
        if record.levelno in _COLOURS and _is_coloured():
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        return f"{at}.{int(record.msecs):03d} | {level} | {whose}{_message(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as JSON."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            **{name: record.__dict__[name] for name in _FIELDS if record.__dict__.get(name)},
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exc"] = _traceback(record)
        return json.dumps(line, ensure_ascii=False, default=str)


def _part(fields: Mapping[str, Any], run: str) -> str | None:
    """The task run that a line of this run's log belongs to; None where it is the run itself."""
    task_run: str | None = fields.get("task_run_id")
    return None if task_run == run else task_run


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message = f"{message}\n{_traceback(record)}"
    if record.stack_info:
        message = f"{message}\n{record.stack_info}"
    return message


def _traceback(record: logging.LogRecord) -> str:
    from orchestrator.logging.tracebacks import format_traceback

    problem = record.exc_info[1] if record.exc_info else None
    return format_traceback(problem) if problem is not None else ""


def _is_coloured() -> bool:
    if settings.variable("NO_COLOR") is not None or settings.variable("TERM") == "dumb":
        return False
    return settings.variable("FORCE_COLOR") is not None or sys.stderr.isatty()

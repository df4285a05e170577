"""Tracebacks as user code knows them."""

from __future__ import annotations

import traceback
from pathlib import Path

_OWN_FOLDER = str(Path(__file__).parents[1]) + "/"


def format_traceback(problem: BaseException) -> str:
    """The traceback of an exception and of those behind it, without Orch's own frames between the user's."""
    shown = traceback.TracebackException.from_exception(problem, compact=True)
    _leave_own_frames_out(shown)
    return "".join(shown.format()).rstrip()


def _leave_own_frames_out(shown: traceback.TracebackException) -> None:
    frames = [frame for frame in shown.stack if not frame.filename.startswith(_OWN_FOLDER)]
    if frames:
        shown.stack = traceback.StackSummary.from_list(frames)
    for behind in (shown.__cause__, shown.__context__, *(getattr(shown, "exceptions", None) or ())):
        if behind is not None:
            _leave_own_frames_out(behind)

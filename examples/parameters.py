"""Parameters are checked and converted by pydantic before the flow starts, also those from the command line.

python parameters.py
"""

from datetime import date

from pydantic import BaseModel, Field

from orchestrator import flow, get_run_logger


class Window(BaseModel):
    start: date
    days: int = Field(default=1, ge=1, le=31)


@flow
def report(window: Window, regions: list[str] | None = None) -> str:
    text = f"{window.days} days from {window.start:%d %B %Y} for {', '.join(regions or ['all'])}"
    get_run_logger().info("Report over %s", text)
    return text


if __name__ == "__main__":
    # A dict and texts, as they come from JSON: they arrive as a Window with a date and a number.
    report({"start": "2026-01-31", "days": "7"}, regions=["eu", "us"])

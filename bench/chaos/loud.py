"""Flows that say, and return, more than fits."""

from __future__ import annotations

from bench.chaos.flows import told
from orchestrator import flow, get_run_logger

MIB = 1024 * 1024


@flow
def shout(ledger: str, milliseconds: int, megabytes: int) -> None:
    """Log a line, and print one, of so many megabytes."""
    with told(ledger):
        get_run_logger().info("l" * (megabytes * MIB))
        print("p" * (megabytes * MIB))


@flow
def carry(ledger: str, milliseconds: int, kibibytes: int) -> str:
    """Return a text of so many kibibytes."""
    with told(ledger):
        return "r" * (kibibytes * 1024)

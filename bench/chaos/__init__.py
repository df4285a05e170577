"""What `make chaos` runs: faults under load, and a judge who never asks Redis what was done. See docs/faults.md.

`trial` says what a scenario is, `world` gives it a server, a fleet, a submitter and a ledger, `judge` what came of it.
Each file of `scenarios/` is one row of the table in docs/faults.md.
"""

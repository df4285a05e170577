"""Runs one flow run or one task run, and tells a recorder what happens."""

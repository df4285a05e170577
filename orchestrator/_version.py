"""The version, for packaging and for `orch version`."""

__version__ = "0.1.0"

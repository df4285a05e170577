"""Workers: processes that claim runs from Redis and have them executed.

``runner`` claims, renews, relays, drains; the type of a worker is an ``Executor`` (``base``), such as ``process``.
"""

"""What ``orch demo`` runs: ``project`` is a folder of flows as anyone would write them, ``check`` knows what must come out."""

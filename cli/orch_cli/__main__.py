"""``python -m orch_cli`` is ``orch``."""

from __future__ import annotations

import sys

from orch_cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""``orch`` as people type it, on machines that each have an ORCH_HOME and a working directory of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import eventually, python


@dataclass
class Machine:
    """A machine, as far as Orch sees one: a home, a working directory, an environment."""

    home: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        return {"ORCH_HOME": str(self.home), **self.environment}

    def run(self, *arguments: str, status: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """``orch ARGUMENTS``, to its end, without a terminal."""
        done = subprocess.run(
            [sys.executable, "-m", "orch_cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == status, f"orch {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str, status: int = 0) -> Any:
        """What ``orch ARGUMENTS -o json`` prints."""
        return json.loads(self.run(*arguments, "-o", "json", status=status).stdout)

    @contextmanager
    def beside(self, *arguments: str, until: str) -> Iterator[subprocess.Popen[str]]:
        """``orch ARGUMENTS`` beside, from when it has said ``until`` on stderr; SIGTERM at the end, which it must obey."""
        process = python("-m", "orch_cli", *arguments, env=self.variables, cwd=self.folder)
        said: list[str] = []

        def has_said() -> bool:
            assert process.poll() is None, f"orch {' '.join(arguments)} has ended: {''.join(said)}"
            return any(until in line for line in said)

        reader = threading.Thread(target=_keep, args=(process, said), daemon=True)
        reader.start()
        try:
            eventually(has_said, what=f"{until!r} from orch {' '.join(arguments)}")
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=40) == 0, said
        finally:
            process.kill()
            process.wait()
            reader.join()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _keep(process: subprocess.Popen[str], said: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)

"""Deployments: from orch.yaml to what the store keeps.

``file`` reads orch.yaml (``located`` its YAML, ``templates`` its ``{{ }}``, ``steps`` its build, push and pull);
``entrypoints`` loads the flows, ``plan`` makes deployments of them, ``parameters`` checks what a run is given, and ``init``
writes a first file.
"""

from __future__ import annotations

from orchestrator.deployments.parameters import parse_parameters

__all__ = ["parse_parameters"]

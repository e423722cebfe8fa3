"""Dataset versions: numbered folders, each claimed by one plan before its first byte and published by its manifest."""

from __future__ import annotations

import json

from dataengine.storage.rundir import canonical_json
from dataengine.storage.store import Root


def version_path(dataset: str, version: int) -> str:
    """The folder of a version, relative to the root."""
    return f"datasets/{dataset}/v{version:06d}"


def claim_version(root: Root, dataset: str, plan: str) -> int:
    """The version that belongs to the plan with hash `plan`.

    The same plan joins the version it claimed before; another plan takes the next number. Gaps are legal.
    """
    version = 1
    while True:
        stored = root.create(f"{version_path(dataset, version)}/claim.json", canonical_json({"plan": plan}))
        if json.loads(stored)["plan"] == plan:
            return version
        version += 1

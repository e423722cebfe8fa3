"""Dataset versions: numbered folders, each claimed by one plan before its first byte and published by its manifest."""

from __future__ import annotations

from dataengine.storage.rundir import canonical_json
from dataengine.storage.store import Root


def version_path(dataset: str, version: int) -> str:
    """The folder of a version, relative to the root."""
    return f"datasets/{dataset}/v{version:06d}"


def claim_version(root: Root, dataset: str, plan: str) -> int:
    """The version that belongs to the plan with hash `plan`.

    The same plan joins the version it claimed before; another plan takes the next number. Gaps are legal.
    """
    version, claim = 1, canonical_json({"plan": plan})
    while True:
        if root.create(f"{version_path(dataset, version)}/claim.json", claim) == claim:
            return version
        version += 1

"""Emit: from selected rows to published shards, their manifest, side files, ledger and card."""

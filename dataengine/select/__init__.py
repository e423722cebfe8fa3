"""Choosing what to publish: rules, survivors among duplicates, and the mixture of sources."""

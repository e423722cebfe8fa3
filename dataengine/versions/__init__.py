"""Versions after their publication: take-downs, the purge of what was taken down, and whole copies."""

"""Reads a published dataset for training: exactly once, on any ranks and workers, from any position."""

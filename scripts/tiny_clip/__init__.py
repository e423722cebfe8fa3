"""Trains and measures the tiny CLIP of the tests and the quickstart: ``python -m scripts.tiny_clip``."""

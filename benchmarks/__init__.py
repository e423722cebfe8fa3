"""Measurements behind every figure that the docs state. Each prints a table and, as its last line, one JSON object."""

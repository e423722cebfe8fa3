"""Compiled loops over Arrow buffers and arrays. A module here imports numba, so import it where it is used."""

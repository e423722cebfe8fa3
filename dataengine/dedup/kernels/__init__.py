"""Compiled loops over Arrow buffers and arrays. Importing a module here imports numba, so import it where it is used."""

"""The errors a person can meet, and the exit code each one ends a command with.

    DataEngineError
    ├── ConfigError        2   the config asks for something that does not exist or contradicts itself
    ├── InputError         3   an input file or dataset is missing, unreadable or lacks a column
    ├── DataBudgetError   65   more rows failed than the config tolerates
    ├── SchemaError       70   a table is not what its schema says (a fault of the program)
    ├── LedgerError       70   counts do not add up (a fault of the program)
    ├── PartError         70   a stage failed on a part (a fault of the program), with its traceback
    ├── DriftError        78   a worker gives other scores than its run
    ├── StorageError      74   a store cannot be reached, refuses, or is full
    │   ├── MissingObject 74   an object is not there
    │   └── CorruptObject 74   an object's bytes are not the ones its commit names
    └── TryAgainError     75   a machine failed; the same command continues the run

A message says what failed, where, what was got, what was wanted and what to do next. Faults of single rows are never
exceptions: they are rows with a reason.
"""

from __future__ import annotations

from typing import ClassVar


class DataEngineError(Exception):
    """The base of every error dataengine raises on purpose."""

    exit_code: ClassVar[int] = 70


class ConfigError(DataEngineError):
    """The config is wrong; the message names the key's path, what it holds and what it may hold."""

    exit_code = 2


class InputError(DataEngineError):
    """An input cannot be used; the message names the file, the fault and the remedy."""

    exit_code = 3


class DataBudgetError(DataEngineError):
    """More rows failed than the config tolerates; nothing was published."""

    exit_code = 65


class SchemaError(DataEngineError):
    """A table differs from its schema; the message names the column, wanted and got."""


class LedgerError(DataEngineError):
    """Rows were lost or counted twice between two stages."""


class PartError(DataEngineError):
    """A stage raised something unexpected on a part; the message holds stage, part and traceback."""


class DriftError(DataEngineError):
    """A machine, library or file gives other scores than the rest of the run; the message names what differs."""

    exit_code = 78


class StorageError(DataEngineError):
    """A store could not be reached, refused, or had no room; the message names the object."""

    exit_code = 74


class MissingObject(StorageError):
    """An object that was asked for is not there."""


class CorruptObject(StorageError):
    """An object's bytes are not what its commit or manifest names."""


class TryAgainError(DataEngineError):
    """A worker or machine failed too often; running the same command again continues from the last commit."""

    exit_code = 75

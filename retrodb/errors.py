"""Everything retrodb can refuse, and the exit code of each.

Exit codes are part of the command line's contract and live here and nowhere else::

    RetroDBError                1   anything that is not one of the below
    ├── UsageError              2   an option or argument that cannot be meant
    │   └── ConfigError         2   a TOML file or parameter with an unknown or impossible value
    ├── InputError              1   a file given by the user cannot be read as what it should be
    │   └── TooManyRejects      1   more records refused than --max-reject-rate allows
    ├── MissingStep             1   an earlier command has to run first
    ├── MissingDependency       1   an extra is not installed
    ├── WorkerDied              1   a process that ran a task ended without a word
    ├── MismatchError           1   a tokenizer, space or query that belongs to something else
    ├── NoSpaceError            4   the disk is full
    ├── DamagedFileError        5   bytes that differ from what the snapshot promises
    │   └── MissingFileError    5   a file that the snapshot promises is not there
    ├── NotADatabaseError      10   no database at this path
    │   └── FormatVersionError 10   a database of a newer format
    └── ConflictError          11   another command changed what this one read
        └── LockedError        11   another command is at work on the same thing

Two outcomes are no errors but have codes of their own: 3, finished with rejected records, and 130, interrupted.

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_REJECTS = 3
EXIT_NO_SPACE = 4
EXIT_DAMAGE = 5
EXIT_NO_DATABASE = 10
EXIT_CONFLICT = 11
EXIT_INTERRUPTED = 130


class RetroDBError(Exception):
    """An error with a place and a remedy.

    Args:
        what: the fault, in a clause without a full stop.
        where: file, and place in it, if there is one.
        remedy: what the reader can do, as a sentence.
    """

    exit_code = EXIT_ERROR

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}. {self.remedy}" if self.remedy else f"{head}."

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive the default pickling, and errors cross process borders.
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[RetroDBError], what: str, where: str | None, remedy: str | None) -> RetroDBError:
    return kind(what, where=where, remedy=remedy)


class UsageError(RetroDBError):
    """An option or argument that cannot be meant."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A TOML file or parameter with an unknown or impossible value."""


class InputError(RetroDBError):
    """A file given by the user cannot be read as what it should be."""


class TooManyRejects(InputError):
    """More records were refused than --max-reject-rate allows; nothing was committed."""


class MissingStep(RetroDBError):
    """An earlier command has to run first; the remedy names it."""


class MissingDependency(RetroDBError):
    """An optional package is not installed; the remedy names the extra."""


class WorkerDied(RetroDBError):
    """A process that ran a task ended without a word: out of memory, or a crash in native code."""


class MismatchError(RetroDBError):
    """A tokenizer, space, encoder or query that belongs to something else."""


class NoSpaceError(RetroDBError):
    """The disk is full; nothing was committed."""

    exit_code = EXIT_NO_SPACE


class DamagedFileError(RetroDBError):
    """Bytes that differ from what the snapshot promises."""

    exit_code = EXIT_DAMAGE


class MissingFileError(DamagedFileError):
    """A file that the snapshot promises is not there."""


class NotADatabaseError(RetroDBError):
    """There is no database at this path."""

    exit_code = EXIT_NO_DATABASE


class FormatVersionError(NotADatabaseError):
    """The database was written by a newer retrodb."""


class ConflictError(RetroDBError):
    """Another command changed what this one had read; planning again is safe."""

    exit_code = EXIT_CONFLICT


class LockedError(ConflictError):
    """Another command is at work on the same thing."""

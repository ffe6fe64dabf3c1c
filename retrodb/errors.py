"""All errors of retrodb, and the exit code of each.

Exit codes are a public interface of the command line. They are defined only here::

    RetroDBError                1   any other error
    ├── UsageError              2   an invalid option or argument
    │   ├── ConfigError         2   an unknown key or an invalid value in a TOML file or in parameters
    │   └── NotEnoughMemory     2   --memory is below the least that a command needs
    ├── InputError              1   a file of the user cannot be read in the expected format
    │   ├── UnopenedInputError  1   a file of the user cannot be opened, such as on the machine of a worker
    │   └── TooManyRejects      1   more records were rejected than --max-reject-rate allows
    ├── MissingStep             1   another command must run first
    ├── MissingDependency       1   an optional package is not installed
    ├── WorkerDied              1   a worker process ended unexpectedly
    ├── MismatchError           1   a tokenizer, encoder, space or query set that does not match the database
    ├── NoSpaceError            4   the disk is full
    ├── DamagedFileError        5   the content of a file is not what the snapshot says
    │   └── MissingFileError    5   a file of the snapshot is missing
    ├── NotADatabaseError      10   no database at this path
    │   └── FormatVersionError 10   the format of the database is too new or too old
    └── ConflictError          11   another command changed the data that this one read
        └── LockedError        11   another command is working on the same data

Three other outcomes are not errors and have their own exit codes: 3 for success with rejected records, 75 for a worker that was
told to stop and should be started again, and 130 for an interrupted command.

A message says what is wrong, where, and what to do.
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
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: schedulers queue the job again
EXIT_INTERRUPTED = 130


class RetroDBError(Exception):
    """An error with a place and a remedy.

    Args:
        what: the error, as a clause without a full stop.
        where: the file, and the place in it.
        remedy: what the user can do, as a sentence.
    """

    exit_code = EXIT_ERROR

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}. {self.remedy}" if self.remedy else f"{head}."

    def __reduce__(self) -> tuple[object, ...]:
        # Default pickling loses keyword arguments, and worker processes send errors to the main process.
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[RetroDBError], what: str, where: str | None, remedy: str | None) -> RetroDBError:
    return kind(what, where=where, remedy=remedy)


class UsageError(RetroDBError):
    """An option or argument is invalid."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A TOML file or a parameter has an unknown key or an invalid value."""


class NotEnoughMemory(UsageError):
    """The memory limit is below the least that a command needs. The remedy names the least."""


class InputError(RetroDBError):
    """A file of the user cannot be read in the expected format."""


class UnopenedInputError(InputError):
    """A file of the user cannot be opened. It may be whole, and another machine may have it."""


class TooManyRejects(InputError):
    """More records were rejected than --max-reject-rate allows. Nothing was committed."""


class MissingStep(RetroDBError):
    """Another command must run first. The remedy names it."""


class MissingDependency(RetroDBError):
    """An optional package is not installed. The remedy names the extra to install."""


class WorkerDied(RetroDBError):
    """A worker process ended unexpectedly: it ran out of memory, or native code crashed."""


class MismatchError(RetroDBError):
    """A tokenizer, encoder, space or query set does not match the database."""


class NoSpaceError(RetroDBError):
    """The disk is full. Nothing was committed. `store/full_disk.py` recognises it and has the message."""

    exit_code = EXIT_NO_SPACE


class DamagedFileError(RetroDBError):
    """The content of a file is not what the snapshot says."""

    exit_code = EXIT_DAMAGE


class MissingFileError(DamagedFileError):
    """A file of the snapshot is missing."""


class NotADatabaseError(RetroDBError):
    """There is no database at this path."""

    exit_code = EXIT_NO_DATABASE


class FormatVersionError(NotADatabaseError):
    """The database was written by a newer retrodb."""


class ConflictError(RetroDBError):
    """Another command changed the data that this one read. It is safe to run the command again."""

    exit_code = EXIT_CONFLICT


class LockedError(ConflictError):
    """Another command is working on the same data."""

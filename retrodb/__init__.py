"""retrodb builds and maintains the retrieval databases of RETRO-style language models.

>>> import retrodb
>>> db = retrodb.open("my.retrodb")

`create` and `open` return a `retrodb.database.Database`. Every command of the command line is a method of this class. The
class is loaded when it is first used, so that `import retrodb` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrodb.database import create, open

__version__ = "0.1.0"

__all__ = ["__version__", "create", "open"]


def __getattr__(name: str) -> object:
    if name in ("create", "open"):
        from retrodb import database

        return getattr(database, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

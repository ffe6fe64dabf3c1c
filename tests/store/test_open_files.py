"""A process may open as many files as the system allows, not only as many as its shell did."""

from __future__ import annotations

import resource
import subprocess
import sys

PROGRAM = """
import resource, sys
from retrodb.store.open_files import raise_limit_of_open_files

hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
raise_limit_of_open_files()
files = [open(sys.executable, "rb") for _ in range(200)]
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_a_limit_that_is_high_enough_stays() -> None:
    from retrodb.store.open_files import raise_limit_of_open_files

    raise_limit_of_open_files()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_limit_of_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

"""The cache of compiled kernels, from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENCODE = """
import numpy as np
from retrodb.ann.codegen.six_bit_codes import CodeSpace, empty_query_codes, encode_queries
space = CodeSpace(np.zeros(4, np.float32), True)
encode_queries(0, 3, np.ones((3, 4), np.float32), space, empty_query_codes(3, 4))
print(sum(encode_queries.stats.cache_hits.values()))
"""
KERNEL = """
from typing import NamedTuple
from retrodb.ann.codegen.compiled import compiled

class Pair(NamedTuple):
    first: int
    second: int

@compiled
def difference(pair):
    return pair.first - pair.second

print(difference(Pair(5, 3)), sum(difference.stats.cache_hits.values()))
"""


def run(program: str, folder: Path, cache: Path) -> list[int]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [sys.executable, "-c", program]
    return list(map(int, subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split()))


def test_a_second_process_loads_kernels_with_named_tuples_from_the_cache(tmp_path: Path) -> None:
    assert [run(ENCODE, tmp_path, tmp_path) for _ in range(2)] == [[0], [1]]


def test_a_renamed_class_of_arguments_is_compiled_again(tmp_path: Path) -> None:
    module = tmp_path / "kernel_of_pairs.py"
    module.write_text(KERNEL)
    assert run("import kernel_of_pairs", tmp_path, tmp_path / "cache") == [2, 0]
    assert run("import kernel_of_pairs", tmp_path, tmp_path / "cache") == [2, 1]
    module.write_text(KERNEL.replace("Pair", "TwoNumbers"))
    assert run("import kernel_of_pairs", tmp_path, tmp_path / "cache") == [2, 0]
    assert run("import kernel_of_pairs", tmp_path, tmp_path / "cache") == [2, 1]

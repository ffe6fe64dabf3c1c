"""Files of queries for `retrodb search`: texts, one a line or as JSON Lines, and vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

from retrodb.errors import InputError
from retrodb.format.arrays import Float32Array

TEXT_FIELDS = ("text", "query", "question")


def read_texts(path: Path) -> list[str]:
    """The queries of a file, in its order; a file whose first line with anything in it is a JSON object has JSON Lines.

    Raises:
        InputError: with the line, for what cannot be read as a query; or when there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start})", where=str(path)) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError("no queries", where=str(path), remedy="Write one query a line.")
    if not numbered[0][1].startswith("{"):
        return [line for _, line in numbered]
    return [_text(line, f"{path}:{number}") for number, line in numbered]


def _text(line: str, where: str) -> str:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error})", where=where) from error
    texts = (
        [record[name] for name in TEXT_FIELDS if isinstance(record.get(name), str)] if isinstance(record, dict) else []
    )
    if not texts:
        raise InputError("no query in this record", where=where, remedy=f"It is read from {', '.join(TEXT_FIELDS)}.")
    return str(texts[0])


def read_vectors(path: Path) -> Float32Array:
    """The vectors (Q, D) of an `.npy` file; one vector may be (D,).

    Raises:
        InputError: for what is no array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"not a readable .npy file ({error})", where=str(path)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise InputError("no array of vectors", where=str(path), remedy="Save (Q, D) numbers with numpy.save.")
    return np.atleast_2d(array).astype(np.float32)

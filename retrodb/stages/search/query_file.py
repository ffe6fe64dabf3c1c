"""Files of queries for `retrodb search`: texts, one a line or as JSON Lines, and vectors."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from retrodb.corpus.readers.jsonl import read_json_objects
from retrodb.corpus.streams import BYTE_ORDER_MARK, open_decompressed
from retrodb.errors import InputError
from retrodb.format.arrays import Float32Array

TEXT_FIELDS = ("text", "query", "question")


def read_texts(path: Path) -> list[str]:
    """The queries of a file, in its order: JSON Lines if its first line that is not blank begins with "{".

    Raises:
        InputError: a line is not a query, with its number; or there is no query.
    """
    with open_decompressed(path) as stream:
        content = stream.read()
    if content.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{"):
        return [_text(record, f"{path}:{number}") for number, record in read_json_objects(BytesIO(content), str(path))]
    try:
        lines = content.decode("utf-8-sig").split("\n")  # and not at U+2028, as splitlines does
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start})", where=str(path)) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError("no queries", where=str(path), remedy="Write one query per line.")
    return texts


def _text(record: dict[str, object], where: str) -> str:
    texts = [text for name in TEXT_FIELDS if isinstance(text := record.get(name), str)]
    if not texts:
        remedy = f"The text of a query is the field {', '.join(TEXT_FIELDS)}."
        raise InputError("no query in this record", where=where, remedy=remedy)
    return texts[0]


def read_vectors(path: Path) -> Float32Array:
    """The vectors (Q, D) of an `.npy` file; one vector may be (D,).

    Raises:
        InputError: for a file that is not an array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"not a readable .npy file ({error})", where=str(path)) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise InputError("not an array of vectors", where=str(path), remedy="Save (Q, D) numbers with numpy.save.")
    return np.atleast_2d(array).astype(np.float32)

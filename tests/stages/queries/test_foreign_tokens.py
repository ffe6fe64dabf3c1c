"""Tokens and arrays of a trainer: ids that the tokenizer does not have, and files that are no array, are refused by name."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_documents import made_text

from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.errors import InputError, MismatchError, RetroDBError, UsageError
from retrodb.stages.queries.megatron import MegatronPacking, MegatronSequences
from retrodb.stages.queries.own import OwnSequences
from retrodb_cli.main import main

Make = Callable[..., Database]
M = 64


@pytest.fixture
def database(make_database: Make) -> Database:
    return make_database({f"d{i}": made_text(i, 200) for i in range(3)})


@pytest.fixture
def vocab_size(database: Database) -> int:
    return database.view().settings.vocab_size


class Samples:
    """A dataset as megatron-core's: four samples, of which number 2 has a wrong token."""

    def __init__(self, wrong: int) -> None:
        self._wrong = wrong

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Mapping[str, np.ndarray]:
        text = np.arange(2 * M + 1, dtype=np.int64)
        if number == 2:
            text[70] = self._wrong
        return {"text": text, "document_ids": np.array([number, number + 1])}


@pytest.mark.parametrize("above", [0, 1, 10**4, "negative"])
def test_megatron_tokens_outside_of_the_vocabulary_are_refused(
    database: Database, vocab_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int | str
) -> None:
    for end in ("bin", "idx"):
        (tmp_path / f"data.{end}").write_bytes(b"")
    wrong = -5 if isinstance(above, str) else vocab_size + above
    opened: dict[str, Any] = {}

    def open_samples(packing: MegatronPacking, cache: Path) -> MegatronSequences:
        return opened.setdefault("it", MegatronSequences(Samples(wrong), packing))  # type: ignore[no-any-return]

    monkeypatch.setattr(MegatronSequences, "open", open_samples)
    before = database.view().snapshot.number
    message = (
        rf"data\.bin: sample 2 of subset train \(documents 2 to 3\), token 70: the id {wrong} is not in the tokenizer"
    )
    with pytest.raises(MismatchError, match=message):
        database.add_packed_queries("t", megatron=str(tmp_path / "data"), seq_length=2 * M, train_samples=4)
    assert database.view().snapshot.number == before


@pytest.mark.parametrize("dtype", ["uint16", ">i4", "int64", "uint64"])
def test_rows_with_tokens_outside_of_the_vocabulary_are_refused(
    database: Database, vocab_size: int, tmp_path: Path, dtype: str
) -> None:
    for wrong in {vocab_size, vocab_size + 1, int(min(np.iinfo(dtype).max, 2**40))}:
        tokens = np.zeros((5, M), dtype=dtype)
        tokens[3, 9] = wrong
        np.save(tmp_path / "t.npy", tokens)
        for dry_run in (True, False):
            with pytest.raises(MismatchError, match=rf"t\.npy: row 3, token 9: the id {wrong} is not in the tokenizer"):
                database.add_packed_queries("t", tokens=tmp_path / "t.npy", dry_run=dry_run)
    np.save(tmp_path / "t.npy", np.full((5, M), vocab_size - 1, dtype=dtype))
    assert database.add_packed_queries("t", tokens=tmp_path / "t.npy").num_rows == 5


def test_the_vocabulary_is_that_of_the_named_tokenizer(database: Database, vocab_size: int, tmp_path: Path) -> None:
    small = tmp_path / "small.json"
    small.write_bytes(train_byte_bpe(["a b c"], 300).to_bytes())
    np.save(tmp_path / "t.npy", np.full((2, M), vocab_size - 1))
    with pytest.raises(MismatchError, match=f"row 0, token 0: the id {vocab_size - 1} is not in the tokenizer"):
        database.add_packed_queries("t", tokens=tmp_path / "t.npy", tokenizer=str(small))
    with pytest.raises(UsageError, match=r"small\.json: --sequences packs .* Leave --tokenizer out"):
        database.add_packed_queries("t", sequences=M, tokenizer=str(small))


def test_own_tokens_outside_of_the_vocabulary_are_refused(
    database: Database, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OwnSequences._stream

    def damaged(self: OwnSequences, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, documents = read(self, first, last)
        tokens[M + 3] = vocab_size
        return tokens, documents

    monkeypatch.setattr(OwnSequences, "_stream", damaged)
    with pytest.raises(MismatchError, match=rf"db: sequence 1, token 3: the id {vocab_size} is not in the tokenizer"):
        database.add_packed_queries("t", sequences=M)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


TOKENS = np.zeros((2, M), dtype=np.int64)
NO_ARRAYS = {
    "npz": (npz(tokens=TOKENS), r"a \.npz archive of arrays, not a \.npy file"),
    "broken npz": (npz(tokens=TOKENS)[:40], r"a \.npz archive of arrays, not a \.npy file"),
    "empty": (b"", r"not a \.npy file"),
    "text": (b"1 2 3\n", r"not a \.npy file"),
    "pickle": (b"\x80\x04K\x01.", r"not a \.npy file"),
    "cut in its header": (npy(TOKENS)[:50], r"not a \.npy file of numbers"),
    "cut in its data": (npy(TOKENS)[:200], r"not a \.npy file of numbers"),
    "objects": (b"\x93NUMPY" + npy(TOKENS)[6:].replace(b"<i8", b"|O8"), r"not a \.npy file of numbers"),
    "structs": (npy(np.zeros((2, M), dtype=[("a", "i4")])), "rows of token ids"),
    "booleans": (npy(np.zeros((2, M), dtype=bool)), "rows of token ids"),
    "floats": (npy(np.zeros((2, M))), "rows of token ids"),
    "one number": (npy(np.array(3)), "rows of token ids"),
    "three dimensions": (npy(np.zeros((2, 3, M), dtype=int)), "rows of token ids"),
    "no rows": (npy(TOKENS[:0]), "rows of token ids"),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_a_file_that_is_no_array_of_token_ids_is_refused(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    content, message = NO_ARRAYS[kind]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.npz: .*{message}"):
        database.add_packed_queries("t", tokens=tmp_path / "x.npz")
    assert main(["queries", "add", database.path, "--name", "t", "--tokens", str(tmp_path / "x.npz")]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_and_names_that_are_not_unicode_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        database.add_packed_queries("t", tokens=tmp_path)
    np.save(tmp_path / "t.npy", TOKENS)
    for code in (0x110000, 0xD800):
        names = npy(np.array(["ab", "cd"])).replace("d".encode("utf-32-le"), code.to_bytes(4, "little"))
        (tmp_path / "d.npy").write_bytes(names)
        with pytest.raises(InputError, match=r"d\.npy: row 1 is not Unicode"):
            database.add_packed_queries("t", tokens=tmp_path / "t.npy", doc_ids=[tmp_path / "d.npy"])


def mutated(content: bytes, random_: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        position = random_.randrange(min(len(data), 140))
        match random_.randrange(4):
            case 0:
                data[position] = random_.randrange(256)
            case 1:
                data[position : position + random_.randint(1, 8)] = b""
            case 2:
                data[position:position] = random_.choice(
                    [b"(", b"'", b"-", b"9" * 20, b"\0", b"None", b"[" * 200, b"\n"]
                )
            case _:
                del data[random_.randrange(len(data)) :]
        if not data:
            break
    return bytes(data)


def fuzz(database: Database, folder: Path, runs: int) -> None:
    """Mutated arrays are added, or end with an error of ours."""
    random_ = random.Random(7)
    originals = [npy(TOKENS), npy(TOKENS.astype(np.uint16)), npy(np.asfortranarray(TOKENS)), npz(t=TOKENS)]
    names = [npy(np.array(["made/d1", "x"])), npy(np.array([1, -1])), npy(np.array([["a", ""], ["b", "c"]]))]
    for _ in range(runs):
        tokens, doc_ids = random_.choice(originals), random_.choice(names)
        if random_.random() < 0.6:
            tokens = mutated(tokens, random_)
        else:
            tokens, doc_ids = npy(TOKENS), mutated(doc_ids, random_)
        (folder / "t.npy").write_bytes(tokens)
        (folder / "d.npy").write_bytes(doc_ids)
        try:
            database.add_packed_queries(
                "t", tokens=folder / "t.npy", doc_ids=[folder / "d.npy"], allow_unknown=True, dry_run=True
            )
        except RetroDBError as error:
            assert error.where  # noqa: PT017


def test_mutated_arrays_are_added_or_refused(database: Database, tmp_path: Path) -> None:
    fuzz(database, tmp_path, 150)


@pytest.mark.soak
def test_many_mutated_arrays_are_added_or_refused(database: Database, tmp_path: Path) -> None:
    fuzz(database, tmp_path, 10_000)

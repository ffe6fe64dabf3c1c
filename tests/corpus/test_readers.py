from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrodb.corpus.document import Document, Fields, Limits, Reject, content_id
from retrodb.corpus.streams import delimited_records
from retrodb.errors import InputError

from .conftest import json_lines, read_all, rejects, texts

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def long_window(content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "1"}', "no-text-field"),
        (b'{"text": null}', "no-text-field"),
        (b'{"text": 7}', "text-not-a-string"),
        (b'{"text": ["a"]}', "text-not-a-string"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\u3000"}', "empty"),
        (b'{"text": "\xff"}', "invalid-utf8"),
        (b'{"text": "\\ud800 x"}', "lone-surrogate"),
        (b'{"text": "cut', "not-json"),
        (b"[" * 20_000, "nested-too-deep"),
        (b'{"text": "x", "id": 1.5}', "id-not-a-string"),
        (b'"text"', "not-an-object"),
    ],
)
def test_bad_line_is_refused_with_its_place_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"text": "good"}\n'
    records = read_all(written(tmp_path, "a.jsonl", good + line + b"\n" + good))
    assert texts(records) == ["good", "good"]
    (reject,) = [record for record in records if isinstance(record, Reject)]
    assert reject.reason == reason
    assert int(reject.location.removeprefix("byte ")) in range(len(good), len(good) + len(line) + 1)
    assert len(reject.excerpt) <= 200
    assert reject.excerpt.isprintable()


def test_invalid_utf8_is_placed_at_its_byte(tmp_path: Path) -> None:
    records = read_all(written(tmp_path, "a.jsonl", b'{"text": "ok"}\n{"text": "\xe6\x95\xb0\xff"}\n'))
    assert rejects(records) == [("byte 28", "invalid-utf8")]


def test_blank_lines_do_not_end_the_file_and_are_no_records(tmp_path: Path) -> None:
    content = b'\n\n{"text": "a"}\n  \n\r\n{"text": "b"}\r\n\n\n{"text": "c"}'
    records = read_all(written(tmp_path, "a.jsonl", content))
    assert texts(records) == ["a", "b", "c"]
    assert len(records) == 3


def test_nul_is_text_and_a_text_of_fifty_megabytes_is_whole(tmp_path: Path) -> None:
    long = "word " * 10_000_000
    records = read_all(written(tmp_path, "a.jsonl", json_lines({"text": "a\0b"}, {"text": long})))
    assert texts(records) == ["a\0b", long]


def test_fields_are_found_by_usual_names_and_the_rest_is_metadata(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json_lines({"_id": 7, "title": "T", "body": "b", "n": {"deep": [1]}}))
    (document,) = read_all(path)
    assert document == Document("7", "b", None, b'{"title":"T","n":{"deep":[1]}}', "byte 0")


def test_named_fields_win_and_metadata_is_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json_lines({"id": "x", "name": "n", "text": "no", "story": "yes", "k": 1}))
    fields = Fields(id="name", text="story", metadata=("k", "absent"))
    (document,) = read_all(path, fields=fields)
    assert document == Document("n", "yes", None, b'{"k":1}', "byte 0")
    (document,) = read_all(path, fields=Fields(drop_metadata=True))
    assert isinstance(document, Document)
    assert document.metadata == b"{}"


def test_key_and_value_are_two_texts(tmp_path: Path) -> None:
    rows = json_lines({"q": "Q", "a": ["1", "2"]}, {"q": "Q", "a": ""}, {"a": "A"}, {"q": "Q", "b": 1})
    records = read_all(written(tmp_path, "a.jsonl", rows), fields=Fields(key="q", value="a"))
    assert records[0] == Document(None, "Q", "1\n2", b"{}", "byte 0")
    assert [reason for _, reason in rejects(records)] == ["empty", "no-key-field", "no-value-field"]


def test_text_above_the_cap_is_refused_or_split(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json_lines({"id": "d", "text": "0123456789" * 3}))
    assert rejects(read_all(path, limits=Limits(max_document_chars=12))) == [("byte 0", "too-long")]
    pieces = read_all(path, limits=Limits(max_document_chars=12, oversize="split"))
    assert "".join(texts(pieces)) == "0123456789" * 3
    assert [piece.doc_id for piece in pieces if isinstance(piece, Document)] == ["d", "d#2", "d#3"]


def test_record_above_the_byte_cap_costs_itself_alone(tmp_path: Path) -> None:
    content = json_lines({"text": "a"}, {"text": "x" * 3_000_000}, {"text": "b"})
    records = read_all(written(tmp_path, "a.jsonl", content), limits=Limits(max_record_bytes=1_000_000))
    assert texts(records) == ["a", "b"]
    assert rejects(records) == [(f"byte {len(json_lines({'text': 'a'}))}", "too-long")]


def test_bomb_takes_no_memory(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    content = [compressor.compress(b'{"text": "')]
    content += [compressor.compress(b"0" * (16 << 20)) for _ in range(16)]
    content += [compressor.compress(b'"}\n{"text": "after"}\n'), compressor.flush()]
    path = written(tmp_path, "bomb.jsonl.zst", b"".join(content))
    before = pa.total_allocated_bytes()
    records = read_all(path, limits=Limits(max_record_bytes=4 << 20))
    assert texts(records) == ["after"]
    assert rejects(records) == [("byte 0", "too-long")]
    assert pa.total_allocated_bytes() - before < 8 << 20


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_input_in_several_members_is_read_whole(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    first, second = json_lines({"text": "a"}) * 900, json_lines({"text": "b"}) * 900
    path = written(tmp_path, f"a.jsonl.{suffix}", compress(first) + compress(b"") + compress(second))
    assert texts(read_all(path)) == ["a"] * 900 + ["b"] * 900


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("cut", [1, 4, 9, 100])
def test_truncated_compressed_input_is_an_error(tmp_path: Path, suffix: str, cut: int) -> None:
    lines = json_lines(*({"text": content_id(str(n))} for n in range(5000)))
    whole = COMPRESS[suffix](lines)
    path = written(tmp_path, f"a.jsonl.{suffix}", whole[:-cut])
    with pytest.raises(InputError, match=r"cut off near compressed byte \d+.*again"):
        read_all(path)
    path.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut off"):
        read_all(path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_compressed_input_is_an_error(tmp_path: Path, suffix: str) -> None:
    packed = bytearray(COMPRESS[suffix](json_lines(*({"text": content_id(str(n))} for n in range(5000)))))
    packed[len(packed) // 2] ^= 0x55
    packed[-6] ^= 0x55
    with pytest.raises(InputError, match="again"):
        read_all(written(tmp_path, f"a.jsonl.{suffix}", bytes(packed)))


def test_zstd_with_a_27_bit_window_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl.zst", long_window(json_lines({"text": "x" * 1000}) * 3))
    assert len(texts(read_all(path))) == 3


def test_json_array_and_single_object_are_records(tmp_path: Path) -> None:
    array = written(tmp_path, "a.json", json.dumps([{"text": "a"}, 3, {"text": "b"}], indent=1).encode())
    assert texts(read_all(array)) == ["a", "b"]
    assert rejects(read_all(array)) == [("record 1", "not-an-object")]
    one = written(tmp_path, "b.json", json.dumps({"text": "a"}, indent=1).encode())
    assert texts(read_all(one)) == ["a"]
    broken = written(tmp_path, "c.json", b'[{"text": "a"}, ')
    assert [reason for _, reason in rejects(read_all(broken))] == ["not-json"]


def test_dolma_attributes_are_no_metadata(tmp_path: Path) -> None:
    record = {
        "id": "d",
        "text": "t",
        "source": "s",
        "added": "2024",
        "metadata": {"n": 1},
        "attributes": {"x": [[0, 1, 1]]},
    }
    (document,) = read_all(written(tmp_path, "a.json.gz", gzip.compress(json_lines(record))))
    assert isinstance(document, Document)
    assert json.loads(document.metadata) == {"source": "s", "added": "2024", "metadata": {"n": 1}}


def parquet(path: Path, texts: list[bytes | None], **settings: object) -> Path:
    text = pa.array(texts, pa.binary()).view(pa.string())
    table = pa.table({"id": pa.array(range(len(texts))), "text": text, "n": pa.array([1.5] * len(texts))})
    pq.write_table(table, path, **settings)
    return path


def test_parquet_row_that_is_bad_costs_itself_alone(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [b"a", b"\xff", None, b"", b"b"], row_group_size=2)
    records = read_all(path)
    assert texts(records) == ["a", "b"]
    assert rejects(records) == [("record 1", "invalid-utf8"), ("record 2", "no-text-field"), ("record 3", "empty")]
    assert records[4] == Document("4", "b", None, b'{"n":1.5}', "record 4")


@pytest.mark.parametrize("kept", [10, 200, -5])
def test_truncated_parquet_is_an_error(tmp_path: Path, kept: int) -> None:
    path = parquet(tmp_path / "a.parquet", [b"some text"] * 1000)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="Parquet"):
        read_all(path)


def test_flipped_bit_in_parquet_with_checksums_is_an_error(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [b"some text %d" % n for n in range(1000)], write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="Parquet"):
        read_all(path)


def test_dataset_saved_on_disk_is_read_and_its_end_is_checked(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "text": ["A", "B"]})
    path = tmp_path / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    (tmp_path / "state.json").write_text("{}")
    assert texts(read_all(tmp_path)) == ["A", "B"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="cut off"):
        read_all(tmp_path)


def test_csv_fields_hold_newlines_and_bad_rows_cost_themselves(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,text\r\n1,"a\nb, ""c"""\r\n\r\n2,x,y\r\n3,\xff\r\n4,d\r\n5,"open'
    records = read_all(written(tmp_path, "a.csv", content))
    assert texts(records) == ['a\nb, "c"', "d"]
    assert rejects(records) == [("record 1", "not-csv"), ("record 2", "invalid-utf8"), ("record 4", "not-csv")]


def test_csv_field_may_be_longer_than_the_standard_library_allows(tmp_path: Path) -> None:
    assert texts(read_all(written(tmp_path, "a.csv", b"text\n" + b"x" * 500_000 + b"\n"))) == ["x" * 500_000]


def test_tsv_quotes_are_ordinary_characters(tmp_path: Path) -> None:
    records = read_all(written(tmp_path, "a.tsv", b'id\ttext\n1\t"open\n2\tshut"\n'))
    assert texts(records) == ['"open', 'shut"']


def test_file_of_a_folder_is_a_document_named_by_its_path(tmp_path: Path) -> None:
    written(tmp_path, "b/x.md", b"# X\n")
    written(tmp_path, "a.txt", "数".encode())
    written(tmp_path, ".git/config.txt", b"hidden")
    written(tmp_path, "c.txt", b"ok \xff")
    written(tmp_path, "d.txt", b" \n")
    written(tmp_path, "e.png", b"\x89PNG\0\0")
    records = read_all(tmp_path)
    documents = [record for record in records if isinstance(record, Document)]
    assert [(document.doc_id, document.text) for document in documents] == [("a.txt", "数"), ("b/x.md", "# X\n")]
    assert rejects(records) == [("byte 3", "invalid-utf8"), ("byte 0", "empty")]
    assert rejects(read_all(tmp_path / "e.png")) == [("byte 0", "unknown-format")]  # not skipped: it was named


def test_marker_separates_documents(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"one\n<|end|>\ntwo\n<|end|>\n \n<|end|>three")
    records = read_all(path, fields=Fields(marker="<|end|>"))
    assert texts(records) == ["one", "two", "three"]
    assert [record.location for record in records] == ["byte 0", "byte 11", "byte 33"]


def test_members_of_an_archive_are_files(tmp_path: Path) -> None:
    members = {
        "d/a.md": b"# A",
        "d/b.jsonl.gz": gzip.compress(json_lines({"text": "b"})),
        ".hidden": b"no",
        "d/c.warc": b"",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    for name, content in (("a.tar", packed.getvalue()), ("a.tar.zst", COMPRESS["zst"](packed.getvalue()))):
        records = read_all(written(tmp_path, name, content))
        assert texts(records) == ["# A", "b"]
        assert isinstance(records[0], Document)
        assert records[0].doc_id == "d/a.md"
    for kept in (700, 1024, 2600):
        with pytest.raises(InputError, match="cut off"):
            read_all(written(tmp_path, "cut.tar", packed.getvalue()[:kept]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.binary(max_size=12).filter(lambda r: b"\n" not in r), max_size=12),
    block=st.integers(1, 9),
    cap=st.integers(1, 12),
)
def test_records_are_the_split_of_the_bytes_whatever_the_blocks(records: list[bytes], block: int, cap: int) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(block, size or 0))

    content = b"\n".join(records)
    expected, at = [], 0
    for record in content.split(b"\n"):
        expected.append((at, record[:cap], len(record) <= cap))
        at += len(record) + 1
    if not expected[-1][1]:
        expected.pop()  # no empty record after the last delimiter
    assert list(delimited_records(Slow(content), b"\n", cap)) == expected


def test_content_id_tells_key_and_value_from_text() -> None:
    assert content_id("a") != content_id("a", "")
    assert len({content_id("ab"), content_id("a", "b"), content_id("b", "a")}) == 3

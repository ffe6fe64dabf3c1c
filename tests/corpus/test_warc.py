from __future__ import annotations

import collections
import gzip
import json
import zlib
from pathlib import Path

import brotli
import pytest
import zstandard
from real_corpora import unpack

from retrodb.corpus.document import Document, Limits, Reject
from retrodb.corpus.readers.warc import _LineReader, _warc_records
from retrodb.corpus.streams import open_input
from retrodb.errors import InputError

from .conftest import read_all, rejects, texts

PAGE = b"<html><head><title>T</title></head><body><p>Some words about databases.</p></body></html>"


def record(
    kind: str, content: bytes, content_type: str = "text/plain", url: str = "http://a.example/", length: int = -1
) -> bytes:
    size = len(content) if length < 0 else length
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
    return (
        head.encode()
        + f"Content-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n".encode()
        + content
        + b"\r\n\r\n"
    )


def response(body: bytes, *headers: str, status: int = 200, content_type: str = "text/html") -> bytes:
    lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {content_type}", *headers]
    return record("response", "\r\n".join(lines).encode() + b"\r\n\r\n" + body, "application/http; msgtype=response")


def read(tmp_path: Path, content: bytes, name: str = "a.warc", limits: Limits | None = None) -> list[Document | Reject]:
    (tmp_path / name).write_bytes(content)
    return read_all(tmp_path / name, limits=limits)


def test_wet_text_is_a_document_with_its_address_as_id(tmp_path: Path) -> None:
    content = record("warcinfo", b"x: y", "application/warc-fields") + record("conversion", b"Plain words.")
    (document,) = read(tmp_path, content, "a.warc.wet")
    assert isinstance(document, Document)
    assert (document.doc_id, document.text) == ("http://a.example/", "Plain words.")
    assert json.loads(document.metadata)["date"] == "2024-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PAGE, []),
        (gzip.compress(PAGE, mtime=0), ["Content-Encoding: gzip"]),
        (zlib.compress(PAGE), ["Content-Encoding: deflate"]),
        (PAGE, ["Content-Encoding: gzip"]),  # stored decoded, header left
        (
            b"10;x=y\r\n" + PAGE[:16] + b"\r\n%x\r\n" % (len(PAGE) - 16) + PAGE[16:] + b"\r\n0\r\n\r\n",
            ["Transfer-Encoding: chunked"],
        ),
        (PAGE, ["Transfer-Encoding: chunked"]),  # stored joined, header left
    ],
    ids=["plain", "gzip", "deflate", "decoded", "chunked", "joined"],
)
def test_page_is_text_whatever_its_encoding(tmp_path: Path, body: bytes, headers: list[str]) -> None:
    pytest.importorskip("resiliparse")
    (document,) = read(tmp_path, response(body, *headers))
    assert isinstance(document, Document)
    assert document.text == "Some words about databases."
    assert json.loads(document.metadata)["title"] == "T"


def test_charset_of_the_server_is_used(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    body = "<p>naïve Ünïcode</p>".encode("latin-1")
    assert texts(read(tmp_path, response(body, content_type="text/html; charset=ISO-8859-1"))) == ["naïve Ünïcode"]


TRUNCATED = gzip.compress(PAGE * 9, mtime=0)[:-20]


@pytest.mark.parametrize(
    ("body", "encoding", "reason"),
    [
        (gzip.compress(PAGE, mtime=0)[:3] + b"\0\1\2\3" * 9, "gzip", "unknown-encoding"),
        (TRUNCATED, "gzip", "truncated"),
        (zlib.compress(PAGE * 9)[:-20], "deflate", "truncated"),
        (brotli.compress(PAGE)[:-5], "br", "truncated"),
        (zstandard.ZstdCompressor().compress(PAGE)[:20], "zstd", "unknown-encoding"),
        (bytes(range(256)) * 4, "compress", "unknown-encoding"),
        (bytes(range(256)) * 4, "br", "unknown-encoding"),
        (gzip.compress(PAGE, mtime=0), "br, gzip", None),  # brotli was removed, its name was not
    ],
)
def test_body_that_cannot_be_decoded_refuses_its_record(
    tmp_path: Path, body: bytes, encoding: str, reason: str | None
) -> None:
    pytest.importorskip("resiliparse")
    records = read(tmp_path, response(body, f"Content-Encoding: {encoding}") + record("conversion", b"next"))
    assert texts(records)[-1] == "next"
    assert [reason for _, reason in rejects(records)] == ([reason] if reason else [])
    assert len(records) == 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "deflate, gzip"])
def test_page_is_text_whatever_its_content_encoding(tmp_path: Path, encoding: str) -> None:
    pytest.importorskip("resiliparse")
    raw = zlib.compressobj(wbits=-15)
    bodies = {
        "gzip": gzip.compress(PAGE, mtime=0),
        "deflate": raw.compress(PAGE) + raw.flush(),
        "br": brotli.compress(PAGE),
        "zstd": zstandard.ZstdCompressor().compress(PAGE),
        "deflate, gzip": gzip.compress(zlib.compress(PAGE), mtime=0),
    }
    assert texts(read(tmp_path, response(bodies[encoding], f"Content-Encoding: {encoding}"))) == [
        "Some words about databases."
    ]
    assert texts(read(tmp_path, response(PAGE, f"Content-Encoding: {encoding}"))) == ["Some words about databases."]
    limits = Limits(max_record_bytes=1 << 20)
    bomb = {"br": brotli.compress, "zstd": zstandard.ZstdCompressor().compress}.get(encoding, zlib.compress)
    if encoding in ("br", "zstd", "deflate"):
        records = read(tmp_path, response(bomb(b"x" * 30_000_000), f"Content-Encoding: {encoding}"), limits=limits)
        assert rejects(records) == [("byte 0", "too-long")]


@pytest.mark.parametrize("charset", ["x-unknown", "hex", "idna", "undefined", "utf-8\0"])
def test_charset_that_nobody_knows_is_ignored_as_browsers_do(tmp_path: Path, charset: str) -> None:
    pytest.importorskip("resiliparse")
    page = "<meta charset=utf-8><p>naïve</p>".encode()
    assert texts(read(tmp_path, response(page, content_type=f"text/html; charset={charset}"))) == ["naïve"]


def test_charset_of_plain_text_is_used(tmp_path: Path) -> None:
    content = response("naïve".encode("latin-1"), content_type="text/plain; charset=ISO-8859-1")
    content += response("naïve".encode(), content_type="text/plain; charset=ascii")
    assert texts(read(tmp_path, content)) == ["naïve", "naïve"]


def test_header_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    body = response(b"words", "X: a\x85Content-Type: image/png", content_type="text/plain")
    assert texts(read(tmp_path, body)) == ["words"]


@pytest.mark.parametrize(
    ("url", "is_document"),
    [
        ("<metadata://gnu.org/software/wget/warc/wget.log>", False),
        ("metadata://gnu.org/software/wget/warc/wget_arguments.txt", False),
        ("urn:text:http://a.example/", False),
        ("screenshot:http://a.example/", False),
        ("http://a.example/robots.txt", True),
        ("file:///home/a/notes.txt", True),
        ("notes.txt", True),
    ],
)
def test_crawler_records_about_itself_are_no_documents(tmp_path: Path, url: str, is_document: bool) -> None:
    records = read(tmp_path, record("resource", b"Some words.", url=url))
    assert len(texts(records)) == len(records) == is_document


def test_images_errors_and_requests_are_no_documents(tmp_path: Path) -> None:
    content = record("request", b"GET / HTTP/1.1\r\n\r\n") + response(b"\x89PNG", content_type="image/png")
    assert read(tmp_path, content + response(PAGE, status=404)) == []


@pytest.mark.parametrize("cut", [1, 10, 60, 120])
def test_record_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    whole = record("conversion", b"first") + record("conversion", b"w" * 100)
    records = read(tmp_path, whole[: -4 - cut])
    assert texts(records) == ["first"]
    assert [reason for _, reason in rejects(records)] in (["truncated"], ["malformed"])


def test_archive_cut_in_its_gzip_stream_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(record("conversion", b"first")) + gzip.compress(record("conversion", b"second"))
    with pytest.raises(InputError, match="cut off"):
        read(tmp_path, packed[:-12], "a.warc.gz")


def test_wrong_length_costs_its_record_and_reading_goes_on(tmp_path: Path) -> None:
    content = record("conversion", b"first " * 20, length=30) + record("conversion", b"second")
    records = read(tmp_path, content)
    assert texts(records)[-1] == "second"
    assert [reason for _, reason in rejects(records)] == ["malformed"]


def test_record_above_the_cap_is_passed_over(tmp_path: Path) -> None:
    content = record("conversion", b"x" * 3_000_000) + record("conversion", b"second")
    records = read(tmp_path, content, limits=Limits(max_record_bytes=1 << 20))
    assert texts(records) == ["second"]
    assert rejects(records) == [("byte 0", "too-long")]


def test_bomb_in_a_page_is_refused(tmp_path: Path) -> None:
    body = gzip.compress(b"<p>" + b"x" * 30_000_000)
    records = read(tmp_path, response(body, "Content-Encoding: gzip"), limits=Limits(max_record_bytes=1 << 20))
    assert rejects(records) == [("byte 0", "too-long")]


def test_arc_records_are_read_by_their_lengths(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    info = b"1 0 Test\nURL IP-address Archive-date Content-type Archive-length\n"
    page = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE
    content = b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain %d\n" % len(info) + info + b"\n"
    for length in (len(page), len(page), len(page) + 50):
        content += b"http://a.example/with space 1.2.3.4 20080430204825 text/html %d\n" % length + page + b"\n"
    records = read(tmp_path, content, "a.arc")
    assert texts(records) == ["Some words about databases."] * 2
    assert isinstance(records[0], Document)
    assert records[0].doc_id == "http://a.example/with space"
    assert [reason for _, reason in rejects(records)] == ["truncated"]


@pytest.mark.corpora
def test_real_archives_hold_the_records_that_warcio_counts(tmp_path: Path) -> None:
    iterator = pytest.importorskip("warcio.archiveiterator", reason="warcio is not installed")
    counted = 0
    for path in sorted(unpack("web.tar.zst", tmp_path).rglob("*.warc*")):
        if "bad" in path.name or "wrong" in path.name or "trunc" in path.name:
            continue  # where warcio itself gives up, or counts what is cut off
        with open(path, "rb") as file:
            theirs = collections.Counter(record.rec_type for record in iterator.ArchiveIterator(file))
        compression = "gzip" if path.name.endswith(".gz") else "none"
        with open_input(path, compression) as stream:
            ours = collections.Counter(record.kind for record in _warc_records(_LineReader(stream), Limits()))
        assert ours == theirs, path.name
        counted += theirs.total()
    assert counted > 1000

"""Real files of every format and compression, made by the test, and damaged forms of them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zlib
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import brotli
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
RECORDS = [
    {"id": f"d{n}", "text": f'Chunk {n} of "data", 数据 é.\n' * (n % 3 + 1), "n": n, "tags": {"k": [n, None, 1.5]}}
    for n in range(12)
]
PAGE = (
    b"<!DOCTYPE html><html><head><title>T</title><meta charset=utf-8></head><body><nav><a href=/>x</a></nav>"
    b"<main><p>Some words about <b>databases</b>.</p><ul><li>a<li>b</ul></main><script>var x = '<div>';</script></body></html>"
)
HTTP_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n"


def table() -> pa.Table:
    """Every kind of column that has a JSON form of its own."""
    rows = range(12)
    moments = [datetime(2024, 2, 29, 12, 30) + timedelta(days=n) for n in rows]
    return pa.table(
        {
            "id": [f"d{n}" for n in rows],
            "text": [f"Row {n}, 数据 é." for n in rows],
            "at": pa.array(moments, pa.timestamp("ns", "Europe/Berlin")),
            "day": pa.array([date(2024, 1, 1 + n) for n in rows]),
            "time": pa.array([n * 1_000_000_007 for n in rows], pa.time64("ns")),
            "for": pa.array([n * 1_000_000_007 for n in rows], pa.duration("ns")),
            "price": pa.array([Decimal(n) / 4 for n in rows], pa.decimal128(9, 2)),
            "bytes": pa.array([bytes([n, 255]) for n in rows]),
            "kind": pa.array(["a", "b"] * 6).dictionary_encode(),
            "list": pa.array([[n, None] for n in rows], pa.list_(pa.int32())),
            "nest": pa.array([{"k": "x", "l": ["y"] * (n % 3)} for n in rows]),
            "map": pa.array([[("k", n)] for n in rows], pa.map_(pa.string(), pa.int64())),
        }
    )


def real_files() -> dict[str, bytes]:
    """One file of each format, by name."""
    json_lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)
    parquet, stream, file = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table(), parquet, row_group_size=5, write_page_checksum=True)
    with pa.ipc.new_stream(stream, table().schema) as writer:
        writer.write_table(table(), max_chunksize=5)
    with pa.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table(), max_chunksize=5)
    unchecked = io.BytesIO()
    pq.write_table(table(), unchecked, compression="none")
    csv = b"id,text,n\r\n" + b"".join(b'%d,"a ""quoted"", text\nof \xc3\xa9 two lines",x\r\n' % n for n in range(12))
    return {
        "a.jsonl": json_lines,
        "a.json": json.dumps(RECORDS, indent=1).encode(),
        "dolma.jsonl": json.dumps({"id": "d", "text": "t", "source": "s", "added": "2024", "attributes": {}}).encode(),
        "a.parquet": parquet.getvalue(),
        "plain.parquet": unchecked.getvalue(),
        "stream.arrow": stream.getvalue(),
        "file.arrow": file.getvalue(),
        "a.csv": csv,
        "a.tsv": b"id\ttext\n" + b"".join(b'%d\t"open %d\n' % (n, n) for n in range(12)),
        "a.txt": "数据 é and words.\n".encode() * 9,
        "a.md": b"---\ntitle: T\ndate: 2024-01-01\ntags: [a, b]\nnest: {k: 1}\n---\n# Title\n\nText.\n",
        "toml.md": b'+++\ntitle = "T"\ndate = 2024-01-01T00:00:00Z\n+++\n# Title\n\nText.\n',
        "a.html": PAGE,
        "a.warc": archive(),
        "a.arc": b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain 3\nx y\n"
        + b"http://a.example/ 1.2.3.4 20080430204825 text/html %d\n%s\n"
        % (len(PAGE) + len(HTTP_HEAD), HTTP_HEAD + PAGE),
        "a.tar": tar({"d/a.md": b"# A\n", "d/b.jsonl.gz": gzip.compress(json_lines), "c\udce9.html": PAGE}),
    }


def archive() -> bytes:
    """A web archive with a page in every content encoding."""
    raw = zlib.compressobj(wbits=-15)
    bodies = {
        "gzip": gzip.compress(PAGE),
        "deflate": zlib.compress(PAGE),
        "Deflate": raw.compress(PAGE) + raw.flush(),
        "br": brotli.compress(PAGE),
        "zstd": zstandard.ZstdCompressor().compress(PAGE),
        "identity": PAGE,
    }
    content = warc_record("warcinfo", b"software: x\r\n", "application/warc-fields")
    for encoding, body in bodies.items():
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Encoding: {encoding}\r\n\r\n"
        content += warc_record("response", head.encode() + body, "application/http; msgtype=response")
    return content + warc_record("conversion", b"Plain words.", "text/plain")


def warc_record(kind: str, content: bytes, content_type: str, url: str = "http://a.example/") -> bytes:
    """One record of a web archive."""
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
    return (
        f"{head}Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"
    )


def tar(members: dict[str, bytes]) -> bytes:
    """A tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", encoding="utf-8") as writer:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            writer.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def mutate(content: bytes, chance: random.Random) -> bytes:
    """A damaged form: bits flipped, cut off, a part removed, doubled, replaced or overwritten with special bytes."""
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        start = chance.randrange(len(damaged) + 1)
        stop = min(start + chance.choice((1, 2, 8, 60)), len(damaged))
        kind = chance.randrange(6)
        if kind == 0 and start < len(damaged):
            damaged[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del damaged[start:]
        elif kind == 2:
            del damaged[start:stop]
        elif kind == 3:
            damaged[start:start] = damaged[start:stop] * chance.choice((1, 3, 50))
        elif kind == 4:
            damaged[start:stop] = chance.randbytes(stop - start)
        else:
            damaged[start:stop] = chance.choice(SPECIAL)
    return bytes(damaged)


SPECIAL = (
    *(
        b"\0",
        b"\0" * 512,
        b"\xff" * 8,
        b"\x80\0\0\0",
        b"\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b'"',
        b"'",
        b"\\",
        b"\\ud800",
        b"{",
        b"[" * 300,
        b"}",
        b"]",
        b",",
        b":",
        b"\t",
        b"<",
        b"-1",
    ),
    *(
        b"1e400",
        b"9" * 30,
        b"NaN",
        b"WARC/1.0\r\n",
        b"Content-Length: 99999999999999\r\n",
        b"charset=utf-7",
        b"charset=x",
    ),
    *(
        b"---\n",
        b"+++\n",
        b"&a [*a]",
        b"!!int",
        b"!!binary x",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\x0b",
        b"<!--",
        b"<script>",
    ),
)


def write_mutant(folder: Path, number: int, seed: int) -> Path:
    """A damaged file of one of the formats and compressions. Half of the damages are within the compressed content."""
    chance = random.Random(seed)
    name, content = chance.choice(list(FILES.items()))
    suffix = chance.choice(list(COMPRESS))
    if suffix and chance.random() < 0.5:
        packed = COMPRESS[suffix](mutate(content, chance))
    else:
        packed = mutate(COMPRESS[suffix](content), chance)
    path = folder / f"{number}-{name}{suffix}"
    path.write_bytes(packed)
    return path


FILES = real_files()

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.corpus.readers.html_cost import MAX_DEPTH_SUM, cost_fault

from .conftest import json_lines, read_all, rejects, texts
from .mutations import PAGE, warc_record

MAX_PAGE_S = 10  # of processor time; 24,000 levels took 17 s

TAGS = st.sampled_from(["div", "span", "b", "table", "ul", "font", "svg", "x-y", "DIV", "blockquote"])


@given(tags=st.lists(TAGS, min_size=1, max_size=3), is_closed=st.booleans())
def test_deep_page_is_refused_whatever_its_tags(tags: list[str], is_closed: bool) -> None:
    count = int((2 * MAX_DEPTH_SUM) ** 0.5) // len(tags) + 10
    page = "".join(f"<{tag} class=c>" for tag in tags) * count + "x"
    page += "".join(f"</{tag}>" for tag in reversed(tags)) * count if is_closed else ""
    assert cost_fault(page) == "nested-too-deep"


@pytest.mark.parametrize(
    "page",
    [
        "<p>words<li>item<td>cell<br><option>o" * 20_000,
        "<div><span></div>" * 20_000,  # the end of the outer one closes the inner one
        "<div>" * 100 + "<p>words</p>" * 100_000 + "</div>" * 100,
        "<script>" + "'<div>' + " * 20_000 + "</script>",
        "<div></div>" * 100_000,
        f"<svg><path d='{'M 1 2 ' * 50_000}'></svg>",
        f"<img src='data:{'a=b ' * 50_000}'>",
        "<" * 100_000,
        "a < b " * 50_000,
        "</div>" * 100_000,
    ],
)
def test_large_page_of_ordinary_depth_is_read(page: str) -> None:
    assert cost_fault(page) is None


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 24_000 + "x" + "</div>" * 24_000,
        "<div><b>" * 24_000 + "x",
        "<div " + "".join(f"a{n} " for n in range(60_000)) + ">x</div>",
        "".join(f"<font color={n}>" for n in range(7_000)) + "<p>x" * 7_000,
        "<!--" * 100_000,
        "<script>" * 100_000,
        "<a href='" * 100_000,
        "<a <a " * 100_000,
        "<title></" * 100_000,
        "&amp" * 100_000,
        "<table><tr><td>" * 30_000,
        "<select>" * 50_000,
        "<template>" * 20_000,
        "<div>" * 500 + "<p>words</p>" * 60_000,
    ],
    ids=lambda page: page[:16],
)
def test_no_page_takes_long_and_the_next_file_is_read(tmp_path: Path, page: str) -> None:
    pytest.importorskip("resiliparse")
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.jsonl").write_bytes(json_lines({"text": "next"}))
    start = time.process_time()
    records = read_all(tmp_path)
    assert time.process_time() - start < MAX_PAGE_S
    assert texts(records)[-1] == "next"
    assert len(records) == 2


def test_deep_page_of_an_archive_is_refused_alone(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    pages = [b"<div>" * 24_000, PAGE]
    content = b"".join(warc_record("resource", page, "text/html") for page in pages)
    (tmp_path / "a.warc").write_bytes(content)
    records = read_all(tmp_path / "a.warc")
    assert rejects(records) == [("byte 0", "nested-too-deep")]
    assert len(texts(records)) == 1

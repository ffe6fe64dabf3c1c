"""The page: it loads nothing from elsewhere, and what a document says is text, never markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from retrodb.retro.evaluate import BitsPerByte
from retrodb.retro.page import ChunkExample, MarkedText, ValidationPage, render_page

EVIL = "<script>alert(1)</script> & \"quotes\" 'too' <img src=x onerror=y>"
ESTIMATE = BitsPerByte(1.0, 0.9, 1.1)


def report(**changes: object) -> ValidationPage:
    example = ChunkExample(EVIL, MarkedText(EVIL, EVIL, EVIL), EVIL, MarkedText("", EVIL, ""), 7, 12.0, 34.5)
    fields: dict[str, object] = {
        "title": EVIL,
        "verdict": EVIL,
        "setting": [("database", EVIL)],
        "bits_per_byte": {"on": ESTIMATE, "without": ESTIMATE},
        "gain": {"without": BitsPerByte(0.1, -float("inf"), float("inf"))},
        "losses": {"with neighbours": [3.0, 2.0, 1.0], "without": [3.0]},
        "leakage": {"with retrieval": np.array([np.nan, 1.0, 1.1]), "trained without": np.array([np.nan, 1.0, 1.3])},
        "chunks_by_ratio": [0, 5, 2],
        "fraction_at_eighth": 1.0,
        "num_chunks_not_looked_up": 3,
        "helped": [example],
        "hindered": [example],
    }
    return ValidationPage(**fields | changes)  # type: ignore[arg-type]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_texts_are_shown_and_never_run() -> None:
    parsed = Tags(render_page(report()))
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "a"}
    assert EVIL in parsed.text
    assert not any(
        name.startswith("on") or name in ("src", "href") for _, attributes in parsed.tags for name in attributes
    )


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render_page(report())
    assert not re.search(r"https?:|//|@import|url\(", page)


def test_the_shared_run_is_marked_in_both_texts() -> None:
    page = render_page(
        report(
            helped=[], hindered=[ChunkExample("d", MarkedText("a", "b", "c"), "e", MarkedText("f", "b", "g"), 1, 1, 2)]
        )
    )
    assert "a<mark>b</mark>c" in page
    assert "f<mark>b</mark>g" in page


def test_an_experiment_without_curves_and_examples_gives_a_page() -> None:
    nothing = report(
        helped=[],
        hindered=[],
        losses={"without": []},
        leakage={"with retrieval": np.full(3, np.nan)},
        chunks_by_ratio=[0, 0, 0],
        fraction_at_eighth=float("nan"),
    )
    page = render_page(nothing)
    assert page.count("There is nothing to draw.") == 2
    assert "<svg" not in page


def test_curves_are_drawn_inside_of_their_frame() -> None:
    page = render_page(report())
    charts = re.findall(r'<svg [^>]*viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', page, re.DOTALL)
    assert len(charts) == 2
    curves = re.findall(r'<g id="(\w+-curve-\d)">\s*<path d="([^"]+)"', page)
    assert [name for name, _ in curves] == [
        "training-curve-0",
        "training-curve-1",
        "leakage-curve-0",
        "leakage-curve-1",
    ]
    width, height = map(float, charts[0])
    for _, path in curves:
        for x, y in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_element_ids_are_unique_in_a_page() -> None:
    ids = [attributes["id"] for _, attributes in Tags(render_page(report())).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0

"""Taggers score as a plain reading of the text does; what cannot be meant is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.config import TagParams
from retrodb.dedup.shingles import words_of
from retrodb.errors import InputError, UsageError
from retrodb.screen.regex import RegexTagger
from retrodb.screen.tagger import load_tagger
from retrodb.screen.wordlist import WordList, read_word_list


def scores(tagger: object, *texts: str) -> list[float]:
    return tagger.score(pa.array(texts, pa.large_string())).tolist()  # type: ignore[attr-defined]


def counted(text: str, entries: set[tuple[str, ...]]) -> tuple[int, int, int]:
    """Phrases found from the left, the longest first, the words that they cover, and all words."""
    words, i, num_matches, covered = words_of(text.casefold()), 0, 0, 0
    while i < len(words):
        fits = [entry for entry in entries if tuple(words[i : i + len(entry)]) == entry]
        length = max(map(len, fits), default=0)
        num_matches, covered, i = num_matches + bool(length), covered + length, i + max(length, 1)
    return num_matches, covered, len(words)


WORDS = st.sampled_from(["a", "b", "AB", "ß", "STRASSE", "Straße", "x1", "ΣΑΣ", "σας", "é", "e\u0301", "日本", "ï"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", ", ", "-", "\n", "_"]))).map(
    lambda pairs: "".join(word + sep for word, sep in pairs)
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXTS, max_size=6), st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5)
)
def test_word_lists_count_as_a_plain_reading_does(texts: list[str], entries: list[str]) -> None:
    folded = tuple(sorted({entry.casefold() for entry in entries}))
    plain = [counted(text, {tuple(words_of(entry)) for entry in folded}) for text in texts]
    assert scores(WordList(folded, "count"), *texts) == [num_matches for num_matches, _, _ in plain]
    assert scores(WordList(folded, "share"), *texts) == [covered / max(words, 1) for _, covered, words in plain]


def test_words_match_whole_and_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# comment\nass\n\n  Big Bang \nstrasse\n🖕\na$$\nASS\n", encoding="utf-8")
    tagger = read_word_list(str(tmp_path / "list.txt"), "count")
    assert tagger.entries == ("a$$", "ass", "big bang", "strasse", "🖕")
    texts = ["ASS, class assess", "big-bang big\nBANG big", "Die Straße", "🖕🖕", "a$$", "a dollar", ""]
    assert scores(tagger, *texts) == [1, 2, 1, 2, 1, 0, 0]
    assert tagger.excerpt("An ASS and a Big\nBang, a class") == ["ASS", "Big\nBang"]
    assert scores(read_word_list(str(tmp_path / "list.txt"), "share"), "a big bang now", "🖕") == [0.5, 1.0]


def test_the_order_and_case_of_a_list_do_not_make_another_one(tmp_path: Path) -> None:
    for name, text in (("a", "one\nTwo\n"), ("b", "\ufefftwo\r\nONE\r\none"), ("c", "one\ntwo\nthree\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    a, b, c = (read_word_list(str(tmp_path / name), "share").definition() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("content", [b"", b"\n\n# nothing\n", b"\xff\xfe"])
def test_a_file_that_is_no_word_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match="word list"):
        read_word_list(str(tmp_path / "list"), "share")
    with pytest.raises(InputError, match="none: not readable"):
        read_word_list("none", "share")


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_expressions_count_their_matches(texts: list[str]) -> None:
    assert scores(RegexTagger("(?i)a|b+", "count"), *texts) == [len(re.findall("(?i)a|b+", text)) for text in texts]


def test_invalid_expressions_are_refused() -> None:
    assert scores(RegexTagger("b", "share"), "a b c b", "") == [0.5, 0.0]
    for pattern in ("(", "(?=x)", "x*"):
        with pytest.raises(UsageError):
            RegexTagger(pattern, "share")


MODULE = """
def length(texts): return [len(text) for text in texts]
def wrong_number(texts): return [1.0] * (len(texts) + 1)
def no_number(texts): return [float("nan")] * len(texts)
def words(texts): return texts
value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_tagger.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "made_tagger", raising=False)
    return "made_tagger"


def test_functions_are_imported_from_here(module: str) -> None:
    tagger = load_tagger(TagParams(python=f"{module}:length"))
    assert scores(tagger, *("x" * n for n in range(600))) == list(range(600))
    assert scores(tagger) == []
    words = load_tagger(TagParams(python=f"{module}:words"))
    assert tagger.definition().to_json()["digest"] == words.definition().to_json()["digest"]


@pytest.mark.parametrize("function", ["wrong_number", "no_number", "words"])
def test_result_without_one_number_per_text_is_refused(module: str, function: str) -> None:
    with pytest.raises(InputError, match=f"{module}:{function}"):
        scores(load_tagger(TagParams(python=f"{module}:{function}")), "a", "b")


@pytest.mark.parametrize(
    "name", ["made_tagger:none", "made_tagger:value", "no_such_module_here:f", "made_tagger", ":f"]
)
def test_missing_functions_are_refused(module: str, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(name)):
        load_tagger(TagParams(python=name))


@pytest.mark.parametrize(
    "params",
    [
        TagParams(),
        TagParams(regex="a", wordlist="b"),
        TagParams(regex="a", label="b"),
        TagParams(regex="a", measure="sum"),
    ],
)
def test_invalid_tagger_options_are_refused(params: TagParams) -> None:
    with pytest.raises(UsageError):
        load_tagger(params)


def test_scores_of_no_text_are_none() -> None:
    assert np.array_equal(RegexTagger("a", "share").score(pa.array([], pa.large_string())), [])


def test_definition_is_stored_with_its_kind_and_settings() -> None:
    assert RegexTagger("a+", "count").definition().to_json() == {"kind": "regex", "pattern": "a+", "measure": "count"}
    stored = WordList(("a", "b"), "share").definition().to_json()
    assert list(stored) == ["kind", "entries", "digest", "measure"]
    assert (stored["kind"], stored["entries"]) == ("wordlist", 2)

"""The standard library's documentation as a corpus: the same everywhere in one Python, and with real overlaps to find."""

from __future__ import annotations

import os
import re
import sys
import warnings

import pytest

from retrodb.corpus.stdlib_docs import is_held_out, stdlib_documents


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    before = set(sys.modules), list(warnings.filters), dict(os.environ)
    pages = list(stdlib_documents())
    assert before == (set(sys.modules), list(warnings.filters), dict(os.environ)), "rendering left a trace here"
    assert len({doc_id for doc_id, _ in pages}) == len(pages)
    return dict(pages)


def test_modules_classes_functions_methods_and_topics_are_documents(documents: dict[str, str]) -> None:
    for doc_id in (
        "json",
        "json.dumps",
        "json.JSONDecoder",
        "json.JSONDecoder.raw_decode",
        "os.path.join",
        "topics.with",
    ):
        assert documents[doc_id].strip() == documents[doc_id] != ""
    assert documents["os.path.join"].startswith("join(a, *p)\n    Join two or more pathname components")
    assert 4e6 < sum(map(len, documents.values())) < 12e6


@pytest.mark.soak
def test_two_runs_give_the_same_documents(documents: dict[str, str]) -> None:
    assert list(stdlib_documents()) == list(documents.items())


def test_text_does_not_depend_on_the_machine(documents: dict[str, str]) -> None:
    folders = [sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), os.getcwd()]
    machine = re.compile("|".join(map(re.escape, folders)) + r"| at 0x[0-9a-f]{6}|environ\(\{'")
    assert not [doc_id for doc_id, text in documents.items() if machine.search(text)]


def test_skipped_modules_are_absent(documents: dict[str, str]) -> None:
    skipped = {"antigravity", "this", "idlelib", "test", "tkinter", "turtle", "lib2to3"}
    assert not skipped & {doc_id.partition(".")[0] for doc_id in documents}


def test_what_a_class_inherits_is_told_by_its_base_only(documents: dict[str, str]) -> None:
    assert not [
        doc_id for doc_id, text in documents.items() if re.search(r"\| .* inherited from \S+:$", text, re.MULTILINE)
    ]


def test_a_module_is_held_out_with_everything_in_it(documents: dict[str, str]) -> None:
    for doc_id in ("ntpath", "ntpath.splitext", "os.path", "os.path.join", "contextlib", "contextlib.ExitStack.close"):
        assert doc_id in documents
        assert is_held_out(doc_id)
    for doc_id in ("posixpath", "posixpath.join", "os", "os.pathconf", "builtins.str"):
        assert doc_id in documents
        assert not is_held_out(doc_id)
    held_out_chars = sum(len(text) for doc_id, text in documents.items() if is_held_out(doc_id))
    assert 0.01 < held_out_chars / sum(map(len, documents.values())) < 0.06


def test_held_out_documents_overlap_with_kept_ones(documents: dict[str, str]) -> None:
    """What the leak scan will find, by brute force: word 13-gram Jaccard of 0.8 or more."""
    grams = {doc_id: thirteen_grams(text) for doc_id, text in documents.items()}
    held_out = {doc_id for doc_id in documents if is_held_out(doc_id) and grams[doc_id]}
    leaks = {
        (kept, other)
        for kept in documents.keys() - held_out
        for other in held_out
        if jaccard(grams[kept], grams[other]) >= 0.8
    }
    assert {("posixpath", "os.path"), ("posixpath.join", "os.path.join")} <= leaks
    assert ("posixpath.expandvars", "ntpath.expandvars") not in leaks
    assert len({kept for kept, _ in leaks}) >= 20


def thirteen_grams(text: str) -> frozenset[int]:
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(hash(tuple(words[i : i + 13])) for i in range(len(words) - 12))


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    # The smaller set bounds the intersection: most pairs need no more than their sizes.
    if not a or min(len(a), len(b)) < 0.8 * max(len(a), len(b)):
        return 0.0
    return len(a & b) / len(a | b)

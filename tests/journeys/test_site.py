"""A documentation site with pictures: its first version, its new version, an export for a trainer, and a takedown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrodb.errors import EXIT_REJECTS

from .made_site import picture, write_new_version, write_site
from .shell import User

COUNT = 'retrodb sql site.retrodb "select count(*) as pages from documents where live{}" --json'


def test_a_documentation_site_is_built_updated_and_taken_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_site(tmp_path / "site")
    user = User(tmp_path)
    _build(user)
    _read(user)
    write_new_version(tmp_path / "site")
    _update(user)
    _filter(user)
    _take_down(user)
    assert (tmp_path / "site/guide/first view.png").read_bytes() == picture("guide")


def _pages(user: User, more: str = "") -> object:
    return user.types(COUNT.format(more)).row["pages"]


def _build(user: User) -> None:
    assert (
        user.types("retrodb tokenizer train site --out tokenizer.json --vocab-size 500 --json").row["num_documents"]
        == 30
    )
    options = "--tokenizer tokenizer.json --encoder hashing:64 --front-matter metadata"
    plan = user.types(f"retrodb build site.retrodb site {options} --dry-run")
    assert "31 files" in plan.out
    assert plan.err.startswith("Skipped 4 files that are not text (4 .png).")
    assert not (user.folder / "site.retrodb").exists()
    failed = user.types(f"retrodb build site.retrodb site {options} --yes", code=1).out
    assert "draft.md" in failed
    assert "--max-reject-rate" in failed
    options += " --max-reject-rate 5%"
    built = user.types(f"retrodb build site.retrodb site {options} --yes", code=EXIT_REJECTS).out
    assert "1 of 31 records were rejected" in built
    assert "Next steps:" in built


def _read(user: User) -> None:
    text = (user.folder / "site/guide/step3.md").read_text().split("\n\n")[1]
    hit = user.types(f'retrodb search site.retrodb "{" ".join(text.split()[:60])}" --k 1 --json').row
    assert (hit["source"], hit["doc_id"]) == ("site", "guide/step3.md")
    by_section = user.types(
        "retrodb sql site.retrodb \"select metadata->>'section' as section, count(*) as pages from documents where live"
        ' group by 1 order by 1 nulls last" --json'
    ).rows
    assert [(row["section"], row["pages"]) for row in by_section] == [
        *(("guide", 9), ("home", 1), ("install", 9), ("reference", 9), (None, 2)),
    ]
    assert user.types("retrodb stats site.retrodb --json").row["num_live_documents"] == 30
    assert "no damage found" in user.types("retrodb check site.retrodb").out
    user.types("retrodb export site.retrodb out --to arrays")
    neighbours = np.load(user.folder / "out/neighbours.npy")
    assert len(neighbours) == 90
    assert (neighbours >= 0).all(axis=1).sum() == 88  # the others are too short for a vector


def _update(user: User) -> None:
    before = user.types("retrodb snapshots site.retrodb --json").rows[-1]["snapshot"]
    plan = user.types("retrodb update site.retrodb --mirror --dry-run")
    assert "6 new or changed documents" in plan.out
    steps = user.types("retrodb update site.retrodb --mirror", code=EXIT_REJECTS).out
    assert "added 2" in steps
    assert "removed 2, superseded 4" in steps
    assert "unchanged 24" in steps
    assert "rows without position 18" in steps  # the pages that are new since the export
    assert _pages(user) == 30
    assert _pages(user, " and doc_id like '%png'") == 0
    assert "nothing new" in user.types("retrodb update site.retrodb --mirror").out
    after = user.types("retrodb snapshots site.retrodb --json").rows[-1]["snapshot"]
    diff = user.types(f"retrodb diff site.retrodb {before} {after} --documents").out
    for page in ("guide/step20.md", "install/step8.md", "guide/step0.md", "reference/step0.md"):
        assert page in diff
    assert "guide/step5.md" not in diff
    user.types("retrodb neighbours site.retrodb --repair")


def _filter(user: User) -> None:
    where = "--where \"metadata->>'section' = 'install'\" --reason old"
    assert "would delete 8 documents" in user.types(f"retrodb filter site.retrodb {where} --dry-run").out
    assert "deleted 8 documents" in user.types(f"retrodb filter site.retrodb {where}").out
    assert _pages(user) == 22
    user.types("retrodb neighbours site.retrodb --repair")
    shown = user.types("retrodb export --refresh out --json").row
    assert "neighbours.npy" in shown["must_reopen"]
    assert "revoked for 8 documents" in user.types("retrodb undelete site.retrodb --reason old").out
    assert _pages(user) == 30


def _take_down(user: User) -> None:
    (user.folder / "takedown.txt").write_text("guide/step3.md\nguide/step33.md\n")
    plan = user.types("retrodb purge site.retrodb --doc-ids takedown.txt --dry-run", code=3)
    assert "would purge 1 document," in plan.out
    assert "'guide/step33.md'" in plan.err
    assert _pages(user) == 30
    (user.folder / "takedown.txt").write_text("guide/step3.md\n")
    done = user.types("retrodb purge site.retrodb --doc-ids takedown.txt --yes").out
    assert "0 traces left" in done
    # The message about the export has the command that a user copies.
    [remedy] = [line.split("Run '")[1].rstrip("'") for line in done.splitlines() if "Run 'retrodb export" in line]
    user.types(remedy)
    assert _pages(user, " and doc_id = 'guide/step3.md'") == 0
    assert "no damage found" in user.types("retrodb check site.retrodb --read-data").out
    assert "expired" in user.types("retrodb diff site.retrodb 1 2", code=2).err

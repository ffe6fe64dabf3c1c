"""An update equals a rebuild, repeats no work, and reports failures, which stop only the stages that depend on them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from made_documents import made_text

import retrodb
from retrodb.bench.rates import keep_rates
from retrodb.errors import EXIT_ERROR, EXIT_OK, EXIT_REJECTS, LockedError, MissingStep, UsageError
from retrodb.format.entries import SpaceEntry
from retrodb.store.lock import advisory_lock
from retrodb.store.storage import LocalStorage

from .update_model import CLOCK, Site, answers, live_documents, neighbour_texts

STAGES = ["ingest", "ingest", "embed", "index", "neighbours"]
DOCUMENTS = {f"d{n}": made_text(n, 60 + n) for n in range(12)}
CHANGED = {
    **{f"d{n}": made_text(n, 60 + n) for n in range(6)},
    "d6": made_text(99, 80),
    **{f"n{n}": made_text(200 + n, 70) for n in range(3)},
}


@pytest.fixture
def site(tmp_path: Path, made_tokenizer: Path) -> Site:
    """Two sources of documents, not yet in a database."""
    made = Site(tmp_path, made_tokenizer)
    made.write("left", DOCUMENTS)
    made.write("right", {f"r{n}": made_text(50 + n, 90) for n in range(4)})
    return made


def test_an_update_runs_every_stage_and_a_second_one_finds_nothing_new(site: Site) -> None:
    db = site.create()
    first = site.update(db)
    assert [(step.stage, step.outcome) for step in first.steps] == [(stage, "done") for stage in STAGES]
    assert (first.outcome, first.exit_code, first.snapshot) == ("done", 0, len(STAGES))
    assert first.steps[0].counts["added"] == len(DOCUMENTS)
    again = site.update()
    assert (again.outcome, again.exit_code, again.snapshot) == ("nothing new", 0, first.snapshot)
    assert {step.outcome for step in again.steps} == {"nothing new"}


def test_an_updated_database_equals_one_built_from_the_new_files(site: Site) -> None:
    site.update(site.create())
    site.write("left", CHANGED)
    result = site.update()
    assert result.steps[0].counts["removed"] == 5
    fresh = Site(site.folder, site.tokenizer, "fresh")
    fresh.recipe = site.recipe
    fresh.update(fresh.create())
    db, other = (retrodb.open(each.path) for each in (site, fresh))
    assert live_documents(db) == live_documents(other)
    assert {key for key in live_documents(db) if key[0] == "left"} == {("left", name) for name in CHANGED}
    queries = [made_text(seed, 12) for seed in range(8)]
    assert answers(db, queries) == answers(other, queries)
    assert neighbour_texts(db) == neighbour_texts(other)


def test_only_new_texts_are_embedded(site: Site) -> None:
    site.update(site.create())
    site.write("left", {f"moved-{name}": text for name, text in DOCUMENTS.items()} | {"n": made_text(300, 70)})
    [counts] = [step.counts for step in site.update().steps if step.stage == "embed"]
    new = retrodb.open(site.path).sql("select num_chunks from documents where doc_id = 'n'").rows[0][0]
    assert counts["chunks"] - counts["reused"] <= new
    assert counts["reused"] > 0


def test_a_failing_source_does_not_stop_the_others(site: Site) -> None:
    site.recipe["sources"]["left"]["inputs"] = ["nowhere/*.jsonl"]
    result = site.update(site.create())
    failed, *others = result.steps
    assert (failed.outcome, result.outcome, result.exit_code) == ("failed", "failed", EXIT_ERROR)
    assert "no file matches" in failed.error
    assert {step.outcome for step in others} == {"done"}
    assert {source for source, _ in live_documents(retrodb.open(site.path))} == {"right"}


def test_stages_after_a_failed_stage_are_left_out_until_it_succeeds(site: Site) -> None:
    """A document that a test set would have deleted must not reach the index."""
    site.recipe["testsets"] = {"exam": {"files": ["exam.jsonl"]}, "other": {"files": ["right.jsonl"]}}
    result = site.update(site.create())
    outcomes = [(step.stage, step.outcome) for step in result.steps]
    assert outcomes == [
        ("ingest", "done"),
        ("ingest", "done"),
        ("dedup", "failed"),
        ("dedup", "done"),
        ("embed", "left out"),
    ]
    assert result.exit_code != 0
    (site.folder / "exam.jsonl").write_text(json.dumps({"id": "t", "text": DOCUMENTS["d3"]}) + "\n")
    assert site.update().exit_code == 0
    live = live_documents(retrodb.open(site.path))
    assert ("left", "d3") not in live
    assert not any(source == "right" for source, _ in live)


def test_fewer_rejects_than_the_limit_are_no_failure(site: Site) -> None:
    with (site.folder / "left.jsonl").open("a") as file:
        file.write("no json\n")
    site.recipe["sources"]["left"]["max_reject_rate"] = 0.2
    result = site.update(site.create())
    assert (result.outcome, result.exit_code, result.steps[0].counts["rejected"]) == ("done", EXIT_REJECTS, 1)
    assert "1 of 13 records were rejected" in result.steps[0].notes[0]
    again = site.update()
    assert (again.outcome, again.exit_code) == ("nothing new", EXIT_OK)


def test_an_export_of_several_tables_with_options_follows_the_recipe(site: Site) -> None:
    pytest.importorskip("megatron.core", reason="make peers installs it")
    site.recipe["sources"]["left"]["holdout"] = 0.3
    site.recipe["neighbours"]["heldout"] = {"queries": "heldout", "k": 2, "spare_neighbours": 2}
    tables = {"train": "self", "valid": "heldout"}
    site.recipe["exports"] = [{"to": "megatron", "out": "project", "table": tables, "seq_length": 128}]
    result = site.update(site.create())
    assert [(step.stage, step.error) for step in result.steps if step.outcome == "failed"] == []
    config = json.loads((site.folder / "project" / "config.json").read_text())
    assert config["retro_gpt_seq_length"] == 128
    assert {info.path for info in retrodb.open(site.path).exports()} == {str(site.folder / "project")}
    site.write("left", CHANGED)
    assert [step.outcome for step in site.update().steps if step.stage == "export"] == ["done"]


def test_hooks_are_told_the_outcome(site: Site) -> None:
    hook = site.folder / "hook.py"
    hook.write_text(
        "import json, os, sys\n"
        "told = {name: os.environ[f'RETRODB_{name}'] for name in ('RESULT', 'METRICS', 'DATABASE')}\n"
        "json.dump([sys.argv[1], told], open(sys.argv[2], 'w'))\n"
    )
    out = site.folder / "told it.json"
    command = f"{sys.executable} {hook} {{}} '{out}'"
    site.recipe["hooks"] = {f"on_{end}": command.format(end) for end in ("success", "failure")}
    site.recipe["metrics"] = {"file": "m.prom"}
    metrics = str(site.folder / "m.prom")
    assert site.update(site.create()).exit_code == 0
    told = {"RESULT": "success", "METRICS": metrics, "DATABASE": str(site.path)}
    assert json.loads(out.read_text()) == ["success", told]
    site.recipe["sources"]["left"]["inputs"] = ["nowhere"]
    assert site.update().exit_code != 0
    assert json.loads(out.read_text()) == ["failure", {**told, "RESULT": "failure"}]
    site.recipe["hooks"]["on_failure"] = "no-such-program"
    assert (
        site.update().steps[-1].error
        == "no-such-program: cannot be started: No such file or directory. Check the recipe."
    )
    site.write("left", DOCUMENTS)
    site.recipe["sources"]["left"]["inputs"] = ["left.jsonl"]
    site.recipe["hooks"]["on_success"] = f"{sys.executable} -c 'raise SystemExit(7)'"
    assert "ended with exit code 7" in site.update().steps[-1].error


def test_the_metrics_file_is_prometheus_text_and_keeps_the_last_success(site: Site) -> None:
    site.recipe["metrics"] = {"file": "out/retrodb.prom"}
    path = site.folder / "out" / "retrodb.prom"
    result = site.update(site.create())
    metrics = parse_prometheus(path.read_text())
    db = {"database": str(site.path)}
    assert metrics["retrodb_update_success"] == [(db, 1.0)]
    assert metrics["retrodb_snapshot"] == [(db, float(result.snapshot))]
    assert ({**db, "source": "left"}, float(len(DOCUMENTS))) in metrics["retrodb_documents_live"]
    assert metrics["retrodb_vector_coverage"] == [({**db, "space": "default"}, 1.0)]
    assert metrics["retrodb_drift_retrain"] == [({**db, "space": "default"}, 0.0)]
    assert metrics["retrodb_drift_added"][0][1] >= 0
    success = metrics["retrodb_update_last_success_timestamp_seconds"]

    site.recipe["sources"]["left"]["inputs"] = ["nowhere"]
    site.write("right", {})
    site.update()
    later = parse_prometheus(path.read_text())
    assert later["retrodb_update_success"] == [(db, 0.0)]
    assert later["retrodb_update_last_success_timestamp_seconds"] == success
    assert later["retrodb_update_last_run_timestamp_seconds"] > metrics["retrodb_update_last_run_timestamp_seconds"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_second_update_at_the_same_time_is_refused_at_once(site: Site) -> None:
    db = site.create()
    with advisory_lock(LocalStorage(site.path), "update", "update"):
        with pytest.raises(LockedError, match="another command is running"):
            site.update(db)
    assert site.update(db).exit_code == 0


def test_a_dry_run_counts_what_is_new_and_commits_nothing(site: Site) -> None:
    db = site.create()
    plan = db.plan_update(site.config())
    assert (plan.num_documents, plan.num_removed_documents) == (len(DOCUMENTS) + 4, 0)
    assert [row.stage for row in plan.stages] == STAGES
    site.update(db)
    assert plan.num_chunks == db.stats().num_chunks
    assert db.plan_update(site.config()).stages == ()
    site.write("left", CHANGED)
    before = db.view().snapshot.number
    plan = db.plan_update(site.config())
    assert (plan.num_documents, plan.num_removed_documents) == (4, 6)
    assert db.view().snapshot.number == before
    site.write("right", {})
    plan = db.plan_update(site.config())
    assert (plan.num_documents, plan.num_removed_documents, {row.note for row in plan.stages}) == (4, 10, {None})
    site.recipe["sources"]["right"]["inputs"] = ["nowhere"]
    [note] = [row.note for row in db.plan_update(site.config()).stages if row.name == "right"]
    assert "no such file" in note


def test_a_plan_uses_the_rates_of_earlier_long_steps(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.maintain.update.estimate._LONG_S", 0.0)
    db = site.create()
    assert [row.elapsed_s is None for row in db.plan_update(site.config()).stages[-2:]] == [True, True]
    site.update(db)
    site.write("left", CHANGED)
    assert all(row.elapsed_s for row in db.plan_update(site.config()).stages)
    # The rates of the last update replace older rates, also when it repaired a table.
    keep_rates(db.view().snapshot.existing(SpaceEntry, "default").fingerprint, {"neighbours": 1e-9})
    site.update(db)
    site.write("left", CHANGED | {"late": made_text(99, 60)})
    [neighbours] = [row for row in db.plan_update(site.config()).stages if row.stage == "neighbours"]
    assert 0 < neighbours.elapsed_s < 1000


def test_an_update_of_some_sources_can_mirror_them_once(site: Site) -> None:
    for source in site.recipe["sources"].values():
        source["mirror"] = False
    site.update(site.create())
    site.write("left", CHANGED)
    site.write("right", {})
    assert site.update(sources=["left"]).steps[0].counts.get("removed", 0) == 0
    site.write("left", {"d0": DOCUMENTS["d0"]})
    result = site.update(sources=["left"], mirror=True)
    assert [step.name for step in result.steps if step.stage == "ingest"] == ["left"]
    live = live_documents(retrodb.open(site.path))
    assert [name for source, name in live if source == "left"] == ["d0"]
    assert len(live) == 5
    with pytest.raises(UsageError, match="It has: left, right"):
        site.update(sources=["middle"])


def test_rules_of_the_recipe_apply_to_later_documents(site: Site) -> None:
    site.recipe["taggers"] = {"odd": {"regex": "unheard", "measure": "count"}}
    site.recipe["filters"] = [{"where": "odd >= 2", "reason": "odd"}, {"where": "num_tokens < 3"}]
    site.write("left", {"d0": DOCUMENTS["d0"], "bad": "unheard of and unheard of " + DOCUMENTS["d1"]})
    first = site.update(site.create())
    assert first.exit_code == 0, first
    assert [step.stage for step in first.steps][2:5] == ["tag", "filter", "filter"]
    assert ("left", "bad") not in live_documents(retrodb.open(site.path))
    assert site.update().outcome == "nothing new"
    site.write("left", {"d0": DOCUMENTS["d0"], "worse": "unheard, unheard. " + DOCUMENTS["d2"], "d3": DOCUMENTS["d3"]})
    assert site.update().exit_code == 0
    db = retrodb.open(site.path)
    assert {name for source, name in live_documents(db) if source == "left"} == {"d0", "d3"}
    assert db.stats().spaces[0].coverage == 1
    assert "worse" not in {hit.doc_id for hit in db.search([DOCUMENTS["d2"]], k=9)[0]}


def test_an_export_follows_its_table(site: Site) -> None:
    site.recipe["exports"] = [{"to": "parquet", "out": "exported", "table": "self"}]
    first = site.update(site.create())
    assert (first.steps[-1].stage, first.steps[-1].outcome) == ("export", "done")
    assert site.update().outcome == "nothing new"
    site.write("left", CHANGED)
    result = site.update()
    assert result.steps[-1].counts["changed_files"] > 0
    assert site.update().outcome == "nothing new"
    shutil.rmtree(site.folder / "exported")
    del site.recipe["exports"]
    site.write("left", DOCUMENTS)
    assert "export" not in {step.stage for step in site.update().steps}


def test_a_database_without_a_recipe_is_not_updated(site: Site) -> None:
    site.create()
    with pytest.raises(MissingStep, match="recipe"):
        retrodb.open(site.path, clock=CLOCK).update()


def test_a_table_with_changed_parameters_is_recomputed(site: Site) -> None:
    site.update(site.create())
    site.recipe["neighbours"]["self"]["k"] = 3
    assert [step.outcome for step in site.update().steps if step.stage == "neighbours"] == ["done", "nothing new"]
    assert retrodb.open(site.path).neighbour_table().k == 3


def parse_prometheus(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by metric, strictly as the text format has it: every metric's help and type stand before its samples."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    declared = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if match := re.fullmatch(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) [^\n]+", line):
            declared = match[1]
            assert declared not in found
        elif match := re.fullmatch(r"# TYPE (\S+) (gauge|counter)", line):
            assert match[1] == declared
        else:
            match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\} (\S+)", line)
            assert match, line
            assert match[1] == declared
            labels = re.fullmatch(r'(?:([a-zA-Z_]\w*)="((?:[^"\\]|\\[\\n"])*)",?)*', match[2])
            assert labels, line
            pairs = re.findall(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\[\\n"])*)"', match[2])
            found.setdefault(match[1], []).append((dict(pairs), float(match[3])))
    return found

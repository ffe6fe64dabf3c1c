"""The whole pipeline on workers gives what one machine gives, whoever is killed, whenever, and whatever clocks say."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty_storage import SURVIVED
from object_server import ObjectServer, RandomFaults

from engine.cluster import Cluster, build_here, build_there, write_inputs

CLOCK_OFFSETS_S = (0, 3600, -3600)


def test_three_workers_give_the_answers_of_one_machine(tmp_path: Path, made_tokenizer: Path) -> None:
    """One of them is killed every few seconds."""
    inputs = write_inputs(tmp_path, 120)
    cluster = Cluster(str(tmp_path / "there"), tmp_path, lease_s=2)
    there = build_there(cluster, made_tokenizer, inputs, tmp_path / "out", workers=3, pause_s=4, kills_command=False)
    assert cluster.num_kills > 3
    assert there == build_here(tmp_path, made_tokenizer, inputs)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_kills_of_workers_and_commands_change_no_answer(
    tmp_path: Path, made_tokenizer: Path, seed: int
) -> None:
    """Eight workers share two to four tasks. The clocks of workers and commands differ by an hour."""
    inputs = write_inputs(tmp_path, 300)
    here = build_here(tmp_path, made_tokenizer, inputs)
    kills = round_ = 0
    while kills < 100:
        cluster = Cluster(
            str(tmp_path / f"there-{round_}"), tmp_path, 2, seed=1000 * seed + round_, clock_offsets_s=CLOCK_OFFSETS_S
        )
        out = tmp_path / f"out-{round_}"
        assert build_there(cluster, made_tokenizer, inputs, out, workers=8, pause_s=1.5, kills_command=True) == here
        kills, round_ = kills + cluster.num_kills, round_ + 1


@pytest.mark.soak
def test_a_thousand_faults_of_a_store_change_no_answer_of_workers(
    tmp_path: Path,
    made_tokenizer: Path,
    store_url: str,
    object_server: ObjectServer,
    record_property: pytest.RecordProperty,
) -> None:
    """Three workers, one of which is killed every few seconds."""
    inputs = write_inputs(tmp_path, 120)
    here = build_here(tmp_path, made_tokenizer, inputs)
    object_server.choose = faults = RandomFaults(0.1, seed=3)
    number = 0
    while faults.counts.total() < 1000:
        cluster = Cluster(f"{store_url}-{number}", tmp_path, lease_s=4, seed=number)
        out = tmp_path / f"out-{number}"
        assert build_there(cluster, made_tokenizer, inputs, out, workers=3, pause_s=6, kills_command=True) == here
        number += 1
    record_property(SURVIVED, faults.counts.total())

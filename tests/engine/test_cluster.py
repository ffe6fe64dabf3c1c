"""The whole pipeline on workers gives what one machine gives, whoever is killed, and whenever."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cluster import Cluster, answers, build_here, commands_of, create, write_inputs


def test_three_workers_give_the_answers_of_one_machine(tmp_path: Path, made_tokenizer: Path) -> None:
    """One of them is killed every few seconds."""
    inputs = write_inputs(tmp_path, 120)
    build_here(tmp_path / "here", made_tokenizer, inputs)
    cluster = Cluster(tmp_path / "there", lease_s=2)
    create(cluster.database, made_tokenizer)
    with cluster.workers(3):
        for command in commands_of(cluster.database, inputs):
            cluster.run(command, pause_s=4)
    assert cluster.num_kills > 3
    assert answers(cluster.database) == answers(tmp_path / "here")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_kills_of_workers_and_commands_change_no_answer(
    tmp_path: Path, made_tokenizer: Path, seed: int
) -> None:
    inputs = write_inputs(tmp_path, 300)
    build_here(tmp_path / "here", made_tokenizer, inputs)
    kills = round_ = 0
    while kills < 100:
        cluster = Cluster(tmp_path / f"there-{round_}", lease_s=2, seed=1000 * seed + round_)
        create(cluster.database, made_tokenizer)
        with cluster.workers(8):
            for command in commands_of(cluster.database, inputs):
                cluster.run(command, pause_s=1.5, kills_command=True)
        assert answers(cluster.database) == answers(tmp_path / "here")
        kills, round_ = kills + cluster.num_kills, round_ + 1

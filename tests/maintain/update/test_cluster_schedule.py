"""Jobs of Slurm, Kubernetes and Airflow: each parsed as its scheduler does, and run as far as that goes without one."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from made_documents import made_text

from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.maintain.update import schedule
from retrodb.maintain.update.cluster_schedule import ClusterOptions
from retrodb.maintain.update.schedule import plan_schedule
from retrodb_cli.main import main

ODD = "/srv/my data/100% of $HOME $(id) {{ds}} 'new' \\x.retrodb"
BOTH = ClusterOptions(cpu_workers=3, gpu_workers=2)
SLURM = BOTH.__class__(cpu_workers=3, gpu_workers=2, partition="cpu", gpu_partition="a100")
# Options of sbatch(1) that the scripts use, and what their values look like.
SBATCH = {
    "job-name": r"[\w-]+",
    "output": r"[\w-]+(?:%A-%a|%j)\.log",
    "open-mode": "append|truncate",
    "partition": r"\w+",
    "array": r"0-\d{1,3}",
    "requeue": None,
    "signal": r"B:TERM@\d+",
    "gres": r"gpu:\d+",
}


def files_of(kind: str, options: ClusterOptions, database: str = ODD) -> dict[str, str]:
    return {file.name: file.text for file in plan_schedule(database, kind=kind, cluster=options, every="6h")}


def test_every_script_of_slurm_has_good_directives_and_is_good_shell() -> None:
    files = files_of("slurm", SLURM)
    scripts = {name: text for name, text in files.items() if name.endswith((".sbatch", ".sh"))}
    assert len(scripts) == 4
    for name, text in scripts.items():
        assert subprocess.run(["bash", "-n"], input=text.encode(), check=False).returncode == 0
        directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
        assert len(directives) == text.count("#SBATCH")
        for option, value in directives:
            pattern = SBATCH[option]
            assert re.fullmatch(pattern, value) if pattern else value == "", (name, option, value)
        if name.endswith(".sbatch"):
            assert text.index("#SBATCH") < text.index("retrodb ")
    assert "--partition=a100" in scripts["retrodb-100-of-HOME-id-ds-new-x-gpu-workers.sbatch"]


@pytest.mark.parametrize(("count", "arrays"), [(1, ["0-0"]), (999, ["0-998"]), (2500, ["0-998", "0-998", "0-501"])])
def test_no_array_of_slurm_has_a_thousand_tasks(count: int, arrays: list[str]) -> None:
    files = files_of("slurm", ClusterOptions(cpu_workers=count), "/srv/db")
    assert re.findall(r"--array=(\S+)", "".join(files.values())) == arrays
    submitted = re.findall(r"sbatch --dependency=\S+ (\S+)", files["retrodb-db-submit.sh"])
    assert submitted == [name for name in files if "workers" in name]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that note how they were called: `retrodb`, which ends as a file says, `sbatch` and `scontrol`."""
    for name, body in (
        ("retrodb", 'trap "exit 75" TERM; for _ in $(seq 100); do [ -f code ] && exit $(cat code); sleep 0.1; done'),
        ("sbatch", "echo 17"),
        ("scontrol", ""),
    ):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/bash\nprintf "%s" "{name}" >> calls; printf " <%s>" "$@" >> calls; echo >> calls\n{body}\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setattr(schedule, "_program", lambda: [str(tmp_path / "retrodb")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_slurm_starts_a_worker_again_only_when_it_was_told_to_stop(cluster: Path, code: int, requeued: bool) -> None:
    (cluster / "code").write_text(str(code))
    script = files_of("slurm", SLURM)["retrodb-100-of-HOME-id-ds-new-x-workers.sbatch"]
    assert subprocess.run(["bash"], input=script.encode(), check=False).returncode == code
    calls = (cluster / "calls").read_text().splitlines()
    assert calls[0] == f"retrodb <work> <{ODD}> <--idle-exit> <10m> <--grace> <100s>"
    assert calls[1:] == (["scontrol <requeue> <1234>"] if requeued else [])


def test_the_signal_of_slurm_reaches_the_worker(cluster: Path) -> None:
    script = cluster / "script"
    script.write_text(files_of("slurm", SLURM)["retrodb-100-of-HOME-id-ds-new-x-gpu-workers.sbatch"])
    process = subprocess.Popen(["bash", str(script)])
    deadline = time.monotonic() + 10
    while not (cluster / "calls").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    calls = (cluster / "calls").read_text().splitlines()
    assert calls[0].endswith("<--gpu> <--stages> <embed,neighbours> <--workers> <1>")
    assert calls[-1] == "scontrol <requeue> <1234>"


def test_workers_of_slurm_start_with_the_update(cluster: Path) -> None:
    submit = cluster / "submit.sh"
    submit.write_text(files_of("slurm", SLURM, "/srv/db")["retrodb-db-submit.sh"])
    subprocess.run(["bash", str(submit)], check=True, capture_output=True)
    assert (cluster / "calls").read_text().splitlines() == [
        "sbatch <--parsable> <retrodb-db-update.sbatch>",
        "sbatch <--dependency=after:17> <retrodb-db-workers.sbatch>",
        "sbatch <--dependency=after:17> <retrodb-db-gpu-workers.sbatch>",
    ]


@pytest.mark.parametrize(("code", "reported"), [(0, 0), (3, 0), (1, 1), (11, 11)])
@pytest.mark.parametrize("kind", ["slurm", "kubernetes", "airflow"])
def test_rejected_records_are_no_failure_of_an_update(cluster: Path, kind: str, code: int, reported: int) -> None:
    (cluster / "code").write_text(str(code))
    [line] = [line for line in _update_lines(kind) if " update " in line]
    assert subprocess.run(["bash", "-c", line], check=False).returncode == reported
    assert (cluster / "calls").read_text().startswith(f"retrodb <update> <{ODD}> <--no-progress> <--engine> <workers>")


def _update_lines(kind: str) -> list[str]:
    match kind:
        case "slurm":
            return [files_of("slurm", BOTH)["retrodb-100-of-HOME-id-ds-new-x-update.sbatch"]]
        case "kubernetes":
            options = ClusterOptions(image="image", volume="claim")
            [text] = files_of("kubernetes", options).values()
            return [_container(job)["command"][2].replace("$$(", "$(") for job in yaml.safe_load_all(text)][:1]
        case _:
            return [
                command
                for _, command, _ in airflow_tasks(files_of("airflow", BOTH)["retrodb-100-of-HOME-id-ds-new-x-dag.py"])
            ]


def _container(job: Any) -> Any:
    return job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]


def test_the_cron_jobs_of_kubernetes_have_its_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    options = ClusterOptions(cpu_workers=3, gpu_workers=2, image="registry.example/retrodb:1", volume="claim")
    [text] = files_of("kubernetes", options).values()
    jobs = list(yaml.safe_load_all(text))
    assert [job["spec"]["jobTemplate"]["spec"]["parallelism"] for job in jobs] == [1, 3, 2]
    for job in jobs:
        validate.validate(job, "1.31", strict=True)
    assert _container(jobs[2])["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert _container(jobs[1])["command"][:3] == ["retrodb", "work", ODD.replace("$(", "$$(")]
    assert _container(jobs[1])["volumeMounts"][0]["mountPath"] == "/srv/my data"


def test_a_database_in_an_object_store_needs_no_volume() -> None:
    [text] = files_of("kubernetes", ClusterOptions(image="image"), "s3://bucket/db").values()
    assert "volumes" not in text
    assert _container(next(yaml.safe_load_all(text)))["image"] == "image"


def test_the_dag_of_airflow_has_an_update_and_workers_that_are_tried_again() -> None:
    tasks = airflow_tasks(files_of("airflow", BOTH)["retrodb-100-of-HOME-id-ds-new-x-dag.py"])
    assert [name for name, _, _ in tasks] == [
        "update",
        *(f"worker_{n}" for n in range(3)),
        "gpu_worker_0",
        "gpu_worker_1",
    ]
    assert all(retries > 100 for name, _, retries in tasks if "worker" in name)
    assert shlex.split(tasks[1][1])[1:3] == ["work", ODD]


def airflow_tasks(text: str) -> list[tuple[str, str, int]]:
    """The tasks of a DAG with their commands, as Jinja leaves them, and retries. Airflow itself is not needed."""
    import jinja2

    tasks: list[tuple[str, str, int]] = []

    class Dag:
        def __init__(
            self, dag_id: str, *, schedule: str, start_date: object, catchup: bool, max_active_runs: int
        ) -> None:
            assert re.fullmatch(r"[\w.-]+", dag_id)
            assert schedule == "0 */6 * * *"

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def operator(*, task_id: str, bash_command: str, retries: int, retry_delay: object) -> None:
        assert not bash_command.endswith((".sh", ".bash"))  # Airflow would read a file
        tasks.append((task_id, jinja2.Template(bash_command).render(ds="2026-01-01"), retries))

    modules = {"airflow": {}, "airflow.sdk": {"DAG": Dag}, "airflow.providers": {}, "airflow.providers.standard": {}}
    modules |= {
        "airflow.providers.standard.operators": {},
        "airflow.providers.standard.operators.bash": {"BashOperator": operator},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in modules.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        exec(compile(text, "dag.py", "exec"), {})
    return tasks


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("kubernetes", ClusterOptions(), "needs an image"),
        ("kubernetes", ClusterOptions(image="image"), "reach no directory of this machine"),
        ("slurm", ClusterOptions(image="image"), "--image is an option for kubernetes, not for slurm"),
        ("airflow", ClusterOptions(partition="cpu"), "--partition is an option for slurm, not for airflow"),
        (
            "cron",
            ClusterOptions(gpu_workers=1),
            "--gpu-workers is an option for slurm and kubernetes and airflow, not for cron",
        ),
        ("slurm", ClusterOptions(cpu_workers=0), "no CPU workers"),
        ("slurm", ClusterOptions(gpu_workers=-1), "-1 workers"),
    ],
)
def test_options_that_a_scheduler_does_not_have_are_refused(kind: str, options: ClusterOptions, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        files_of(kind, options)


def test_the_command_writes_the_files_into_a_folder(make_database: Callable[..., Database], tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 50)})
    (Path(database.path) / "recipe.toml").write_text('[sources.made]\ninputs = ["a.jsonl"]\n')
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--print", "slurm", "--cpu-workers", "2", "--out", str(out)]
    assert main(["schedule", database.path, *arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "retrodb-db-submit.sh",
        "retrodb-db-update.sbatch",
        "retrodb-db-workers.sbatch",
        "retrodb-db.scrontab",
    ]
    assert f"bash {out}/retrodb-db-submit.sh" in (out / "retrodb-db.scrontab").read_text()

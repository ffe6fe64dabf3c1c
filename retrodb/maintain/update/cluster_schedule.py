"""Files that run `retrodb update` with workers regularly on a cluster: for Slurm, Kubernetes and Airflow.

One job runs `retrodb update --engine workers`. Others run `retrodb work`: they start with it, take what it posts, and end when
there has been nothing to do for some time. A worker that is told to stop exits with 75, and is started again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import yaml

from retrodb.errors import EXIT_REJECTS, EXIT_REQUEUE, UsageError

if TYPE_CHECKING:
    from retrodb.format.json_codec import JsonObject, JsonValue

_IDLE_EXIT, _GRACE_S, _STOP_S = "10m", 100, 120  # a scheduler kills a worker so long after it told it to stop
_MOST_ARRAY_TASKS = 999  # Slurm refuses an array of more than MaxArraySize, 1,001 by default
_GPU_STAGES = "embed,neighbours"
_ATTEMPTS = 1000  # of a worker; it is started again whenever it was told to stop


@dataclass(frozen=True)
class ClusterOptions:
    """What the files ask a cluster for."""

    cpu_workers: int = 4
    gpu_workers: int = 0  # with one GPU each
    partition: str | None = None  # Slurm
    gpu_partition: str | None = None  # Slurm
    image: str | None = None  # Kubernetes
    volume: str | None = None  # Kubernetes: claim of the volume with the database, unless it is in an object store


@dataclass(frozen=True)
class UpdateJob:
    """The commands of an update, as shell words."""

    name: str
    database: str  # absolute path or URL
    update: Sequence[str]  # without the engine
    work: Sequence[str]
    calendar: str  # five fields of cron

    @property
    def update_line(self) -> str:
        """A line of shell. Rejected records are no failure."""
        words = shlex.join([*self.update, "--engine", "workers"])
        return f"{words}; code=$?; [ $code -eq {EXIT_REJECTS} ] && code=0; exit $code"

    def worker_words(self, *, gpu: bool) -> list[str]:
        """The command of a worker."""
        words = [*self.work, "--idle-exit", _IDLE_EXIT, "--grace", f"{_GRACE_S}s"]
        return [*words, "--gpu", "--stages", _GPU_STAGES, "--workers", "1"] if gpu else words


def slurm_files(job: UpdateJob, options: ClusterOptions, folder: PurePosixPath) -> Iterator[tuple[str, str]]:
    """Batch scripts, a script that submits them, and a line for scrontab: name and text of each.

    Args:
        folder: that the files are in.
    """
    update = f"{job.name}-update.sbatch"
    yield update, _slurm_script(job.name, "update", options.partition, [], [f"({job.update_line})"])
    scripts = list(_slurm_workers(job, options))
    yield from scripts
    submit = f"{job.name}-submit.sh"
    lines = ["#!/bin/bash", "set -e", 'cd "$(dirname "$0")"', f"update=$(sbatch --parsable {shlex.quote(update)})"]
    lines += [f'sbatch --dependency="after:$update" {shlex.quote(name)}' for name, _ in scripts]
    yield submit, "\n".join(lines) + "\n"
    command = f"bash {shlex.quote(str(folder / submit))}".replace("%", "\\%")
    yield f"{job.name}.scrontab", f"#SCRON --job-name={job.name}\n{job.calendar} {command}\n"


def _slurm_workers(job: UpdateJob, options: ClusterOptions) -> Iterator[tuple[str, str]]:
    for kind, count, partition in (
        ("workers", options.cpu_workers, options.partition),
        ("gpu-workers", options.gpu_workers, options.gpu_partition or options.partition),
    ):
        is_gpu = kind == "gpu-workers"
        for number, first in enumerate(range(0, count, _MOST_ARRAY_TASKS)):
            last = min(count - first, _MOST_ARRAY_TASKS) - 1
            directives = [f"--array=0-{last}", "--requeue", f"--signal=B:TERM@{_STOP_S}"]
            directives += ["--gres=gpu:1"] if is_gpu else []
            # The shell of a batch job gets the signal. The worker ends by itself, and Slurm starts it again.
            lines = [
                f"{shlex.join(job.worker_words(gpu=is_gpu))} &",
                "worker=$!",
                "trap 'kill -TERM $worker' TERM",
                "wait $worker; code=$?",
                "while kill -0 $worker 2>/dev/null; do wait $worker; code=$?; done",
                f'[ $code -eq {EXIT_REQUEUE} ] && scontrol requeue "$SLURM_JOB_ID"',
                "exit $code",
            ]
            suffix = f"-{number + 1}" if count > _MOST_ARRAY_TASKS else ""
            yield f"{job.name}-{kind}{suffix}.sbatch", _slurm_script(job.name, kind, partition, directives, lines)


def _slurm_script(name: str, kind: str, partition: str | None, directives: Sequence[str], lines: Sequence[str]) -> str:
    log = "%A-%a" if any(line.startswith("--array") for line in directives) else "%j"
    common = [f"--job-name={name}-{kind}", f"--output={name}-{kind}-{log}.log", "--open-mode=append"]
    common += [f"--partition={partition}"] if partition else []
    head = "".join(f"#SBATCH {directive}\n" for directive in [*common, *directives])
    return f"#!/bin/bash\n{head}\n" + "\n".join(lines) + "\n"


def kubernetes_files(job: UpdateJob, options: ClusterOptions) -> Iterator[tuple[str, str]]:
    """One file with cron jobs for the update and its workers.

    Raises:
        UsageError: no image, or a database on a disk without a volume.
    """
    if options.image is None:
        raise UsageError("Kubernetes needs an image with retrodb", remedy="Add '--image NAME'.")
    is_url = "://" in job.database
    if options.volume is None and not is_url:
        remedy = "Add '--volume CLAIM', the claim of a volume that many pods may write to (ReadWriteMany)."
        raise UsageError("the pods reach no directory of this machine", where=job.database, remedy=remedy)
    name = job.name.lower().replace("_", "-")[:40].strip("-")
    documents = [_cron_job(job, options, f"{name}-update", ["/bin/sh", "-c", job.update_line], 1, is_gpu=False)]
    for kind, count, is_gpu in (("workers", options.cpu_workers, False), ("gpu-workers", options.gpu_workers, True)):
        if count:
            words = job.worker_words(gpu=is_gpu)
            documents.append(_cron_job(job, options, f"{name}-{kind}", words, count, is_gpu=is_gpu))
    yield f"{job.name}.yaml", yaml.safe_dump_all(documents, sort_keys=False, width=10_000)


def _cron_job(
    job: UpdateJob, options: ClusterOptions, name: str, words: Sequence[str], count: int, *, is_gpu: bool
) -> Mapping[str, JsonValue]:
    container: dict[str, JsonValue] = {
        "name": "retrodb",
        "image": options.image,
        "command": [word.replace("$(", "$$(") for word in words],
    }
    pod: dict[str, JsonValue] = {
        "restartPolicy": "Never",  # the policy below restarts them
        "terminationGracePeriodSeconds": _STOP_S,
        "containers": [container],
    }
    if is_gpu:
        container["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    if options.volume is not None and "://" not in job.database:
        container["volumeMounts"] = [{"name": "database", "mountPath": str(PurePosixPath(job.database).parent)}]
        pod["volumes"] = [{"name": "database", "persistentVolumeClaim": {"claimName": options.volume}}]
    told_to_stop: JsonObject = {"containerName": "retrodb", "operator": "In", "values": [EXIT_REQUEUE]}
    evicted: JsonObject = {"type": "DisruptionTarget", "status": "True"}
    spec: dict[str, JsonValue] = {
        "parallelism": count,
        "backoffLimit": 6,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onExitCodes": told_to_stop},
                {"action": "Ignore", "onPodConditions": [evicted]},
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {"schedule": job.calendar, "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": spec}},
    }


def airflow_files(job: UpdateJob, options: ClusterOptions) -> Iterator[tuple[str, str]]:
    """One file with a DAG: an update and its workers, which run at the same time."""
    commands = [("update", job.update_line, 3)]
    commands += [
        (f"worker_{n}", shlex.join(job.worker_words(gpu=False)), _ATTEMPTS) for n in range(options.cpu_workers)
    ]
    commands += [
        (f"gpu_worker_{n}", shlex.join(job.worker_words(gpu=True)), _ATTEMPTS) for n in range(options.gpu_workers)
    ]
    tasks = "".join(
        f"    BashOperator(task_id={task!r}, bash_command={_without_templates(line)!r}, retries={retries}, retry_delay=DELAY)\n"
        for task, line, retries in commands
    )
    yield (
        f"{job.name}-dag.py",
        '"""Update a retrieval database with workers. A worker that is told to stop fails with 75 and is tried again."""\n\n'
        "from datetime import datetime, timedelta\n\n"
        "from airflow.providers.standard.operators.bash import BashOperator\n"
        "from airflow.sdk import DAG\n\n"
        "DELAY = timedelta(seconds=10)\n\n"
        f"with DAG({job.name!r}, schedule={job.calendar!r}, start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1):\n"
        f"{tasks}",
    )


def _without_templates(line: str) -> str:
    """A command in which Jinja finds nothing to replace. A space at its end keeps it from being taken for the name of a file."""
    return line.replace("{{", "{{ '{{' }}").replace("{%", "{{ '{%' }}").replace("{#", "{{ '{#' }}") + " "

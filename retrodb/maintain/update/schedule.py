"""Files that run `retrodb update` regularly: units for systemd, a line for cron, or jobs of a cluster (`cluster_schedule.py`)."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from retrodb.errors import EXIT_REJECTS, UsageError
from retrodb.maintain.update.cluster_schedule import (
    ClusterOptions,
    UpdateJob,
    airflow_files,
    kubernetes_files,
    slurm_files,
)

CLUSTERS = ("slurm", "kubernetes", "airflow")
KINDS = ("systemd", "cron", *CLUSTERS)
NO_CLUSTER = ClusterOptions()
_SCHEDULERS_OF = {
    "cpu_workers": CLUSTERS,
    "gpu_workers": CLUSTERS,
    "partition": ("slurm",),
    "gpu_partition": ("slurm",),
    "image": ("kubernetes",),
    "volume": ("kubernetes",),
}
_HOUR = 3  # of daily and weekly updates, when few people work
_MINUTES, _HOURS = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30), (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class ScheduleFile:
    """A file for a scheduler."""

    name: str
    text: str


@dataclass(frozen=True)
class _Calendar:
    """The same times in both notations."""

    systemd: str
    cron: str


def plan_schedule(
    database: str,
    *,
    kind: str = "systemd",
    every: str = "1d",
    config: str | None = None,
    cluster: ClusterOptions = NO_CLUSTER,
    folder: Path | None = None,
) -> list[ScheduleFile]:
    """The files that run `retrodb update` regularly. Nothing is installed.

    Args:
        kind: one of `KINDS`.
        every: minutes that divide the hour (`15m`), hours that divide the day (`6h`), `1d` or `1w`.
        config: path of a recipe; None takes the one in the database.
        cluster: what the jobs of a cluster ask for.
        folder: that the files will be in; None is the current one.

    Raises:
        UsageError: for an unknown scheduler, an interval that a calendar cannot express, a path with a control character, or an
            option that this scheduler does not have.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown scheduler '{kind}'", remedy=f"Known are: {', '.join(KINDS)}.")
    calendar = _calendar(every)
    if re.search(r"[\x00-\x1f\x7f]", f"{database}{config}"):
        raise UsageError("the path has a control character", where=repr(database), remedy="Rename the folder or file.")
    path = database if "://" in database else str(Path(database).absolute())
    _refuse_others(kind, cluster)
    words = [*_program(), "update", path, "--no-progress"]
    words += ["--config", str(Path(config).absolute())] if config else []
    name = "retrodb-" + re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).name.removesuffix(".retrodb")).strip("-")
    if kind in CLUSTERS:
        program = ["retrodb"] if kind == "kubernetes" else _program()
        update = [*program, *words[len(_program()) :]]
        job = UpdateJob(name, path, update, [*program, "work", path], calendar.cron)
        files = {
            "slurm": lambda: slurm_files(job, cluster, PurePosixPath((folder or Path.cwd()).absolute())),
            "kubernetes": lambda: kubernetes_files(job, cluster),
            "airflow": lambda: airflow_files(job, cluster),
        }[kind]()
        return [ScheduleFile(file, text) for file, text in files]
    if kind == "cron":
        return [ScheduleFile(f"{name}.cron", f"{calendar.cron} {_cron_command(words)}\n")]
    return [
        ScheduleFile(f"{name}.service", _service(path, words)),
        ScheduleFile(f"{name}.timer", _timer(path, calendar.systemd)),
    ]


def _refuse_others(kind: str, cluster: ClusterOptions) -> None:
    """Raises UsageError for an option of another scheduler."""
    for field in fields(cluster):
        if getattr(cluster, field.name) != field.default and kind not in _SCHEDULERS_OF[field.name]:
            option, names = f"--{field.name.replace('_', '-')}", " and ".join(_SCHEDULERS_OF[field.name])
            raise UsageError(f"{option} is an option for {names}, not for {kind}", remedy=f"Leave {option} out.")
    for count in (cluster.cpu_workers, cluster.gpu_workers):
        if count < 0:
            raise UsageError(f"{count} workers", remedy="Give 0 or more.")
    if cluster.cpu_workers == 0:
        raise UsageError("no CPU workers: nobody would run the tasks that need no GPU", remedy="Give at least 1.")


def _calendar(every: str) -> _Calendar:
    number, unit = (int(every[:-1]), every[-1]) if re.fullmatch(r"\d{1,3}[mhdw]", every) else (0, "")
    if unit == "m" and number in _MINUTES:
        return _Calendar(f"*:0/{number}", f"*/{number} * * * *")
    if unit == "h" and number in _HOURS:
        return _Calendar(f"*-*-* 0/{number}:00:00", f"0 */{number} * * *")
    if unit == "d" and number == 1:
        return _Calendar(f"*-*-* {_HOUR:02}:00:00", f"0 {_HOUR} * * *")
    if unit == "w" and number == 1:
        return _Calendar(f"Sun *-*-* {_HOUR:02}:00:00", f"0 {_HOUR} * * 0")
    raise UsageError(
        f"invalid interval '{every}'",
        remedy="Give minutes that divide the hour (15m), hours that divide the day (6h), 1d or 1w.",
    )


def _program() -> list[str]:
    """The command of this installation: its script, or its interpreter."""
    script = Path(sys.executable).with_name("retrodb")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from retrodb_cli.main import run; run()"]


def _service(database: str, words: Sequence[str]) -> str:
    return (
        "[Unit]\n"
        f"Description=Update the retrieval database {_specifiers(database)}\n"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        f"ExecStart={' '.join(map(_systemd_word, words))}\n"
        "Nice=10\n"
        f"SuccessExitStatus={EXIT_REJECTS}\n"  # some records were rejected, and the update is complete
    )


def _timer(database: str, calendar: str) -> str:
    return (
        "[Unit]\n"
        f"Description=Timer that updates the retrieval database {_specifiers(database)}\n"
        "\n"
        "[Timer]\n"
        f"OnCalendar={calendar}\n"
        "Persistent=true\n"  # an update that was missed while the machine was off runs later
        "\n"
        "[Install]\n"
        "WantedBy=timers.target\n"
    )


def _systemd_word(word: str) -> str:
    """A word of a command line in a unit, see systemd.service(5): quoted, without variables and specifiers."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_specifiers(escaped)}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _cron_command(words: Sequence[str]) -> str:
    """The command field of crontab(5): shell words, in which an unescaped % would end the line."""
    return shlex.join(words).replace("%", "\\%")

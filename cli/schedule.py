"""`retrodb schedule`"""

from __future__ import annotations

from pathlib import Path

import click

from .options import READING_EXITS, Command, Session, database_argument, json_option, open_database, pass_session
from .render_update import schedule_file


@click.command(cls=Command, example="retrodb schedule my.retrodb --print systemd --every 6h", exits=READING_EXITS)
@database_argument
@click.option(
    "--print",
    "kind",
    type=click.Choice(["systemd", "cron", "slurm", "kubernetes", "airflow"]),
    required=True,
    help="Scheduler to write the files for.",
)
@click.option(
    "--every",
    default="1d",
    show_default=True,
    metavar="TIME",
    help="Time between two updates: minutes that divide an hour (15m), hours that divide a day (6h), 1d or 1w.",
)
@click.option("--config", metavar="FILE", help="Recipe file.  [default: recipe.toml inside DB]")
@click.option(
    "--out",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write the files into this folder, such as ~/.config/systemd/user.",
)
@click.option(
    "--cpu-workers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="On a cluster: number of workers of an update.",
)
@click.option(
    "--gpu-workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="On a cluster: number of workers with one GPU each. They embed chunks and compute neighbours.",
)
@click.option("--partition", metavar="NAME", help="Slurm: partition of the jobs.  [default: the cluster's default]")
@click.option("--gpu-partition", metavar="NAME", help="Slurm: partition of workers with a GPU.  [default: --partition]")
@click.option("--image", metavar="NAME", help="Kubernetes: image with retrodb.")
@click.option("--volume", metavar="CLAIM", help="Kubernetes: claim of the volume that has DB, if DB is a directory.")
@json_option
@pass_session
def command(
    session: Session,
    database: str,
    kind: str,
    every: str,
    config: str | None,
    out: Path | None,
    cpu_workers: int,
    gpu_workers: int,
    partition: str | None,
    gpu_partition: str | None,
    image: str | None,
    volume: str | None,
) -> None:
    """Print files that run 'retrodb update DB' regularly, on this machine or with workers on a cluster. Nothing is installed."""
    files = open_database(session, database).schedule(
        kind=kind,
        every=every,
        config=config,
        cpu_workers=cpu_workers,
        gpu_workers=gpu_workers,
        partition=partition,
        gpu_partition=gpu_partition,
        image=image,
        volume=volume,
        folder=out,
    )
    if out:
        for file in files:
            (out / file.name).write_text(file.text)
    session.output.rows(files, schedule_file)

"""`retrodb schedule`"""

from __future__ import annotations

from pathlib import Path

import click

from .options import READING_EXITS, Command, Session, database_argument, json_option, open_database, pass_session
from .render_update import schedule_file


@click.command(cls=Command, example="retrodb schedule my.retrodb --print systemd --every 6h", exits=READING_EXITS)
@database_argument
@click.option(
    "--print", "kind", type=click.Choice(["systemd", "cron"]), required=True, help="Scheduler to write the files for."
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
@json_option
@pass_session
def command(session: Session, database: str, kind: str, every: str, config: str | None, out: Path | None) -> None:
    """Print files for systemd or cron that run 'retrodb update DB' regularly. Nothing is installed."""
    files = open_database(session, database).schedule(kind=kind, every=every, config=config)
    if out:
        for file in files:
            (out / file.name).write_text(file.text)
    session.output.rows(files, schedule_file)

"""`retrodb update`"""

from __future__ import annotations

import click

from retrodb import errors

from .options import WRITING_EXITS, Command, Session, database_argument, open_database, runs_tasks
from .render_update import update_plan, update_result, update_step


@click.command(cls=Command, example="retrodb update my.retrodb --dry-run", exits=[*WRITING_EXITS, errors.EXIT_CONFLICT])
@database_argument
@click.option("--config", metavar="FILE", help="The recipe.  [default: recipe.toml inside DB]")
@click.option("--source", "sources", multiple=True, metavar="NAME", help="Ingest this source only; may be repeated.")
@click.option("--mirror", is_flag=True, help="Remove documents that their source no longer has.")
@runs_tasks
def command(
    session: Session,
    database: str,
    config: str | None,
    sources: tuple[str, ...],
    mirror: bool,
    workers: int | None,
    dry_run: bool,
) -> int | None:
    """Bring DB up to date with its recipe: ingest, tag, filter, dedup, embed, index, neighbours and exports, over what is new.

    Nothing new is a success. A source that fails does not keep the others out; a later stage that fails ends the update.
    All that a recipe can say stands in examples/recipe.toml of the project.
    """
    db = open_database(session, database, workers)
    if dry_run:
        session.output.result(db.plan_update(config, sources=sources, mirror=mirror), update_plan)
        return None
    result = db.update(
        config, sources=sources, mirror=mirror, report=lambda step: session.output.result(step, update_step)
    )
    session.output.result(result, update_result)
    return result.exit_code

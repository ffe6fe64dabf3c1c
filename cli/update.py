"""`retrodb update`"""

from __future__ import annotations

import click

from retrodb import errors

from .options import (
    WRITING_EXITS,
    Command,
    Session,
    database_argument,
    open_database,
    recipe_device_option,
    task_options,
)
from .render_update import update_plan, update_result, update_step

_EXITS = [*WRITING_EXITS, errors.EXIT_CONFLICT, errors.EXIT_REJECTS]


@click.command(cls=Command, example="retrodb update my.retrodb --dry-run", exits=_EXITS)
@database_argument
@click.option("--config", metavar="FILE", help="Recipe file.  [default: recipe.toml inside DB]")
@click.option(
    "--source", "sources", multiple=True, metavar="NAME", help="Ingest only this source. Repeat the option for several."
)
@click.option("--mirror", is_flag=True, help="Delete documents that are no longer in their source.")
@recipe_device_option
@task_options
def command(
    session: Session,
    database: str,
    config: str | None,
    sources: tuple[str, ...],
    mirror: bool,
    device: str | None,
    workers: int | None,
    dry_run: bool,
) -> int | None:
    """Bring DB up to date with its recipe: run every stage over new and changed input.

    The stages are ingest, tag, filter, dedup, embed, index, neighbours and export. If a source fails, the others continue. If
    a later stage fails, the update ends. If nothing is new, the exit code is 0. If records were rejected, and no more than the
    source allows, it is 3. The file examples/recipe.toml of the project
    shows everything that a recipe can contain.
    """
    db = open_database(session, database, workers)
    if dry_run:
        session.output.result(db.plan_update(config, sources=sources, mirror=mirror, device=device), update_plan)
        return None
    result = db.update(
        config,
        sources=sources,
        mirror=mirror,
        device=device,
        report=lambda step: session.output.result(step, update_step),
    )
    session.output.result(result, update_result)
    return result.exit_code

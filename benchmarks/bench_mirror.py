"""A collection that is published again: the update of its database by mirroring, compared with building the new version.

    python benchmarks/bench_mirror.py --old DIR --new DIR --tokenizer gpt2 [--encoder NAME] [--front-matter metadata]
        [--k 2] [--workers N] [--out benchmarks/results/DATE-mirror.md]

Both versions are copied to the same folder in turn, because the id of a document is its path. Every stage is timed once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import retrodb
from retrodb.bench.machine import environment, gemm_gflops
from retrodb.config import dump_toml
from retrodb.maintain.update.command import UpdateResult


def publish(version: Path, site: Path) -> None:
    """Copy a version to the folder that the recipe names."""
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(version, site)


def update(path: Path, recipe: Path, workers: int) -> UpdateResult:
    """Bring a database up to date."""
    result = retrodb.open(path, workers=workers).update(recipe, mirror=True)
    if result.exit_code:
        raise SystemExit(f"the update failed: {[step.error for step in result.steps if step.error]}")
    return result


def row(what: str, result: UpdateResult) -> str:
    """A line of the table."""
    stages: dict[str, float] = {}
    counts: dict[str, int] = {}
    for step in result.steps:
        stages[step.stage] = stages.get(step.stage, 0.0) + step.elapsed_s
        if step.stage == "embed":
            counts = dict(step.counts)
    computed = counts["chunks"] - counts.get("reused", 0) - counts.get("repeated", 0)
    shown = " | ".join(f"{stages.get(stage, 0.0):.1f}" for stage in ("ingest", "embed", "index", "neighbours"))
    return f"| {what} | {counts['chunks']:,} | {counts.get('reused', 0):,} | {computed:,} | {shown} | {result.elapsed_s:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="folder of the old version")
    parser.add_argument("--new", type=Path, required=True, help="folder of the new one")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--encoder", default="hashing:128")
    parser.add_argument("--front-matter", choices=["text", "metadata"], default="text")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file to append to")
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name not in ("out", "old", "new")}
    machine = ", ".join(f"{name} {value}" for name, value in environment(options.workers).items())
    lines = [
        f"{', '.join(f'{name} {Path(str(value)).name}' for name, value in given.items())}.",
        "",
        f"{machine}; load {os.getloadavg()[0]:.1f}; float32 product {gemm_gflops():.0f} GFLOP/s before.",
        "",
        "| run | chunks with a vector | reused | encoded | ingest s | embed s | index s | neighbours s | all s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    made = {"tokenizer": options.tokenizer, "encoder": options.encoder}
    with tempfile.TemporaryDirectory() as folder:
        site, recipe = Path(folder, "site"), Path(folder, "recipe.toml")
        source = {"inputs": ["site"], "max_reject_rate": 0.1, "front_matter": options.front_matter}
        recipe.write_text(dump_toml({"sources": {"site": source}, "neighbours": {"self": {"k": options.k}}}))
        elapsed_s = {}
        for what, version, name in (
            ("build of old", options.old, "updated"),
            ("update to new", options.new, "updated"),
            ("build of new", options.new, "fresh"),
        ):
            publish(version, site)
            if not Path(folder, name).exists():
                retrodb.create(Path(folder, name), **made)
            result = update(Path(folder, name), recipe, options.workers)
            elapsed_s[what] = result.elapsed_s
            lines.append(row(what, result))
            print(lines[-1], flush=True)
    ratio = elapsed_s["build of new"] / elapsed_s["update to new"]
    lines += ["", f"Build of new / update: {ratio:.2f}. float32 product {gemm_gflops():.0f} GFLOP/s after.", ""]
    print("\n".join(lines[-2:]))
    if options.out:
        with options.out.open("a") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Plans compared with real builds: bytes, processor time and memory of every stage, with rates that are measured first.

    python benchmarks/bench_plan.py --tokens 1e7 3e7      # 3 and 10 minutes
    python benchmarks/bench_plan.py --tokens 1e7 --write

The text is Wikipedia and statutes, mixed; the tokenizer is GPT-2's and the encoder `hashing:384`. The plan knows the number of
tokens of a build, and what `plan --measure` found on the first 7 million characters of its input.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the builds are the tests' too

from planned_runs import (
    MEMORY,
    Comparison,
    build,
    compared_bytes,
    compared_memory,
    compared_times,
    plan_of,
    real_documents,
    write_texts,
)
from real_corpora import unpack

from retrodb.bench.machine import environment
from retrodb.database import measure_plan_rates

RESULTS = Path(__file__).resolve().parent / "results"
_BYTES_OF_TOKEN = 4.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e7])
    parser.add_argument("--encoder", default="hashing:384")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for line in report(options, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if options.write:
        file = RESULTS / f"{datetime.date.today():%Y-%m-%d}-plan.md"
        file.write_text("\n".join(lines) + "\n")


def report(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The lines of the result."""
    yield f"# Plans and real builds, {datetime.date.today():%Y-%m-%d}"
    sizes = " ".join(f"{tokens:g}" for tokens in options.tokens)
    yield from ("", f"    python benchmarks/bench_plan.py --tokens {sizes} --encoder {options.encoder}", "")
    yield textwrap.fill(
        ", ".join(f"{name} {value}" for name, value in environment(1).items()), 138, break_on_hyphens=False
    )
    tokenizer, texts = str(unpack("tokenizers.tar.zst", folder / "tokenizers") / "gpt2"), real_documents()
    for tokens in options.tokens:
        documents = write_texts(folder / "documents.jsonl", texts, tokens * _BYTES_OF_TOKEN)
        rates, place = folder / "rates.json", folder / f"{tokens:g}"
        measured = measure_plan_rates(
            rates, sample=[documents], encoder=options.encoder, tokenizer=tokenizer, folder=folder
        )
        real = build(place, documents, tokenizer, options.encoder)
        plan = plan_of(real, options.encoder, rates)
        yield from ("", f"## {real.tokens:,} tokens", "")
        rates_text = ", ".join(f"{name} {rate:.3g}" for name, rate in measured.rates.items())
        chosen = f"{plan.factory}, {plan.num_shards} shards and {plan.nprobe} lists of a row are planned."
        yield textwrap.fill(f"{chosen} Rates a second and core: {rates_text}.", 138, break_on_hyphens=False)
        yield from (
            "",
            f"Processor time and peak of the anonymous memory of each command, `--workers 1 --memory {MEMORY}`:",
        )
        memory = {each.name: each for each in compared_memory(plan, real)}
        yield from (
            "",
            "| stage | planned, s | real, s | ratio | planned, MiB | real, MiB |",
            "|---|---|---|---|---|---|",
        )
        for time in compared_times(plan, real):
            held = memory[time.name]
            numbers = f"{time.predicted:.1f} | {time.real:.1f} | {time.ratio:.2f}"
            yield f"| {time.name} | {numbers} | {held.predicted / 2**20:,.0f} | {held.real / 2**20:,.0f} |"
        yield from ("", "| kind of file | planned, MB | real, MB | ratio |", "|---|---|---|---|")
        yield from _bytes(compared_bytes(plan, real))


def _bytes(compared: Iterable[Comparison]) -> Iterator[str]:
    for each in compared:
        yield f"| {each.name} | {each.predicted / 1e6:,.1f} | {each.real / 1e6:,.1f} | {each.ratio:.2f} |"


if __name__ == "__main__":
    main()

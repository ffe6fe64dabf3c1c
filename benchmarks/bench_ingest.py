"""Ingest, from compressed input to committed shards, against the bare tokenizers and other pipelines, in one run.

    python benchmarks/bench_ingest.py [--data FOLDER] [--megabytes 24] [--peers PYTHON] [--parts PART...] [--out FILE]

Every measurement is a process of its own, including its start. Rates are MB of text per second of CPU time of the process and its
children, so that two rates of one run can be compared even when the machine has other work. Elapsed time is shown too. "Bare" is
only the tokenizer's own batch call on texts in memory; the targets refer to it. `--peers` is a Python with `datasets` and
`datatrove`, which need their own versions of packages; without it they are reported as skipped.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CREATE = """
import sys
import retrodb
retrodb.create(sys.argv[1], tokenizer=sys.argv[2])
"""
PARTS = ("bpe", "wordpiece", "sentencepiece", "memory")
OURS = """
import sys
import retrodb
if __name__ == "__main__":
    folder, source, workers = sys.argv[1:]
    result = retrodb.open(folder, workers=int(workers)).ingest([source], source="bench")
    print(result.num_tokens)
"""
AGAIN = """
import sys, time
import retrodb
database = retrodb.open(sys.argv[1])
start = time.perf_counter()
assert database.ingest([sys.argv[2]], source="bench").num_skipped_inputs == 1
print(time.perf_counter() - start)
"""
LOAD = """
import sys, time, json, resource
from pathlib import Path
from retrodb.corpus.document import Fields, Limits
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split
from retrodb.corpus.tokenizer_files import resolve_tokenizer
tokenizer, source, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = resolve_tokenizer(tokenizer)._model
splits = plan_splits(expand_inputs([source]), 1 << 40)
texts = [document.text for split in splits for document in read_split(split, Fields(), Limits())]
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
elapsed_s, cpu_s = -time.perf_counter(), -cpu()
"""
BARE = {
    "encode_batch_fast": LOAD + "model.tokenizer.encode_batch_fast(texts, add_special_tokens=False)",
    "encode_batch": LOAD + "model.tokenizer.encode_batch(texts, add_special_tokens=False)",
    "encode": LOAD + "model._processor.encode(texts, out_type='offset_mapping', num_threads=workers)",
}
PRINT_TIMES = """
print(json.dumps([elapsed_s + time.perf_counter(), cpu_s + cpu()]))
"""
DATASETS = """
import sys
from datasets import load_dataset
from tokenizers import Tokenizer
if __name__ == "__main__":
    folder, tokenizer, source, workers = sys.argv[1:]
    model = Tokenizer.from_file(tokenizer)
    def tokenize(batch):
        return {"ids": [e.ids for e in model.encode_batch(batch["text"], add_special_tokens=False)]}
    data = load_dataset("json", data_files=source, cache_dir=folder, split="train")
    data.map(tokenize, batched=True, num_proc=int(workers), remove_columns=data.column_names)
"""
DATATROVE = """
import sys
from pathlib import Path
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    folder, tokenizer, source, workers = sys.argv[1:]
    reader = JsonlReader(str(Path(source).parent), compression="zstd", glob_pattern=Path(source).name)
    options = {"local_working_dir": f"{folder}/work", "tokenizer_name_or_path": tokenizer, "eos_token": None}
    tokens = DocumentTokenizer(f"{folder}/out", **options)
    LocalPipelineExecutor([reader, tokens], tasks=1, workers=1, logging_dir=f"{folder}/logs").run()
"""


@dataclass(frozen=True)
class MeasuredProcess:
    """The cost of one process and its children."""

    elapsed_s: float
    cpu_s: float
    output: str
    peak_bytes: int  # sum of the proportional set sizes; 0 when not watched


def measure(
    script: str, *arguments: object, python: str = sys.executable, threads: int = 1, watch: bool = False
) -> MeasuredProcess:
    """Run a script in a new process.

    Raises:
        subprocess.CalledProcessError: when it fails.
    """
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script.py")
        file.write_text(script)
        started = time.perf_counter()
        command = [python, str(file), *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        if watch:
            watcher.start()
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        elapsed_s = time.perf_counter() - started
        if watch:
            watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[:2], output, errors)
    return MeasuredProcess(elapsed_s, usage.ru_utime + usage.ru_stime, output, peak[0])


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    while process.returncode is None and Path(f"/proc/{process.pid}/stat").exists():
        peak[0] = max(peak[0], sum(_resident_bytes(pid) for pid in _tree(process.pid)))
        time.sleep(0.05)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _resident_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def make_sentencepiece(source: Path, folder: Path) -> Path:
    """A unigram model of 16,000 pieces trained on the first documents."""
    import sentencepiece

    texts = [text for _, text in zip(range(3000), texts_of(source), strict=False)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line),
        model_prefix=str(folder / "unigram"),
        vocab_size=16_000,
        minloglevel=2,
    )
    return folder / "unigram.model"


def texts_of(source: Path) -> Iterator[str]:
    from retrodb.corpus.document import Document, Fields, Limits
    from retrodb.corpus.input_files import expand_inputs, plan_splits
    from retrodb.corpus.readers import read_split

    for split in plan_splits(expand_inputs([source]), 1 << 40):
        for record in read_split(split, Fields(), Limits()):
            if isinstance(record, Document):
                yield record.text


def write_input(texts: Iterable[str], target: Path) -> int:
    """Write texts as JSON Lines with ids, compressed by zstd, and return the bytes of text."""
    import orjson
    import pyarrow as pa

    size = 0
    with pa.CompressedOutputStream(str(target), "zstd") as sink:
        for number, text in enumerate(texts):
            sink.write(orjson.dumps({"id": str(number), "text": text}) + b"\n")
            size += len(text.encode())
    return size


def first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        if limit <= 0:
            return
        limit -= len(text.encode())
        yield text


class Report:
    """Lines that are printed and collected."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)


def compare(report: Report, name: str, tokenizer: Path, bare: str, source: Path, size: int, peers: str | None) -> None:
    """One tokenizer: the whole stage, the bare call, and the other pipelines, at one and two workers."""
    report.say(f"\n## {name}\n")
    report.say("| | workers | MB/CPU-s | MB/s elapsed | M tokens/CPU-s | stage / this, CPU | elapsed |")
    report.say("|---|---|---|---|---|---|---|")
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            measure(CREATE, f"{folder}/db", tokenizer)
            ours = measure(OURS, f"{folder}/db", source, workers)
        tokens = int(ours.output)
        row = Row(report, size, tokens, workers, ours.cpu_s, ours.elapsed_s)
        row.say("**retrodb ingest, whole stage**", ours.cpu_s, ours.elapsed_s)
        times = json.loads(measure(BARE[bare] + PRINT_TIMES, tokenizer, source, workers, threads=workers).output)
        row.say(f"bare `{bare}`", times[1], times[0])
        if tokenizer.suffix == ".json":
            for peer, script in (("datasets map", DATASETS), ("datatrove", DATATROVE)):
                row.peer(peer, script, peers, tokenizer, source)


@dataclass(frozen=True)
class Row:
    """What the rows of one table have in common."""

    report: Report
    size: int  # bytes of text
    tokens: int
    workers: int
    stage_cpu_s: float  # of the whole ingest stage
    stage_elapsed_s: float

    def say(self, name: str, cpu_s: float, elapsed_s: float) -> None:
        rates = f"{self.size / cpu_s / 1e6:.2f} | {self.size / elapsed_s / 1e6:.2f} | {self.tokens / cpu_s / 1e6:.2f}"
        ratios = f"{cpu_s / self.stage_cpu_s:.2f} | {elapsed_s / self.stage_elapsed_s:.2f}"
        self.report.say(f"| {name} | {self.workers} | {rates} | {ratios} |")

    def peer(self, name: str, script: str, python: str | None, tokenizer: Path, source: Path) -> None:
        if python is None:
            self.report.say(f"| {name} | {self.workers} | skipped: no `--peers` | | | | |")
            return
        if name == "datatrove" and self.workers > 1:
            self.report.say(f"| {name} | {self.workers} | one file is one task in datatrove | | | | |")
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                measured = measure(script, folder, tokenizer, source, self.workers, python=python, threads=1)
            except subprocess.CalledProcessError as error:
                reason = (error.stderr.strip().splitlines() or ["no message"])[-1][:120]
                self.report.say(f"| {name} | {self.workers} | failed: {reason} | | | | |")
                return
        self.say(name, measured.cpu_s, measured.elapsed_s)


def memory_and_again(report: Report, tokenizer: Path, source: Path) -> None:
    """Peak memory of a small and of a ten times larger input, and a second ingest of the same input."""
    report.say("\n## Peak memory with two workers, and the same input again\n")
    report.say("| text MB | first ingest, s | peak, GiB | again, s | first / again |")
    report.say("|---|---|---|---|---|")
    peaks = []
    for times in (1, 10):
        with tempfile.TemporaryDirectory() as folder:
            repeated = (text for _ in range(times) for text in texts_of(source))
            size = write_input(repeated, Path(folder, "input.jsonl.zst"))
            measure(CREATE, f"{folder}/db", tokenizer)
            first = measure(OURS, f"{folder}/db", f"{folder}/input.jsonl.zst", 2, watch=True)
            again_s = float(measure(AGAIN, f"{folder}/db", f"{folder}/input.jsonl.zst").output)
        peaks.append(first.peak_bytes)
        figures = (
            f"{first.elapsed_s:.1f} | {first.peak_bytes / 2**30:.3f} | {again_s:.3f} | {first.elapsed_s / again_s:.0f}"
        )
        report.say(f"| {size / 1e6:.0f} | {figures} |")
    report.say(f"\nTen times the input takes {peaks[1] / peaks[0]:.3f} times the memory.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of the real corpora")
    parser.add_argument("--megabytes", type=int, default=24, help="text for the comparison of rates")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with datasets and datatrove")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--out", type=Path, help="file to write the report to")
    arguments = parser.parse_args()
    source = arguments.data / "wikipedia-en.jsonl.zst"
    report = Report()
    report.say(f"# ingest, {datetime.date.today()}\n")
    report.say(
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
    )
    packages = ("retrodb", "tokenizers", "tiktoken", "sentencepiece", "pyarrow", "orjson", "numpy")
    report.say(", ".join(f"{name} {_version(name)}" for name in packages) + ".\n")
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "sample.jsonl.zst")
        size = write_input(first_bytes(texts_of(source), arguments.megabytes * 1_000_000), sample)
        stored = sample.stat().st_size
        report.say(
            f"Input: the first {size / 1e6:.1f} MB of `{source.name}`, {stored / 1e6:.1f} MB compressed, one file."
        )
        archive = arguments.data / "tokenizers.tar.zst"
        packed = subprocess.run(["zstd", "-dc", "--long=27", archive], check=True, capture_output=True).stdout
        subprocess.run(["tar", "xf", "-", "-C", folder], input=packed, check=True)
        gpt2, bert = (_as_file(Path(folder, name)) for name in ("gpt2", "bert-base-uncased"))
        if "bpe" in arguments.parts:
            compare(report, "GPT-2, byte-level BPE", gpt2, "encode_batch_fast", sample, size, arguments.peers)
        if "wordpiece" in arguments.parts:
            compare(report, "BERT, WordPiece", bert, "encode_batch", sample, size, arguments.peers)
        if "sentencepiece" in arguments.parts:
            unigram = make_sentencepiece(source, Path(folder))
            compare(report, "SentencePiece, unigram", unigram, "encode", sample, size, arguments.peers)
        if "memory" in arguments.parts:
            memory_and_again(report, gpt2, source)
    if arguments.out:
        arguments.out.write_text("\n".join(report.lines) + "\n")


def _as_file(folder: Path) -> Path:
    from retrodb.corpus.tokenizer_files import resolve_tokenizer

    resolve_tokenizer(folder).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from the source tree"


if __name__ == "__main__":
    main()

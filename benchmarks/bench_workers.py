"""What a task costs in addition when workers or a Ray cluster run it, and how much faster two processes are than one.

    python benchmarks/bench_workers.py                  # a minute
    python benchmarks/bench_workers.py --documents 4000
    python benchmarks/bench_workers.py --engine ray
    python benchmarks/bench_workers.py --store radosgw  # only the first figure, in a store of `make stores`

The first figure is of tasks that do nothing: the time of a process for each is what claims, signs, records and logs cost. The
table runs commands on a made-up database, with one and with two processes: workers of one process and one core each, or
a Ray cluster with so many CPUs. Workers and cluster are there before the command starts; the processes of a Ray cluster start
with each command. The small database has the default encoder and a fiftieth of the documents.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the makers of documents are the tests' too

from empty_task import NOTHING, Number, run_nothing
from made_documents import made_text, write_documents
from other_stores import started

import retrodb
from retrodb.bench.machine import environment
from retrodb.config import InitParams
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.engine.progress import Progress
from retrodb.engine.ray_engine import RayEngine
from retrodb.engine.run import Engine, open_run
from retrodb.engine.worker import Worker, WorkerOptions
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import LocalStorage, Storage

_COMMAND_LINE = "from retrodb_cli.main import run; run()"
_TASKS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000, help="of 1,600 words, about 80 chunks each")
    parser.add_argument("--engine", choices=["workers", "ray"], default="workers")
    parser.add_argument("--store", choices=["radosgw", "azurite"], help="a store on this machine, in place of the disk")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment(1).items()))
    cost_of = _cost_on_ray if options.engine == "ray" else _cost_of_a_worker
    with tempfile.TemporaryDirectory() as folder:
        if options.store:
            with started(options.store, Path(folder)) as (bucket, variables):
                os.environ.update(variables)
                _print_cost(cost_of(open_storage(f"{bucket}/nothing")))
            return
        _print_cost(cost_of(LocalStorage(Path(folder) / "nothing")))
        print("| command | one process | two processes | speed-up |")
        print("|---|---|---|---|")
        for row in speed_ups(Path(folder), options.documents, options.engine):
            print(row, flush=True)


def _print_cost(cost_s: float) -> None:
    print(f"\n{_TASKS} tasks that do nothing, one process: {1e3 * cost_s:.1f} ms for each task\n")


def _cost_of_a_worker(storage: Storage) -> float:
    """Seconds that a worker takes for a task that does nothing."""
    program = [sys.executable, __file__, "--work", storage.url]
    with subprocess.Popen(program) as worker:
        cost_s = _cost_of_a_task(storage, WorkerEngine())
        worker.terminate()
    return cost_s


def _cost_on_ray(storage: Storage) -> float:
    """Seconds that a process of a Ray cluster takes for a task that does nothing."""
    engine = RayEngine(libraries=("empty_task",))
    with _ray_cluster(1), engine.running("nothing"):
        return _cost_of_a_task(storage, engine)


def _cost_of_a_task(storage: Storage, engine: Engine) -> float:
    run = open_run(storage, "nothing", {})
    tasks = [NOTHING.task(Number(number)) for number in range(_TASKS)]
    engine.run(run, tasks[:1], run_nothing, Progress())  # the process of the tasks has started
    started = time.perf_counter()
    engine.run(run, tasks, run_nothing, Progress())
    return (time.perf_counter() - started) / len(tasks)


def work(url: str) -> None:
    """A worker of these tasks."""
    Worker(open_storage(url), WorkerOptions(libraries=("empty_task",))).run()


def speed_ups(folder: Path, num_documents: int, engine: str) -> Iterator[str]:
    """The rows of the second table."""
    train_byte_bpe([made_text(seed, 200) for seed in range(20)], 400).save(folder / "tokenizer.json")
    testset = write_documents(folder / "items.jsonl", {f"t{n}": made_text(10_000_000 + n, 60) for n in range(2000)})
    _create(folder / "small-1", max(8, num_documents // 50), InitParams.encoder)
    _create(folder / "large-1", num_documents, "hashing:64")
    for name in ("small", "large"):
        shutil.copytree(folder / f"{name}-1", folder / f"{name}-2")
    commands = (
        ("large", ["dedup", "--against", str(testset)]),
        ("large", ["dedup", "--near-duplicates"]),
        ("small", ["embed"]),
        ("large", ["embed"]),
        ("large", ["index"]),
        ("large", ["neighbours", "--list-ranges", "8"]),
    )
    for name, command in commands:
        times = [_elapsed_s(folder / f"{name}-{count}", command, count, engine) for count in (1, 2)]
        shown = f"{' '.join(command[:2] if command[0] == 'dedup' else command[:1])}, {name}"
        yield f"| {shown} | {times[0]:.1f} s | {times[1]:.1f} s | {times[0] / times[1]:.2f} |"


def _create(path: Path, num_documents: int, encoder: str) -> None:
    """A database of eight shards."""
    retrodb.create(path, tokenizer=str(path.parent / "tokenizer.json"), encoder=encoder)
    for first in range(8):
        part = {f"d{number}": made_text(number, 1600) for number in range(first, num_documents, 8)}
        file = write_documents(path.parent / "documents.jsonl", part)
        retrodb.open(path).ingest([file], source=f"made-{first}")


def _elapsed_s(database: Path, command: Sequence[str], count: int, engine: str) -> float:
    with _ray_cluster(count) if engine == "ray" else _workers(database, count):
        time.sleep(3)  # they are there
        started = time.perf_counter()
        program = [sys.executable, "-c", _COMMAND_LINE, command[0], str(database), *command[1:], "--engine", engine]
        subprocess.run(program, check=True, capture_output=True)
        return time.perf_counter() - started


@contextmanager
def _ray_cluster(num_cpus: int) -> Iterator[None]:
    """A cluster with so many CPUs, which commands find by the environment."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of its processes
    ray.init(
        address="local", num_cpus=num_cpus, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False
    )
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


@contextmanager
def _workers(database: Path, count: int) -> Iterator[None]:
    program = [sys.executable, "-c", _COMMAND_LINE, "work", str(database), "--workers", "1"]
    cores = sorted(os.sched_getaffinity(0))[:count]  # each worker gets one core, like a separate machine
    start = partial(subprocess.Popen, program, stdout=subprocess.DEVNULL)
    workers = [start(preexec_fn=partial(os.sched_setaffinity, 0, {core})) for core in cores]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2])
    else:
        main()

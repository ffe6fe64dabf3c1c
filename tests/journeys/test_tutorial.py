"""The tutorial, as it is written: a database on S3, three workers, one update, and one restore to a local disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from made_documents import made_text, write_documents
from object_server import ACCESS_KEY, SECRET_KEY, ObjectServer

import retrodb

TUTORIAL = Path(__file__).resolve().parents[2] / "examples" / "cluster.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
RETRODB = """#!{python}
import sys
from retrodb_cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""
# Of the AWS tools only `aws s3 cp FILE URL`.
AWS = """#!{python}
import sys
from pathlib import Path
from retrodb.store.object_storage import ObjectStorage
service, command, file, url = sys.argv[1:]
assert (service, command) == ("s3", "cp")
place, _, name = url.rpartition("/")
ObjectStorage(place).write(name, Path(file).read_bytes())
"""


def programs(folder: Path) -> Path:
    """A folder with the programs that the tutorial calls."""
    folder.mkdir()
    for name, text in (("retrodb", RETRODB), ("aws", AWS)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


def test_the_commands_of_the_tutorial_do_what_it_says(object_server: ObjectServer, tmp_path: Path) -> None:
    bucket = f"s3://{object_server.new_bucket()}"
    commands = "\n".join(BLOCK.findall(TUTORIAL.read_text())).replace("s3://my-bucket", bucket)
    assert commands.count("retrodb ") > 10
    write_documents(tmp_path / "articles.jsonl", {f"a{number}": made_text(number, 200) for number in range(40)})
    write_documents(tmp_path / "more.jsonl", {f"m{number}": made_text(1000 + number, 200) for number in range(20)})
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{commands}"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no damage found" in done.stdout
    logs = "".join((tmp_path / f"worker-{number}.log").read_text() for number in (1, 2, 3))
    finished = [int(count) for count in re.findall(r"^finished +(\d+)$", logs, re.MULTILINE)]
    assert len(finished) == 3
    assert sum(finished) >= 4, "the workers did the update"
    assert not [secret for secret in (ACCESS_KEY, SECRET_KEY) if secret in done.stdout + done.stderr + logs]
    stored, restored = retrodb.open(f"{bucket}/corpus.retrodb"), retrodb.open(tmp_path / "restored")
    for at, num_documents in (("release-1", 40), (None, 60)):
        assert restored.stats(as_of=at).num_documents == num_documents
    assert restored.view().snapshot == stored.view().snapshot
    query = [made_text(1003, 60)]
    assert restored.search(query) == stored.search(query)
    assert restored.check(read_data=True).damaged == ()

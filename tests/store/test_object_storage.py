"""Object storage: answers that leave something open are settled, bodies are whole, and errors say nothing secret."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_server import (
    ACCESS_KEY,
    READ_FAULTS,
    SECRET_KEY,
    SESSION_TOKEN,
    WRITE_FAULTS,
    ObjectServer,
    RandomFaults,
    StoreRequest,
)

import retrodb
from retrodb.database import demo
from retrodb.errors import ConflictError, MissingDependency, MissingFileError, RetroDBError, UsageError
from retrodb.store import object_client, object_storage
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.open_storage import open_storage

PIECE = 5 << 20  # the least that S3 allows


@pytest.fixture
def storage(s3_storage: ObjectStorage) -> ObjectStorage:
    return s3_storage


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Bytes of several pieces, the last one shorter."""
    for module in (object_client, object_storage):
        monkeypatch.setattr(module, "PIECE_BYTES", PIECE)
    return os.urandom(3 * PIECE + 1000)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that follow each other without long pauses."""
    monkeypatch.setattr(object_client, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(object_client, "STORE_RETRIES", 1)


def first(fault: str, method: str) -> Callable[[StoreRequest], str]:
    """The first request of a method meets a fault."""
    met: list[StoreRequest] = []

    def choose(request: StoreRequest) -> str:
        if met or request.method != method:
            return ""
        met.append(request)
        return fault

    return choose


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_writer_knows_that_it_created_an_object_whatever_the_answer(
    storage: ObjectStorage, object_server: ObjectServer, fault: str
) -> None:
    object_server.choose = first(fault, "PUT")
    assert storage.put_if_absent("a", b"one")
    assert not storage.put_if_absent("a", b"one")
    assert storage.read("a") == b"one"


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_loser_of_a_race_loses_whatever_the_answer_even_with_the_same_bytes(
    storage: ObjectStorage, object_server: ObjectServer, fault: str
) -> None:
    assert storage.put_if_absent("a", b"same")
    object_server.choose = first("409" if fault.startswith("412") else fault, "PUT")
    assert not storage.put_if_absent("a", b"same")


def test_exactly_one_of_many_writers_of_the_same_bytes_wins_under_faults(
    storage: ObjectStorage, object_server: ObjectServer
) -> None:
    object_server.choose = RandomFaults(0.3)
    for number in range(10):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda _: storage.put_if_absent(f"x/{number}", b"same"), range(8)))  # noqa: B023
        assert won.count(True) == 1


@pytest.mark.parametrize("fault", [fault for fault in WRITE_FAULTS if not fault.startswith("412")])
def test_write_replaces_an_object_whatever_the_answer(
    storage: ObjectStorage, object_server: ObjectServer, fault: str
) -> None:
    storage.write("a", b"old")
    assert storage.local("a").read_bytes() == b"old"
    object_server.choose = first(fault, "PUT")
    storage.write("a", b"new")
    assert storage.read("a") == storage.local("a").read_bytes() == b"new"


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_reads_are_whole_whatever_happens_to_the_first_answer(
    storage: ObjectStorage, object_server: ObjectServer, fault: str
) -> None:
    data = os.urandom(100_000)
    storage.write("a/b", data)
    for read in (lambda: storage.read("a/b"), lambda: storage.local("a/b").read_bytes()):
        object_server.choose = first(fault, "GET")
        assert read() == data
    object_server.choose = first(fault, "GET")
    assert storage.list("a") == ["a/b"]
    object_server.choose = first(fault, "HEAD")
    assert storage.stat("a/b").size_bytes == len(data)


def test_large_file_goes_in_parts_and_comes_in_ranges_under_faults(
    storage: ObjectStorage, object_server: ObjectServer, pieces: bytes
) -> None:
    object_server.choose = RandomFaults(0.2, seed=3)
    with storage.stage("a/large.npy") as local:
        local.write_bytes(pieces)
    elsewhere = ObjectStorage(storage.url)
    elsewhere._cache.forget("a/large.npy")
    assert elsewhere.local("a/large.npy").read_bytes() == pieces
    methods = [request.method for request in object_server.requests if "partNumber" in request.path]
    assert len(methods) >= 4
    assert sum(request.method == "GET" and "large" in request.path for request in object_server.requests) >= 4


def test_object_that_is_replaced_during_a_download_is_read_again(
    storage: ObjectStorage, object_server: ObjectServer, pieces: bytes
) -> None:
    """No file of two versions: the later ranges ask for the version of the first one."""
    other = bytes(reversed(pieces))
    storage.write("a", pieces)
    replaced: list[bool] = []

    def replace(request: StoreRequest) -> str:
        if not replaced and request.method == "GET":
            replaced.append(True)  # the first range was sent before the object is replaced
        elif len(replaced) == 1 and request.method == "GET":
            replaced.append(True)
            ObjectStorage(storage.url).write("a", other)
        return ""

    object_server.choose = replace
    assert ObjectStorage(storage.url).local("a").read_bytes() == other


def test_empty_object_is_an_empty_file(storage: ObjectStorage) -> None:
    storage.write("a", b"")
    assert storage.read("a") == storage.local("a").read_bytes() == b""


def test_names_with_other_characters_are_listed_as_they_were_written(storage: ObjectStorage) -> None:
    names = ["a b", "a%20b", "ä/ü.npy", "x+y=z&w", "~#[]"]
    for name in names:
        storage.write(f"k/{name}", name.encode())
    assert storage.list("k") == sorted(f"k/{name}" for name in names)
    assert [storage.read(path).decode() for path in storage.list("k")] == sorted(names)


def test_list_of_more_objects_than_a_page_has_is_complete_and_they_are_deleted_together(
    storage: ObjectStorage, object_server: ObjectServer
) -> None:
    names = [f"k/{number:04}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(name, b""), names))
    assert storage.list("k") == names
    assert list(storage.stats("k")) == names
    object_server.requests.clear()
    object_server.choose = first("503", "POST")
    storage.delete_all([*names, "k/none"])
    assert storage.list("k") == []
    assert [request.method for request in object_server.requests] == ["POST"] * 3 + ["GET"]


def test_objects_are_deleted_where_a_store_ends_at_one_that_is_not_there(
    storage: ObjectStorage, object_server: ObjectServer
) -> None:
    for path in ("a", "c"):
        storage.write(path, b"")
    object_server.choose = first("404", "POST")
    storage.delete_all(["a", "b", "c"])
    assert storage.list("") == []


@pytest.mark.parametrize("is_plain", [False, True])
def test_list_and_object_agree_about_a_file(
    storage: ObjectStorage, object_server: ObjectServer, is_plain: bool
) -> None:
    object_server.lists_plain_etags = is_plain
    storage.write("a/b", b"one")
    before = storage.stat("a/b")
    assert storage.stats("a") == {"a/b": before}
    storage.write("a/b", b"two")
    assert storage.stat("a/b").stamp != before.stamp


def test_store_that_ignores_conditions_is_refused_and_nothing_is_left(
    store_url: str, object_server: ObjectServer, made_tokenizer: Path
) -> None:
    object_server.ignores_conditions = True
    with pytest.raises(RetroDBError, match=r"ignores conditions of writes: of 8 writers .*If-None-Match"):
        retrodb.create(store_url, tokenizer=str(made_tokenizer))
    assert ObjectStorage(store_url).list("") == []


def test_store_that_does_not_know_conditions_is_refused_at_once(
    store_url: str, object_server: ObjectServer, made_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a store answers 501, which is no passing error."""
    monkeypatch.setattr(object_client, "PAUSES_S", (60.0,))
    object_server.choose = lambda request: "501" if request.is_creation else ""
    with pytest.raises(RetroDBError, match=r"cannot have a database: it answered 501 .*If-None-Match"):
        retrodb.create(store_url, tokenizer=str(made_tokenizer))
    assert ObjectStorage(store_url).list("") == []


def test_store_whose_lists_are_late_is_refused_and_nothing_is_left(
    store_url: str, object_server: ObjectServer, made_tokenizer: Path
) -> None:
    object_server.hides_in_lists = "probe-7"
    with pytest.raises(RetroDBError, match="its lists do not show what was just written"):
        retrodb.create(store_url, tokenizer=str(made_tokenizer))
    object_server.hides_in_lists = None
    assert ObjectStorage(store_url).list("") == []


def test_place_with_other_objects_is_refused(store_url: str, object_server: ObjectServer, made_tokenizer: Path) -> None:
    ObjectStorage(store_url).write("photo.png", b"x")
    with pytest.raises(ConflictError, match=r"not empty: it contains 'photo\.png'"):
        retrodb.create(store_url, tokenizer=str(made_tokenizer))
    assert not [request for request in object_server.requests if request.is_creation]


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "the object store answered 503"),
        ("reset", "no connection to the object store"),
        ("403", "the object store answered 403.*Check the credentials"),
    ],
)
def test_lasting_fault_is_an_error_with_the_place_and_no_secret(
    object_server: ObjectServer, fault: str, reason: str
) -> None:
    url = f"s3://{object_server.new_bucket()}/{fault}"
    storage = ObjectStorage(url)
    object_server.choose = lambda _: fault
    acts: list[Callable[[], object]] = [
        lambda: storage.read("a"),
        lambda: storage.local("a"),
        lambda: storage.list("a"),
        lambda: storage.exists("a"),
        lambda: storage.delete("a"),
        lambda: storage.write("a", b"x"),
        lambda: storage.put_if_absent("a", b"x"),
    ]
    for act in acts:
        with pytest.raises(RetroDBError, match=rf"{url}/a: {reason}") as raised:
            act()
        shown = f"{raised.value!r} {raised.value.__cause__!r}"
        assert not any(secret in shown for secret in (SECRET_KEY, SESSION_TOKEN, ACCESS_KEY))
        assert raised.value.__suppress_context__


@pytest.mark.usefixtures("object_server")
def test_missing_bucket_is_told(store_url: str) -> None:
    storage = ObjectStorage("s3://no-such-bucket/db")
    for act in (lambda: storage.list(""), lambda: storage.read("a"), lambda: storage.write("a", b"x")):
        with pytest.raises(RetroDBError, match=r"there is no such bucket\. Create the bucket first"):
            act()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://key:secret@bucket/db", "no user, password or parameters"),
        ("s3://bucket/db?X-Amz-Signature=secret", "no user, password or parameters"),
        ("s3://", "does not name a place"),
        ("gs://bucket/../other", "does not name a place"),
        ("s3://bucket/a//b", "does not name a place"),
    ],
)
def test_url_that_names_no_place_or_has_a_secret_is_refused(url: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as raised:
        open_storage(url)
    assert "secret" not in str(raised.value)


def test_url_as_a_path_and_a_demo_in_a_store_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Give the URL as a text"):
        retrodb.create(Path("s3://bucket/db"), tokenizer="none")
    with pytest.raises(UsageError, match="cannot be in an object store"):
        demo("s3://bucket/demo")
    assert list(tmp_path.iterdir()) == []


def test_directories_load_nothing_of_object_stores(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    code = "import sys, retrodb.database as d; d.has_database(sys.argv[1]); print([m for m in sys.modules if 'object_c' in m])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_missing_extra_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingDependency, match=r"needs the extra 's3'.*pip install 'retrodb\[s3\]'") as raised:
        open_storage("s3://another-bucket/db")
    assert "\n" not in str(raised.value)


def test_credentials_come_from_a_profile_where_the_environment_has_none(
    store_url: str, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    keys = "[work]\naws_access_key_id = AKIAOFTHEPROFILE\naws_secret_access_key = x/y%z\n"
    (tmp_path / "credentials").write_text(keys)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    ObjectStorage(store_url).write("a", b"x")
    assert object_server.requests[-1].signer == "AKIAOFTHEPROFILE"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(RetroDBError, match="there is no AWS profile 'other'"):
        ObjectStorage(store_url)


@pytest.mark.usefixtures("object_server")
def test_environment_that_describes_no_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=r"does not describe this object store.*AZURE_STORAGE_ACCOUNT_NAME"):
        open_storage("az://container/db")


def test_two_storages_of_one_place_are_equal(storage: ObjectStorage) -> None:
    assert ObjectStorage(f"{storage.url}/") == storage
    assert len({ObjectStorage(f"{storage.url}/"), storage}) == 1
    assert open_storage(storage.url) == storage


def test_missing_object_is_missing_although_this_machine_has_a_copy(storage: ObjectStorage) -> None:
    storage.write("a", b"x")
    copy = storage.local("a")
    ObjectStorage(storage.url).delete("a")
    assert not copy.exists()
    with pytest.raises(MissingFileError):
        storage.local("a")

"""Servers of objects other than moto's, each started on this machine. `make stores` installs them."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from free_ports import free_ports, wait_for
from radosgw import has_radosgw, radosgw

_PROGRAMS = Path(__file__).parents[1] / ".venv-stores" / "node_modules" / ".bin"
_KEYS = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER"}  # s3rver knows no others
_REGION = {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
_ACCOUNT = "devstoreaccount1"  # that every emulator of Azure has, with this key
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

Started = tuple[str, Mapping[str, str]]
"""The URL of an empty bucket, and the variables of the environment that its clients need."""


def is_installed(name: str) -> bool:
    """Whether a server can be started on this machine."""
    return has_radosgw() if name == "radosgw" else (_PROGRAMS / _COMMANDS[name]).exists()


def started(name: str, folder: Path) -> AbstractContextManager[Started]:
    """A server that keeps its files in a folder, until the block ends."""
    return _SERVERS[name](folder)


@contextmanager
def _radosgw(folder: Path) -> Iterator[Started]:
    """Ceph's gateway: S3, with conditions."""
    import boto3

    with radosgw(folder, *_KEYS.values()) as endpoint:
        variables = {"AWS_ENDPOINT_URL": endpoint, **_KEYS, **_REGION}
        key, secret = _KEYS.values()
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
        )
        client.create_bucket(Bucket="bucket")
        yield "s3://bucket", variables


@contextmanager
def _s3rver(folder: Path) -> Iterator[Started]:
    """S3 without conditions of writes: it accepts a second creation of an object."""
    [port] = free_ports(1)
    arguments = ["-d", str(folder), "-a", "127.0.0.1", "-p", str(port), "--configure-bucket", "bucket"]
    with _running("s3rver", arguments, folder, port):
        yield "s3://bucket", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **_KEYS, **_REGION}


@contextmanager
def _azurite(folder: Path) -> Iterator[Started]:
    """Azure's emulator, with conditions."""
    [port] = free_ports(1)
    arguments = ["--blobPort", str(port), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with _running("azurite", arguments, folder, port):
        endpoint = f"http://127.0.0.1:{port}"
        _create_container(endpoint, "bucket")
        yield (
            "az://bucket",
            {
                "AZURE_STORAGE_USE_EMULATOR": "true",
                "AZURITE_BLOB_STORAGE_URL": endpoint,
                "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
            },
        )


_COMMANDS = {"s3rver": "s3rver", "azurite": "azurite-blob"}
_SERVERS: dict[str, Callable[[Path], AbstractContextManager[Started]]] = {
    "radosgw": _radosgw,
    "azurite": _azurite,
    "s3rver": _s3rver,
}


@contextmanager
def _running(name: str, arguments: list[str], folder: Path, port: int) -> Iterator[None]:
    command, quiet = [str(_PROGRAMS / _COMMANDS[name]), *arguments], subprocess.DEVNULL
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet)
    try:
        wait_for(port)
        yield
    finally:
        process.kill()
        process.wait()


def _create_container(endpoint: str, name: str) -> None:
    """What obstore has no call for."""
    date, version, path = email.utils.formatdate(usegmt=True), "2021-08-06", f"/{_ACCOUNT}/{name}"
    headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
    signed = "PUT" + "\n" * 12 + f"{headers}/{_ACCOUNT}{path}\nrestype:container"
    digest = hmac.new(base64.b64decode(_ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
    authorization = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{endpoint}{path}?restype=container", method="PUT")
    for header, value in (("x-ms-date", date), ("x-ms-version", version), ("Authorization", authorization)):
        request.add_header(header, value)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201

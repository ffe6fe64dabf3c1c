"""A store that speaks the protocol of S3: moto's server behind a proxy that makes conditional puts atomic and injects faults.

moto alone is not atomic: of 600 races of eight writers, three had no single winner.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCESS_KEY, SECRET_KEY = "AKIAMADEUPKEY0000001", "made/up+secret+key/that+must+never+be+written"
SESSION_TOKEN = "made-up-session-token-that-must-never-be-written"

WRITE_FAULTS = ("409", "412 after success", "500 after success", "503", "reset", "reset after success")
READ_FAULTS = ("503", "reset", "slow", "truncated")
"""What can happen to a request:

409                  a conflict, and nothing is done
412 after success    it is done, and the answer is that of a second try
500 after success    it is done, and the answer is an error
503                  the store is busy, and nothing is done
reset                the connection breaks before it is done
reset after success  the connection breaks after it is done
slow                 the answer pauses in its middle
truncated            the connection breaks in the middle of the answer
"""


@dataclass(frozen=True)
class StoreRequest:
    """A request that came in."""

    method: str
    path: str  # with the bucket and the query
    is_creation: bool  # a put on the condition that there is no such object
    signer: str  # the access key
    fault: str = ""

    @property
    def is_object(self) -> bool:
        """Whether it is about one object, not about the list of a bucket."""
        return "/" in self.path.partition("?")[0].strip("/")


def faults_of(request: StoreRequest) -> tuple[str, ...]:
    """The faults that can happen to a request."""
    if request.method in ("GET", "HEAD"):
        return READ_FAULTS
    return tuple(fault for fault in WRITE_FAULTS if request.is_creation or not fault.startswith("412"))


Chooser = Callable[[StoreRequest], str]
"""Which fault a request meets; "" for none."""


def no_fault(request: StoreRequest) -> str:
    """Every request is answered."""
    del request
    return ""


@dataclass
class RandomFaults:
    """A fraction of all requests meets a fault, up to a number of faults."""

    rate: float
    seed: int = 0
    most: int = 1 << 30
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def __call__(self, request: StoreRequest) -> str:
        with self._lock:
            if self.counts.total() >= self.most or self._random.random() >= self.rate:
                return ""
            fault = self._random.choice(faults_of(request))
            self.counts[fault] += 1
            return fault


class ObjectServer:
    """The proxy. Its settings can change while it runs."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.choose: Chooser = no_fault
        self.ignores_conditions = False  # accepts a second creation of an object, without a word
        self.hides_in_lists: str | None = None  # objects with this in their name are in no list
        self.lists_plain_etags = False  # without quotes, as Azure does
        self.requests: list[StoreRequest] = []
        self.creating = threading.Lock()
        self._buckets = 0
        server = self

        class Handler(_Handler):
            proxy = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._http.server_address[1]}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": SESSION_TOKEN,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        """The name of a bucket that is empty."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        connection = http.client.HTTPConnection(*self.target)
        connection.request("PUT", f"/{name}", headers={"Content-Length": "0"})
        connection.getresponse().read()
        connection.close()
        return name

    def keep_versions(self, bucket: str) -> None:
        """Let a bucket keep old versions of its objects."""
        body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        connection = http.client.HTTPConnection(*self.target)
        connection.request("PUT", f"/{bucket}?versioning", body)
        connection.getresponse().read()
        connection.close()

    def begin(self) -> None:
        """Set everything as it was at first."""
        self.choose, self.ignores_conditions, self.hides_in_lists, self.lists_plain_etags = no_fault, False, None, False
        self.requests.clear()

    def close(self) -> None:
        """Stop answering."""
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._target = http.client.HTTPConnection(*self.proxy.target)

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        self._target.close()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_creation = self.command == "PUT" and "if-none-match" in self.headers
        authorization = self.headers.get("Authorization", "")
        signer = authorization.partition("Credential=")[2].partition("/")[0]
        request = StoreRequest(self.command, self.path, is_creation, signer)
        request = replace(request, fault=self.proxy.choose(request))
        self.proxy.requests.append(request)
        try:
            self._answer(request, body)
        except OSError:  # the client has gone
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _answer(self, request: StoreRequest, body: bytes) -> None:
        match request.fault:
            case "409":
                self._send_error(409, "ConditionalRequestConflict")
            case "403":  # real stores repeat what was signed
                self._send_error(403, "SignatureDoesNotMatch", str(self.headers))
            case "404":
                self._send_error(404, "NoSuchKey")
            case "503":
                self._send_error(503, "SlowDown")
            case "501":
                self._send_error(501, "NotImplemented")
            case "reset":
                self._reset()
            case "412 after success":
                self._forward(request, body)
                self._send_error(412, "PreconditionFailed")
            case "500 after success":
                self._forward(request, body)
                self._send_error(500, "InternalError")
            case "reset after success":
                self._forward(request, body)
                self._reset()
            case fault:
                self._send(*self._forward(request, body), fault)

    def _forward(self, request: StoreRequest, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if self.proxy.ignores_conditions:
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        with self.proxy.creating if request.is_creation and not self.proxy.ignores_conditions else nullcontext():
            self._target.request(self.command, self.path, body, headers)
            answer = self._target.getresponse()
            data = answer.read()
        hidden = self.proxy.hides_in_lists
        if hidden and "list-type=2" in self.path:
            entries = data.decode().split("<Contents>")
            data = "<Contents>".join(entry for entry in entries if hidden not in entry).encode()
        if self.proxy.lists_plain_etags and "list-type=2" in self.path:
            data = data.replace(b"&quot;", b"").replace(b"&#34;", b"")
        return answer.status, answer.getheaders(), data

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str = "") -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = str(len(data))
        if self.command == "HEAD":
            length = next((value for name, value in headers if name.lower() == "content-length"), "0")
        self.send_header("Content-Length", length)
        self.end_headers()
        half = len(data) // 2
        if fault == "slow":
            self.wfile.write(data[:half])
            self.wfile.flush()
            time.sleep(0.05)
            data = data[half:]
        if fault == "truncated":
            self.wfile.write(data[:half])
            self.wfile.flush()
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _send_error(self, status: int, code: str, message: str = "injected") -> None:
        data = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else data)

    def _reset(self) -> None:
        """Break the connection as a machine does that dies."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def moto_server() -> Iterator[ObjectServer]:
    """The proxy with moto's server behind it."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    server = ObjectServer(moto.get_host_and_port())
    try:
        yield server
    finally:
        server.close()
        moto.stop()

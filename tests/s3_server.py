"""An S3 server (moto's) for tests, behind a proxy that injects faults into its answers to reads."""

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from s3fs import S3FileSystem

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDFORTESTS",
    "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}
UNAVAILABLE = "unavailable"
CUT_OFF = "cut off"
SLOW = "slow"
STALLED = "stalled"
STALL_SECONDS = 3
OF_THE_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class S3Server:
    """A running server; ``fault`` is asked for each read of an object, by its path, what is to go wrong."""

    address: str
    client: object
    fault: Callable[[str], str | None] = lambda path: None
    reads: list[str] = field(default_factory=list)
    """The path of each read of an object."""

    def put(self, file: Path, key: str) -> str:
        """Store a file and return its address."""
        self.client.upload_file(str(file), BUCKET, key)
        return f"s3://{BUCKET}/{key}"

    def put_folder(self, folder: Path, key: str) -> str:
        """Store all files below ``folder`` and return the address of what they are below there."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(file, f"{key}/{file.relative_to(folder)}")
        return f"s3://{BUCKET}/{key}"

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def serve_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Run a server with an empty bucket, to which the environment leads this process and those that it starts."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)
    server = S3Server("", client)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(server, port))
    proxy.daemon_threads = True
    server.address = f"http://127.0.0.1:{proxy.server_port}"
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    try:
        yield server
    finally:
        # s3fs keeps its connections, and the next server of this process has another address
        S3FileSystem.clear_instance_cache()
        proxy.shutdown()
        proxy.server_close()
        client.close()
        moto.stop()


def _make_handler(server: S3Server, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            is_read = path.count("/") > 1 and "list-type" not in self.path
            fault = None
            if is_read and self.command == "GET":
                server.reads.append(path)
                fault = server.fault(path)
            if fault == UNAVAILABLE:
                self._answer(503, {"Content-Length": "0"}, b"")
                return
            if fault in (SLOW, STALLED):
                time.sleep(0.3 if fault == SLOW else STALL_SECONDS)
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in OF_THE_CONNECTION}
            headers["Content-Length"] = str(len(body)) if self.command == "GET" else answer.headers["Content-Length"]
            upstream.close()
            self._answer(answer.status, headers, body[: len(body) // 2] if fault == CUT_OFF else body)
            if fault == CUT_OFF:
                self.close_connection = True

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            with suppress(BrokenPipeError):  # a client that has given up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler

"""Images a second and requests from an S3 server on this machine, with a cold and a warm cache, beside local shards.

    python benchmarks/stores.py [--images 1024] [--shards 8] [--batch-size 64] [--workers 2] [--latency 0.02]

ELPV's photographs are put into tar shards and stored in moto's S3 server, which runs in a process of its own; a proxy
before it waits --latency seconds before each answer, as a store across a network does. Every row is one shuffled epoch,
read as training reads it (random resized crops to 224 x 224). "cold" opens a store of which nothing is here, so that
its opening reads the headers; the rows after it have the index. All share one machine with the server, whose work is
part of the time. pip install 'ehm[s3,dev]' brings what is needed.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_connection, socket

from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def main() -> None:
    options = parse_options()
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_shards(folder / "shards", options.images, options.shards)
        server, port = start_server()
        try:
            requests = start_proxy(port, options.latency)
            upload_shards(folder / "shards", port)
            print(f"{options.images:,} images, {size / 1e6:.1f} MB in {options.shards} shards")
            print("| shards | images/s | open, s | requests | MB read |")
            print("|---|---|---|---|---|")
            measure("local", str(folder / "shards"), options, requests, folder / "none")
            rows = [
                ("cold, room for all", 1.0, "all"),
                ("warm", 1.0, "all"),
                ("room for 30 %, first epoch", 0.3 * size / 1e9, "some"),
                ("room for 30 %, later", 0.3 * size / 1e9, "some"),
                ("no cache", 0.0, "none"),
            ]
            for title, cache, cache_name in rows:
                cache_folder = folder / cache_name
                if cache_name != "all":  # the index is kept from the first run
                    shutil.copytree(folder / "all" / "index", cache_folder / "index", dirs_exist_ok=True)
                measure(f"S3, {title}", f"s3://{BUCKET}", options, requests, cache_folder, cache)
        finally:
            server.terminate()
            server.wait()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=0.02)
    return parser.parse_args()


def write_shards(folder: Path, images: int, shards: int) -> int:
    """Write the photographs into shards and return the number of bytes of these."""
    source = open_source(DataConfig())
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"elpv-{shard:03d}.tar", "w") as tar:
            for index in range(shard, images, shards):
                data = Path(source.name(index % len(source))).read_bytes()
                member = tarfile.TarInfo(f"{index:06d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sum(file.stat().st_size for file in folder.iterdir())


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            create_connection(("127.0.0.1", port)).close()
            return server, port
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise SystemExit("moto's server did not start")


def start_proxy(port: int, latency: float) -> list[int]:
    """Start the proxy, to which the environment leads, and return the list that gets the bytes of each read."""
    requests: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(latency)
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            upstream.close()
            if ".tar" in self.path:
                requests.append(len(body))
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = len(body) if self.command == "GET" else answer.headers["Content-Length"]
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.server_port}"
    return requests


def upload_shards(folder: Path, port: int) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)
    for file in folder.iterdir():
        client.upload_file(str(file), BUCKET, file.name)


def measure(
    title: str, source: str, options: argparse.Namespace, requests: list[int], cache_folder: Path, cache: float = 1.0
) -> None:
    """Print a row of the table: an epoch of ``source``."""
    requests.clear()
    start = time.perf_counter()
    opened = open_source(DataConfig(source=source, cache=cache, cache_folder=str(cache_folder)))
    opening = time.perf_counter() - start
    settings = {"batch_size": options.batch_size, "seed": 0, "shuffle": True, "drop_last": True}
    with Loader(opened, TrainTransform((224, 224)), workers=options.workers, **settings) as loader:
        batches = loader.batches(0, 1 + loader.steps_per_epoch)
        next(batches)  # interpreters have started
        start = time.perf_counter()
        images = sum(len(batch.indices) for batch in batches)
        seconds = time.perf_counter() - start
    megabytes = sum(requests) / 1e6
    print(f"| {title} | {images / seconds:.0f} | {opening:.1f} | {len(requests):,} | {megabytes:.1f} |", flush=True)


if __name__ == "__main__":
    main()

"""Measure `ehm serve` under load, beside other servers, and for growth: wrk (Debian's package) and a bundle.

    python benchmarks/serve.py peers BUNDLE [--image FILE ...] [--connections 1 8 32] [--seconds 3] [--rounds 2]
                                            [--neighbours 0]
    python benchmarks/serve.py load BUNDLE [--image FILE] [--connections 1 4 16 64] [--seconds 8] [--rounds 3]
    python benchmarks/serve.py soak BUNDLE [--image FILE] [--connections 16] [--minutes 10]

`peers` puts it beside other servers that run the same network; `serve_peers.py` says how to install them. `load` starts
the server twice, with batches of up to 8 images and without, and lets wrk take them in turn, round after round, through
`POST /v1/classify` (an image file) and the v2 protocol (a binary tensor, ready for the network). Figures are medians
over the rounds, with their range where it says so; the generator has its share of the same cores. `soak` keeps one
server busy and reads its resident memory every half minute.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil

from ehm.deploy.bundle.bundle import Bundle

DEFAULTS = {
    "peers": {"connections": [1, 8, 32], "seconds": 3, "rounds": 2},
    "load": {"connections": [1, 4, 16, 64], "seconds": 8, "rounds": 3},
    "soak": {"connections": [16]},
}
SETTINGS = {"batches of 8": ("--max-batch", "8"), "one by one": ("--max-batch", "1", "--max-delay", "0")}
SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
    io.write(string.format(
        '\\nRESULT {{"requests": %d, "seconds": %f, "status": %d, "broken": %d, "p50": %f, "p99": %f}}\\n',
        summary.requests, summary.duration / 1e6, summary.errors.status,
        summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Server:
    """A running `ehm serve`."""

    url: str
    process: psutil.Process


@dataclass(frozen=True)
class Request:
    """A request that wrk sends again and again: a Lua script with its body and headers."""

    name: str
    path: str
    script: Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def serve_bundle(bundle: Path, *options: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "ehm.cli", "serve", f"model={bundle}", "--port", str(port), *options]
    with start_server(command, port, "/v2/health/ready") as server:
        yield server


@contextmanager
def start_server(
    command: list[str], port: int, health: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run a server until the end of the block, which begins once it answers at ``health``."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(url + health):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode())
                time.sleep(0.1)
            yield Server(url, psutil.Process(process.pid))
        finally:
            if process.poll() is None:
                # A server with processes of its own may not end them.
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
            process.terminate()
            process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urlopen(url) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False


def make_requests(bundle: Path, image: Path, folder: Path) -> Iterator[Request]:
    """Make requests with the same picture as a file, and as a tensor of the v2 protocol's binary extension."""
    from ehm.data.decoding.decode import decode_image
    from ehm.deploy.predict.predictor import Predictor

    yield make_request(folder, "image file", "/v1/classify", image.read_bytes(), {"Content-Type": "image/png"})
    manifest = Bundle.open(bundle).manifest
    pixels = Predictor(bundle).prepare(decode_image(image))[None]
    datatype = {"float32": "FP32", "uint8": "UINT8"}[manifest.input.dtype]
    tensor = {"name": manifest.input.name, "datatype": datatype, "shape": pixels.shape}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    outputs = [{"name": manifest.outputs[0].name, "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    yield make_request(folder, "v2, binary", "/v2/models/model/infer", header + np.asarray(pixels).tobytes(), headers)


def make_request(folder: Path, name: str, path: str, body: bytes, headers: dict[str, str]) -> Request:
    folder.mkdir(exist_ok=True)
    file, script = (folder / f"{path.rsplit('/', 1)[1]}.{suffix}" for suffix in ("body", "lua"))
    file.write_bytes(body)
    lines = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items())
    script.write_text(SCRIPT.format(body=file, headers=lines))
    return Request(name, path, script)


def run_wrk(server: Server, request: Request, connections: int, seconds: float) -> dict[str, float]:
    """Run wrk once.

    Returns requests, seconds, answers that were not 2xx (``status``) or ``broken``, p50 and p99 in milliseconds.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(request.script)]
    output = subprocess.run([*command, server.url + request.path], check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return result


def measure_load(args: argparse.Namespace) -> None:
    """Measure the server with batches and without, in turns, and print a table."""
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = list(make_requests(args.bundle, args.image, folder))
        servers = {name: stack.enter_context(serve_bundle(args.bundle, *options)) for name, options in SETTINGS.items()}
        for server in servers.values():
            for kind in kinds:
                run_wrk(server, kind, 4, 1)
        for number in range(args.rounds):
            for kind in kinds:
                for connections in args.connections:
                    for name, server in servers.items():
                        result = run_wrk(server, kind, connections, args.seconds)
                        found.setdefault((kind.name, connections, name), []).append(result)
            print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    print(
        "| request | connections | server | requests/s (range) | p50 ms | p99 ms | not 2xx | batching's gain (range) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (kind, connections, name), results in found.items():
        rates = [result["requests"] / result["seconds"] for result in results]
        alone = [run["requests"] / run["seconds"] for run in found[kind, connections, "one by one"]]
        gains = [rate / one for rate, one in zip(rates, alone, strict=True)]
        p50 = statistics.median(result["p50"] for result in results)
        p99 = statistics.median(result["p99"] for result in results)
        failed = sum(result["status"] + result["broken"] for result in results)
        gain = "" if name == "one by one" else f"{statistics.median(gains):.2f} ({min(gains):.2f} - {max(gains):.2f})"
        print(
            f"| {kind} | {connections} | {name} | {statistics.median(rates):.0f} ({min(rates):.0f} - {max(rates):.0f}) "
            f"| {p50:.1f} | {p99:.1f} | {failed:.0f} | {gain} |"
        )


def measure_growth(args: argparse.Namespace) -> None:
    """Keep a server busy and print its memory, threads and open files."""
    with tempfile.TemporaryDirectory() as folder, serve_bundle(args.bundle) as server:
        kinds = list(make_requests(args.bundle, args.image, Path(folder)))
        print("| minute | requests so far | not 2xx | resident MiB | threads | open files |\n|---|---|---|---|---|---|")
        start = time.monotonic()
        total = 0.0
        failed = 0.0
        memory: list[float] = []
        while time.monotonic() - start < 60 * args.minutes:
            for kind in kinds:
                result = run_wrk(server, kind, args.connections[0], 15)
                total += result["requests"]
                failed += result["status"] + result["broken"]
            memory.append(server.process.memory_info().rss / 2**20)
            minute = (time.monotonic() - start) / 60
            print(
                f"| {minute:.1f} | {total:.0f} | {failed:.0f} | {memory[-1]:.1f} | {server.process.num_threads()} "
                f"| {server.process.num_fds()} |",
                flush=True,
            )
    # The first half warms up: kernels allocate their memory at the first request of each size.
    half = len(memory) // 2
    slope = np.polyfit(range(half, len(memory)), memory[half:], 1)[0] * 2 if half > 1 else float("nan")
    print(f"\nsecond half: {slope:+.2f} MiB a minute, {min(memory[half:]):.1f} to {max(memory[half:]):.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(DEFAULTS))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, nargs="+", help="to send (default: a photograph of elpv-dataset)")
    parser.add_argument("--connections", type=int, nargs="+")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--neighbours", type=int, default=0, help="processes that keep a core busy beside all servers")
    parser.add_argument("--venv", type=Path, default=Path(".venv-peers"), help="environment of the other servers")
    args = parser.parse_args()
    for name, value in DEFAULTS[args.what].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.what == "peers":
        import serve_peers

        serve_peers.compare_servers(args)
        return
    args.image = args.image[0] if args.image else elpv_photograph()
    measure = measure_load if args.what == "load" else measure_growth
    measure(args)


def elpv_photograph() -> Path:
    from elpv_dataset import __path__ as package

    return Path(package[0], "data", "images", "cell0007.png")


if __name__ == "__main__":
    main()

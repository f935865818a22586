"""`ehm serve` beside other servers that run the same network, in turns on the same machine: `serve.py peers`.

    python -m venv .venv-peers
    .venv-peers/bin/pip install litserve==0.2.19 mlserver==1.7.1 fastapi==0.115.14 uvicorn==0.54.0 \\
        httptools==0.9.0 uvloop==0.23.0 onnxruntime==1.32.0 pillow==13.0.0 python-multipart==0.0.34
    python benchmarks/serve.py peers BUNDLE [--venv .venv-peers] [--image FILE ...]

The others are in `peers/`: FastAPI with ONNX Runtime as one writes it in ten minutes, LitServe with batches, and a
runtime of mlserver's. FastAPI's is there twice, as ONNX Runtime comes, with threads that spin while they wait, and with
threads that sleep: the difference tells what spinning is worth. Those of `ehm serve` spin for microseconds. All read an
image file, resize it and answer with the shares of the classes. Each is sent the same images the way it takes them: ehm
and FastAPI as the body, LitServe in a form, mlserver in base64. Images are one of elpv-dataset's (PNG, 300 x 300) and
the same enlarged to 1920 x 1440 as a JPEG, unless `--image` names others.

The servers run all the time, and wrk takes them in turns, round after round, each once all of them are idle. Figures
are medians over the rounds, with the lowest and the highest; a ratio compares ehm with another server in the same
round. Processor time is that of the server's processes, user and system: it says what a request costs whatever else
runs on the machine. It takes about five minutes.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from busy_machine import run_neighbours
from PIL import Image
from serve import Request, Server, elpv_photograph, free_port, make_request, run_wrk, serve_bundle, start_server

PEERS = Path(__file__).parent / "peers"
OURS = "ehm serve"
WARM_UP = 1
"""Seconds that each server is warmed up."""
IDLE_SHARE = 0.3
"""Share of a core below which all servers together count as idle: LitServe's worker polls with a tenth of one."""
IDLE_SECONDS = 0.3
"""Seconds for which they have to be idle."""
IDLE_TRIES = 60


@dataclass(frozen=True)
class Contender:
    """A server, and the function that makes body and headers of a request from the bytes of an image file."""

    server: Server
    path: str
    make: Callable[[bytes], tuple[bytes, dict[str, str]]]


def as_it_is(data: bytes) -> tuple[bytes, dict[str, str]]:
    return data, {"Content-Type": "application/octet-stream"}


def as_form(data: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    return head + data + b"\r\n--XX--\r\n", {"Content-Type": "multipart/form-data; boundary=XX"}


def as_base64(data: bytes) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [tensor | {"data": [base64.b64encode(data).decode()]}]})
    return body.encode(), {"Content-Type": "application/json"}


@contextmanager
def start_python_server(python: Path, script: str, bundle: Path, health: str, *options: str) -> Iterator[Server]:
    port = free_port()
    command = [str(python), str(PEERS / script), str(bundle.resolve()), str(port), *options]
    with start_server(command, port, health) as server:
        yield server


@contextmanager
def start_mlserver(python: Path, bundle: Path, folder: Path) -> Iterator[Server]:
    port = free_port()
    folder.mkdir()
    shutil.copy(PEERS / "mlserver_runtime.py", folder)
    # with processes of its own for inference, this version does not start beside a recent uvloop
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps(settings | {"parallel_workers": 0}))
    model = {"name": "model", "implementation": "mlserver_runtime.Classifier"}
    (folder / "model-settings.json").write_text(json.dumps(model | {"parameters": {"uri": str(bundle.resolve())}}))
    command = [str(python.with_name("mlserver")), "start", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with start_server(command, port, "/v2/models/model/ready", folder, environment) as server:
        yield server


@contextmanager
def start_contenders(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Contender]]:
    python = args.venv.absolute() / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"--venv {args.venv}: there is no environment of the other servers; make it:\n\n{__doc__}")
    with ExitStack() as stack:
        ours = stack.enter_context(serve_bundle(args.bundle))
        fastapi = stack.enter_context(start_python_server(python, "fastapi_server.py", args.bundle, "/openapi.json"))
        asleep = stack.enter_context(
            start_python_server(python, "fastapi_server.py", args.bundle, "/openapi.json", "sleep")
        )
        litserve = stack.enter_context(start_python_server(python, "litserve_server.py", args.bundle, "/health"))
        theirs = stack.enter_context(start_mlserver(python, args.bundle, folder / "mlserver"))
        yield {
            OURS: Contender(ours, "/v1/classify", as_it_is),
            "FastAPI, ONNX Runtime": Contender(fastapi, "/v1/classify", as_it_is),
            "FastAPI, threads asleep": Contender(asleep, "/v1/classify", as_it_is),
            "LitServe": Contender(litserve, "/predict", as_form),
            "mlserver": Contender(theirs, "/v2/models/model/infer", as_base64),
        }


def make_pictures(folder: Path) -> list[Path]:
    cell = elpv_photograph()
    with Image.open(cell) as image:
        photograph = image.convert("RGB").resize((1920, 1440), Image.Resampling.LANCZOS)
    photograph.save(folder / "photograph.jpg", quality=90)
    return [cell, folder / "photograph.jpg"]


def read_processor_seconds(server: Server) -> float:
    """Return the processor time that the server's processes have taken so far."""
    seconds = 0.0
    for process in (server.process, *server.process.children(recursive=True)):
        times = process.cpu_times()
        seconds += times.user + times.system
    return seconds


def measure_contender(contender: Contender, request: Request, connections: int, seconds: float) -> dict[str, float]:
    before = read_processor_seconds(contender.server)
    found = run_wrk(contender.server, request, connections, seconds)
    found["rate"] = (found["requests"] - found["status"]) / found["seconds"]
    found["cpu"] = 1000 * (read_processor_seconds(contender.server) - before) / max(1, found["requests"])
    return found


def wait_until_idle(contenders: Iterable[Contender]) -> None:
    """Wait until no server works any more: some go on with the requests of clients that have left.

    The next one would pay for it.
    """
    servers = [contender.server for contender in contenders]
    used = sum(map(read_processor_seconds, servers))
    for _ in range(IDLE_TRIES):
        time.sleep(IDLE_SECONDS)
        before = used
        used = sum(map(read_processor_seconds, servers))
        if used - before < IDLE_SHARE * IDLE_SECONDS:
            return
    raise SystemExit("a server does not come to rest")


def compare_servers(args: argparse.Namespace) -> None:
    results: dict[tuple[str, int, str], list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = args.image or make_pictures(folder)
        with start_contenders(args, folder) as servers, run_neighbours(args.neighbours):
            requests: dict[tuple[str, str], Request] = {}
            for number, image in enumerate(images):
                for place, (name, contender) in enumerate(servers.items()):
                    body, headers = contender.make(image.read_bytes())
                    made = make_request(folder / f"{number}-{place}", name, contender.path, body, headers)
                    requests[image.name, name] = made
                    measure_contender(contender, made, 2, WARM_UP)
            for round_ in range(args.rounds):
                for image in images:
                    for connections in args.connections:
                        for name, contender in servers.items():
                            wait_until_idle(servers.values())
                            found = measure_contender(contender, requests[image.name, name], connections, args.seconds)
                            results[image.name, connections, name].append(found)
                print(f"round {round_ + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    print_table(results)


def print_table(results: dict[tuple[str, int, str], list[dict[str, float]]]) -> None:
    print(
        "| image | connections | server | images/s | p50 ms | p99 ms | processor ms | failed | ehm's images/s / its |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (image, connections, name), runs in results.items():
        ours = results[image, connections, OURS]
        ratios = []
        for own, other in zip(ours, runs, strict=True):
            ratios.append(own["rate"] / other["rate"] if other["rate"] else math.inf)
        cells = [image, str(connections), name, format_spread([run["rate"] for run in runs], 0)]
        for key in ("p50", "p99"):
            cells.append(f"{statistics.median(run[key] for run in runs):.1f}")
        cells += [format_spread([run["cpu"] for run in runs], 1)]
        cells += [f"{sum(run['status'] + run['broken'] for run in runs):.0f}"]
        cells += ["" if name == OURS else format_spread(ratios, 2)]
        print("| " + " | ".join(cells) + " |")


def format_spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"

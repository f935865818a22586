"""An exported network for Ascend: ATC's command, written beside it, and run if CANN is installed.

ATC (Ascend Tensor Compiler) makes an offline model (``model.om``) of an ONNX file for one kind of processor and a list
of batch sizes, which have to be the first dimension and the only dynamic one. It computes in float16 unless it is told
to keep the types of the graph (``precision_mode_v2=origin``); `precision_search` finds out what is near enough.
Options: CANN 8.0, ATC's reference; the opset and operators that it takes are the export's part.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ehm.config import AscendConfig
from ehm.console import console
from ehm.deploy.bundle.manifest import OFFLINE_MODEL, AtcPrecision, TensorRecord
from ehm.errors import ExportError
from ehm.storage.writing import report_write_errors, write_text

__all__ = ["CHOOSER", "FLOAT32_NODES", "SCRIPT", "build_atc_command", "has_atc", "run_atc", "write_scripts"]

SCRIPT = "atc.sh"
CHOOSER = "choose_precision.py"
FLOAT32_NODES = "atc_float32.txt"
"""The nodes that stay in float32 in mixed precision, one a line, as ATC's --keep_dtype reads them."""

_TEXT = """\
#!/bin/sh
# Converts the bundle's network with ATC, in the shell that CANN's set_env.sh was sourced in:
# atc.sh [OUTPUT [PRECISION]], by default ./model.om in {precision}. PRECISION is origin, which keeps the types of the
# graph, fp16, or mixed: float16, but for the nodes in {nodes}. {chooser} tries them.
# ATC leaves notes (kernel_meta, fusion_result.json) where it is called.
folder="$(dirname "$0")"
output="${{1:-model}}"
case "${{2:-{precision}}}" in
    mixed) set -- --precision_mode_v2=mixed_float16 --keep_dtype="$folder/{nodes}" ;;
    *) set -- --precision_mode_v2="${{2:-{precision}}}" ;;
esac
exec {command} "$@" \\
    --model="$folder/{model}" --output="$output"
"""
_CHOOSER_TEXT = '''\
#!/usr/bin/env python3
"""Tries ATC's precisions on the NPU of this machine, and leaves the fastest that is near enough as model.om.

Run it in the shell that CANN's set_env.sh was sourced in, with ehm installed: choose_precision.py [IMAGE ...].
Images are photographs like those that the network will see, or folders of them; without, pictures are made up.
"""

import sys
from pathlib import Path

from ehm.deploy.export.engines.precision_search import main

sys.exit(main(Path(__file__).parent, sys.argv[1:]))
'''


def has_atc() -> bool:
    """Return whether ATC is on the PATH, and a conversion can be run here."""
    return shutil.which("atc") is not None


def write_scripts(
    folder: Path,
    model: str,
    images: TensorRecord,
    config: AscendConfig,
    float32_nodes: Sequence[str] = (),
    precision: AtcPrecision = "origin",
) -> None:
    """Write ``atc.sh`` beside the ONNX file ``model`` in ``folder``, and the script that tries precisions.

    ``images`` is the network's input, and ``precision`` what ``atc.sh`` takes if it is not told. Raises ExportError if
    another dimension than the batch is dynamic.
    """
    command = build_atc_command(images, config)
    text = _TEXT.format(command=command, model=model, precision=precision, nodes=FLOAT32_NODES, chooser=CHOOSER)
    scripts = {SCRIPT: text, CHOOSER: _CHOOSER_TEXT}
    for name, content in scripts.items():
        write_text(folder / name, content)
        (folder / name).chmod(0o755)
    write_text(folder / FLOAT32_NODES, "".join(f"{name}\n" for name in float32_nodes))


def run_atc(folder: Path, output: Path, precision: AtcPrecision) -> None:
    """Run ``atc.sh`` of ``folder`` in a precision, and leave its offline model at ``output``.

    Raises ExportError if ``atc`` fails.
    """
    with tempfile.TemporaryDirectory() as working_folder:  # ATC writes notes there, which are no part of a bundle
        console.print(f"Running {SCRIPT} in {precision}, which takes minutes")
        done = subprocess.run(
            ["sh", (folder / SCRIPT).absolute(), "model", precision],
            cwd=working_folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        made = Path(working_folder) / OFFLINE_MODEL
        if done.returncode != 0 or not made.is_file():
            raise ExportError(
                f"atc failed with status {done.returncode}: {_take_last_lines(done.stdout + done.stderr)}; "
                "ascend.soc_version, ascend.batch_sizes and ascend.precision are what can be set"
            )
        with report_write_errors(output):
            shutil.move(made, output)


def build_atc_command(images: TensorRecord, config: AscendConfig) -> str:
    """Return ATC's command for a network with the input ``images``, without the files and the precision.

    Raises ExportError if another dimension than the batch is dynamic.
    """
    sizes = images.shape[1:]
    if any(isinstance(size, str) for size in sizes):
        raise ExportError(
            f"--target ascend: the input {images.name} has the shape {list(images.shape)}, and ATC takes one size of "
            "image; leave out dynamic_size and preprocessing in the graph"
        )
    return shlex.join(
        [
            "atc",
            "--framework=5",  # ONNX
            f"--input_shape={images.name}:{','.join(map(str, (-1, *sizes)))}",
            f"--dynamic_batch_size={','.join(map(str, config.batch_sizes))}",
            f"--soc_version={config.soc_version}",
        ]
    )


def _take_last_lines(output: str) -> str:
    """Return the end of what a program printed, in one line: ATC's reason stands there."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " ".join(lines[-5:])[-500:] or "it printed nothing"

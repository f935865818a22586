"""An exported network for Ascend: ATC's command, written beside it, and run if CANN is installed.

ATC (Ascend Tensor Compiler) makes an offline model (``model.om``) of an ONNX file for one kind of processor and a list
of batch sizes, which have to be the first dimension and the only dynamic one. It computes in float16 unless it is told
to keep the types of the graph (``precision_mode_v2=origin``), which a comparison with ONNX Runtime needs.
Options: CANN 8.0, ATC's reference; the opset and operators that it takes are the export's part.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ehm.config import AscendConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import OFFLINE_MODEL, Ascend, OfflineParity, TensorRecord
from ehm.deploy.predict.ascend_device import open_device
from ehm.deploy.predict.offline_model import OfflineSession
from ehm.deploy.predict.offline_parity import compare_offline
from ehm.errors import BackendError, ExportError
from ehm.storage.writing import report_write_errors, write_text

__all__ = ["SCRIPT", "atc_command", "describe_conversion", "write_om"]

SCRIPT = "atc.sh"
_TEXT = """\
#!/bin/sh
# Converts the bundle's network with ATC, in the shell that CANN's set_env.sh was sourced in:
# atc.sh [OUTPUT], by default ./model.om. ATC leaves notes (kernel_meta, fusion_result.json) where it is called.
exec {command} \\
    --model="$(dirname "$0")/{model}" --output="${{1:-model}}"
"""


def write_om(folder: Path, model: str, images: TensorRecord, config: AscendConfig | None = None) -> None:
    """Write ``atc.sh`` beside the ONNX file ``model`` in ``folder``, and ``model.om`` if ``atc`` is installed.

    ``images`` is the network's input. Raises ExportError if another dimension than the batch is dynamic, or if ``atc``
    fails.
    """
    command = atc_command(images, config or AscendConfig())
    script = folder / SCRIPT
    write_text(script, _TEXT.format(command=command, model=model))
    script.chmod(0o755)
    if shutil.which("atc") is None:
        console.print(f"No atc here, CANN's converter; where it is installed, run {SCRIPT} of the bundle:")
        console.print(command)
        return
    with tempfile.TemporaryDirectory() as working_folder:  # ATC writes notes there, which are no part of a bundle
        console.print(f"Running {SCRIPT}, which takes minutes")
        done = subprocess.run(
            ["sh", script.absolute()], cwd=working_folder, capture_output=True, text=True, errors="replace", check=False
        )
        made = Path(working_folder) / OFFLINE_MODEL
        if done.returncode != 0 or not made.is_file():
            raise ExportError(
                f"atc failed with status {done.returncode}: {_last_lines(done.stdout + done.stderr)}; "
                "ascend.soc_version and ascend.batch_sizes are what can be set"
            )
        with report_write_errors(folder / OFFLINE_MODEL):
            shutil.move(made, folder / OFFLINE_MODEL)


def describe_conversion(bundle: Bundle, config: AscendConfig) -> Ascend:
    """Return the manifest's record of what ATC was asked for, with a comparison if its file can be run here.

    Raises ExportError if the outputs of ``model.om`` are too far from those of the ONNX file.
    """
    record = Ascend(soc_version=config.soc_version, batch_sizes=config.batch_sizes, cosine=config.cosine)
    if not (bundle.path / OFFLINE_MODEL).is_file():
        return record
    try:
        parity = _compare_here(Bundle(bundle.path, bundle.manifest.model_copy(update={"ascend": record})))
    except BackendError as error:
        console.print(f"{OFFLINE_MODEL} is compared with the ONNX file when it is first loaded, not here: {error}")
        return record
    console.print(
        f"{OFFLINE_MODEL} on {parity.chip}: cosines to the ONNX file of {parity.cosine:.6f} and above "
        f"(allowed {record.cosine:g})"
    )
    return record.model_copy(update={"parity": parity})


def _compare_here(bundle: Bundle) -> OfflineParity:
    """Compare the offline model on the first NPU; raises BackendError if there is none of its kind."""
    device = open_device(0)
    assert bundle.manifest.ascend is not None
    compiled_for = bundle.manifest.ascend.soc_version
    if device.chip != compiled_for:
        raise BackendError(f"it is for {compiled_for}, and this NPU is an {device.chip}")
    return compare_offline(bundle, OfflineSession(device, bundle.offline_model(), bundle.manifest))


def atc_command(images: TensorRecord, config: AscendConfig) -> str:
    """Return ATC's command for a network with the input ``images``, without the files.

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
            "--precision_mode_v2=origin",
        ]
    )


def _last_lines(output: str) -> str:
    """Return the end of what a program printed, in one line: ATC's reason stands there."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " ".join(lines[-5:])[-500:] or "it printed nothing"

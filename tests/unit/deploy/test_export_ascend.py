"""ATC's command against the grammar that its reference documents, by a stand-in for ``atc`` that is strict about it.

The real one needs CANN. What it accepts of a graph is held against its operators in tests/integration/test_export.py.
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import made_bundles
import pytest
from fake_atc import FAKE_ATC
from made_bundles import make_manifest, write_network

from ehm.config import AscendConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import TensorRecord
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.export.engines.ascend import build_atc_command, has_atc, run_atc, write_scripts
from ehm.deploy.predict.runtime import PROVIDERS
from ehm.errors import ExportError

ROOT = Path(__file__).parents[3]
IMAGES = TensorRecord(name="images", dtype="float32", layout="NCHW", shape=("batch", 3, 28, 42))
FAILING = """#!/bin/sh
echo 'ATC start working now, please wait for a moment.'
touch fusion_result.json model.om
echo 'ATC run failed, Please check the detail log, Try atc --help'
echo 'E10001: Value [Ascend1] for parameter [--soc_version] is invalid.' >&2
exit 255
"""


@pytest.fixture
def folder(tmp_path):
    """The folder of an export that is being written; its name is one that a shell would take apart."""
    place = tmp_path / "a bundle"
    place.mkdir()
    (place / "model.onnx").write_bytes(b"network")
    return place


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put an ``atc`` on the PATH, beside what a shell needs."""

    def put(text, patch=monkeypatch):
        tools = Path(tempfile.mkdtemp(dir=tmp_path))
        (tools / "atc").write_text(text)
        (tools / "atc").chmod(0o755)
        patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")

    return put


def write_om(folder, model, images, config=None):
    """Convert a network, if an ``atc`` is installed."""
    write_scripts(folder, model, images, config or AscendConfig())
    if has_atc():
        run_atc(folder, folder / "model.om", "origin")


SCRIPTS = ["atc.sh", "atc_float32.txt", "choose_precision.py"]


def test_the_command_is_there_where_atc_is_not(folder):
    write_om(folder, "model.onnx", IMAGES)
    assert sorted(path.name for path in folder.iterdir()) == [*SCRIPTS, "model.onnx"]
    shown = (
        "atc --framework=5 --input_shape=images:-1,3,28,42 --dynamic_batch_size=1,2,4,8,16,32 "
        "--soc_version=Ascend910B3 "
    )
    assert shown in (folder / "atc.sh").read_text()
    for script in ("atc.sh", "choose_precision.py"):
        assert (folder / script).stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("words", "precision", "kept"),
    [
        ([], "fp16", []),
        (["model", "origin"], "origin", []),
        (["model", "mixed"], "mixed_float16", ["a norm/mean", "softmax"]),
    ],
)
def test_the_script_takes_a_precision(words, precision, kept, folder, install, tmp_path):
    write_scripts(folder, "model.onnx", IMAGES, AscendConfig(), ["a norm/mean", "softmax"], "fp16")
    install(FAKE_ATC.format(python=sys.executable))
    subprocess.run([folder / "atc.sh", *words], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    compiled = json.loads((tmp_path / "model.om").read_bytes().split(b"\n")[0])
    assert (compiled["precision"], compiled["float32"]) == (precision, kept)


def test_the_script_runs_from_anywhere_and_leaves_the_bundle_alone(folder, install, tmp_path):
    write_om(folder, "model.onnx", IMAGES)
    install(FAKE_ATC.format(python=sys.executable))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for words, made in [([], "model.om"), (["mine"], "mine.om")]:
        subprocess.run([folder / "atc.sh", *words], cwd=elsewhere, check=True, capture_output=True, timeout=30)
        assert (elsewhere / made).read_bytes().endswith(b"\nnetwork")
        (elsewhere / "kernel_meta").rmdir()
    assert sorted(path.name for path in folder.iterdir()) == [*SCRIPTS, "model.onnx"]


def test_atc_is_run_where_it_is_installed(folder, install):
    install(FAKE_ATC.format(python=sys.executable))
    config = AscendConfig(soc_version="Ascend310P3", batch_sizes=(1, 16))
    write_om(folder, "model.onnx", IMAGES, config)
    assert sorted(path.name for path in folder.iterdir()) == [*SCRIPTS, "model.om", "model.onnx"]
    assert (folder / "model.om").read_bytes().endswith(b"\nnetwork")
    assert "--dynamic_batch_size=1,16 --soc_version=Ascend310P3" in (folder / "atc.sh").read_text()


def test_a_failing_atc_is_one_sentence_with_the_end_of_what_it_said(folder, install):
    install(FAILING)
    with pytest.raises(
        ExportError, match=r"atc failed with status 255: .*E10001: Value \[Ascend1\].*; ascend\.soc_v"
    ) as error:
        write_om(folder, "model.onnx", IMAGES)
    assert "\n" not in str(error.value)
    assert not (folder / "model.om").exists()


def test_a_bundle_holds_what_atc_made_and_there_is_none_where_it_failed(install, tmp_path, monkeypatch):
    """Written as the export writes: into a folder that gets its name at the end."""

    def bundle(place):
        with stage_bundle(place) as folder:
            write_network(folder / "model.onnx", made_bundles.IMAGES, ["features"])
            write_om(folder, "model.onnx", IMAGES)
            Bundle.seal(folder, make_manifest(outputs=["features"]))
        return Bundle.open(place)

    with monkeypatch.context() as patch:
        install(FAKE_ATC.format(python=sys.executable), patch)
        assert set(bundle(tmp_path / "good").manifest.files) == {*SCRIPTS, "model.om", "model.onnx"}
        assert os.access(tmp_path / "good/atc.sh", os.X_OK)
    install(FAILING)
    with pytest.raises(ExportError, match="atc failed"):
        bundle(tmp_path / "bad")
    assert not [path.name for path in tmp_path.iterdir() if "bad" in path.name]


def test_the_guide_shows_the_command():
    guide = (ROOT / "docs/export.md").read_text(encoding="utf-8").replace("\\\n", "")
    shown = next(line for line in guide.splitlines() if line.strip().startswith("atc "))
    images = IMAGES.model_copy(update={"shape": ("batch", 3, 224, 224)})
    assert shown.split()[:-3] == build_atc_command(images, AscendConfig()).split()


def test_an_atc_that_makes_nothing_is_an_error(folder, install):
    install("#!/bin/sh\n")
    with pytest.raises(ExportError, match="atc failed with status 0: it printed nothing"):
        write_om(folder, "model.onnx", IMAGES)


@pytest.mark.parametrize("shape", [("batch", 3, "height", "width"), ("batch", "height", "width", 3)])
def test_sizes_that_atc_does_not_take_are_refused(folder, shape):
    images = IMAGES.model_copy(update={"shape": shape})
    with pytest.raises(ExportError, match="--target ascend: the input images has the shape"):
        write_om(folder, "model.onnx", images)


@pytest.mark.parametrize("sizes", [(), (8,), (0, 1), (1, 4096), range(1, 102)])
def test_batch_sizes_outside_atcs_are_refused(sizes):
    with pytest.raises(ValueError, match="batch_sizes"):
        AscendConfig(batch_sizes=tuple(sizes))


def test_cann_computes_in_the_networks_types_and_keeps_nothing_of_a_replaced_network():
    """Options of CANN's provider in onnxruntime-cann up to 1.24.4; it refuses any that it does not know."""
    assert PROVIDERS["npu"].options == {"precision_mode": "must_keep_origin_dtype", "dump_om_model": "0"}

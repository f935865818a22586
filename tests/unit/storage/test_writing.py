"""Every writer on a full disk: one sentence with the file, what survived and how to go on, and no leftovers."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_learner import FakeBackend
from full_disk import full_disk
from made_bundles import make_bundle
from PIL import Image
from safetensors.numpy import save_file

from ehm import backends
from ehm.analysis.comparison import Comparison
from ehm.analysis.inspect import _write_comparison, _write_picture
from ehm.cli import main
from ehm.config.export import AscendConfig
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.export.engines.ascend import write_scripts
from ehm.deploy.export.engines.kserve import write_kserve
from ehm.deploy.export.engines.triton import write_triton
from ehm.deploy.export.graphs.saving import save
from ehm.deploy.predict.faiss_index import write_index
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.predict.saved_predictions import save_predictions
from ehm.deploy.predict.segmentation import write_mask
from ehm.errors import WriteError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import newest_checkpoint, save_checkpoint
from ehm.storage.writing import rename_all, replace_file, replace_folder, report_write_errors, write_json
from ehm.training.runlog import RunLog
from ehm.training.tokenizer_quality import Reconstructions, draw_reconstructions
from ehm.training.trackers.base import TrackedRun
from ehm.training.trackers.tensorboard import TensorBoardTracker

NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
FEATURES = NOISE.reshape(4, -1).astype(np.float32)


def write_state(folder):
    save_checkpoint(folder / "checkpoints", LearnerState({"weight": FEATURES}, {}), {"step": 7})


def write_graph(folder):
    node = onnx.helper.make_node("Add", ["a", "w"], ["b"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, FEATURES.shape) for name in "ab"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(FEATURES, "w")])
    with stage_bundle(folder / "bundle") as stage:
        save(onnx.helper.make_model(graph), stage / "model.onnx")


def write_predictions(folder, index=None):
    save_predictions(folder, [Prediction("a.png", features=row) for row in FEATURES], index)


def write_table(folder):
    comparison = Comparison(Image.new("L", (1, 1)), ("name",), [("x" * 5000,)])
    _write_comparison(folder, "distance", comparison)


def write_curve(folder):
    curves = TensorBoardTracker()
    curves.start(TrackedRun("run", folder, {}))
    curves.log(1, {"x" * 5000: 1.0})
    curves.finish("finished")


def write_reconstructions(folder):
    draw_reconstructions(Reconstructions(NOISE, NOISE / np.float32(255), np.zeros(4)), folder)


WRITERS = {
    "checkpoints/step-00000007": write_state,
    "figures.json": lambda folder: write_json(folder / "figures.json", {"key": "x" * 5000}),
    "tensorboard": write_curve,
    "page.png": lambda folder: _write_picture(Image.fromarray(NOISE[0]), folder / "page.png"),
    "distance.csv": write_table,
    "reconstructions.png": write_reconstructions,
    "masks/a.png": lambda folder: write_mask(NOISE[0, :, :, 0], folder / "masks", "a", set()),
    "bundle/model.onnx": write_graph,
    "features.npy": write_predictions,
}


@pytest.fixture
def room():
    """Bytes that a file may have: enough for the small ones that are written first."""
    return 1000


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_names_its_file_and_leaves_nothing_half_written(name, room, tmp_path):
    with full_disk(room), pytest.raises(WriteError) as refused:
        WRITERS[name](tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / name}: cannot be written: ")
    assert "free some space, or write to another disk, and " in said
    assert "\n" not in said
    assert len(said) < 400 + len(str(tmp_path))
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    assert [path.name for path in left if path.name not in ("distance.png",)] == []


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_of_faiss_is_no_exception(kind, room, tmp_path):
    pytest.importorskip("faiss")
    with full_disk(room), pytest.raises(WriteError, match=r"index\.faiss: cannot be written: File too large; nothing"):
        write_index(tmp_path, FEATURES, kind)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_to_servers_is_no_exception(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "models").mkdir()
    with full_disk(), pytest.raises(WriteError, match="models: cannot be written: File too large"):
        write_triton(bundle, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    with full_disk(), pytest.raises(WriteError, match=r"service\.yaml: cannot be written: File too large"):
        write_kserve(bundle, tmp_path / "service.yaml")
    fixed = bundle.manifest.input.model_copy(update={"shape": ("batch", 3, 28, 42)})
    with full_disk(), pytest.raises(WriteError, match=r"atc\.sh: cannot be written: File too large"):
        write_scripts(tmp_path, "model.onnx", fixed, AscendConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


def test_an_earlier_file_stays_when_a_new_one_cannot_be_written(tmp_path):
    write_json(tmp_path / "metrics.json", {"a": 1})
    with full_disk(), pytest.raises(WriteError):
        write_json(tmp_path / "metrics.json", {"a": 2})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def write_half(path):
    with replace_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError


def test_another_error_passes_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        write_half(tmp_path / "metrics.json")
    assert list(tmp_path.iterdir()) == []


def write_folder(path, text, fails=False):
    with replace_folder(path) as folder:
        (folder / "a.txt").write_text(text)
        if fails:
            raise KeyError


def test_a_folder_is_replaced_complete_or_not_at_all(tmp_path):
    write_folder(tmp_path / "folder", "one")
    with pytest.raises(KeyError):
        write_folder(tmp_path / "folder", "two", fails=True)
    assert (tmp_path / "folder" / "a.txt").read_text() == "one"
    (tmp_path / "folder").rename(tmp_path / ".folder-replaced")  # what a kill between the two renames leaves
    with pytest.raises(KeyError):
        write_folder(tmp_path / "folder", "two", fails=True)
    assert (tmp_path / "folder" / "a.txt").read_text() == "one"
    write_folder(tmp_path / "folder", "two")
    assert (tmp_path / "folder" / "a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_renames_are_taken_back_when_one_fails(tmp_path):
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError):
        rename_all([(tmp_path / "a", tmp_path / "b"), (tmp_path / "missing", tmp_path / "c")])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_reasons_than_a_full_disk_have_their_own_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        WriteError, match=r"a\.json: cannot be written: Not a directory; .*; see that it can be written"
    ):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(BrokenPipeError), report_write_errors(tmp_path):
        raise BrokenPipeError
    with pytest.raises(RuntimeError, match="of another kind"), report_write_errors(tmp_path):
        raise RuntimeError("of another kind")


def log_two_steps(folder):
    with RunLog(folder, 4) as log:
        log.log(1, {"loss": 1.0})
        with full_disk(20):
            log.log(2, {"loss": 1.0})


def test_the_log_of_a_run_on_a_full_disk(tmp_path):
    with pytest.raises(WriteError, match=r"metrics\.jsonl: cannot be written: File too large"):
        log_two_steps(tmp_path)


TINY = ["encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=4", "data.workers=0"]


@pytest.mark.parametrize("trackers", ["[tensorboard]", "[]"])
def test_a_run_says_which_checkpoint_survived_and_goes_on_from_it(images, tmp_path, monkeypatch, capsys, trackers):
    backend = FakeBackend()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: backend)
    out = tmp_path / "run"
    settings = [*TINY, "run.log_every=1", "optim.warmup_epochs=0", f"data.source={images}"]
    settings += [f"run.trackers={trackers}", "run.max_steps=4"]
    arguments = ["train", "--out", str(out), *(f"--set={value}" for value in settings)]
    with full_disk():
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"ehm train: {out}/config.yaml: cannot be written: File too large; no checkpoint was written"
    )
    assert error.endswith("and start the run again\n")
    assert main(arguments) == 0
    capsys.readouterr()
    saved = backend.learners[-1].state()
    more = ["train", "--resume", "--out", str(out), "--set=run.max_steps=null"]
    monkeypatch.setattr(type(backend.learners[-1]), "state", lambda learner: LearnerState({"w": FEATURES}, {}))
    with full_disk(4000):
        assert main(more) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the checkpoint {out}/checkpoints/step-00000004 is complete; free some space" in error
    assert error.endswith(f"and go on from there with --resume --out {out}\n")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    monkeypatch.undo()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: FakeBackend())
    assert main(more) == 0
    assert newest_checkpoint(out / "checkpoints").name == "step-00000012"
    assert saved.model["weight"] != 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [["configs"], ["configs", "--json"]])
def test_standard_output_on_a_full_disk_is_one_sentence(argv):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ehm.cli", *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_machine_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "own_kernel.py").write_text(
        "from ehm.masking._jit import kernel\n@kernel\ndef squared(value):\n    return value * value\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with full_disk():
        assert import_module("own_kernel").squared(3) == 9
    assert not list(tmp_path.rglob("*.nbc"))


def test_a_file_of_safetensors_says_what_the_system_said(tmp_path):
    with full_disk(), pytest.raises(WriteError, match=f"cannot be written: {os.strerror(27)}"):  # noqa: SIM117
        with report_write_errors(tmp_path / "a"):
            save_file({"a": FEATURES}, tmp_path / "a")

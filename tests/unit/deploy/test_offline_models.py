"""Offline models of Ascend on the simulated pyACL (tests/simulated/acl.py), which is strict about order and memory.

What they give is compared with ONNX Runtime.
"""

import asyncio
import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_bundles import IMAGES, make_bundle, write_network
from PIL import Image

from ehm.deploy import bench
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Ascend, OfflineParity
from ehm.deploy.predict.ascend_device import close_devices, open_device
from ehm.deploy.predict.command import main, predict
from ehm.deploy.predict.offline_model import OfflineSession
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.inference.metrics import Metrics
from ehm.deploy.serve.inference.models import Models
from ehm.deploy.serve.settings import Settings
from ehm.errors import BackendError, ConfigError, EhmError, ExportError, RequestError
from ehm.storage.reading import hash_file

SIMULATED = Path(__file__).parents[2] / "simulated"
OUTPUTS = ["logits", "features", "patches"]


@pytest.fixture
def bundle(tmp_path):
    opened = make_bundle(tmp_path / "bundle", outputs=OUTPUTS)
    compile_network(opened, opened.model())
    return opened


def compile_network(bundle, network, soc="Ascend910B3", batch_sizes=(1, 2, 4)):
    head = json.dumps({"soc": soc, "batch_sizes": list(batch_sizes), "precision": "origin"})
    (bundle.path / "model.om").write_bytes(head.encode() + b"\n" + network.read_bytes())


def draw(count):
    return np.random.default_rng(0).standard_normal((count, 3, 28, 42)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_batches_of_any_size_are_what_onnx_runtime_gives(count, bundle, acl):
    images = draw(count)
    expected = Predictor(bundle).run(images)
    predictor = Predictor(bundle, "om")
    found = predictor.run(images)
    assert set(found) == set(OUTPUTS)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    (patches,) = predictor.run(images, ["patches"]).values()
    np.testing.assert_allclose(patches, expected["patches"], rtol=1e-6)


def test_a_batch_is_padded_to_the_next_size_and_cut_at_the_largest(bundle, acl, monkeypatch):
    sizes = []
    set_size = acl.mdl.set_dynamic_batch_size

    def note_size(*arguments):
        sizes.append(arguments[-1])
        return set_size(*arguments)

    monkeypatch.setattr(acl.mdl, "set_dynamic_batch_size", note_size)
    predictor = Predictor(bundle, "om")
    for count, expected in {1: [1], 3: [4], 6: [4, 2], 9: [4, 4, 1]}.items():
        sizes.clear()
        predictor.run(draw(count))
        assert sizes == expected


def test_a_file_of_one_batch_size_runs_too(bundle, acl):
    compile_network(bundle, bundle.model(), batch_sizes=[2])
    np.testing.assert_allclose(
        Predictor(bundle, "om").run(draw(3))["logits"], Predictor(bundle).run(draw(3))["logits"], rtol=1e-6
    )
    assert "mdl.set_dynamic_batch_size" not in acl.calls


def test_threads_share_the_one_that_owns_the_context(bundle, acl):
    predictor = Predictor(bundle, "om:0")
    batches = [draw(size) * size for size in (1, 2, 3, 4, 5, 6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(predictor.run, batches))
    for batch, outputs in zip(batches, found, strict=True):
        np.testing.assert_allclose(outputs["features"], batch.mean((2, 3)), atol=1e-6)


def test_memory_of_the_npu_goes_with_the_predictor(bundle, acl):
    first = Predictor(bundle, "om")
    held = acl.live()
    assert held["model"] == 1
    assert held["memory"] == held["buffer"] == 5  # images, the size of the batch, and three outputs
    second = Predictor(bundle, "om")
    assert acl.live() == {kind: count if kind in ("device", "context") else 2 * count for kind, count in held.items()}
    del first
    gc.collect()
    open_device(0).run(lambda: None)  # waits until the release before it is done
    assert acl.live() == held
    del second
    assert acl.calls.count("init") == 1
    close_devices()
    assert acl.live() == {}
    assert acl.calls[-1] == "finalize"


@pytest.mark.parametrize("name", ["rt.malloc", "mdl.get_desc", "mdl.add_dataset_buffer", "mdl.get_dynamic_batch"])
def test_a_load_that_fails_half_way_gives_back_what_it_took(name, bundle, acl):
    acl.fail[name] = 507899
    with pytest.raises(BackendError, match=rf"^acl\.{name} failed with the code 507899 \(E19999: .* made to fail\)$"):
        Predictor(bundle, "om")
    assert acl.live() == {"device": 1, "context": 1}


def test_a_run_that_fails_names_the_code_and_the_next_one_goes_on(bundle, acl):
    predictor = Predictor(bundle, "om")
    for name in ("mdl.execute", "rt.memcpy", "mdl.set_dynamic_batch_size"):
        acl.fail[name] = 507011
        with pytest.raises(BackendError, match=rf"^acl\.{name} failed with the code 507011 "):
            predictor.run(draw(2))
        acl.fail.clear()
        assert len(predictor.run(draw(2))["logits"]) == 2
    with pytest.raises(ValueError, match=r"the shape \[3, 28, 28\] and the type float32, and model\.om takes \[3, 28"):
        predictor.run(draw(2)[..., :28])


@pytest.mark.parametrize(
    ("device", "name", "sentence"),
    [
        (
            "om:5",
            None,
            r"--device om:5: the NPU cannot be opened: acl\.rt\.set_device failed with the code 107001 \(th",
        ),
        ("om", "init", r"--device om:0: the NPU cannot be opened: acl\.init failed with the code 107899 \("),
        ("om", "rt.create_context", r"--device om:0: .*: acl\.rt\.create_context failed with the code 107899 \("),
        ("om:x", None, "--device om:x: expected om, or om:1 for the second NPU"),
    ],
)
def test_an_npu_that_cannot_be_opened_is_one_sentence(device, name, sentence, bundle, acl):
    if name:
        acl.fail[name] = 107899
    with pytest.raises(BackendError, match=f"^{sentence}"):
        Predictor(bundle, device)


def test_an_older_pyacl_is_named(bundle, acl, monkeypatch):
    monkeypatch.delattr(acl.mdl, "get_dynamic_batch")
    with pytest.raises(BackendError, match=r"^pyACL here has no acl\.mdl\.get_dynamic_batch; ehm needs that of CANN 8"):
        Predictor(bundle, "om")


def test_an_acl_that_another_library_initialised_is_left_to_it(bundle, acl):
    acl.init()
    Predictor(bundle, "om")
    close_devices()
    assert acl.live() == {}
    assert "finalize" not in acl.calls


def test_without_cann_one_sentence_says_what_is_missing(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "acl", None)
    with pytest.raises(
        BackendError, match=r"^--device om: pyACL cannot be imported \(.*\); it comes with CANN: source"
    ):
        Predictor(bundle, "om")


def with_record(bundle, **values):
    """Seal a bundle again, its offline model included, with a record of the conversion."""
    return Bundle.seal(bundle.path, bundle.manifest.model_copy(update={"ascend": Ascend(**values)}))


def test_a_file_for_another_chip_says_both_and_the_code(bundle, acl):
    compile_network(bundle, bundle.model(), soc="Ascend310P3")
    wrong = with_record(bundle, soc_version="Ascend310P3")
    sentence = (
        r"model\.om: was compiled for Ascend310P3, and this NPU is an Ascend910B3: acl\.mdl\.load_from_file failed "
        r"with the code 500002 \(E10010: .*\); export with --set ascend\.soc_version=Ascend910B3$"
    )
    with pytest.raises(ExportError, match=sentence):
        Predictor(wrong, "om")
    with pytest.raises(
        ExportError, match=r"cannot be loaded on this Ascend910B3: acl\.mdl\.load_from_file failed with"
    ):
        Predictor(bundle, "om")


def test_a_file_of_another_network_is_refused(bundle, acl, tmp_path):
    write_network(tmp_path / "other.onnx", IMAGES, OUTPUTS[:2])
    compile_network(bundle, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"has 1 inputs and 2 outputs, and the bundle's network 1 and 3: it was made"):
        Predictor(bundle, "om")
    write_network(tmp_path / "other.onnx", {**IMAGES, "shape": ("batch", 3, 28, 28)}, OUTPUTS)
    compile_network(bundle, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"the input images has 37632 bytes in a batch of 4, and the bundle's has 5"):
        Predictor(bundle, "om")
    assert acl.live() == {"device": 1, "context": 1}


def test_a_file_that_was_never_compared_is_compared_when_it_is_loaded(bundle, acl, monkeypatch):
    """The record of a comparison counts only for the file that it was made with, whose hash the manifest has."""
    execute = acl.mdl.execute

    def distort(model, inputs, outputs):
        status = execute(model, inputs, outputs)
        pointer, _ = acl._find("buffer", acl._find("dataset", outputs)[1])
        memory = np.frombuffer(acl._find("memory", pointer), np.float32)
        memory[0] *= 2
        return status

    monkeypatch.setattr(acl.mdl, "execute", distort)
    sentence = r"model\.om: its features have a cosine of 0\.9\d+ to those of model\.onnx, and at least 0\.999 is a"
    with pytest.raises(ExportError, match=sentence):
        Predictor(bundle, "om")
    compared = {"soc_version": "Ascend910B3", "parity": OfflineParity(chip="Ascend910B3", images=32, cosine=1.0)}
    assert isinstance(Predictor(with_record(bundle, **compared), "om")._session, OfflineSession)
    lenient = with_record(bundle, soc_version="Ascend910B3", cosine=0.5)
    Predictor(lenient, "om")


def test_what_an_offline_model_has_no_choice_in_is_refused(bundle, acl):
    with pytest.raises(ConfigError, match=r"--precision int8: model\.om has the precision that ATC gave it"):
        Predictor(bundle, "om", "int8")
    (bundle.path / "model.om").unlink()
    with pytest.raises(ExportError, match=r"holds no model\.om; ehm export --target ascend writes atc\.sh"):
        Predictor(bundle, "om")


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, colour in enumerate([(250, 40, 90), (10, 200, 30), (0, 0, 0)]):
        Image.new("RGB", (60, 50), colour).save(folder / f"{number}.png")
    return folder


def refuse_torch(*_):
    raise EhmError("left out")


def test_the_commands_give_what_the_cpu_gives(bundle, acl, photographs, monkeypatch, capsys):
    expected = predict(bundle, photographs, device="cpu")
    for one, two in zip(expected, predict(bundle, photographs, device="om"), strict=True):
        np.testing.assert_allclose(two.features, one.features, rtol=1e-6)
        assert [label for label, _ in two.classes] == [label for label, _ in one.classes]
    assert main([bundle.path, photographs], device="om") == 0
    assert "; model.om) on AscendCL" in capsys.readouterr().err
    monkeypatch.setattr(bench, "_load_torch", refuse_torch)  # which takes seconds to import
    timings = bench.bench_export(bundle.path, batch=[3], device=["cpu", "om"], rounds=1)
    assert [timing.name for timing in timings] == ["CPU float32", "AscendCL model.om"]
    assert timings[1].cosine == pytest.approx(1)


def test_a_server_runs_an_offline_model_and_replaces_it(bundle, acl):
    async def serve():
        models = Models({"cells": bundle.path}, Settings(device="om", max_batch=4), Metrics())
        await models.load_all()
        first = models["cells"]
        assert first.version == hash_file(bundle.path / "model.om")[:12]
        answer = await first.infer(draw(3), ["logits"], asyncio.get_running_loop().time() + 10)
        np.testing.assert_allclose(answer.outputs["logits"], Predictor(bundle).run(draw(3))["logits"], rtol=1e-6)
        acl.fail["mdl.execute"] = 507011
        with pytest.raises(RequestError, match=r"failed on this batch: acl\.mdl\.execute failed with the code 507011"):
            await first.infer(draw(1), ["logits"], asyncio.get_running_loop().time() + 10)
        acl.fail.clear()
        compile_network(bundle, bundle.model(), batch_sizes=(1, 8))
        await models.refresh()  # the files may still change
        await models.refresh()
        assert models["cells"].version == hash_file(bundle.path / "model.om")[:12] != first.version
        del first
        gc.collect()
        open_device(0).run(lambda: None)
        assert acl.live()["model"] == 1

    asyncio.run(serve())


def test_a_process_ends_with_everything_released(bundle, photographs):
    """The simulated pyACL asserts at the end that nothing is left, in a process that keeps its predictor."""
    code = (
        "import sys; from ehm.deploy.predict.predictor import Predictor; import acl, atexit\n"
        "predictor = Predictor(sys.argv[1], 'om'); atexit.register(lambda: print(acl.live()))\n"
        "from ehm.deploy.predict import ascend_device\n"
        "atexit.unregister(ascend_device.close_devices); atexit.register(ascend_device.close_devices)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bundle.path],
        env={"PYTHONPATH": f"{SIMULATED}:{Path(__file__).parents[3]}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n", "")

"""Networks on ONNX Runtime's TensorRT provider, by a stand-in that runs on the CPU and knows the provider's options.

No GPU is needed: what is tested is what ONNX Runtime is asked for.
"""

import re

import numpy as np
import onnxruntime
import pytest
from made_bundles import IMAGES, PIXELS, make_bundle

from ehm.config import ExportConfig
from ehm.deploy import bench
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import BatchRange
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import list_installed_devices, open_session
from ehm.errors import BackendError, ConfigError, EhmError

KNOWN = {
    *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
    *("trt_fp16_enable", "trt_layer_norm_fp32_fallback", "device_id"),
    *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
}
"""Options among those in libonnxruntime_providers_tensorrt.so of onnxruntime-gpu 1.31.1; it refuses any other."""


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The sessions that were asked for, each by its model and its providers with their options."""
    sessions = []
    real = onnxruntime.InferenceSession

    class Session:
        def __init__(self, model, settings, providers, enable_fallback):
            options = dict(providers)["TensorrtExecutionProvider"]
            assert set(options) <= KNOWN
            assert all(isinstance(value, str) for value in options.values())
            sessions.append((model, providers))
            self.largest = int(re.search(r":(\d+)x", options.get("trt_profile_max_shapes", ":1000x"))[1])
            self.session = real(model, settings, providers=["CPUExecutionProvider"])

        def run(self, names, feeds):
            (images,) = feeds.values()
            assert 1 <= len(images) <= self.largest, "beyond the profile"
            return self.session.run(names, feeds)

        def get_providers(self):
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setenv("EHM_TENSORRT_CACHE", str(tmp_path / "engines"))
    return sessions


def options_of(session):
    _, providers = session
    return dict(providers)["TensorrtExecutionProvider"]


def test_an_engine_takes_the_batches_that_the_bundle_names(asked, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", precisions=("float32", "float16"))
    batches = BatchRange(usual=2, largest=3)
    bundle = Bundle.seal(bundle.path, bundle.manifest.model_copy(update={"batches": batches}))
    images = np.random.default_rng(0).standard_normal((7, 3, 28, 42)).astype(np.float32)
    found = Predictor(bundle, "tensorrt:1").run(images)["logits"]
    np.testing.assert_allclose(found, images.mean((2, 3)), atol=1e-6)
    ((model, providers),) = asked
    assert model == bundle.model()
    assert [name for name, _ in providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert dict(providers)["CUDAExecutionProvider"] == {"use_tf32": "0", "device_id": "1"}
    options = options_of(asked[0])
    assert options["device_id"] == "1"
    shapes = [options[f"trt_profile_{word}_shapes"] for word in ("min", "opt", "max")]
    assert shapes == ["images:1x3x28x42", "images:2x3x28x42", "images:3x3x28x42"]
    assert "trt_fp16_enable" not in options
    Predictor(bundle, "tensorrt", "float16")
    assert options_of(asked[1])["trt_fp16_enable"] == "1"


def test_engines_are_kept_by_network_and_not_by_place(asked, tmp_path):
    """The name that ONNX Runtime gives an engine does not change with the weights."""
    folders = []
    for number, images in enumerate([IMAGES, {**IMAGES, "shape": ("batch", 3, 28, 28)}, IMAGES]):
        Predictor(make_bundle(tmp_path / str(number), images), "tensorrt")
        options = options_of(asked[-1])
        assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
        assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"]
        folders.append(options["trt_engine_cache_path"])
    assert folders[0] == folders[2] != folders[1]
    assert (tmp_path / "engines").is_dir()
    assert all(folder.startswith(str(tmp_path / "engines")) for folder in folders)


def test_a_folder_that_cannot_be_made_is_a_warning(asked, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EHM_TENSORRT_CACHE", str(tmp_path / "file"))
    Predictor(make_bundle(tmp_path / "bundle"), "tensorrt")
    assert "trt_engine_cache_enable" not in options_of(asked[0])
    (message,) = caplog.messages
    assert message.endswith("built at every start: Not a directory; EHM_TENSORRT_CACHE names another folder")


def test_images_of_any_size_have_no_profile(asked, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", PIXELS)
    pixels = np.full((40, 8, 8, 3), 7, np.uint8)
    np.testing.assert_allclose(Predictor(bundle, "tensorrt").run(pixels)["logits"], np.full((40, 3), 7.0))
    assert not [name for name in options_of(asked[0]) if "profile" in name]


def test_what_tensorrt_does_not_take_is_one_sentence(asked, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", precisions=("float32", "int8"))
    with pytest.raises(
        ConfigError, match=r"^--device tensorrt --precision int8: TensorRT takes no int8 with zero points"
    ):
        Predictor(bundle, "tensorrt", "int8")
    with pytest.raises(ValueError, match="usual 64 goes beyond largest 32"):
        ExportConfig.model_validate({"batches": {"usual": 64}})


def test_the_bench_leaves_int8_out(asked, tmp_path, monkeypatch, capsys):
    def refuse_torch(*_):
        raise EhmError("left out")

    monkeypatch.setattr(bench, "_load_torch", refuse_torch)  # which takes seconds to import
    bundle = make_bundle(tmp_path / "bundle", precisions=("float32", "int8", "float16"))
    timings = bench.bench_export(bundle.path, batch=[40], device="tensorrt", rounds=1)
    assert [timing.name for timing in timings] == ["Tensorrt float32", "Tensorrt float16"]


def test_only_who_asks_for_it_waits_for_a_compiler(asked, tmp_path):
    """TensorRT's provider comes with that of CUDA, installed or not."""
    assert list_installed_devices() == ["cuda", "cpu"]


def test_a_provider_that_is_absent_or_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setenv("EHM_TENSORRT_CACHE", str(tmp_path / "engines"))
    with pytest.raises(
        BackendError, match=r"^--device tensorrt: ONNX Runtime here lacks TensorrtExecutionProvider, whic"
    ):
        Predictor(bundle, "tensorrt")
    assert not (tmp_path / "engines").exists()
    both = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda m, s, providers, **_: real(m, s, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(BackendError, match="is installed but cannot start; it needs TensorRT's own libraries, of the"):
        open_session(bundle.model(), "tensorrt")

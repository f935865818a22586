"""ONNX Runtime's sessions: the provider that a device asks for, their threads, and errors, which nothing prints."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from made_bundles import make_bundle
from onnx import TensorProto, helper

from ehm.deploy.predict import runtime
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.runtime import PROVIDERS, open_session
from ehm.errors import BackendError, ExportError
from ehm.processors import count_physical_cores


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundle", outputs=["features"]).path


@pytest.fixture
def network(bundle):
    return bundle / "model.onnx"


def test_its_threads_spin_for_microseconds(network):
    options = open_session(network).get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "20"


@pytest.mark.parametrize("version", ["1.18.0", "1.25.1"])
def test_its_threads_do_not_spin_at_all_if_onnx_runtime_knows_no_bound(network, monkeypatch, version):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    options = open_session(network).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_its_threads_are_as_many_as_the_cores_unless_told_otherwise(network, monkeypatch):
    monkeypatch.setattr(runtime, "count_physical_cores", lambda: 3)
    assert open_session(network).get_session_options().intra_op_num_threads == 3
    assert open_session(network, threads=2).get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "npu", "openvino"])
def test_a_provider_that_is_not_installed_is_one_sentence(bundle, device):
    package = PROVIDERS[device.partition(":")[0]].package
    with pytest.raises(BackendError, match=f"--device {device}: ONNX Runtime here lacks .* {package} brings"):
        predict(bundle, [], device=device)


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "openvino:1", "cuda:x", ""])
def test_an_unknown_device_names_the_known_ones(bundle, device):
    with pytest.raises(BackendError, match="known are auto, npu, cuda, openvino, cpu"):
        predict(bundle, [], device=device)


def test_a_provider_that_falls_back_to_the_cpu_is_an_error_unless_auto(network, monkeypatch):
    """ONNX Runtime gives a CPU session when CUDA's libraries are missing, and says nothing that a program can read."""
    asked = []

    class Session:
        def __init__(self, model, settings, providers, **_):
            asked.extend(providers)

        def get_providers(self):
            return ["CPUExecutionProvider"]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(BackendError, match="CUDAExecutionProvider is installed but cannot start"):
        open_session(network, "cuda:1")
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})]
    assert open_session(network, "auto").get_providers() == ["CPUExecutionProvider"]
    assert [name for name, _ in asked[1:]] == both


def test_openvino_computes_in_bfloat16_only_where_the_network_is_in_lower_precision(network, monkeypatch):
    asked = []

    class Session:
        def __init__(self, model, settings, providers, **_):
            asked.append((settings.intra_op_num_threads, dict(providers)["OpenVINOExecutionProvider"]))

        def get_providers(self):
            return ["OpenVINOExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    open_session(network, "openvino")
    open_session(network, "auto", threads=3, precision="int8")
    assert asked[0] == (count_physical_cores(), {"device_type": "CPU"})
    threads, options = asked[1]
    assert threads == 3
    assert options["num_of_threads"] == "3"
    assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}


def test_auto_says_which_provider_could_not_start(network, monkeypatch, caplog):
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, settings, providers, **_: real(model, settings, providers=["CPUExecutionProvider"]),
    )
    open_session(network, "auto")
    assert "--device auto: CUDAExecutionProvider is installed but cannot start; trying the next" in caplog.text


def test_auto_tries_the_next_where_a_provider_cannot_load_the_network(network, monkeypatch, caplog, capfd):
    """ONNX Runtime's own fallback would print, and load on the CPU whatever was asked for."""
    real = onnxruntime.InferenceSession._create_inference_session

    def create(session, providers, *options):
        if providers[0][0] == "OpenVINOExecutionProvider":
            raise RuntimeError("no such\noperator")
        real(session, providers, *options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    both = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert open_session(network, "auto").get_providers() == ["CPUExecutionProvider"]
    (record,) = caplog.records
    assert record.getMessage().startswith("--device auto: OpenVINOExecutionProvider cannot load ")
    assert record.getMessage().endswith("model.onnx; trying the next: no such operator")
    with pytest.raises(ExportError, match="cannot load it: no such operator"):
        open_session(network, "openvino")
    network.write_bytes(b"text")
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        open_session(network, "auto")
    assert capfd.readouterr() == ("", "")


def test_a_failing_run_is_raised_and_not_printed(tmp_path, capfd):
    """Standard error belongs to the log, whose lines may have to be JSON."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, None)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("Reshape", ["images", "shape"], ["features"])
    graph = helper.make_graph([node], "two", [images], [features], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    assert session.run(None, {"images": np.ones((2, 3), np.float32)})[0].shape == (2, 3)
    with pytest.raises(Exception, match="cannot be reshaped"):
        session.run(None, {"images": np.ones((5, 3), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_one_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        open_session(tmp_path / "model.onnx")

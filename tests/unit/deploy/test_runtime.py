"""ONNX Runtime's sessions: as many threads as there are cores for this process, which soon sleep while they wait."""

import onnxruntime
import pytest
from serving import means_bundle

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict import runtime
from ehm.deploy.predict.runtime import open_session


@pytest.fixture
def network(tmp_path):
    return Bundle.open(means_bundle(tmp_path / "both")).model("float32")


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

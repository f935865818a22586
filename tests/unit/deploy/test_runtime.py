"""ONNX Runtime's sessions: as many threads as there are cores for this process, which sleep while they wait."""

import pytest
from serving import means_bundle

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict import runtime
from ehm.deploy.predict.runtime import open_session


@pytest.fixture
def network(tmp_path):
    return Bundle.open(means_bundle(tmp_path / "both")).model("float32")


def test_its_threads_do_not_spin(network):
    options = open_session(network).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_its_threads_are_as_many_as_the_cores_unless_told_otherwise(network, monkeypatch):
    monkeypatch.setattr(runtime, "count_physical_cores", lambda: 3)
    assert open_session(network).get_session_options().intra_op_num_threads == 3
    assert open_session(network, threads=2).get_session_options().intra_op_num_threads == 2

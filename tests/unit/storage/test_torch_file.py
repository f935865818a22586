"""Files of torch read without torch, against torch's own reader, and files that must not be executed."""

import argparse
import os
import pickle
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from ehm.backends.torch.models.torch_file import read_arrays
from ehm.errors import CheckpointError
from ehm.models.opening import read_weights_file
from ehm.storage.torch_file import read_torch_file


def build_content():
    """Tensors of every type and layout that files of weights have, in sections as training programs write them."""
    values = torch.linspace(-3, 200, 24).reshape(2, 3, 4)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    types += [torch.int8, torch.uint8, torch.bool]
    tensors = OrderedDict((str(dtype), values.clamp(0, 100).to(dtype)) for dtype in types)
    tensors["parameter"] = torch.nn.Parameter(values)
    tensors["transposed"] = values.permute(2, 0, 1)
    tensors["part"] = values[1, 1:, ::2]
    tensors["same storage"] = tensors["part"][:, 0]
    tensors["scalar"] = torch.tensor(3)
    tensors["empty"] = torch.zeros(0, 5)
    arguments = argparse.Namespace(lr=0.1, size=torch.Size([2, 3]), device=torch.device("cpu"))
    scheduler = {"milestones": Counter([3, 3]), "seen": {1, 2}}
    return {
        "model": tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "args": arguments,
        "epoch": 3,
        "schedule": scheduler,
    }


@pytest.mark.parametrize("in_archive", [True, False])
def test_every_tensor_is_the_one_that_torch_reads(tmp_path, in_archive):
    path = tmp_path / "model.pth"
    torch.save(build_content(), path, _use_new_zipfile_serialization=in_archive)
    found = read_weights_file(path)
    expected = read_arrays(path)
    assert list(found) == list(expected)
    assert "model.part" in found
    assert not any(name.startswith("optimizer") for name in found)
    for name, array in expected.items():
        if array.dtype == np.float32:  # torch's reader gives float32 for all real numbers
            assert np.array_equal(found[name].astype(np.float32), array), name
        else:
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array), name


class Call:
    """An object whose pickle calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("in_archive", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.frombuffer, torch.nn.Linear])
def test_nothing_else_than_tensors_is_made(tmp_path, function, in_archive):
    path = tmp_path / "evil.pth"
    arguments = (str(tmp_path / "owned"),) if function is os.mkdir else (2, 3)
    torch.save({"a": torch.ones(2), "b": Call(function, *arguments)}, path, _use_new_zipfile_serialization=in_archive)
    with pytest.raises(CheckpointError, match=r"evil\.pth: not .* safely: it holds an object of .* would run code"):
        read_torch_file(path)
    assert not (tmp_path / "owned").exists()


def test_a_view_never_leaves_its_storage(tmp_path):
    """The numbers of a storage are a part of the file, and what lies behind them is somebody's memory."""
    view = torch._utils._rebuild_tensor_v2
    storage = torch.arange(6.0).untyped_storage()
    wrong = {
        "beyond": (4, (3,), (1,)),
        "before": (-1, (2,), (1,)),
        "backwards": (5, (3,), (-2,)),
        "far": (0, (2, 2), (1, 5)),
        "repeated without end": (0, (1 << 40,), (0,)),
    }
    for offset, size, stride in wrong.values():
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        call = Call(view, typed, offset, size, stride, False, OrderedDict())
        torch.save({"a": call}, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match="it is damaged, or no file of torch's"):
            read_torch_file(tmp_path / "wrong.pth")


def test_attributes_that_a_file_sets_of_our_stand_ins_are_gone_with_it(tmp_path):
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "plain.pth")
    first = type(read_torch_file(tmp_path / "plain.pth")["args"])
    assert first is not type(read_torch_file(tmp_path / "plain.pth")["args"])


def test_damaged_and_other_files_are_one_sentence(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
    contents = [b"", b"\x80\x02junk", bytes(range(256)), whole[:3000], pickle.dumps([1, 2]), b"PK\x03\x04"]
    contents.append((tmp_path / "compressed.pth").read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.pth: not a file of tensors .* it is damaged, or no") as said:
            read_weights_file(path)
        assert "\n" not in str(said.value)
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match=r"a\.pth: holds a list, not tensors by name"):
        read_weights_file(path)
    with pytest.raises(CheckpointError, match=r"no\.pth: cannot be read: No such file or directory"):
        read_weights_file(tmp_path / "no.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_refused_by_its_name(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(CheckpointError, match="TorchScript program, as OpenAI's files of CLIP do"):
        read_torch_file(tmp_path / "ViT-B-32.pt")

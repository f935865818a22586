"""The operators of an NPU, against torch's own table; those of a step, against a step written out here."""

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch import nn
from torch.nn import functional as F

from ehm.backends.torch.diagnosis import operators, recording
from ehm.backends.torch.diagnosis.operators import (
    classify_operator,
    judge_calls,
    native_operators,
    record_operators,
    report_operators,
)
from ehm.backends.torch.objectives.mae import MaskedAutoencoder

LACKING = ("huber_loss", "poisson", "_sample_dirichlet", "_linalg_eigh", "_weight_norm_interface")
TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"


@pytest.fixture(scope="module")
def table():
    """Operators of torch by name, as the generator of its sources reads them."""
    functions = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {function["func"].partition("(")[0]: function for function in functions}


def backends_of(function):
    """Dispatch keys with a kernel; an operator without any is composed of others."""
    return {key for keys in function.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in keys.split(", ")}


def test_the_list_holds_operators_of_torch(table):
    names = native_operators()
    assert len(names) == 1078
    known = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names()}
    assert not names - known
    assert {"mm", "native_layer_norm", "_fused_adamw_", "gelu.out", "scaled_dot_product_attention"} <= names
    assert not names & {*LACKING}


def test_structured_operators_stand_or_fall_with_their_out_overload(table):
    names, seen = native_operators(), {True: 0, False: 0}
    for name, function in table.items():
        out = function.get("structured_delegate")
        if out is None or name in names or operators.classify_operator(name).kind == "synchronises":
            continue
        if "CompositeExplicitAutograd" in backends_of(function):
            continue
        seen[out in names] += 1
        assert (classify_operator(name).kind == "native") == (out in names), (name, out)
    assert min(seen.values()) > 20


def test_composites_are_neutral_and_kernels_of_other_devices_are_not(table):
    names, seen = native_operators(), {"neutral": 0, "falls back": 0}
    for name, function in table.items():
        plain = not function.get("structured") and "structured_delegate" not in function
        if not plain or name in names or name.startswith("_scaled_dot_product"):
            continue
        kind = classify_operator(name).kind
        if kind == "synchronises":
            continue
        keys = backends_of(function)
        composite = any(key.startswith("Composite") for key in keys)
        generated = function.get("autogen") or name.endswith(("_copy", "_copy.out"))  # by other rules
        if not generated:
            assert kind == ("neutral" if composite else "falls back"), (name, keys)
            seen[kind] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize("name", LACKING)
def test_known_fallbacks(name):
    verdict = classify_operator(name, ("float32",))
    assert verdict.kind == "falls back"
    assert verdict.reason == "no kernel in torch-npu 2.14"


@pytest.mark.parametrize(
    ("name", "dtypes", "kind"),
    [
        ("mm", ("bfloat16",), "native"),
        ("mm", ("float64",), "falls back"),
        ("view", ("float64", "float32"), "falls back"),
        ("_to_copy", ("float32", "one float64"), "native"),
        ("gather", ("bfloat16", "int64"), "falls back"),
        ("gather", ("float16", "int64"), "native"),
        ("sort.stable", ("bfloat16", "int64"), "falls back"),
        ("argsort", ("float32", "int64"), "native"),
        ("cumsum", ("bfloat16",), "falls back"),
        ("index_add", ("bfloat16", "int64"), "falls back"),
        ("embedding_dense_backward", ("bfloat16", "int64"), "native"),
        ("index_select", ("bfloat16", "int64"), "native"),
        ("index.Tensor", ("float32", "bool"), "synchronises"),
        ("index.Tensor", ("float32", "int64"), "native"),
        ("index.Tensor", ("bool",), "synchronises"),
        ("index_fill.int_Tensor", ("bool", "int64"), "native"),
        ("_local_scalar_dense", ("float32",), "synchronises"),
        ("nonzero", ("bool", "int64"), "synchronises"),
        ("_scaled_dot_product_flash_attention_for_cpu", ("float32",), "native"),
    ],
)
def test_verdicts_look_at_the_dtypes(name, dtypes, kind):
    assert classify_operator(name, dtypes).kind == kind


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"no_such_thing: torch .* has no such operator"):
        classify_operator("no_such_thing")


def test_a_record_has_operators_dtypes_and_places():
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with record_operators() as calls:
        y = layer(x)  # +0
        y = F.huber_loss(y, torch.zeros_like(y))  # +1
        y.backward()
        y.item()
    line = test_a_record_has_operators_dtypes_and_places.__code__.co_firstlineno + 4
    found = {(call.operator, call.dtypes): call.site for call in calls}
    assert found["addmm", ("float32",)].endswith(f"tests/unit/backends/test_operators.py:{line}")
    assert found["huber_loss", ("float32",)].endswith(f"tests/unit/backends/test_operators.py:{line + 1}")
    assert found["huber_loss_backward", ("float32",)] == "backward (HuberLossBackward0)"
    rows = judge_calls(calls)
    assert (rows[0].operator, rows[0].verdict) == ("huber_loss", "falls back")
    assert (rows[1].operator, rows[1].verdict) == ("_local_scalar_dense", "synchronises")
    assert {row.verdict for row in rows[2:]} == {"native", "neutral"}


def test_a_checkpointed_pass_is_placed_where_it_was_written():
    x = torch.ones(3, requires_grad=True)
    with record_operators() as calls:
        y = torch.utils.checkpoint.checkpoint(lambda value: value.exp().sin(), x, use_reentrant=False)
        first = dict(calls)
        y.sum().backward()
    again = [call for call, count in calls.items() if count > first.get(call, 0) and call.operator == "exp"]
    assert [call.site.rpartition("/")[2].partition(":")[0] for call in again] == ["test_operators.py"]


def test_only_tensors_of_the_device_count():
    with record_operators("cuda") as calls:
        torch.ones(2) + 1
    assert not calls


@pytest.fixture(scope="module")
def rows():
    return report_operators("cpu")


def test_training_has_no_operator_that_falls_back(rows):
    wrong = [f"{row.operator} {row.dtypes} at {row.site}: {row.reason}" for row in rows if row.verdict == "falls back"]
    assert not wrong, "\n".join(wrong)


def test_training_waits_only_where_it_says_so(rows):
    """A read in the hierarchy on the device every few rounds, and torch's gradient scaler in float16."""
    files = {row.site.rpartition(":")[0] for row in rows if row.verdict == "synchronises"}
    assert files <= {"ehm/backends/torch/engine/hierarchy.py", "ehm/backends/torch/engine/step.py"}


def test_the_report_covers_all_of_training(rows):
    sites = {row.site.rpartition(":")[0].rpartition("/")[2] for row in rows}
    assert sites >= {"mae.py", "attention.py", "hierarchy.py", "classification.py", "step.py", "pretraining.py"}
    assert {"float32", "bfloat16", "float16"} <= {dtype for row in rows for dtype in row.dtypes}
    ran = {row.operator for row in rows}
    assert {"_fused_adamw_", "convolution_backward", "native_layer_norm_backward", "_foreach_lerp_.Scalar"} <= ran


def test_planted_fallbacks_are_named_with_their_place(monkeypatch):
    forward = MaskedAutoencoder.forward

    def planted(self, *args, **kwargs):
        weights = self.cls_token
        zero = F.huber_loss(weights, torch.zeros_like(weights)) + weights.double().sum().float()
        return forward(self, *args, **kwargs) + zero + weights.bfloat16().sort(dim=-1).values.float().mean()

    monkeypatch.setattr(MaskedAutoencoder, "forward", planted)
    wrong = [row for row in report_operators("cpu") if row.verdict == "falls back"]
    named = {row.operator for row in wrong if row.site.startswith("ehm/backends/torch/learners/pretraining.py:")}
    assert {"huber_loss", "_to_copy", "sort"} <= named


def test_places_are_those_of_this_backend():
    assert recording.call_site().endswith(f"test_operators.py:{recording.sys._getframe().f_lineno}")

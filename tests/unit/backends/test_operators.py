"""The operators of an NPU, against torch's own table; those of a step, against a step written out here."""

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch import nn
from torch.nn import functional as F

import ehm.backends.torch.models.rcnn  # noqa: F401  registers the operators of torchvision
from ehm.backends.torch.diagnosis import kernels, operators, recording
from ehm.backends.torch.diagnosis.operators import (
    classify_operator,
    judge_calls,
    read_native_operators,
)
from ehm.backends.torch.diagnosis.parts import PARTS
from ehm.backends.torch.diagnosis.recording import record_operators
from ehm.backends.torch.diagnosis.report import report_parts
from ehm.backends.torch.objectives.mae import MaskedAutoencoder
from ehm.errors import ConfigError

LACKING = ("huber_loss", "poisson", "_sample_dirichlet", "_linalg_eigh", "_weight_norm_interface")
BACKEND = Path(recording.__file__).parents[1]
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
    names = read_native_operators()
    assert len(names) == 1078
    known = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names()}
    assert not names - known
    assert {"mm", "native_layer_norm", "_fused_adamw_", "gelu.out", "scaled_dot_product_attention"} <= names
    assert not names & {*LACKING}


def test_structured_operators_stand_or_fall_with_their_out_overload(table):
    names, seen = read_native_operators(), {True: 0, False: 0}
    for name, function in table.items():
        out = function.get("structured_delegate")
        if out is None or name in names or name.partition(".")[0] in kernels.PARTS_OF_WHOLE:
            continue
        if "CompositeExplicitAutograd" in backends_of(function):
            continue
        seen[out in names] += 1
        assert (operators._classify_structure(name).kind == "native") == (out in names), (name, out)
    assert min(seen.values()) > 20


def test_composites_are_neutral_and_kernels_of_other_devices_are_not(table):
    names, seen = read_native_operators(), {"neutral": 0, "falls back": 0}
    for name, function in table.items():
        plain = not function.get("structured") and "structured_delegate" not in function
        if not plain or name in names or name.startswith("_scaled_dot_product"):
            continue
        if name.partition(".")[0] in kernels.PARTS_OF_WHOLE:
            continue
        kind = operators._classify_structure(name).kind
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
        ("mm", ("float64",), "no float64"),
        ("view", ("float64", "float32"), "no float64"),
        ("huber_loss", ("float64",), "falls back"),
        ("_to_copy", ("float32", "one float64"), "native"),
        ("gather", ("bfloat16", "int64"), "not documented"),
        ("gather", ("float16", "int64"), "native"),
        ("gather", ("bool", "int64"), "aicpu"),
        ("sort.stable", ("bfloat16", "int64"), "not documented"),
        ("sort.stable", ("int64",), "aicpu"),
        ("argsort", ("float32", "int64"), "native"),
        ("cumsum", ("bfloat16",), "not documented"),
        ("cumsum", ("int32",), "native"),
        ("cumsum", ("int32", "int64"), "aicpu"),
        ("masked_fill_.Scalar", ("int64", "bool"), "aicpu"),
        ("masked_fill_.Scalar", ("float32", "bool"), "native"),
        ("bitwise_or.Tensor", ("uint8",), "aicpu"),
        ("bitwise_or.Tensor", ("bool",), "native"),
        ("_unique2", ("float32",), "aicpu"),
        ("unique_dim", ("float32",), "synchronises"),
        ("cumprod", ("float32",), "aicpu"),
        ("var_mean.correction", ("float32",), "not documented"),
        ("mkldnn_rnn_layer", ("float32",), "native"),
        ("npu::npu_fusion_attention", ("bfloat16",), "native"),
        ("torchvision::nms", ("float32", "int64"), "falls back"),
        ("index_add", ("bfloat16", "int64"), "not documented"),
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


def test_the_tables_name_operators_of_torch(table):
    bases = {name.partition(".")[0] for name in table}
    named = {*kernels.AI_CORE_TYPES, *kernels.ONLY_ON_AICPU, *kernels.UNDOCUMENTED_TYPES, *kernels.UNDOCUMENTED}
    assert named | {*kernels.PARTS_OF_WHOLE} <= bases
    native = {name.partition(".")[0] for name in read_native_operators()}
    assert all(name in native or f"{name}_" in native for name in named)
    assert {whole.partition(".")[0] for whole in kernels.PARTS_OF_WHOLE.values()} <= native


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
    worst = [(row.operator, row.verdict) for row in rows[:3]]
    assert worst[:2] == [("huber_loss", "falls back"), ("huber_loss_backward.out", "falls back")]
    assert worst[2] == ("_local_scalar_dense", "synchronises")
    assert {row.verdict for row in rows[3:]} == {"native", "neutral"}


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


def test_what_an_operator_is_composed_of_is_recorded_and_computed_as_ever():
    """torch composes logcumsumexp of an operator that torch-npu lacks."""
    x = torch.randn(3, 4, requires_grad=True)
    torch.logcumsumexp(x, 0).sum().backward()
    plain, x.grad = x.grad, None
    with record_operators() as calls:
        y = torch.logcumsumexp(x, 0)
        y.sum().backward()
    assert torch.equal(x.grad, plain)
    verdicts = {row.operator: row.verdict for row in judge_calls(calls)}
    assert (verdicts["logcumsumexp"], verdicts["_logcumsumexp"]) == ("neutral", "falls back")


def test_parts_are_named_in_their_order():
    with record_operators() as calls:
        torch.ones(2).exp()
    rows = judge_calls(calls, dict.fromkeys(calls, ("mae", "beit")))
    assert {row.parts for row in rows} == {("beit", "mae")}


@pytest.fixture(scope="module")
def rows():
    """All of ehm in float32, and some of it in the lower precisions."""
    lower = ("bfloat16", "float16")
    some = [row for part in ("mae", "classification") for row in report_parts("cpu", part, dtypes=lower)]
    return [*report_parts("cpu", dtypes=("float32",)), *some]


def test_only_three_operators_of_detection_fall_back(rows):
    """These are the operators that docs/detection.md names."""
    fallen = {(row.operator, row.parts) for row in rows if row.verdict in ("falls back", "no float64")}
    names = ("torchvision::nms", "torchvision::roi_align", "torchvision::_roi_align_backward")
    assert fallen == {(name, ("detection",)) for name in names}


def test_pretraining_and_other_tasks_stay_on_ai_core(rows):
    # transformers numbers the places of a text by sums of integers
    slower = {"detection", "language", "vision_language"}
    assert {part for row in rows if row.verdict == "aicpu" for part in row.parts} == slower
    undocumented = {row.operator for row in rows if row.verdict == "not documented"}
    assert undocumented == {"var_mean.correction"}


def test_training_waits_only_where_it_says_so(rows):
    """A read in the hierarchy on the device every few rounds, and torch's gradient scaler in float16.

    Language models wait inside of transformers, for each token of an answer.
    """
    others = {"detection", "inspect", "watch", "language", "vision_language"}
    waits = [row for row in rows if row.verdict == "synchronises" and not others.intersection(row.parts)]
    files = {row.site.rpartition(":")[0] for row in waits}
    assert files <= {"ehm/backends/torch/engine/hierarchy.py", "ehm/backends/torch/engine/step.py"}


def test_the_report_covers_all_of_ehm(rows):
    sites = {row.site.rpartition(":")[0].rpartition("/")[2] for row in rows}
    learners = {path.name for path in (BACKEND / "learners").glob("*.py")}
    assert sites >= learners - {"__init__.py", "stepped.py", "supervised.py", "detection.py"}
    objectives = {path.name for path in (BACKEND / "objectives").glob("*.py")}
    assert sites >= objectives - {"__init__.py", "base.py"}
    assert sites >= {"attention.py", "hierarchy.py", "step.py", "dalle.py", "upernet.py", "examination.py"}
    assert {part for row in rows for part in row.parts} == {*PARTS}
    assert {"float32", "bfloat16", "float16"} <= {dtype for row in rows for dtype in row.dtypes}
    ran = {row.operator for row in rows}
    assert {"_fused_adamw_", "convolution_backward", "native_layer_norm_backward", "_foreach_lerp_.Scalar"} <= ran


def test_planted_fallbacks_are_named_with_their_place(monkeypatch):
    forward = MaskedAutoencoder.forward

    def planted(self, *args, **kwargs):
        weights = self.mask_token
        zero = F.huber_loss(weights, torch.zeros_like(weights)) + weights.double().sum().float()
        return forward(self, *args, **kwargs) + zero + weights.bfloat16().sort(dim=-1).values.float().mean()

    monkeypatch.setattr(MaskedAutoencoder, "forward", planted)
    rows = report_parts("cpu", "mae", dtypes=("float32",))
    here = [row for row in rows if row.site.startswith("ehm/backends/torch/learners/pretraining.py:")]
    named = {(row.operator, row.verdict) for row in here}
    assert {("huber_loss", "falls back"), ("_to_copy", "no float64"), ("sort", "not documented")} <= named


def test_a_part_that_there_is_not_is_one_sentence():
    with pytest.raises(ConfigError, match=r"^nets: no part of ehm; there are mae, .* or MODULE:FUNCTION"):
        report_parts("cpu", "nets")


def test_places_are_those_of_this_backend():
    assert recording.find_call_site().endswith(f"test_operators.py:{recording.sys._getframe().f_lineno}")

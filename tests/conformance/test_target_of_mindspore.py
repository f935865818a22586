"""The differences between MindSpore's targets that Ascend alone would run, played through on a CPU.

Operators that only Ascend has are replaced by arithmetic that takes what their documentation page says, and nothing
else.
"""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore has an environment of its own")

from mindspore import Tensor, ops  # noqa: E402

from ehm import backends  # noqa: E402
from ehm.backends.mindspore.engine import devices, graphs, reduction  # noqa: E402
from ehm.backends.mindspore.engine.devices import FACTS, get_current_facts  # noqa: E402
from ehm.backends.mindspore.models.blocks import Attention  # noqa: E402
from ehm.backends.mindspore.models.form_blocks import FormAttention  # noqa: E402
from ehm.backends.mindspore.models.patches import gather_tokens  # noqa: E402
from ehm.backends.mindspore.models.relative import RelativeBlock  # noqa: E402
from ehm.config.encoders import VitForm, VitSpec  # noqa: E402
from ehm.errors import BackendError  # noqa: E402

PAGE = ops.flash_attention_score.__doc__
SIGNATURE = inspect.signature(ops.flash_attention_score)


@pytest.fixture(autouse=True)
def cpu_target():
    backends.get("mindspore:cpu")


def attend_as_documented(calls):
    """Return a function with the arguments of ops.flash_attention_score that computes what the page says of them."""

    def attend(*arguments, **options):
        bound = SIGNATURE.bind(*arguments, **options)
        given = bound.arguments
        assert set(given) == {"query", "key", "value", "head_num", "scalar_value", "input_layout"}
        query, key, value = (given[name] for name in ("query", "key", "value"))
        assert query.dtype == key.dtype == value.dtype
        assert str(query.dtype).lower() in read_documented_dtypes()
        assert isinstance(given["scalar_value"], float)
        heads = given["head_num"]
        calls.append(query.shape)

        def split(x):
            x = x.astype(ms.float32)
            if given["input_layout"] == "BNSD":
                assert x.shape[1] == heads
                return x
            assert given["input_layout"] == "BSH"
            return x.reshape((*x.shape[:2], heads, x.shape[2] // heads)).transpose((0, 2, 1, 3))

        assert split(query).shape[3] % 16 == 0
        scores = ops.matmul(split(query), split(key).swapaxes(2, 3)) * given["scalar_value"]
        mixed = ops.matmul(ops.softmax(scores, axis=-1), split(value))
        if given["input_layout"] == "BSH":
            mixed = mixed.transpose((0, 2, 1, 3)).reshape(query.shape)
        return mixed.astype(query.dtype)

    return attend


def read_documented_dtypes():
    """Read the types of ``query`` from the page of the fused attention."""
    return set(re.findall(r"b?float16", re.search(r"The supported dtype is (.*)\.", PAGE)[1]))


@pytest.fixture
def fused(monkeypatch):
    """Let this CPU have Ascend's fused attention; returns the shapes of its queries."""
    calls = []
    dtypes = FACTS["ascend"].fused_attention_dtypes
    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], fused_attention_dtypes=dtypes))
    monkeypatch.setattr(ops, "flash_attention_score", attend_as_documented(calls))
    return calls


def test_facts_are_those_of_the_target_and_of_the_pages_mindspore():
    assert get_current_facts() is FACTS["cpu"]
    assert set(FACTS["ascend"].fused_attention_dtypes) == read_documented_dtypes()
    assert "multiple of 16, with the max value of 512" in re.sub(r"\s+", " ", PAGE)
    assert re.search(r"jit_level.*?``\"O0\"`` or ``\"O1\"``", ms.jit.__doc__, re.DOTALL)
    assert FACTS["ascend"].jit_level == "O1"
    assert FACTS["cpu"].jit_level == "O0"


def fill(cell, seed):
    rng = np.random.default_rng(seed)
    for _, parameter in cell.parameters_and_names():
        parameter.set_data(Tensor(rng.normal(0, 0.3, parameter.shape).astype(np.float32)))
    return cell


@pytest.mark.parametrize("kind", ["plain", "form"])
def test_fused_attention_is_attention_mindspore(fused, kind):
    """Outputs and gradients, in float16 and within its rounding."""
    assert "BSH" in PAGE
    assert "BNSD" in PAGE
    form = VitForm(norm_queries=True, norm_values=True)
    tokens = Tensor(np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32))
    results = []
    for is_fused in (True, False):
        attention = Attention(32, 2, ms.float16)
        if kind == "form":
            attention = FormAttention(VitSpec((16, 16), 8, 32, 1, 2, form=form), ms.float16)
        attention = fill(attention, 1)
        assert attention.is_fused
        attention.is_fused = is_fused
        parameters = attention.trainable_params()

        def loss(x, attention=attention):
            return ops.square(attention(x).astype(ms.float32)).mean()

        value, gradients = ms.value_and_grad(loss, None, parameters)(tokens)
        results.append([value.asnumpy(), *(gradient.asnumpy() for gradient in gradients)])
    assert fused == [(2, 5, 32) if kind == "plain" else (2, 2, 5, 16)]
    for ours, theirs in zip(*results, strict=True):
        # softmax does not see a bias of keys, whose gradient is rounding alone
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-3 * np.abs(theirs).max() + 1e-5)


def test_attention_is_fused_only_as_documented_mindspore(fused):
    assert not Attention(32, 2, ms.float32).is_fused
    assert not Attention(24, 2, ms.float16).is_fused  # heads of 12 features
    assert not Attention(2048, 2, ms.float16).is_fused
    # the operator has no gradient of a bias
    assert not RelativeBlock(32, 2, 4, ms.float16, (2, 2)).attn.is_fused


def test_a_step_fuses_each_block_and_the_similarity_none_mindspore(fused, config, batch):
    """The blocks whose probabilities somebody reads are not fused."""
    model = {"width": 48, "depth": 3, "heads": 3, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    images, mask = batch
    losses = []
    for is_fused in (True, False):
        learner = backends.get("mindspore:cpu").create_learner(config(model=model, optim={"dtype": "float16"}))
        if not is_fused:
            for _, cell in learner.model.cells_and_names():
                if isinstance(cell, Attention):
                    cell.is_fused = False
        pixels = learner._pixels(Tensor(images))
        learner.model.compute_similarity(learner.model.embed(pixels), 2)
        assert len(fused) == (0 if is_fused else 4)
        losses.append(float(learner._loss(*learner._prepare_inputs(images, mask, {})(slice(None)))))
    assert fused == [(6, 7, 48)] * 3 + [(6, 25, 32)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_tokens_are_gathered_in_types_that_have_a_kernel_mindspore(monkeypatch):
    """In bfloat16, of which no page names a kernel, through float32: no bit is lost."""
    gathered = []
    gather = ops.gather

    def note(table, *rest):
        gathered.append(table.dtype)
        return gather(table, *rest)

    monkeypatch.setattr(ops, "gather", note)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 4, 3)).astype(np.float32)
    indices = np.array([[3, 0], [1, 1]], np.int32)
    for dtype in (ms.float32, ms.float16, ms.bfloat16):
        tokens = Tensor(values).astype(dtype)
        taken = gather_tokens(tokens, Tensor(indices))
        assert taken.dtype == dtype
        expected = np.take_along_axis(tokens.astype(ms.float32).asnumpy(), indices[..., None], axis=1)
        np.testing.assert_array_equal(taken.astype(ms.float32).asnumpy(), expected)
    assert gathered == [ms.float32, ms.float16, ms.float32]


def test_a_last_batch_takes_the_graph_of_the_one_before_mindspore(monkeypatch):
    shapes = []

    def double(images, factor):
        shapes.append(images.shape)
        return images.astype(ms.float32) * factor

    monkeypatch.setattr(graphs, "compile_graph", lambda function: function)
    graph = graphs.BatchGraph(double)
    images = np.arange(7 * 12, dtype=np.uint8).reshape(7, 2, 2, 3)
    for rows in (slice(0, 4), slice(4, 7), slice(0, 7), slice(0, 1)):
        np.testing.assert_array_equal(graph(images[rows], 2), images[rows] * 2.0)
    graph(images[:3], 5)  # another constant is another graph
    assert [shape[0] for shape in shapes] == [4, 4, 7, 4, 3]


def test_gradients_travel_in_large_pieces_mindspore(monkeypatch):
    """Between two processes of which the other has three times the gradients; compiled, and operator by operator."""
    lengths = []

    def add_other(values):
        lengths.append(values.shape)
        return values * 4.0

    monkeypatch.setattr(ops, "AllReduce", lambda: add_other)
    monkeypatch.setattr(reduction, "_PIECE_BYTES", 48)
    shapes = [(), (2, 3), (4,), (5, 5), (1, 2, 1)]
    arrays = tuple(Tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32)) for shape in shapes)
    average = reduction.build_averaging(shapes, 2)
    found = average(arrays)
    assert lengths == [(11,), (25,), (2,)]
    for compiled in (found, ms.jit(average)(arrays)):
        for ours, theirs in zip(compiled, arrays, strict=True):
            np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy() * 2, rtol=1e-6)


def test_the_memory_of_an_npu_is_read_once_it_is_in_use_mindspore(monkeypatch):
    """By its page, an NPU that nothing has used yet has 0 bytes."""
    page = ms.hal.get_device_properties.__doc__
    assert "device must be initialized before calling this method" in page
    assert re.search(r"AscendDeviceProperties \{\s*name\(str\),\s*total_memory\(int\)", page)
    used = []

    class Properties:
        name = "Ascend910B3"

        @property
        def total_memory(self):
            return 64 * 2**30 if used else 0

    monkeypatch.setattr(ms.device_context.ascend, "device_count", lambda: 8)
    monkeypatch.setattr(ms.hal, "get_device_properties", lambda number, target: Properties())
    monkeypatch.setattr(devices, "_start_device", lambda: used.append(True))
    info = devices.describe_target(devices.Target("ascend", 1))
    assert (info.description, info.count, info.memory_bytes) == ("Ascend910B3", 8, 64 * 2**30)


def test_peak_memory_of_an_npu_is_the_runtimes_mindspore(monkeypatch):
    calls = []
    for name in ("max_memory_allocated", "reset_peak_memory_stats"):
        assert "``Ascend``" in getattr(ms.runtime, name).__doc__
        monkeypatch.setattr(ms.runtime, name, lambda name=name: calls.append(name) or 5)
    assert devices.read_peak_memory(devices.Target("ascend")) == 5
    assert calls == ["max_memory_allocated", "reset_peak_memory_stats"]


def test_a_cache_of_graphs_is_refused_mindspore(monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    with pytest.raises(BackendError, match="MS_COMPILER_CACHE_ENABLE: unset it"):
        devices.use_target(devices.Target("cpu"))

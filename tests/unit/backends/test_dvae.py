"""Visual tokenizers: DALL-E's published encoder, our discrete VAE, and files that must not be executed."""

import math
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.functional import conv2d, max_pool2d

from ehm.backends.torch.engine.tensors import to_arrays
from ehm.backends.torch.learners.tokenizer import measure_usage
from ehm.backends.torch.models.dalle import DalleEncoder
from ehm.backends.torch.models.dvae import load_tokenizer
from ehm.backends.torch.models.tokenizers import DiscreteVae
from ehm.errors import CheckpointError, ConfigError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

CPU = torch.device("cpu")


def published():
    """Names and shapes of openai/DALL-E's encoder: 256 wide, 4 groups of 2 blocks, 8,192 codes."""
    shapes = {"blocks.input.w": (256, 3, 7, 7), "blocks.input.b": (256,)}
    widths = {1: (256, 256), 2: (256, 512), 3: (512, 1024), 4: (1024, 2048)}
    for group, (inside, outside) in widths.items():
        for block in (1, 2):
            name, given, hidden = f"blocks.group_{group}.block_{block}", inside if block == 1 else outside, outside // 4
            if given != outside:
                shapes |= {f"{name}.id_path.w": (outside, given, 1, 1), f"{name}.id_path.b": (outside,)}
            convolutions = [(hidden, given, 3), (hidden, hidden, 3), (hidden, hidden, 3), (outside, hidden, 1)]
            for number, (rows, columns, side) in enumerate(convolutions, 1):
                shapes[f"{name}.res_path.conv_{number}.w"] = (rows, columns, side, side)
                shapes[f"{name}.res_path.conv_{number}.b"] = (rows,)
    return shapes | {"blocks.output.conv.w": (8192, 2048, 1, 1), "blocks.output.conv.b": (8192,)}


def small_encoder(seed=0):
    torch.manual_seed(seed)
    encoder = DalleEncoder(vocabulary=11, width=8, groups=3, blocks=2)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(parameter)
    return encoder


def pictures(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def test_the_encoder_has_the_published_names_and_shapes():
    with torch.device("meta"):
        encoder = DalleEncoder()
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == published()
    assert (encoder.vocabulary, encoder.stride) == (8192, 8)
    assert encoder.compute_logits(torch.empty(2, 3, 112, 112, device="meta")).shape == (2, 8192, 14, 14)


def test_the_encoder_computes_what_the_published_one_does():
    """Its forward pass written out: blocks of four convolutions, scaled by 1 / layers squared, pooled in between."""
    encoder, images = small_encoder(), pictures(2, 3, 16, 24)
    w = encoder.state_dict()

    def conv(x, name):
        return conv2d(x, w[f"{name}.w"], w[f"{name}.b"], padding=w[f"{name}.w"].shape[-1] // 2)

    x = conv(0.8 * images + 0.1, "blocks.input")
    for group in (1, 2, 3):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            path = x
            for number in (1, 2, 3, 4):
                path = conv(path.clamp(min=0), f"{name}.res_path.conv_{number}")
            x = (conv(x, f"{name}.id_path") if f"{name}.id_path.w" in w else x) + path / 6**2
        x = max_pool2d(x, 2) if group < 3 else x
    expected = conv(x.clamp(min=0), "blocks.output.conv")
    assert expected.shape == (2, 11, 4, 6)
    torch.testing.assert_close(encoder.compute_logits(images), expected)
    tokens = encoder.compute_tokens(images)
    assert tokens.dtype == torch.int64
    torch.testing.assert_close(tokens, expected.argmax(1).reshape(2, 24))


def test_tokens_are_the_same_under_autocast_and_carry_no_gradient():
    vae = DiscreteVae(64, 16, stride=4).eval()
    images = pictures(2, 3, 16, 24)
    tokens = vae.compute_tokens(images)
    assert tokens.shape == (2, 24)
    assert not tokens.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.compute_tokens(images), tokens)
    torch.manual_seed(1)
    assert torch.equal(vae.compute_tokens(images), tokens)
    with pytest.raises(ValueError, match="18 x 24 pixels: not multiples of the tokenizer's 4"):
        vae.compute_tokens(pictures(1, 3, 18, 24))


def test_in_evaluation_tokens_are_of_an_image_alone_and_in_training_places_differ_from_the_start():
    vae, images = DiscreteVae(64, 16, stride=4), pictures(4, 3, 32, 32)
    alike = 0.5 + 0.05 * (images - 0.5)  # nearly grey
    _, _, tokens = vae(alike, torch.tensor(1.0))
    counts = torch.bincount(tokens.flatten(), minlength=64).float()
    assert float(measure_usage(counts)["perplexity"]) > 10
    vae.eval()
    assert torch.equal(vae.compute_tokens(images)[:1], vae.compute_tokens(images[:1]))


@pytest.mark.parametrize("stride", [2, 4, 16])
def test_the_vae_has_a_code_for_every_square(stride):
    vae = DiscreteVae(10, 16, stride).eval()
    images = pictures(2, 3, 32, 48)
    assert vae.compute_logits(images).shape == (2, 10, 32 // stride, 48 // stride)
    seen, tokens = vae.reconstruct(images)
    assert seen.shape == images.shape
    assert torch.equal(tokens, vae.compute_tokens(images))
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1


def test_the_terms_of_the_loss_are_the_error_and_the_divergence_from_uniform():
    vae, images = DiscreteVae(5, 8, stride=4), pictures(3, 3, 8, 8)
    torch.nn.init.normal_(vae.encoder[-1].weight, std=3)
    torch.manual_seed(3)
    error, divergence, tokens = vae(images, torch.tensor(0.7))
    logits = vae.compute_logits(images).detach()
    q = logits.softmax(1).double().numpy().mean((0, 2, 3))
    expected = np.sum(q * np.log(q / (1 / 5)))
    assert divergence.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(tokens, logits.argmax(1).flatten(1))

    torch.manual_seed(3)  # Gumbel noise is -log of an exponential variable
    noise = -torch.empty_like(logits).exponential_().log()
    codes = ((logits + noise) / 0.7).softmax(1)
    mixed = (codes.unsqueeze(2) * vae.codebook.detach()[None, :, :, None, None]).sum(1)
    decoded = (vae.decoder(mixed) + 1) / 2
    assert error.item() == pytest.approx(((decoded - images) ** 2).mean().item(), rel=1e-4)


def test_gradients_pass_through_the_codes_to_every_parameter():
    vae, images = DiscreteVae(6, 8, stride=4), pictures(2, 3, 8, 8)
    torch.manual_seed(0)
    error, divergence, _ = vae(images, torch.tensor(1.0))
    error.backward(retain_graph=True)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in vae.parameters())
    vae.zero_grad()
    divergence.backward()
    assert vae.codebook.grad is None or not vae.codebook.grad.any()

    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(3)  # so that a slope is told from float32's rounding

    def loss(shift):
        torch.manual_seed(0)
        with torch.no_grad():
            vae.encoder[-1].bias[0] += shift
            value = vae(images, torch.tensor(1.0))[0].double()
            vae.encoder[-1].bias[0] -= shift
        return value.item()

    vae.zero_grad()
    torch.manual_seed(0)
    vae(images, torch.tensor(1.0))[0].backward()
    slope = (loss(0.01) - loss(-0.01)) / 0.02
    assert vae.encoder[-1].bias.grad[0].item() == pytest.approx(slope, rel=0.02)


def test_cold_codes_are_the_tokens_reconstruction():
    vae, images = DiscreteVae(4, 8, stride=2).eval(), pictures(1, 3, 8, 8)
    with torch.no_grad():
        vae.encoder[-1].weight.mul_(1e4)  # so sure of its codes that the noise changes none
        error, _, tokens = vae(images, torch.tensor(0.01))
    seen, same = vae.reconstruct(images)
    assert torch.equal(tokens, same)
    unclamped = (vae.decoder(vae.codebook[tokens.reshape(1, 4, 4)].permute(0, 3, 1, 2)).detach() + 1) / 2
    assert error.item() == pytest.approx(((unclamped - images) ** 2).mean().item(), rel=1e-4)
    torch.testing.assert_close(seen, unclamped.clamp(0, 1))


def test_usage_is_counted_in_the_whole_vocabulary():
    even = measure_usage(torch.tensor([5.0, 5, 5, 5, 0, 0, 0, 0]))
    assert float(even["codes_used"]) == 0.5
    assert float(even["perplexity"]) == pytest.approx(4)
    uneven = measure_usage(torch.tensor([3.0, 1.0]))
    assert float(uneven["perplexity"]) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


WRITER = """
    import sys, types, collections, torch
    from torch import nn

    package, encoder, utils = (types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils"))
    sys.modules.update({module.__name__: module for module in (package, encoder, utils)})

    def attributes(self, **values):
        # attrs sets the fields before __attrs_post_init__ calls nn.Module.__init__
        self.__dict__.update(values)
        nn.Module.__init__(self)

    class Conv2d(nn.Module):
        __module__ = "dall_e.utils"
        def __init__(self, n_in, n_out, kw, use_float16=True):
            attributes(self, n_in=n_in, n_out=n_out, kw=kw, use_float16=use_float16,
                       device=torch.device("cpu"), requires_grad=False)
            self.w, self.b = nn.Parameter(torch.randn(n_out, n_in, kw, kw)), nn.Parameter(torch.randn(n_out))

    class EncoderBlock(nn.Module):
        __module__ = "dall_e.encoder"
        def __init__(self, n_in, n_out, n_layers):
            attributes(self, n_in=n_in, n_out=n_out, n_layers=n_layers, device=torch.device("cpu"),
                       requires_grad=False)
            self.n_hid, self.post_gain = n_out // 4, 1 / n_layers**2
            self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
            sizes = [(n_in, self.n_hid, 3), (self.n_hid, self.n_hid, 3), (self.n_hid, self.n_hid, 3),
                     (self.n_hid, n_out, 1)]
            self.res_path = nn.Sequential(collections.OrderedDict(
                pair for i, size in enumerate(sizes, 1)
                for pair in ((f"relu_{i}", nn.ReLU()), (f"conv_{i}", Conv2d(*size)))))

    class Encoder(nn.Module):
        __module__ = "dall_e.encoder"
        def __init__(self, n_hid, vocab_size):
            attributes(self, n_hid=n_hid, n_blk_per_group=1, input_channels=3, vocab_size=vocab_size,
                       device=torch.device("cpu"), requires_grad=False, use_mixed_precision=True)
            group = lambda n, m, last: nn.Sequential(collections.OrderedDict(
                [("block_1", EncoderBlock(n, m, 2))] + ([] if last else [("pool", nn.MaxPool2d(kernel_size=2))])))
            self.blocks = nn.Sequential(collections.OrderedDict([
                ("input", Conv2d(3, n_hid, 7)), ("group_1", group(n_hid, n_hid, False)),
                ("group_2", group(n_hid, 2 * n_hid, True)),
                ("output", nn.Sequential(collections.OrderedDict([
                    ("relu", nn.ReLU()), ("conv", Conv2d(2 * n_hid, vocab_size, 1, use_float16=False))])))]))

    for module, classes in ((encoder, (Encoder, EncoderBlock)), (utils, (Conv2d,))):
        for each in classes:
            setattr(module, each.__name__, each)
            each.__qualname__ = each.__name__
    torch.manual_seed(0)
    model = Encoder(8, 13)
    folder = sys.argv[1]
    torch.save(model, folder + "/encoder.pkl")
    torch.save(model.state_dict(), folder + "/tensors.pt")
    torch.save(model.state_dict(), folder + "/legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(model, folder + "/legacy.pkl", _use_new_zipfile_serialization=False)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files as torch writes DALL-E's module, from a process that has the package ``dall_e``."""
    folder = tmp_path_factory.mktemp("dalle")
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(WRITER), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", ["encoder.pkl", "tensors.pt", "legacy.pt", "legacy.pkl"])
def test_a_published_file_loads_without_its_package(files, name):
    tokenizer = load_tokenizer(str(files / name), CPU)
    assert "dall_e" not in sys.modules
    assert (tokenizer.vocabulary, tokenizer.stride) == (13, 2)
    written = torch.load(files / "tensors.pt", weights_only=True)
    own = tokenizer.state_dict()
    assert own.keys() == written.keys()
    assert all(torch.equal(own[key], written[key]) for key in own)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert tokenizer.compute_tokens(pictures(1, 3, 8, 8)).shape == (1, 16)


def test_tensors_load_from_safetensors_too(tmp_path):
    encoder = small_encoder()
    save_file(to_arrays(encoder), tmp_path / "encoder.safetensors")
    images = pictures(1, 3, 16, 16)
    loaded = load_tokenizer(str(tmp_path / "encoder.safetensors"), CPU)
    assert torch.equal(loaded.compute_tokens(images), encoder.compute_tokens(images))


class Harmful:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
@pytest.mark.parametrize("harm", ["system", "exec", "import"])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path, how, harm):
    import importlib
    import os

    proof, path = tmp_path / "proof", tmp_path / "encoder.pkl"
    call = {
        "system": Harmful(os.system, f"touch {proof}"),
        "exec": Harmful(exec, f"open({str(proof)!r}, 'w')"),
        "import": Harmful(importlib.import_module, "antigravity"),
    }[harm]
    if how == "pickle":
        path.write_bytes(pickle.dumps(call, protocol=2))
    else:
        torch.save({"blocks.input.w": call}, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(CheckpointError, match=r"encoder\.pkl: not DALL-E's .* nothing in it was executed: ") as said:
        load_tokenizer(str(path), CPU)
    assert "\n" not in str(said.value)
    assert {"system": "posix.system", "exec": "exec", "import": "importlib.import_module"}[harm] in str(said.value)
    assert "weights_only" not in str(said.value)  # torch's advice to load it all the same
    assert not proof.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not DALL-E's encoder.pkl or"),
        (b"no pickle at all", "not DALL-E's encoder.pkl or"),
        ({"weight": torch.ones(2)}, "not the tensors of DALL-E's encoder: blocks.input.w"),
        ([1, 2], "not DALL-E's encoder.pkl or"),
        ("no b", r"the weights do not fit this model: blocks\.input\.b is missing"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "encoder.pkl"
    if content == "no b":
        content = {key: value for key, value in small_encoder().state_dict().items() if key != "blocks.input.b"}
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=sentence) as said:
        load_tokenizer(str(path), CPU)
    assert str(said.value).startswith(f"{path}: ")
    assert str(said.value).count(str(path)) == 1


@pytest.mark.parametrize("source", [None, "", "/nowhere/encoder.pkl"])
def test_no_tokenizer_is_one_sentence_with_both_ways_out(source):
    with pytest.raises(ConfigError) as said:
        load_tokenizer(source, CPU)
    assert str(said.value).startswith(
        "objective beit needs visual tokens: give DALL-E's encoder.pkl or a tokenizer of your own images "
        "(ehm tokenizer train --out runs/tokenizer) as model.tokenizer"
    )
    assert not source or source in str(said.value)


def test_another_run_is_no_tokenizer(tmp_path):
    arrays = {"weight": np.ones(2, np.float32)}
    save_checkpoint(tmp_path / "checkpoints", LearnerState(arrays, {}), {"kind": "pretrain", "step": 1, "config": {}})
    with pytest.raises(CheckpointError, match="a run of ehm train, not of ehm tokenizer"):
        load_tokenizer(str(tmp_path), CPU)

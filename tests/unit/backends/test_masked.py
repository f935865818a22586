"""SimMIM and BEiT against their published formulas, written with timm's own modules; Swin's attention, one by one."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.nn.functional import interpolate, l1_loss, pixel_shuffle
from torch.utils._python_dispatch import TorchDispatchMode

from ehm import masking
from ehm.backends.torch.engine import masks
from ehm.backends.torch.models.attention import Places, compute_class_attention, cosine_similarity
from ehm.backends.torch.models.swin import average_cells, compute_cell_attention, run_first_blocks
from ehm.backends.torch.objectives.beit import BeitSwin, BeitVit, VisualTokens
from ehm.backends.torch.objectives.simmim import SimmimSwin, SimmimVit
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.masking import split_mask, spread_mask

VIT = VitSpec((32, 48), 8, width=24, depth=3, heads=3, relative=True)
SWIN = SwinSpec((32, 48), 2, width=8, depths=(2, 2, 1), heads=(1, 2, 2), window=4)
MODELS = [(SimmimVit, VIT), (SimmimSwin, SWIN)]


def make(kind, spec, **options):
    """With weights large enough for everything to matter."""
    torch.manual_seed(0)
    model = kind(spec, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    """Half of 24 cells in each of four images."""
    return np.random.default_rng(2).permuted(np.arange(24)[None].repeat(4, 0) < 12, axis=1)


def indices(mask):
    return [torch.from_numpy(part) for part in split_mask(mask)]


def published_features(model, images, mask):
    """Features (B, D, h, w) as microsoft/SimMIM's two encoders compute them, from timm's modules."""
    down, across = model.spec.grid
    hidden = torch.from_numpy(mask).view(-1, 1, down, across).float()
    if isinstance(model.spec, SwinSpec):
        factor = model.spec.stride // model.spec.patch_size
        w = hidden.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1)
        x = model.patch_embed(images)  # (B, h, w, D)
        x = x * (1 - w) + model.mask_token.view(1, 1, 1, -1) * w
        return model.norm(model.layers(x)).permute(0, 3, 1, 2)
    x = model.patch_embed(images)
    w = hidden.flatten(1).unsqueeze(-1)
    x = x * (1 - w) + model.mask_token * w
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in model.blocks:
        x = block(x, shared_rel_pos_bias=model.rel_pos_bias())
    return model.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (down, across))


@pytest.mark.parametrize(("kind", "spec"), MODELS)
def test_simmim_is_the_published_loss(kind, spec, images, mask):
    model = make(kind, spec)
    rebuilt = pixel_shuffle(model.decoder(published_features(model, images, mask)), spec.stride)
    hidden = torch.from_numpy(mask).view(-1, *spec.grid)
    hidden = hidden.repeat_interleave(spec.stride, 1).repeat_interleave(spec.stride, 2).unsqueeze(1).float()
    wanted = (l1_loss(images, rebuilt, reduction="none") * hidden).sum() / (hidden.sum() + 1e-5) / 3
    loss = model(images, *indices(mask))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    tokens = model.embed(images)
    torch.testing.assert_close(model(images, *indices(mask), tokens), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "spec"), MODELS)
def test_hidden_pixels_are_not_seen_and_visible_ones_are(kind, spec, images, mask):
    model = make(kind, spec).eval()
    hidden = torch.from_numpy(mask)
    cells = hidden.view(-1, 1, *spec.grid).repeat_interleave(spec.stride, 2).repeat_interleave(spec.stride, 3)
    with torch.no_grad():
        encoded = model.encode(model.embed(images), hidden)
        unseen = model.encode(model.embed(torch.where(cells, images + 1, images)), hidden)
        seen = model.encode(model.embed(torch.where(cells, images, images + 1)), hidden)
    torch.testing.assert_close(encoded, unseen, rtol=0, atol=0)
    assert not torch.allclose(encoded, seen, atol=1e-3)


@pytest.mark.parametrize(("kind", "spec"), MODELS)
def test_several_masks_of_an_image_are_those_of_copies(kind, spec, images, mask):
    model = make(kind, spec)
    masks = mask[[0, 1, 2, 3, 1, 0, 3, 2]]
    loss = model(images, *indices(masks))
    torch.testing.assert_close(loss, model(images.repeat_interleave(2, 0), *indices(masks)))


@pytest.mark.parametrize(("kind", "spec"), [(BeitVit, VIT), (BeitSwin, SWIN)])
def test_beit_is_the_cross_entropy_of_hidden_tokens(kind, spec, images, mask):
    model = make(kind, spec, vocabulary=10)
    codes = torch.from_numpy(np.random.default_rng(3).integers(0, 10, (4, 24)))
    logits = model.lm_head(published_features(model, images, mask).flatten(2).transpose(1, 2))
    logits = logits.detach().double().numpy()
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(logits, codes.numpy()[..., None], axis=2)[..., 0]
    assert model(images, *indices(mask), visual_tokens=codes).item() == pytest.approx(each[mask].mean(), rel=1e-5)

    masks = indices(mask[[0, 1, 2, 3, 1, 0, 3, 2]])
    copies = model(images.repeat_interleave(2, 0), *masks, visual_tokens=codes.repeat_interleave(2, 0))
    torch.testing.assert_close(model(images, *masks, visual_tokens=codes), copies)


def test_visual_tokens_are_those_of_a_smaller_image(images):
    """By torch's antialiased bicubic resampling, of pixels that are no longer normalised."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    seen = []

    class Brightness:
        """Eight codes, one for each eighth of brightness."""

        vocabulary, stride = 8, 4

        def compute_tokens(self, small):
            seen.append(small)
            means = small.mean(1).unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).mean((2, 4))
            return (means * 8).long().clamp(0, 7).flatten(1)

    visual_tokens = VisualTokens(Brightness(), (4, 6), (32, 48), mean, std, torch.device("cpu"))
    assert visual_tokens.vocabulary == 8
    with torch.autocast("cpu", torch.bfloat16):
        found = visual_tokens.compute(images)
    pixels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    wanted = interpolate(pixels, (16, 24), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(seen[0], wanted, atol=1e-5, rtol=0)
    assert found.shape == (4, 24)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, Brightness().compute_tokens(wanted))


def test_attention_with_relative_biases_is_timms(images):
    """timm's own attention matrices, caught on their way through its dropout."""
    model = make(SimmimVit, VIT).eval()
    caught = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        model.encode(model.embed(images), torch.zeros(4, 24, dtype=torch.bool))
        matrices = torch.stack(caught)  # (blocks, B, heads, L, L)
        mean = matrices[:2].mean((0, 2))[:, 1:, 1:]
        found = model.compute_similarity(model.embed(images), 2)
        torch.testing.assert_close(found, (mean + mean.transpose(1, 2)) / 2, rtol=1e-5, atol=1e-7)
        saliency = model.compute_saliency(model.embed(images))
        torch.testing.assert_close(saliency, matrices[-1].mean(1)[:, 0, 1:], rtol=1e-5, atol=1e-7)

        own = make(SimmimVit, VIT).eval()  # the same biases, but a table in each block
        for block in own.blocks:
            block.attn.relative_position_bias_table = own.rel_pos_bias.relative_position_bias_table
            block.attn.relative_position_index = own.rel_pos_bias.relative_position_index
            block.attn.window_size = own.rel_pos_bias.window_size
        tokens = own.prepend_prefix(own.embed(images))
        attention = compute_class_attention(own.blocks, tokens, Places())
        torch.testing.assert_close(attention, saliency, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [4, 3, 8])  # 3 does not divide 16 x 24 tokens, 8 is all of a later stage
def test_attention_between_cells_is_the_sum_over_pairs_of_tokens(images, window):
    """timm's own attention matrices, and every pair of tokens by itself."""
    spec = SwinSpec((32, 48), 2, 8, (2, 2, 1), (1, 2, 2), window)
    model = make(SimmimSwin, spec).eval()
    caught = []
    for module in model.modules():
        if module.__class__.__name__ == "WindowAttention":
            assert not module.fused_attn
            module.softmax.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        model.encode(model.embed(images[:1]), torch.zeros(1, 24, dtype=torch.bool))
        matrices_of = list(caught)
        blocks, _ = run_first_blocks(model.layers, model.embed(images[:1]), 9)
        assert len(blocks) == 5
        for (block, tokens), matrices in zip(blocks, matrices_of, strict=True):
            wanted = pair_by_pair(block, tokens.shape[1:3], matrices.mean(1).double().numpy())
            found = compute_cell_attention(block, tokens, spec.grid)[0].numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
            padded = any(side % per for side, per in zip(tokens.shape[1:3], block.window_size, strict=True))
            if not padded:
                np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def pair_by_pair(block, size, matrices):
    """Mean over the tokens of a cell of what they give to another: windows (nW, T, T) -> (24, 24)."""
    (height, width), (down, across) = size, block.window_size
    tall, wide = math.ceil(height / down) * down, math.ceil(width / across) * across
    result, per_cell = np.zeros((24, 24)), height * width / 24

    def cell(window, token):
        """Return the cell that a token of a window lies in, None if it is padding."""
        row = window // (wide // across) * down + token // across
        column = window % (wide // across) * across + token % across
        if row >= height or column >= width:
            return None
        row, column = (row + block.shift_size[0]) % height, (column + block.shift_size[1]) % width
        return row * 4 // height * 6 + column * 6 // width

    assert len(matrices) == tall // down * (wide // across)
    for window, matrix in enumerate(matrices):
        cells = [cell(window, token) for token in range(down * across)]
        for i, j in np.ndindex(matrix.shape):
            if cells[i] is not None and cells[j] is not None:
                result[cells[i], cells[j]] += matrix[i, j] / per_cell
    return result


def test_what_no_window_holds_together_has_no_similarity(images):
    """In the first stage of windows of 4 tokens, cells of 4 tokens are alone; shifted windows join neighbours."""
    model = make(SimmimSwin, SWIN).eval()
    with torch.no_grad():
        alone = compute_cell_attention(model.layers[0].blocks[0], model.embed(images), SWIN.grid)
        torch.testing.assert_close(alone, torch.eye(24).expand(4, -1, -1), atol=1e-6, rtol=0)
        joined = model.compute_similarity(model.embed(images), 2)
    row, column = np.divmod(np.arange(24), 6)
    neighbours = (abs(row[:, None] - row) <= 1) & (abs(column[:, None] - column) <= 1)
    assert (joined[:, ~neighbours] < 1e-6).all()
    assert (joined[:, neighbours] > 0).all()


def test_the_cells_of_windows_are_found_once_for_all_blocks_and_pieces(images):
    model = make(SimmimSwin, SWIN).eval()

    class Ranges(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function.overloadpacket is torch.ops.aten.arange
            return function(*args, **(kwargs or {}))

    with torch.inference_mode():  # a tensor that is kept from here has to serve training too
        first = model.compute_similarity(model.embed(images), 4)
    with torch.no_grad(), Ranges() as ranges:
        again = model.compute_similarity(model.embed(images), 4)
    assert ranges.count == 0
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    block, tokens = model.layers[0].blocks[0], model.embed(images)
    compute_cell_attention(block, tokens, SWIN.grid).sum().backward()


def test_cosines_and_means_of_cells(images):
    model = make(SimmimSwin, SWIN).eval()
    with torch.no_grad():
        tokens = model.embed(images)
        found = average_cells(tokens, SWIN.grid)
        wanted = [
            tokens[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(16, -1).mean(0) for i in range(4) for j in range(6)
        ]
        torch.testing.assert_close(found[0], torch.stack(wanted))
        features = model.compute_features(tokens, 3)
        cosine = cosine_similarity(features)
    assert features.shape == (4, 24, 16)  # of the second stage
    each = 1 - cdist(features[1], features[1], "cosine")
    np.testing.assert_allclose(cosine[1], (1 + each) / 2, atol=1e-5)
    np.testing.assert_allclose(masking.cosine_similarity(features.numpy())[1], (1 + each) / 2, atol=1e-5)


def test_masks_of_units_become_masks_of_tokens():
    mask = np.random.default_rng(0).random((5, 6)) < 0.5
    wanted = np.stack([np.kron(row.reshape(2, 3), np.ones((4, 4), bool)).ravel() for row in mask])
    np.testing.assert_array_equal(spread_mask(mask, (2, 3), 4), wanted)
    np.testing.assert_array_equal(masks.spread_mask(torch.from_numpy(mask), (2, 3), 4).numpy(), wanted)

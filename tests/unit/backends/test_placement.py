"""Networks on a device whose fused attention takes no bias: timm's blocks give the same, by other operators."""

from dataclasses import replace

import pytest
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from ehm.backends.torch.engine.devices import FACTS
from ehm.backends.torch.engine.placement import place_model

CPU = torch.device("cpu")
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
NETWORKS = {
    "a table in each block": lambda: Beit(**VIT, use_rel_pos_bias=True),
    "a table for all blocks": lambda: Beit(**VIT, use_shared_rel_pos_bias=True),
    "a table for all windows": lambda: SwinTransformer(
        img_size=32,
        patch_size=2,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=4,
        num_classes=3,
        drop_path_rate=0,
    ),
    "a table in each block of a ViT": lambda: VisionTransformerRelPos(**VIT, rel_pos_type="bias"),
}


def pass_through(network):
    """Logits and every gradient."""
    side = network.patch_embed.img_size[0]
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network.zero_grad()
    logits = network(images)
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_without_the_fused_kernel_gives_the_same_and_learns_the_bias(name, monkeypatch):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # which timm leaves off in Swins so far
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(kwargs["attn_mask"]) or fused(*args, **kwargs),
    )
    logits, gradients = pass_through(place_model(network, CPU))
    assert calls
    assert all(bias is not None for bias in calls)
    calls.clear()

    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], fuses_attention_with_bias=False))
    plain_logits, plain_gradients = pass_through(place_model(network, CPU))
    assert not calls
    torch.testing.assert_close(plain_logits, logits)
    assert plain_gradients.keys() == gradients.keys()
    assert any("bias_table" in key or "rel_pos" in key for key in gradients)
    for key, gradient in gradients.items():
        torch.testing.assert_close(plain_gradients[key], gradient, msg=key)

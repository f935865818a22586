"""The Perceiver Resampler of Flamingo (Alayrac et al., 2022), and an encoder under it: images to visual tokens.

Shapes: B images, L tokens of the encoder with its prefix tokens, D their features, K latents, W features of the
language model, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehm.backends.torch.models.embedding import extract_all_tokens
from ehm.config.language import ResamplerConfig

__all__ = ["Resampler", "VisualTokens"]


class VisualTokens(nn.Module):
    """A timm model without classifier, ``encoder``, under a ``resampler``: normalised (B, 3, H, W) -> (B, K, W).

    All tokens behind the encoder's last norm go in, the class token too, as in GVT (Wang et al., 2023).
    """

    def __init__(self, encoder: Any, config: ResamplerConfig, language_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.resampler = Resampler(encoder.num_features, config, language_width)

    def forward(self, images: Tensor) -> Tensor:
        """Compute visual tokens: (B, 3, H, W) -> (B, K, W)."""
        visual: Tensor = self.resampler(self.encode(images))
        return visual

    def encode(self, images: Tensor) -> Tensor:
        """Compute the encoder's tokens: (B, 3, H, W) -> (B, L, D)."""
        return extract_all_tokens(self.encoder, self.encoder.forward_features(images))


class Resampler(nn.Module):
    """Layers in which K learned latents look at all tokens and at themselves: (B, L, D) -> (B, K, W).

    It is as wide as the encoder; one norm and, as in GVT, a ``projection`` to the width of the language model end it.
    Flamingo's position of an image among several and GVT's norm in front are left out: there is one image, and each
    layer begins with norms of its own.
    """

    def __init__(self, width: int, config: ResamplerConfig, language_width: int) -> None:
        super().__init__()
        # from N(0, 1), as in Flamingo
        self.latents = nn.Parameter(torch.randn(config.latents, width))
        self.layers = nn.ModuleList(_Layer(width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, language_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, K, W)."""
        latents = self.latents.expand(tokens.shape[0], -1, -1)  # len() would fix the size of an exported batch
        for layer in self.layers:
            latents = layer(tokens, latents)
        visual: Tensor = self.projection(self.norm(latents))
        return visual

    def compute_attention(self, tokens: Tensor) -> Tensor:
        """Compute what each latent takes of each token in the last layer, mean over heads: (B, L, D) -> (B, K, L).

        The rest, up to 1 in all, it takes of the latents.
        """
        latents = self.latents.expand(len(tokens), -1, -1)
        layers: list[Any] = list(self.layers)
        *first, last = layers
        for layer in first:
            latents = layer(tokens, latents)
        weights: Tensor = last.attn.compute_weights(tokens, latents)
        return weights


class _Layer(nn.Module):
    """Attention and an MLP, each added to the latents: (B, L, D), (B, K, D) -> (B, K, D)."""

    def __init__(self, width: int, config: ResamplerConfig) -> None:
        super().__init__()
        self.attn = _Attention(width, config.heads, config.head_width)
        hidden = round(width * config.mlp_ratio)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden, bias=False),
            nn.GELU(approximate="none"),
            nn.Linear(hidden, width, bias=False),
        )

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """See the class."""
        latents = latents + self.attn(tokens, latents)
        updated: Tensor = latents + self.mlp(latents)
        return updated


class _Attention(nn.Module):
    """Attention of latents to tokens and latents, without biases: (B, L, D), (B, K, D) -> (B, K, D)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        # timm's name of the switch by which an export asks for plain matrix products
        self.fused_attn = True
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.proj = nn.Linear(inner, width, bias=False)

    def compute_weights(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Compute the weights of the tokens, mean over heads: (B, L, D), (B, K, D) -> (B, K, L), float32."""
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_tokens(tokens), latents], dim=1)
        queries = self._split_heads(self.q(latents)).float()
        keys = self._split_heads(self.kv(seen).chunk(2, dim=-1)[0]).float()
        weights = (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(dim=-1)
        return weights.mean(dim=1)[..., : tokens.shape[1]]

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """See the class."""
        latents = self.norm_latents(latents)
        seen = torch.cat([self.norm_tokens(tokens), latents], dim=1)
        queries = self._split_heads(self.q(latents))
        keys, values = map(self._split_heads, self.kv(seen).chunk(2, dim=-1))
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            scaled = queries * queries.shape[-1] ** -0.5
            mixed = (scaled @ keys.mT).softmax(dim=-1) @ values
        attended: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return attended

    def _split_heads(self, values: Tensor) -> Tensor:
        """(B, N, H * d) -> (B, H, N, d)."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

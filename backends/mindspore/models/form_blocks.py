"""The block of a ViT whose form is neither the plain one nor BEiT's, with the names of timm's classes.

:class:`ehm.config.encoders.VitForm` says how forms differ. A ViT with rotary positions has the names of timm's ``Eva``,
any other those of its ``VisionTransformer``.

Shapes: B images, L tokens with the class token and registers first, D features, h heads of d = D / h.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.blocks import (
    Attention,
    Block,
    Dense,
    LayerNorm,
    can_fuse_attention,
)
from ehm.backends.mindspore.models.rotary import rotate_patches
from ehm.config.encoders import VitForm, VitSpec

__all__ = ["FormAttention", "FormBlock", "FormMlp", "build_norm"]

_FIRST_LAYER_SCALE = 1e-5
"""Initial value of the factors of both branches of a block in DINOv2, DINOv3 and DeiT III."""
_QUICK_GELU = 1.702
"""Factor by which CLIP's approximation of GELU enlarges the argument of a sigmoid."""


class RmsNorm(nn.Cell):
    """Division by the root mean square of the features (Zhang and Sennrich, 2019): (..., D) -> (..., D), float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(width, np.float32)))
        self.epsilon = epsilon

    def construct(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = x.astype(ms.float32)
        return x / ops.sqrt(ops.square(x).mean(axis=-1, keep_dims=True) + self.epsilon) * self.weight


def build_norm(form: VitForm, width: int) -> nn.Cell:
    """Return a norm of the kind of ``form``: (..., width) -> (..., width), float32."""
    if form.norm == "rms":
        return RmsNorm(width, form.norm_epsilon)
    return LayerNorm(width, form.norm_epsilon)


class FormAttention(nn.Cell):
    """Attention of a ViT of ``spec``, with the methods of :class:`ehm.backends.mindspore.models.blocks.Attention`."""

    compute_probs = Attention.compute_probs
    q_norm: Any
    k_norm: Any
    norm: Any

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        super().__init__()
        form = spec.form
        width = spec.width
        head_width = width // spec.heads
        self.heads = spec.heads
        self.scale = head_width**-0.5
        self.is_fused = can_fuse_attention(head_width, dtype)
        self.prefix = form.prefix_tokens
        self.halves = form.rotary.halves
        self.is_separate = form.separate_heads
        # with rotary positions, keys have no bias
        self.has_key_bias = form.bias and form.rotary.kind is None
        self.has_own_biases = form.bias and form.rotary.kind is not None and not form.separate_heads
        if form.separate_heads:
            self.q_proj = Dense(width, width, dtype, form.bias)
            self.k_proj = Dense(width, width, dtype, self.has_key_bias)
            self.v_proj = Dense(width, width, dtype, form.bias)
        else:
            self.qkv = Dense(width, 3 * width, dtype, self.has_key_bias)
            self.unstack = ops.Unstack(axis=0, num=3)
        if self.has_own_biases:
            self.q_bias = Parameter(Tensor(np.zeros(width, np.float32)))
            self.v_bias = Parameter(Tensor(np.zeros(width, np.float32)))
        self.q_norm = build_norm(form, head_width) if form.norm_queries else None
        self.k_norm = build_norm(form, head_width) if form.norm_queries else None
        self.norm = build_norm(form, width) if form.norm_values else None
        self.proj = Dense(width, width, dtype, form.output_bias)

    def split_heads(self, x: Tensor, rotations: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values: (B, L, D) -> (B, h, L, d) each, turned by ``rotations`` if there are any.

        See :func:`rotate_patches`.
        """
        q, k, v = self._project(x)
        if self.q_norm is not None:
            # back to the type of matrix products
            q = self.q_norm(q).astype(v.dtype)
            k = self.k_norm(k).astype(v.dtype)
        if rotations is not None:
            q = rotate_patches(q, rotations, self.prefix, self.halves)
            k = rotate_patches(k, rotations, self.prefix, self.halves)
        return q, k, v

    def mix_values(self, probs: Tensor, v: Tensor) -> Tensor:
        """Mix the values by the probabilities: (B, h, L, L), (B, h, L, d) -> (B, L, D)."""
        return self._join_heads(ops.BatchMatMul()(probs.astype(v.dtype), v))

    def _join_heads(self, mixed: Tensor) -> Tensor:
        """Project what the heads give: (B, h, L, d) -> (B, L, D)."""
        batch, heads, tokens, width = mixed.shape
        mixed = mixed.transpose((0, 2, 1, 3)).reshape((batch, tokens, heads * width))
        if self.norm is not None:
            mixed = self.norm(mixed)
        return self.proj(mixed)

    def construct(self, x: Tensor, bias: Tensor | None = None, rotations: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); for ``bias`` see :meth:`compute_probs`."""
        q, k, v = self.split_heads(x, rotations)
        if self.is_fused and bias is None:
            # one operator, which leaves no probabilities behind
            mixed = ops.flash_attention_score(q, k, v, self.heads, scalar_value=self.scale, input_layout="BNSD")
            return self._join_heads(mixed)
        return self.mix_values(self.compute_probs(q, k, bias), v)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        if self.is_separate:
            q = self.q_proj(x).reshape(shape).transpose((0, 2, 1, 3))
            k = self.k_proj(x).reshape(shape).transpose((0, 2, 1, 3))
            v = self.v_proj(x).reshape(shape).transpose((0, 2, 1, 3))
            return q, k, v
        if self.has_own_biases:
            bias = ops.cat((self.q_bias, ops.zeros_like(self.q_bias), self.v_bias))
            qkv = self.qkv.project(x, bias)
        else:
            qkv = self.qkv(x)
        return self.unstack(qkv.reshape((batch, tokens, 3, *shape[2:])).transpose((2, 0, 3, 1, 4)))


class FormMlp(nn.Cell):
    """The MLP of a ViT of ``form``: (..., D) -> (..., D), with ``hidden`` features for its last layer."""

    def __init__(self, form: VitForm, width: int, hidden: int, dtype: Any) -> None:
        super().__init__()
        self.kind = form.mlp
        if form.mlp == "swiglu":
            self.fc1_g = Dense(width, hidden, dtype, form.output_bias)
            self.fc1_x = Dense(width, hidden, dtype, form.output_bias)
        elif form.mlp == "swiglu_packed":
            self.fc1 = Dense(width, 2 * hidden, dtype, form.output_bias)
        else:
            self.fc1 = Dense(width, hidden, dtype, form.output_bias)
        self.norm = build_norm(form, hidden) if form.norm_mlp else None
        self.fc2 = Dense(hidden, width, dtype, form.output_bias)
        self.hidden = hidden

    def construct(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.kind == "swiglu":
            hidden = ops.silu(self.fc1_g(x)) * self.fc1_x(x)
        elif self.kind == "swiglu_packed":
            both = self.fc1(x)
            hidden = ops.silu(both[..., : self.hidden]) * both[..., self.hidden :]
        else:
            hidden = self._activate(self.fc1(x))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.fc2(hidden)

    def _activate(self, x: Tensor) -> Tensor:
        if self.kind == "gelu_tanh":
            return ops.gelu(x, approximate="tanh")
        if self.kind == "quick_gelu":
            return x * ops.sigmoid(_QUICK_GELU * x)
        return ops.gelu(x, approximate="none")


class LayerScale(nn.Cell):
    """A factor for every feature of a branch, under the name of timm's VisionTransformer: ``gamma``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = Parameter(Tensor(np.full(width, _FIRST_LAYER_SCALE, np.float32)))

    def construct(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class FormBlock(Block):
    """A pre-norm Transformer block of a ViT of ``spec``: (B, L, D) -> (B, L, D)."""

    def __init__(self, spec: VitSpec, dtype: Any) -> None:
        nn.Cell.__init__(self)
        form = spec.form
        self.norm1 = build_norm(form, spec.width)
        self.attn = FormAttention(spec, dtype)
        self.norm2 = build_norm(form, spec.width)
        self.mlp = FormMlp(form, spec.width, spec.hidden_features, dtype)
        self.scales = form.layer_scale
        self.is_eva = form.rotary.kind is not None
        if form.layer_scale and self.is_eva:
            self.gamma_1 = Parameter(Tensor(np.full(spec.width, _FIRST_LAYER_SCALE, np.float32)))
            self.gamma_2 = Parameter(Tensor(np.full(spec.width, _FIRST_LAYER_SCALE, np.float32)))
        elif form.layer_scale:
            self.ls1 = LayerScale(spec.width)
            self.ls2 = LayerScale(spec.width)

    def finish_block(self, x: Tensor, mixed: Tensor, keep_attn: Tensor | None, keep_mlp: Tensor | None) -> Tensor:
        """See :meth:`Block.finish_block`."""
        if not self.scales:
            return super().finish_block(x, mixed, keep_attn, keep_mlp)
        if self.is_eva:
            scale_attn = self.gamma_1
            scale_mlp = self.gamma_2
        else:
            scale_attn = self.ls1.gamma
            scale_mlp = self.ls2.gamma
        # layer scale and drop path both multiply a branch
        if keep_attn is not None:
            scale_attn = scale_attn * keep_attn
        if keep_mlp is not None:
            scale_mlp = scale_mlp * keep_mlp
        return super().finish_block(x, mixed, scale_attn, scale_mlp)

"""Attention and feed-forward layers shared by the transformer and the text connectors.

Shapes: B batch, T query tokens, S context tokens, D width of the queries' stream, C width of the context, H heads,
I = H * head width, the inner width.

Several heads are normalised together: queries and keys pass an RMSNorm over the full inner width before the heads are
split.
"""

from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn

from ..kernels.fusing import is_bare
from ..kernels.steps import RotaryTables, gate_heads, linear_gelu, norm_rotate
from .negative_text import NegativeContext, normalized_attention_guidance
from .text_cache import KeyValueSlot

# config key `activation_fn` -> argument of `torch.nn.functional.gelu`
_GELU_VARIANTS = {"gelu": "none", "gelu-approximate": "tanh"}

_PACKED_KEYS = ("to_qkv.weight", "to_qkv.bias", "to_kv.weight", "to_kv.bias")

# Queries and keys are normalised with this epsilon in every published checkpoint; it is no config key.
QK_NORM_EPS = 1e-6


def preferred_backend(query: torch.Tensor, attention_mask: torch.Tensor | None) -> AttentionBackendName | None:
    """The fastest exact attention kernel for a call that names none.

    The order is FlashAttention-3 (compute capability 9.0, half precision, no mask, no gradients), xFormers (no
    mask), and PyTorch's scaled dot product attention, which chooses among its own kernels.

    Args:
        query (`torch.Tensor`): `[B, T, H, head width]`.
        attention_mask (`torch.Tensor`, *optional*): The additive mask of the call, if any.

    Returns:
        `AttentionBackendName`, *optional*: `None` leaves the choice to diffusers' dispatcher, whose default is
        PyTorch's attention and which a user may have set to another kernel.
    """
    if not query.is_cuda or attention_mask is not None or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if attention_dispatch._AttentionBackendRegistry.get_active_backend()[0] != AttentionBackendName.NATIVE:
        return None
    has_flash_3 = attention_dispatch._CAN_USE_FLASH_ATTN_3 and not torch.is_grad_enabled()
    if has_flash_3 and torch.cuda.get_device_capability(query.device) == (9, 0):
        return AttentionBackendName._FLASH_3
    return AttentionBackendName.XFORMERS if attention_dispatch._CAN_USE_XFORMERS_ATTN else None


class LTX2AttnProcessor:
    """Computes one attention layer, with the kernel that diffusers' attention dispatcher is set to."""

    # Set from outside by `set_attention_backend` and `enable_parallelism`.
    _attention_backend: AttentionBackendName | None = None
    _parallel_config: ParallelConfig | None = None

    def __call__(
        self,
        attn: "LTX2Attention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: RotaryTables | None = None,
        key_rotary_emb: RotaryTables | None = None,
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool = False,
        slot: KeyValueSlot | None = None,
        negative: NegativeContext | None = None,
    ) -> torch.Tensor:
        """The output `[B, T, D]` of the layer; [`LTX2Attention.forward`] describes the arguments."""
        if all_perturbed:
            mixed = attn.to_v(hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        else:
            tables = None if query_rotary_emb is None else (query_rotary_emb, key_rotary_emb or query_rotary_emb)
            query, key, value = self._project(attn, hidden_states, encoder_hidden_states, tables, slot)
            mixed = self._attend(attn, query, key, value, attention_mask)
            if perturbation_mask is not None:
                mixed = torch.lerp(value, mixed, perturbation_mask.to(mixed.dtype))
            if negative is not None:
                keys_values = self._context(attn, negative.context, negative.slot)
                undesired = self._attend(attn, query, *keys_values, None)
                mixed = normalized_attention_guidance(mixed, undesired, negative.weights)
        if attn.to_gate_logits is not None:
            mixed = gate_heads(mixed, attn.to_gate_logits(hidden_states))
        return attn.to_out[1](attn.to_out[0](mixed))

    def _project(
        self,
        attn: "LTX2Attention",
        hidden_states: torch.Tensor,
        context: torch.Tensor | None,
        tables: tuple[RotaryTables, RotaryTables] | None,
        slot: KeyValueSlot | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, normalised and rotated."""
        if context is not None and tables is None:
            return attn.norm_q(attn.to_q(hidden_states)), *self._context(attn, context, slot)
        if context is None:
            query, key, value = attn.project(hidden_states)
        else:
            query, (key, value) = attn.to_q(hidden_states), attn.project_context(context)
        if tables is None:
            return attn.norm_q(query), attn.norm_k(key), value
        return *norm_rotate(query, attn.norm_q, tables[0], key, attn.norm_k, tables[1], attn.rope_type), value

    @staticmethod
    def _context(
        attn: "LTX2Attention", context: torch.Tensor, slot: KeyValueSlot | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a context, from the slot or into it."""
        if slot is not None and slot.key is not None and slot.value is not None:
            return slot.key, slot.value
        key, value = attn.project_context(context)
        key = attn.norm_k(key)
        if slot is not None:
            slot.key, slot.value = key, value
        return key, value

    def _attend(
        self,
        attn: "LTX2Attention",
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        query, key, value = (projected.unflatten(-1, (attn.heads, -1)) for projected in (query, key, value))
        if attention_mask is not None and attention_mask.ndim == 3:
            attention_mask = attention_mask.unsqueeze(1)
        # Where every rank holds all keys and values, its own queries need nothing from the other ranks.
        parallel_config = self._parallel_config if attn.context_is_sharded else None
        backend = self._attention_backend
        if backend is None and parallel_config is None:
            backend = preferred_backend(query, attention_mask)
        output = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=backend, parallel_config=parallel_config
        )
        return output.flatten(2, 3).to(query.dtype)


class LTX2Attention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with norms across heads, rotary positions per side, and optional gates per head.

    Args:
        query_dim (`int`): Width D of the queries' stream and of the output.
        heads (`int`, defaults to 8): Number of heads H.
        dim_head (`int`, defaults to 64): Width of a head.
        cross_attention_dim (`int`, *optional*, defaults to `query_dim`): Width C of the context; giving it makes this
            a cross-attention.
        bias (`bool`, defaults to `True`): Whether the projections of queries, keys and values have a bias.
        out_bias (`bool`, defaults to `True`): Whether the output projection has one.
        rope_type (`str`, defaults to `"interleaved"`): Layout of the rotary tables it will be given.
        apply_gated_attention (`bool`, defaults to `False`): Whether every head is scaled by a gate computed from the
            queries' input.
        context_is_sharded (`bool`, defaults to `False`): Whether context parallelism splits the keys and values of
            this layer over the ranks, so that they have to be exchanged.
        processor (*optional*): Replaces [`LTX2AttnProcessor`].
    """

    # `Any` because diffusers declares `None`, a list, and the processors of its own models only.
    _default_processor_cls: Any = LTX2AttnProcessor
    _available_processors: Any = (LTX2AttnProcessor,)
    processor: Any
    to_qkv: nn.Linear
    to_kv: nn.Linear

    def __init__(
        self,
        query_dim: int,
        heads: int = 8,
        dim_head: int = 64,
        cross_attention_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        rope_type: str = "interleaved",
        apply_gated_attention: bool = False,
        context_is_sharded: bool = False,
        processor: Any = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim_head
        self.inner_dim = heads * dim_head
        self.rope_type = rope_type
        self.context_is_sharded = context_is_sharded
        # Names that diffusers' `fuse_projections` reads.
        self.is_cross_attention = cross_attention_dim is not None
        self.use_bias = bias
        context_dim = query_dim if cross_attention_dim is None else cross_attention_dim

        self.norm_q = nn.RMSNorm(self.inner_dim, eps=QK_NORM_EPS)
        self.norm_k = nn.RMSNorm(self.inner_dim, eps=QK_NORM_EPS)
        self.to_q = nn.Linear(query_dim, self.inner_dim, bias=bias)
        self.to_k = nn.Linear(context_dim, self.inner_dim, bias=bias)
        self.to_v = nn.Linear(context_dim, self.inner_dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, query_dim, bias=out_bias), nn.Dropout(0.0)])
        self.to_gate_logits = nn.Linear(query_dim, heads) if apply_gated_attention else None
        self.register_state_dict_post_hook(_leave_packed_out)
        self.register_load_state_dict_post_hook(_miss_no_packed)
        self.set_processor(processor if processor is not None else self._default_processor_cls())

    def fuse_projections(self) -> None:
        """Pack the weights of queries, keys and values (with a context, of keys and values) for one product.

        The layers keep their names and read parts of the packed weights: nothing is stored twice, and the state dict stays
        as it is. The packed product stands in for them as long as they are what they were: with adapters, or weights
        that are somewhere else, each runs by itself.

        Raises:
            ValueError: If the layers are not plain ones, or their weights are not here.
        """
        if self.fused_projections:
            return
        layers = self._projections()
        for name, layer in layers.items():
            if not is_bare(layer, nn.Linear) or layer.weight.is_meta:
                raise ValueError(
                    f"{name} is a {type(layer).__name__} on {layer.weight.device} that is quantised, adapted, or offloaded, "
                    "which cannot be packed with others; call fuse_qkv_projections() before, on the loaded model"
                )
        super().fuse_projections()
        packed = self._packed()
        for name in ("weight", "bias") if self.use_bias else ("weight",):
            parts = getattr(packed, name).data.chunk(len(layers))
            for layer, part in zip(layers.values(), parts):
                getattr(layer, name).data = part

    def _projections(self) -> dict[str, nn.Linear]:
        """The layers that are packed."""
        names = ("to_k", "to_v") if self.is_cross_attention else ("to_q", "to_k", "to_v")
        return {name: getattr(self, name) for name in names}

    def _packed(self) -> nn.Linear:
        return self.to_kv if self.is_cross_attention else self.to_qkv

    def _runs_packed(self) -> bool:
        """Whether the packed product gives what the layers would."""
        if not self.fused_projections:
            return False
        layers, place = self._projections().values(), self._packed().weight
        if not all(is_bare(layer, nn.Linear) for layer in layers) or (torch.is_grad_enabled() and place.requires_grad):
            return False
        # A compiler cannot look at addresses.
        is_compiling = torch.compiler.is_compiling()
        return is_compiling or all(_shares_memory(layer.weight, place) for layer in layers)

    def _apply(self, fn: Any, recurse: bool = True) -> "LTX2Attention":
        """Move or convert the weights; packed ones stay packed."""
        was_packed = self.fused_projections
        self.unfuse_projections()
        super()._apply(fn, recurse)
        if was_packed and not self.to_k.weight.is_meta:
            self.fuse_projections()
        return self

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values `[B, T, I]` of a self-attention, before norms and positions."""
        if not self.is_cross_attention and self._runs_packed():
            return self.to_qkv(hidden_states).chunk(3, dim=-1)
        return self.to_q(hidden_states), *self.project_context(hidden_states)

    def project_context(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, S, I]` of a context `[B, S, C]`, before norms and positions."""
        if self.is_cross_attention and self._runs_packed():
            return self.to_kv(context).chunk(2, dim=-1)
        return self.to_k(context), self.to_v(context)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: RotaryTables | None = None,
        key_rotary_emb: RotaryTables | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend from `hidden_states` to the context.

        Args:
            hidden_states (`torch.Tensor`): `[B, T, D]`.
            encoder_hidden_states (`torch.Tensor`, *optional*, defaults to `hidden_states`): `[B, S, C]`.
            attention_mask (`torch.Tensor`, *optional*): Added to the scores; `[B or 1, T or 1, S]`, or with a head
                axis `[B or 1, H or 1, T or 1, S]`.
            query_rotary_emb (`tuple[torch.Tensor, torch.Tensor]`, *optional*): Rotary tables of the T tokens.
            key_rotary_emb (`tuple[torch.Tensor, torch.Tensor]`, *optional*, defaults to `query_rotary_emb`): Rotary
                tables of the S tokens.
            kwargs: Further arguments of the processor. [`LTX2AttnProcessor`] takes `perturbation_mask`, `[B, 1, 1]`,
                which mixes the output (1) with the unattended values (0), `all_perturbed`, which says that every
                entry of the mask is 0, `slot`, a [`KeyValueSlot`] that gives keys and values to a cross-attention
                without rotary tables, or takes them if it is empty, and `negative`, a [`NegativeContext`] from
                which the attended values are guided away.

        Returns:
            `torch.Tensor`: `[B, T, D]`.
        """
        return self.processor(
            self, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb, **kwargs
        )


def _shares_memory(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def _leave_packed_out(_module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """The layers of their own names hold the same weights."""
    for name in _PACKED_KEYS:
        state_dict.pop(f"{prefix}{name}", None)


def _miss_no_packed(_module: nn.Module, keys: Any) -> None:
    missing = keys.missing_keys
    missing[:] = [key for key in missing if not key.endswith(_PACKED_KEYS)]


class GELUProjection(nn.Module):
    """A linear layer followed by GELU.

    Args:
        dim_in (`int`): Input width.
        dim_out (`int`): Output width.
        activation_fn (`str`, defaults to `"gelu-approximate"`): `"gelu"` or its tanh form `"gelu-approximate"`.
        bias (`bool`, defaults to `True`): Whether the linear layer has a bias.
    """

    def __init__(self, dim_in: int, dim_out: int, activation_fn: str = "gelu-approximate", bias: bool = True) -> None:
        super().__init__()
        if activation_fn not in _GELU_VARIANTS:
            raise ValueError(f"activation_fn must be one of {sorted(_GELU_VARIANTS)}, got {activation_fn!r}.")
        self.proj = nn.Linear(dim_in, dim_out, bias=bias)
        self.approximate = _GELU_VARIANTS[activation_fn]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, dim_in]` to `[B, T, dim_out]`."""
        return linear_gelu(hidden_states, self.proj, self.approximate)


class FeedForward(nn.Module):
    """Two linear layers around a GELU, four times as wide inside.

    Args:
        dim (`int`): Width D of input and output.
        activation_fn (`str`, defaults to `"gelu-approximate"`): See [`GELUProjection`].
        bias (`bool`, defaults to `True`): Whether both linear layers have a bias.
    """

    def __init__(self, dim: int, activation_fn: str = "gelu-approximate", bias: bool = True) -> None:
        super().__init__()
        # The identity keeps the place of a dropout, so that state-dict keys are those of diffusers.
        self.net = nn.ModuleList(
            [GELUProjection(dim, 4 * dim, activation_fn, bias), nn.Identity(), nn.Linear(4 * dim, dim, bias=bias)]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, D]` to `[B, T, D]`."""
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states

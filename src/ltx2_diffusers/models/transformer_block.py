"""One block of the audio-video transformer.

Shapes: B batch, S video tokens, A audio tokens, T text tokens, D width of the stream at hand.

Both streams take the same steps: self-attention, attention to the text, attention to the other stream, feed-forward.
[`BlockStream`] writes them once; it refers to the modules of its block, whose names are those of the checkpoints.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn

from ..kernels.steps import Branch, RotaryTables, ScaleShift, add, add_norm_modulate, modulate
from .attention import FeedForward, LTX2Attention
from .modulation import Modulation
from .negative_text import NegativeContext
from .perturbation import BlockPlan, Keep
from .text_cache import KeyValueSlot


class StreamSizes(NamedTuple):
    """Sizes of one stream.

    Args:
        dim (`int`): Width D.
        heads, head_dim (`int`): Of its self-attention and its attention to the text.
        context_dim (`int`): Width of its text context.
        gated_attn (`bool`): Whether attentions with this stream's queries have head gates.
        modulates_text (`bool`): Whether its queries to the text are modulated and the result is gated.
        ff_bias (`bool`): Whether its feed-forward layers have biases.
    """

    dim: int
    heads: int
    head_dim: int
    context_dim: int
    gated_attn: bool
    modulates_text: bool
    ff_bias: bool

    @property
    def num_values(self) -> int:
        """Modulation values per token: shift, scale and gate of self-attention, feed-forward and maybe text."""
        return 9 if self.modulates_text else 6


class SharedSettings(NamedTuple):
    """Settings that both streams share, named as in the configuration of the model."""

    activation_fn: str
    attention_bias: bool
    attention_out_bias: bool
    norm_elementwise_affine: bool
    norm_eps: float
    rope_type: str


class StreamInputs(NamedTuple):
    """What all blocks receive for one stream, beside its tokens and its text context.

    Args:
        modulation ([`Modulation`]): 6 or 9 values: shift, scale, gate of self-attention, of the feed-forward layers,
            and of the attention to the text.
        cross_scale_shift ([`Modulation`]): 4 values: scale and shift for audio-to-video, for video-to-audio.
        cross_gate ([`Modulation`]): 1 value, the gate of what this stream takes from the other.
        prompt ([`Modulation`]): 2 values: shift and scale of the text context.
        rotary, cross_rotary (`tuple[torch.Tensor, torch.Tensor]`): Rotary tables of self-attention and of the
            attention between the streams.
        text_mask, self_mask (`torch.Tensor`): Additive, `[B, 1, 1 or tokens, keys]`.
        negative ([`NegativeContext`]): Text from which the attention to the text is guided away.
    """

    modulation: Modulation | None = None
    cross_scale_shift: Modulation | None = None
    cross_gate: Modulation | None = None
    prompt: Modulation | None = None
    rotary: RotaryTables | None = None
    cross_rotary: RotaryTables | None = None
    text_mask: torch.Tensor | None = None
    self_mask: torch.Tensor | None = None
    negative: NegativeContext | None = None


class BlockStream:
    """One stream's view of a block: the modules and tables that act on it, and its tokens on their way through the block.

    What a branch computes is added to the tokens when the next branch reads them: both are one step of the device.

    Args:
        block ([`LTX2AVTransformerBlock`]): The block viewed.
        prefix (`str`): `""` for video, `"audio_"` for audio: what the names of its modules begin with.
        tokens (`torch.Tensor`): `[B, S, D]`.
        inputs ([`StreamInputs`]): What the stream brings to all blocks.
    """

    def __init__(self, block: nn.Module, prefix: str, tokens: torch.Tensor, inputs: StreamInputs) -> None:
        self.inputs, self.tokens = inputs, tokens
        self.branch: Branch | None = None
        self.self_norm: nn.RMSNorm = getattr(block, f"{prefix}norm1")
        self.self_attn: LTX2Attention = getattr(block, f"{prefix}attn1")
        self.text_norm: nn.RMSNorm = getattr(block, f"{prefix}norm2")
        self.text_attn: LTX2Attention = getattr(block, f"{prefix}attn2")
        self.ff_norm: nn.RMSNorm = getattr(block, f"{prefix}norm3")
        self.ff: FeedForward = getattr(block, f"{prefix}ff")
        self.prompt_table: nn.Parameter | None = getattr(block, f"{prefix}prompt_scale_shift_table", None)
        direction = "video_to_audio" if prefix else "audio_to_video"
        self.cross_norm: nn.RMSNorm = getattr(block, f"{direction}_norm")
        self.cross_attn: LTX2Attention = getattr(block, f"{direction}_attn")
        self.cross_table: nn.Parameter = getattr(block, f"{prefix or 'video_'}a2v_cross_attn_scale_shift_table")
        if inputs.cross_scale_shift is not None and inputs.cross_gate is not None:
            self.cross_scale_shift, self.cross_gate = inputs.cross_scale_shift, inputs.cross_gate
        if inputs.modulation is not None:
            self.layout = inputs.modulation.layout
            self.values = inputs.modulation.with_table(getattr(block, f"{prefix}scale_shift_table"))

    def read(self, norm: nn.RMSNorm, *modulations: ScaleShift | None) -> list[torch.Tensor]:
        """Tokens `[B, S, D]` normalised and modulated, once for each modulation, after adding the branch before."""
        self.tokens, *copies = add_norm_modulate(self.tokens, self.branch, norm, modulations)
        self.branch = None
        return copies

    def finish(self) -> torch.Tensor:
        """`[B, S, D]` after the last branch."""
        return add(self.tokens, self.branch)

    def attend_to_self(self, keep: Keep, passthrough: bool) -> None:
        """The self-attention branch."""
        if keep is False and not passthrough:
            return
        shift, scale, gate = self.values[:3]
        options: dict[str, Any] = {"attention_mask": self.inputs.self_mask, "query_rotary_emb": self.inputs.rotary}
        if passthrough and keep is not True:
            options |= {"all_perturbed": True} if keep is False else {"perturbation_mask": keep}
        (normed,) = self.read(self.self_norm, ScaleShift(scale, shift, self.layout))
        update = self.self_attn(normed, **options)
        if not passthrough and keep is not True:
            update = update * keep
        self.branch = Branch(update, gate, self.layout)

    def attend_to_text(
        self, context: torch.Tensor, slot: KeyValueSlot | None = None, negative_slot: KeyValueSlot | None = None
    ) -> None:
        """The attention to a text context `[B, T, C]`.

        The slots may hold the keys and values of this context and of the negative one.
        """
        modulation, gate = None, None
        if len(self.values) > 6:
            shift, scale, gate = self.values[6:]
            modulation = ScaleShift(scale, shift, self.layout)
        (normed,) = self.read(self.text_norm, modulation)
        options: dict[str, Any] = {} if slot is None else {"slot": slot}
        negative = self.inputs.negative
        if negative is not None:
            undesired = self._text_context(negative.context, negative_slot)
            options["negative"] = negative._replace(context=undesired, slot=negative_slot)
        update = self.text_attn(normed, self._text_context(context, slot), self.inputs.text_mask, **options)
        self.branch = Branch(update, gate, self.layout)

    def _text_context(self, context: torch.Tensor, slot: KeyValueSlot | None) -> torch.Tensor:
        if self.prompt_table is None or (slot is not None and slot.key is not None):
            return context
        prompt = self.inputs.prompt
        if prompt is None:
            shift, scale = self.prompt_table.to(context.dtype)[None, None].unbind(2)
        else:
            shift, scale = prompt.with_table(self.prompt_table)
        return modulate(context, ScaleShift(scale, shift))

    def read_for(self, directions: list[str]) -> dict[str, torch.Tensor]:
        """Tokens `[B, S, D]` for the attention between the streams, by direction `"a2v"` or `"v2a"`."""
        values = self.cross_scale_shift.with_table(self.cross_table[:4])
        layout = self.cross_scale_shift.layout
        pairs = {"a2v": ScaleShift(values[0], values[1], layout), "v2a": ScaleShift(values[2], values[3], layout)}
        return dict(zip(directions, self.read(self.cross_norm, *(pairs[name] for name in directions))))

    def take_from(self, other: "BlockStream", normed: torch.Tensor, other_normed: torch.Tensor, keep: Keep) -> None:
        """The attention to the other stream, whose tokens come normalised like this one's."""
        tables = self.inputs.cross_rotary, other.inputs.cross_rotary
        update = self.cross_attn(normed, other_normed, query_rotary_emb=tables[0], key_rotary_emb=tables[1])
        if keep is not True:
            update = update * keep
        (gate,) = self.cross_gate.with_table(self.cross_table[4:])
        self.branch = Branch(update, gate, self.cross_gate.layout)

    def feed_forward(self) -> None:
        """The feed-forward branch."""
        shift, scale, gate = self.values[3:6]
        (normed,) = self.read(self.ff_norm, ScaleShift(scale, shift, self.layout))
        self.branch = Branch(self.ff(normed), gate, self.layout)


class LTX2AVTransformerBlock(nn.Module):
    """A transformer block over a video and an audio stream.

    Args:
        video, audio ([`StreamSizes`]): Sizes of the streams; the attention between them has the audio's heads.
        shared ([`SharedSettings`]): Settings of both streams.
    """

    attn1: LTX2Attention
    # How the block looks at its sound; `audio_stream.run_beside` sets another way.
    audio_view: Callable[[nn.Module, str, torch.Tensor, StreamInputs], BlockStream] = BlockStream

    def __init__(self, video: StreamSizes, audio: StreamSizes, shared: SharedSettings) -> None:
        super().__init__()
        self._add_stream("", video, audio, shared)
        self._add_stream("audio_", audio, video, shared)
        self.audio_to_video_norm = _norm(video.dim, shared)
        self.audio_to_video_attn = _attention(video, audio, audio.dim, shared)
        self.video_to_audio_norm = _norm(audio.dim, shared)
        self.video_to_audio_attn = _attention(audio, audio, video.dim, shared)
        # Video tokens are what context parallelism splits, so layers with video keys have to exchange them.
        self.attn1.context_is_sharded = self.video_to_audio_attn.context_is_sharded = True
        self.video_a2v_cross_attn_scale_shift_table = nn.Parameter(torch.randn(5, video.dim))
        self.audio_a2v_cross_attn_scale_shift_table = nn.Parameter(torch.randn(5, audio.dim))

    def _add_stream(self, prefix: str, sizes: StreamSizes, other: StreamSizes, shared: SharedSettings) -> None:
        for index in (1, 2, 3):
            self.add_module(f"{prefix}norm{index}", _norm(sizes.dim, shared))
        for name, context_dim in (("attn1", None), ("attn2", sizes.context_dim)):
            attention = _attention(sizes, sizes, context_dim, shared)
            self.add_module(f"{prefix}{name}", attention)
        self.add_module(f"{prefix}ff", FeedForward(sizes.dim, shared.activation_fn, sizes.ff_bias))
        table = torch.randn(sizes.num_values, sizes.dim) / sizes.dim**0.5
        self.register_parameter(f"{prefix}scale_shift_table", nn.Parameter(table))
        if sizes.modulates_text or other.modulates_text:
            prompt_table = nn.Parameter(torch.randn(2, sizes.dim))
            self.register_parameter(f"{prefix}prompt_scale_shift_table", prompt_table)

    def forward(
        self,
        hidden_states: torch.Tensor,
        audio_hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        audio_encoder_hidden_states: torch.Tensor,
        video_inputs: StreamInputs,
        audio_inputs: StreamInputs,
        plan: BlockPlan,
        text_slots: tuple[KeyValueSlot | None, KeyValueSlot | None] = (None, None),
        negative_slots: tuple[KeyValueSlot | None, KeyValueSlot | None] = (None, None),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update both streams.

        Args:
            hidden_states (`torch.Tensor`): Video tokens `[B, S, D]`; S may be 0.
            audio_hidden_states (`torch.Tensor`): Audio tokens `[B, A, D]`; A may be 0.
            encoder_hidden_states, audio_encoder_hidden_states (`torch.Tensor`): Text contexts `[B, T, C]`.
            video_inputs, audio_inputs ([`StreamInputs`]): What is equal for all blocks.
            plan ([`BlockPlan`]): Which branches run.
            text_slots (`tuple[KeyValueSlot, KeyValueSlot]`, *optional*): Where this block keeps keys and values of
                both text contexts between calls.
            negative_slots (`tuple[KeyValueSlot, KeyValueSlot]`, *optional*): The same for both negative contexts.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Video and audio tokens.
        """
        video = BlockStream(self, "", hidden_states, video_inputs)
        audio = self.audio_view(self, "audio_", audio_hidden_states, audio_inputs)
        if plan.video:
            video.attend_to_self(plan.video_self, plan.passthrough)
            video.attend_to_text(encoder_hidden_states, text_slots[0], negative_slots[0])
        if plan.audio:
            audio.attend_to_self(plan.audio_self, plan.passthrough)
            audio.attend_to_text(audio_encoder_hidden_states, text_slots[1], negative_slots[1])
        if plan.crosses:
            # Both directions see the streams as they are before either update.
            x, y = video.read_for(plan.directions), audio.read_for(plan.directions)
            if plan.a2v is not False:
                video.take_from(audio, x.pop("a2v"), y.pop("a2v"), plan.a2v)
            if plan.v2a is not False:
                audio.take_from(video, y.pop("v2a"), x.pop("v2a"), plan.v2a)
        if plan.video:
            video.feed_forward()
        if plan.audio:
            audio.feed_forward()
        return video.finish(), audio.finish()


def _norm(dim: int, shared: SharedSettings) -> nn.RMSNorm:
    return nn.RMSNorm(dim, eps=shared.norm_eps, elementwise_affine=shared.norm_elementwise_affine)


def _attention(
    queries: StreamSizes, heads: StreamSizes, context_dim: int | None, shared: SharedSettings
) -> LTX2Attention:
    return LTX2Attention(
        queries.dim,
        heads.heads,
        heads.head_dim,
        context_dim,
        bias=shared.attention_bias,
        out_bias=shared.attention_out_bias,
        rope_type=shared.rope_type,
        apply_gated_attention=queries.gated_attn,
    )


class _TwoStreamMetadata(TransformerBlockMetadata):
    """Tells diffusers' block caches that the second stream of a block is the audio, where they expect text."""

    def _get_parameter_from_args_kwargs(self, identifier: str, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = "audio_hidden_states" if identifier == "encoder_hidden_states" else identifier
        return super()._get_parameter_from_args_kwargs(name, args, kwargs)


# Writing the entry directly avoids `register`, which imports every transformer that diffusers has.
TransformerBlockRegistry._registry[LTX2AVTransformerBlock] = _TwoStreamMetadata(
    return_hidden_states_index=0, return_encoder_hidden_states_index=1, _cls=LTX2AVTransformerBlock
)

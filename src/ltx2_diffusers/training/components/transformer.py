"""Training the transformer from nothing: rectified flow on the latents of both streams.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M latent mel bins, S text
positions, D width of a stream.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...conditioning import Streams, on_streams
from ...guidance.perturbations import BatchedPerturbationConfig, isolating_perturbations
from ...models.modality_front import LTX2ModalityModel
from ...models.modulation import AdaLayerNormSingle
from ...models.transformer import LTX2AVTransformer3DModel
from ...models.transformer_block import LTX2AVTransformerBlock
from ...pipelines.plan import ModelSizes
from ..objective.losses import step_losses
from ..objective.noise_levels import NoiseLevels, StretchedLogitNormalLevels, TorchDraws
from ..objective.strategies import MaskedStrategy, Prefix, Role, Strategy
from ..objective.streams import TrainedStream
from .step import Losses, TrainingStep

_STREAMS = ("video", "audio")


def text_to_video_and_audio(first_frame_probability: float = 0.0) -> Strategy:
    """Both streams are made of the text, each at a noise level of its own; clips without sound train the video alone.

    Args:
        first_frame_probability: Share of the videos of more than one frame whose first one is given. Default 0.0.
    """
    rules = (Prefix(first_frame_probability, optional=True),) if first_frame_probability else ()
    return MaskedStrategy(None, Streams(Role("latents", rules=rules), Role("audio_latents", optional=True)))


class TransformerStep(TrainingStep):
    """Asks the transformer for the velocity of noisy latents, through the same strategies and losses as fine-tuning.

    A batch holds what the strategy reads, by default `latents` `{"latents": [B, C, F, h, w], "fps": [B]}` and
    `audio_latents` `{"latents": [B, C, L, M]}`, normalised; and the text of each stream, `video_context` and
    `audio_context` `[B, S, width]`. If it says `isolated`, its streams do not attend to each other, as in the pass that
    guidance with a `modality_scale` leads away from. Noise follows from torch's global random numbers.

    Args:
        transformer: The network to train.
        sizes: What the autoencoders make of pixels and seconds; `pipeline.sizes` of a pipeline with them.
        strategy: What is shown and what is made. Default [`text_to_video_and_audio`].
        levels: Distribution of the noise levels. Default that of LTX-2.3, which follows the number of tokens.
        weights: Weight of each stream's loss; both count alike unless given.
    """

    def __init__(
        self,
        transformer: LTX2AVTransformer3DModel,
        sizes: ModelSizes,
        strategy: Strategy | None = None,
        levels: NoiseLevels = StretchedLogitNormalLevels(),  # noqa: B008 - frozen
        weights: Streams[float] = Streams(1.0, 1.0),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.model = LTX2ModalityModel(transformer)
        self.sizes, self.levels, self.weights = sizes, levels, weights
        self.strategy = text_to_video_and_audio() if strategy is None else strategy

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The transformer."""
        return {"transformer": self.model.transformer}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`loss`, and the mean loss of each stream that the batch has, `video` and `audio`."""
        return self.flow_losses(batch, Streams(batch.get("video_context"), batch.get("audio_context")))

    def flow_losses(self, batch: Mapping[str, Any], contexts: Streams[Tensor | None]) -> Losses:
        """The losses of a batch with the text `[B, S, width]` of each stream."""
        streams = self.strategy.prepare(batch, self.levels, TorchDraws(self.device), self.sizes)
        perturbations = isolating_perturbations(1) if batch.get("isolated") else None
        return self.losses(streams, self.velocities(streams, contexts, perturbations))

    def velocities(
        self,
        streams: Streams[TrainedStream | None],
        contexts: Streams[Tensor | None],
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> Streams[Tensor | None]:
        """What the transformer says of noisy streams, `[B, T, features]` each, with their text."""
        modalities = on_streams(lambda stream, context: stream.modality(context, None), streams, contexts)
        return Streams(*self.model(*modalities, perturbations=perturbations))

    def losses(self, streams: Streams[TrainedStream | None], velocities: Streams[Tensor | None]) -> Losses:
        """`loss`, and the mean loss of each stream that is there."""
        found = step_losses(velocities, streams, self.weights)
        return {"loss": found.total} | {
            name: losses.mean() for name, losses in zip(_STREAMS, found.streams) if losses is not None
        }


@torch.no_grad()
def initialise_transformer(transformer: LTX2AVTransformer3DModel) -> None:
    """Give a fresh transformer weights with which training from nothing begins well, those of DiT and PixArt.

    * Linear layers are Xavier-uniform with biases of zero; embeddings of timesteps are N(0, 0.02).
    * Every branch of a block begins closed: gates of self-attention, feed-forward and attention between the streams
      are zero whatever the timestep, and where the attention to the text has no gate (2.0), its last layer is zero.
      A branch is closed at one place only, or no gradient would ever open it. So a fresh network hands its tokens
      through, however deep it is.
    * Shifts and scales begin at zero for every timestep, those between the streams too, which are as large as the
      tokens in a network as constructed; head gates begin at one.
    * The last layers are zero, so the first velocity is zero, and the first loss the variance of the velocity, 2.

    Args:
        transformer: A network that has not been trained; all its weights are replaced.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            _zero(module.bias)
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormSingle):
            for embedder in module.emb.modules():
                if isinstance(embedder, nn.Linear):
                    nn.init.normal_(embedder.weight, std=0.02)
            _zero(module.linear.weight)
        if isinstance(module, LTX2AVTransformerBlock):
            _close_branches(module)
    for name, parameter in transformer.named_parameters():
        if "scale_shift_table" in name or "to_gate_logits" in name:
            _zero(parameter)
    for head in (transformer.proj_out, transformer.audio_proj_out):
        _zero(head.weight)


def _close_branches(block: LTX2AVTransformerBlock) -> None:
    """Zero the last layer of attentions to the text that have no gate."""
    for prefix in ("", "audio_"):
        # Six values a token are those of self-attention and feed-forward; the text's would be three more.
        if len(getattr(block, f"{prefix}scale_shift_table")) == 6:
            _zero(getattr(block, f"{prefix}attn2").to_out[0].weight)


def _zero(parameter: Tensor | None) -> None:
    if parameter is not None:
        nn.init.zeros_(parameter)

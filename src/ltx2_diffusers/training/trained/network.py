"""What is trained as one module: text connectors and transformer, from stored text features and noisy tokens to velocities.

Shapes: B samples, L text features given, P text positions of the context, W width of a feature, T tokens, D features of a
token.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ...conditioning import Streams, TextContext
from ...data.samples import text_features
from ...models.connectors import LTX2TextConnectors
from ...models.modality_front import LTX2ModalityModel
from ...models.transformer import LTX2AVTransformer3DModel
from ..objective.streams import TrainedStream


class TrainingNetwork(nn.Module):
    """One forward pass of a training step.

    Args:
        transformer: The transformer.
        connectors: The text connectors.
        trains_connectors: Whether gradients reach the connectors; else they run without. Default `False`.
        text_positions: Positions P of the contexts that the streams attend to, default 1024.
    """

    # What FSDP cuts to pieces as a unit.
    _no_split_modules = ("LTX2AVTransformerBlock",)

    def __init__(
        self,
        transformer: LTX2AVTransformer3DModel,
        connectors: LTX2TextConnectors,
        trains_connectors: bool = False,
        text_positions: int = 1024,
    ) -> None:
        super().__init__()
        self.front = LTX2ModalityModel(transformer)
        self.connectors = connectors
        self.trains_connectors = trains_connectors
        self.text_positions = text_positions

    def forward(
        self, text: Mapping[str, Any], streams: Streams[TrainedStream | None]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Velocities of both streams `[B, T, D]`; `None` for an absent stream.

        Args:
            text: Features between projection and connectors: `video_prompt_embeds` `[B, L, W]`, `audio_prompt_embeds`
                (left out where both streams read the same), `prompt_attention_mask` `[B, L]`.
            streams: Noisy tokens of both streams.
        """
        return velocities(self.front, streams, self.contexts(text))

    def contexts(self, text: Mapping[str, Any]) -> TextContext:
        """What the streams attend to."""
        features = text_features(text)
        with nullcontext() if self.trains_connectors else torch.no_grad():
            # The projection, which does not run here, may be of another type.
            dtype = next(self.connectors.video_connector.parameters()).dtype
            length = self.connectors.fitting_length(max(self.text_positions, features.video.shape[1]))
            video, audio, _ = self.connectors.run_connectors(
                features.video.to(dtype), features.audio.to(dtype), features.mask, length
            )
        return TextContext(video, audio)


def velocities(
    front: LTX2ModalityModel, streams: Streams[TrainedStream | None], contexts: TextContext
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Velocities of both streams for contexts `[B, P, W]`."""
    # Without autocast nothing else brings tokens into the type of the weights.
    dtype = front.transformer.proj_in.weight.dtype
    modalities = (
        None if stream is None else stream.modality(context.to(dtype), dtype)
        for stream, context in zip(streams, (contexts.video, contexts.audio))
    )
    video, audio = front(*modalities)
    return video, audio

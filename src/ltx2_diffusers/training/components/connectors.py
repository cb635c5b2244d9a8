"""Training the connectors, with the transformer and the language model as far as those are not frozen.

Shapes: B batch, T text positions, C width of the language model, L its hidden states, S text positions of the streams.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...conditioning import Streams
from ...models.connectors import LTX2TextConnectors
from ...prompts.encoding import Prompts, TextEncoder, TextStates
from .step import Losses, TrainingStep, trained_parameters
from .transformer import TransformerStep


class ConnectorsStep(TrainingStep):
    """Reads texts, and asks the transformer for velocities with what the connectors make of them.

    Nothing says what connectors have to give but the transformer's loss, so its gradient goes through the transformer
    into them, and on into the language model. Whatever is not to be trained is frozen by its `requires_grad_(False)`.

    A batch holds what [`TransformerStep`] reads but the contexts, and either `prompts`, a list of B texts, or their
    tokens `prompt_ids` `[B, T]` (see `tokens`), or the hidden states of a language model, `prompt_states`
    `[B, T, C, L]`, the latter two with their `prompt_mask` `[B, T]`. For
    classifier-free guidance a share of the texts has to be empty, about one in ten.

    Args:
        connectors: The connectors to train.
        flow: The step of the transformer.
        text_length: Text positions S which the streams attend to, a multiple of the connectors' registers; generation
            has to be called with the same `max_sequence_length`.
        text_encoder: The language model; needed for batches with `prompts`. Default None.
        tokenizer: Its tokenizer. Default None.
    """

    def __init__(
        self,
        connectors: LTX2TextConnectors,
        flow: TransformerStep,
        text_length: int,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        if (text_encoder is None) != (tokenizer is None):
            raise ValueError("`text_encoder` and `tokenizer` belong together; give both or none of them.")
        self.connectors, self.flow, self.text_length = connectors, flow, text_length
        # The reader of texts takes absent parts for what they are and refuses when one is needed.
        self.text_encoder: Any = text_encoder
        self.tokenizer: Any = tokenizer

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Those of the transformer, the connectors and the language model that are not frozen."""
        parts = {**self.flow.networks, "connectors": self.connectors, "text_encoder": self.text_encoder}
        return {name: part for name, part in parts.items() if part is not None and trained_parameters(part)}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """As of [`TransformerStep`]."""
        reader = self._reader(self.device)
        if "prompt_ids" in batch:
            states = reader.run(batch["prompt_ids"], batch["prompt_mask"], self.text_length)
        elif "prompts" in batch:
            prompts = Prompts(list(batch["prompts"]), max_sequence_length=self.text_length)
            states, _ = reader.states(prompts, with_negative=False)
        else:
            states = TextStates(batch["prompt_states"], batch["prompt_mask"])
        context, _ = reader.contexts((states, None), self.text_length)
        return self.flow.flow_losses(batch, Streams(context.video, context.audio))

    def tokens(self, texts: Sequence[str], shortest: int = 1) -> dict[str, torch.Tensor]:
        """The entries `prompt_ids` and `prompt_mask` of a batch, of at least as many positions as `shortest`.

        They are on the CPU, as data is; [`fit`] moves batches.
        """
        found = self._reader("cpu").tokens(texts, self.text_length, shortest)
        return dict(zip(("prompt_ids", "prompt_mask"), found))

    def _reader(self, device: torch.device | str) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.text_encoder, self.connectors, torch.device(device))

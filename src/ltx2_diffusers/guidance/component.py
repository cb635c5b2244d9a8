"""Guidance as a component of modular pipelines: one object per stream, which diffusers' other guiders can replace."""

import inspect
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput

from .guiders import MultiModalGuider, MultiModalGuiderParams


class LTX2Guidance(BaseGuidance):
    """Guidance of one stream by up to three terms, each of which costs a pass of the transformer where it acts.

    `pred = cond + (guidance_scale - 1) (cond - uncond) + stg_scale (cond - stg) + (modality_scale - 1) (cond - modality)`,
    of predictions of the clean sample. Unlike in the arguments of diffusers' pipelines, scales below the neutral value act.

    Args:
        guidance_scale: Against the negative prompt; 1.0 (default) is neutral.
        stg_scale: Against the pass in which blocks are perturbed; default 0.0 is neutral.
        modality_scale: Against the pass in which the streams do not see each other; 1.0 (default) is neutral.
        guidance_rescale: Share in [0, 1] of the conditional prediction's deviation that is restored; default 0.0.
        spatio_temporal_guidance_blocks: Blocks that the perturbed pass perturbs. Both streams share the pass, which reads
            the blocks of the video's guider.
        start, stop: Shares of the steps between which the terms act; defaults 0.0 and 1.0.
        enabled: Whether they act at all; default `True`.

    Raises:
        ValueError: If a scale, a share or the window is out of range.
    """

    # Their order is that of the values which `prepare_inputs` takes for each pass.
    _input_predictions: Any = ["pred_cond", "pred_uncond", "pred_cond_stg", "pred_cond_modality"]  # noqa: RUF012

    # Part of the base class; what a pass is, is said by its name here.
    is_conditional: Any = True

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 1.0,
        stg_scale: float = 0.0,
        modality_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        spatio_temporal_guidance_blocks: list[int] | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale
        self.stg_scale = stg_scale
        self.modality_scale = modality_scale
        self.guidance_rescale = guidance_rescale
        self.spatio_temporal_guidance_blocks = spatio_temporal_guidance_blocks
        self._formula  # noqa: B018 (checks the values)

    def new(self, **kwargs: Any) -> "LTX2Guidance":
        """A copy with other values.

        Args:
            kwargs: Arguments to change.

        Raises:
            ValueError: If there is no such argument, or its value is out of range.
        """
        for name in kwargs.keys() - inspect.signature(type(self).__init__).parameters.keys():
            known = [one for one in self.config if not one.startswith("_")]
            raise ValueError(f"`{name}` is no argument of LTX2Guidance; it takes {', '.join(known)}")
        made: LTX2Guidance = super().new(**kwargs)
        return made

    @property
    def _formula(self) -> MultiModalGuider:
        """The formula at the running step: outside of the window nothing but the rescaling is left."""
        rescale, steps = self.guidance_rescale, self._num_inference_steps
        # Before the first step there is no window.
        in_window = steps is None or int(self._start * steps) <= self._step < int(self._stop * steps)
        if not (self._enabled and in_window):
            return MultiModalGuider(MultiModalGuiderParams(rescale_scale=rescale))
        scales = (self.guidance_scale, self.stg_scale, self.spatio_temporal_guidance_blocks, rescale)
        return MultiModalGuider(MultiModalGuiderParams(*scales, self.modality_scale))

    def is_cfg_enabled(self) -> bool:
        """Whether the running step needs the pass with the negative prompt."""
        return self._formula.do_unconditional_generation()

    def is_stg_enabled(self) -> bool:
        """Whether it needs the perturbed pass."""
        return self._formula.do_perturbed_generation()

    def is_modality_enabled(self) -> bool:
        """Whether it needs the pass in which the streams do not see each other."""
        return self._formula.do_isolated_modality_generation()

    def active_predictions(self) -> list[str]:
        """Names of the passes that the running step needs, the conditional one first."""
        needed = (True, self.is_cfg_enabled(), self.is_stg_enabled(), self.is_modality_enabled())
        return [name for name, is_needed in zip(self._input_predictions, needed) if is_needed]

    @property
    def num_conditions(self) -> int:
        """Passes that the running step needs."""
        return len(self.active_predictions())

    def prepare_inputs(self, data: Any) -> list[Any]:
        """A batch for each pass that the running step needs.

        Args:
            data: Values by name, each a tensor for all passes or a tuple of four, for the conditional, negative, perturbed and
                isolated pass.
        """
        order = self._input_predictions
        return [self._prepare_batch(data, order.index(name), name) for name in self.active_predictions()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The same of what a block state holds.

        Args:
            data: The block state.
            input_fields: Names of its attributes instead of values.
        """
        prepare, order = self._prepare_batch_from_block_state, self._input_predictions
        return [prepare(input_fields, data, order.index(name), name) for name in self.active_predictions()]

    def forward(
        self,
        pred_cond: torch.Tensor,
        pred_uncond: torch.Tensor | None = None,
        pred_cond_stg: torch.Tensor | None = None,
        pred_cond_modality: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """The guided prediction `[B, ...]`, computed in float32, in the type of the conditional one.

        Args:
            pred_cond: Prediction with the prompt.
            pred_uncond, pred_cond_stg, pred_cond_modality: Predictions of the other passes; `None` where a term is neutral.

        Raises:
            ValueError: If the prediction of a term that acts is missing.
        """
        pred = self._formula.calculate(pred_cond, pred_uncond, pred_cond_stg, pred_cond_modality)
        return GuiderOutput(pred=pred.to(pred_cond.dtype), pred_cond=pred_cond, pred_uncond=pred_uncond)

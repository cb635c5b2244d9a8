"""Blocks from prompts to what the streams attend to, and to how long the clip is."""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import PIL.Image
import torch

from .. import prompts as texts
from ..checks import check_at_least_one
from ..media.frames import Frames, as_image, one_picture, read_frames
from ..models.duration_head import frames_within
from ..pipelines.arguments import Arguments
from ..pipelines.conditions import as_conditions
from ..pipelines.engine import awaits_length
from ..prompts.encoding import check_text_width
from .declarations import DECLARED, Conditional, Leaf, Sequential

SIZES = {"height", "width", "num_frames"}


def arguments_of(values: Mapping[str, Any]) -> Arguments:
    """What of the arguments of a call is among values, but for sizes, whose multiples are those of the networks."""
    said = {one.name for one in fields(Arguments) if one.init} & values.keys() - SIZES
    return Arguments(**{name: values[name] for name in said if values[name] is not None})


def _first_picture(frames: Frames) -> PIL.Image.Image:
    return as_image(read_frames(one_picture(frames), 1, name="image")[0])


class LTX2PromptEnhancerStep(Leaf):
    """Rewrites the prompts with the `prompt_enhancer`, or with a text encoder that can write."""

    def picture(self, b: Any) -> PIL.Image.Image | None:  # noqa: ARG002 (blocks made from this one have pictures)
        """What the language model is shown."""
        return None

    def check(self, components: Any, b: Any) -> dict[str, Any]:
        if b.enable_prompt_enhancement:
            components.chat_model.check(self.picture(b) is not None)
        return {"prompt": b.prompt}

    def run(self, components: Any, b: Any) -> None:
        if not b.enable_prompt_enhancement:
            return
        prompts, _ = arguments_of(b.as_dict()).request(())
        how = (components._execution_device, b.generator, self.picture(b))
        b.prompt = texts.enhance(components.chat_model, prompts.texts, prompts.enhancement, *how)


class LTX2ImageToVideoPromptEnhancerStep(LTX2PromptEnhancerStep):
    """Rewrites the prompts for a video that begins with a picture, which the language model is shown."""

    def picture(self, b: Any) -> PIL.Image.Image | None:
        return _first_picture(b.image[0] if isinstance(b.image, (list, tuple)) else b.image)


class LTX2ConditionPromptEnhancerStep(LTX2PromptEnhancerStep):
    """Rewrites the prompts for a video that shows pictures, of which the language model is shown the first one."""

    def picture(self, b: Any) -> PIL.Image.Image | None:
        shown: list[Any] = [one for one in as_conditions("conditions", b.conditions) if one.shows_picture]
        return _first_picture(shown[0].frames) if shown else None


class LTX2AutoPromptEnhancerStep(Conditional):
    """Rewrites the prompts if `enable_prompt_enhancement` is true."""

    def select_block(self, conditions: Any = None, image: Any = None, enable_prompt_enhancement: Any = None) -> Any:
        if not enable_prompt_enhancement:
            return None
        return "condition" if conditions is not None else "text2video" if image is None else "image2video"


class LTX2TextEncoderStep(Leaf):
    """Has the language model read the prompts and the negative ones."""

    def check(self, components: Any, b: Any) -> dict[str, Any]:
        encoder = components._text_encoder()
        encoder.check_length(encoder.fitting_length(b.max_sequence_length))
        return {"batch_size": 1 if isinstance(b.prompt, str) else len(b.prompt)}

    def run(self, components: Any, b: Any) -> None:
        encoder = components._text_encoder()
        prompts = texts.Prompts(b.prompt, b.negative_prompt, max_sequence_length=b.max_sequence_length)
        encoded = texts.encode_prompt(encoder, prompts, True, None)
        b.prompt_embeds, b.prompt_attention_mask, b.negative_prompt_embeds, b.negative_prompt_attention_mask = encoded
        b.batch_size, b.dtype = len(b.prompt_embeds), b.prompt_embeds.dtype


class LTX2TextConnectorStep(Leaf):
    """Makes of what the language model read the contexts of both streams."""

    def check(self, components: Any, b: Any) -> None:
        embeds = (b.prompt_embeds, b.negative_prompt_embeds)
        masks = (b.prompt_attention_mask, b.negative_prompt_attention_mask)
        if embeds[0] is not None:
            texts.check_prompts(texts.Prompts(None, None, embeds, masks))
            check_text_width(components._text_encoder().text_width, embeds)

    def run(self, components: Any, b: Any) -> None:
        embeds = torch.cat([b.negative_prompt_embeds, b.prompt_embeds]).to(components.connectors.dtype)
        masks = torch.cat([b.negative_prompt_attention_mask, b.prompt_attention_mask])
        made = components.connectors(embeds, masks, padding_side="left")
        for name, both in zip(DECLARED["contexts"].values(), made):
            negative, positive = both.chunk(2)
            setattr(b, name, positive)
            setattr(b, f"negative_{name}", negative)


class LTX2TextConditioningStep(Sequential):
    """Reads the prompts, and makes the contexts of both streams of them."""


class LTX2TextInputStep(Leaf):
    """Repeats the contexts of each prompt for its videos."""

    def run(self, components: Any, b: Any) -> None:  # noqa: ARG002 (blocks are called alike)
        check_at_least_one(num_videos_per_prompt=b.num_videos_per_prompt)
        for name in self.writes.split():
            setattr(b, name, getattr(b, name).repeat_interleave(b.num_videos_per_prompt, 0))


class LTX2DurationStep(Leaf):
    """Predicts how many frames the clip of a prompt should have."""

    def check(self, components: Any, b: Any) -> dict[str, Any]:
        _, request = arguments_of(b.as_dict()).request(())
        if not awaits_length(components, request, b.batch_size):
            why = (
                "there is no `duration_head` to predict it"
                if b.latents is None
                else "`latents` are given, which have one"
            )
            raise ValueError(f"`num_frames` is None, but {why}; give `num_frames`")
        bounds, stride = (b.min_seconds, b.max_seconds), components.sizes.temporal_ratio
        return {"num_frames": frames_within(b.max_seconds, b.frame_rate, stride, *bounds)}

    def run(self, components: Any, b: Any) -> None:
        contexts = (b.connector_prompt_embeds[:1], b.connector_audio_prompt_embeds[:1])
        clip = {"frame_rate": b.frame_rate, "temporal_compression_ratio": components.sizes.temporal_ratio}
        bounds = {"min_seconds": b.min_seconds, "max_seconds": b.max_seconds}
        b.num_frames = components.duration_head.predict_num_frames(*contexts, **clip, **bounds)


class LTX2AutoDurationStep(Conditional):
    """Predicts the number of frames if `num_frames` is not given."""

    def select_block(self, num_frames: Any = None) -> Any:
        return "duration" if num_frames is None else None


LTX2DurationStep.asked_by = LTX2AutoDurationStep

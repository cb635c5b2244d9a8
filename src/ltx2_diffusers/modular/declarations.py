"""What blocks read, write and need, each name described once; and the kinds of blocks that all others are.

Shapes: B videos of the batch, N prompts, P text positions, C channels,
F latent frames, h and w latent rows and columns, T video tokens (appended ones included), L audio latents, D features of a token.
"""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines.modular_pipeline import AutoPipelineBlocks as AutoBase
from diffusers.modular_pipelines.modular_pipeline import ConditionalPipelineBlocks as ConditionalBase
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks as LoopBase
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks as BlockBase
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks as SequentialBase
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..guidance.component import LTX2Guidance
from ..models.audio_vae import AutoencoderKLLTX2Audio
from ..models.connectors import LTX2TextConnectors
from ..models.diffusion_decoder import LTX2VideoDiffusionDecoderModel
from ..models.duration_head import LTX2DurationHead
from ..models.transformer import LTX2VideoTransformer3DModel
from ..models.video_vae import AutoencoderKLLTX2Video
from ..models.vocoder import LTX2Vocoder
from ..schedulers.levels import FlowMatchEulerDiscreteScheduler

FIELDS = "denoiser_input_fields"
# What reaches the transformer under its own name, however many blocks make it.
_TO_THE_TRANSFORMER = ("audio_num_frames", "video_coords", "audio_coords", "video_self_attention_mask")
# What six blocks of the text path hand on, of the positive and of the negative prompts.
CONTEXTS = ("connector_prompt_embeds", "connector_audio_prompt_embeds", "connector_attention_mask")
NEGATIVE_CONTEXTS = tuple(f"negative_{name}" for name in CONTEXTS)
_TENSOR, _GENERATORS = torch.Tensor, torch.Generator | list[torch.Generator]

# Name: (type, default, description).
_INPUTS: dict[str, tuple[Any, Any, str]] = {
    "prompt": (str | list[str], None, "What the videos show, one text for each."),
    "negative_prompt": (str | list[str], None, "What they are steered away from; default the empty text."),
    "max_sequence_length": (int, 1024, "Text positions."),
    "image": (PIL.Image.Image, None, "First frame, one for all videos or a list with one for each prompt."),
    "image_crf": (int, None, "H.264 quality of its round trip, default the checkpoint's; 0 skips it."),
    "conditions": (list, None, "One or several `LTX2VideoCondition`."),
    "reference_conditions": (list, None, "One or several `LTX2ReferenceCondition`, which an IC-LoRA follows."),
    "reference_downscale_factor": (int, 1, "Size of the video over that of the references; 1 is what the LoRA says."),
    "conditioning_attention_strength": (float, 1.0, "How far video and references see each other, 0 to 1."),
    "conditioning_attention_mask": (_TENSOR, None, "Where they see each other, `[1, 1, F, H, W]` in [0, 1]."),
    "height": (int, 512, "Rows of pixels, a multiple of 32."),
    "width": (int, 704, "Columns of pixels, a multiple of 32."),
    "num_frames": (int, None, "Frames, 8 k + 1; default what the duration head predicts."),
    "frame_rate": (float, 24.0, "Frames per second."),
    "motion_speed": (float, 1.0, "Speed of the motion against real time."),
    "min_seconds": (float, 1.0, "Shortest length that is predicted."),
    "max_seconds": (float, 20.0, "Longest length that is predicted."),
    "num_inference_steps": (int, 30, "Denoising steps."),
    "sigmas": (list[float], None, "Falling noise levels in (0, 1] in place of steps."),
    "timesteps": (list[float], None, "The same times 1000, taken as they are; between blocks the tensor `[steps]`."),
    "noise_scale": (float, None, "Noise laid over given latents, 0 to 1."),
    "latents": (_TENSOR, None, "Video latents: given ones `[B, C, F, h, w]`, between blocks tokens `[B, T, D]`."),
    "audio_latents": (_TENSOR, None, "Audio latents: given ones `[B, C, L, M]`, between blocks tokens `[B, L, D]`."),
    "generator": (_GENERATORS, None, "Source of noise, or one for each video."),
    "num_videos_per_prompt": (int, 1, "Videos of each prompt."),
    "use_cross_timestep": (bool, True, "Whether each stream's exchange is modulated by the other's noise level."),
    "attention_kwargs": (dict, None, "Passed to the transformer: the LoRA `scale`."),
    "output_type": (str, "pil", "`pil`, `np`, `pt`, `uint8`, or `latent` for un-normalised latents."),
    "decode_timestep": (float | list[float], 0.0, "Noise level that a decoder with timestep conditioning is told."),
    "decode_noise_scale": (float | list[float], None, "Noise mixed in before; default the same."),
    "enable_prompt_enhancement": (bool, False, "Whether a language model rewrites the prompts first."),
    "system_prompt": (str, None, "Its instructions, default this package's."),
    "prompt_max_new_tokens": (int, None, "Longest rewritten prompt in tokens, default the language model's."),
    "prompt_enhancement_kwargs": (dict, None, "Sampling settings in place of the defaults."),
    "prompt_enhancement_seed": (int, 10, "Seed of the sampling, unless there is a `generator`."),
    "batch_size": (int, None, "Prompts."),
    "num_inference_steps:loop": (int, 50, "Denoising steps."),
    "num_frames:diffusion": (int, 121, "Frames, 8 k + 1."),
    "batch_size:decode": (int, 1, "Prompts."),
    "dtype:decode": (torch.dtype, torch.float32, "Type in which latents go to the decoder."),
    "dtype": (torch.dtype, None, "Type in which the transformer is given latents."),
    "prompt_embeds": (_TENSOR, None, "Language-model states of the prompts, `[N, P, width * layers]`."),
    "prompt_attention_mask": (_TENSOR, None, "1 for their tokens, `[N, P]`."),
    "negative_prompt_embeds": (_TENSOR, None, "States of the negative prompts."),
    "negative_prompt_attention_mask": (_TENSOR, None, "1 for their tokens."),
    "connector_prompt_embeds": (_TENSOR, None, "What the video attends to, `[N, P, width]`."),
    "connector_audio_prompt_embeds": (_TENSOR, None, "What the audio attends to."),
    "connector_attention_mask": (_TENSOR, None, "1 for positions of both to attend to, `[N, P]`."),
    "negative_connector_prompt_embeds": (_TENSOR, None, "The same of the negative prompts."),
    "negative_connector_audio_prompt_embeds": (_TENSOR, None, "The same of the negative prompts."),
    "negative_connector_attention_mask": (_TENSOR, None, "The same of the negative prompts."),
    "image_latents": (_TENSOR, None, "Normalised latents of first frames, `[images, C, 1, h, w]`."),
    "condition_latents": (list, None, "Normalised latents of each condition, `[1, C, F, h, w]`."),
    "condition_strengths": (list, None, "Their strengths."),
    "condition_indices": (list, None, "Latent frames where they go."),
    "condition_pixel_frames": (list, None, "Their numbers of pixel frames."),
    "reference_latents": (_TENSOR, None, "Tokens of all references, `[1, tokens, D]`."),
    "reference_coords": (_TENSOR, None, "Their positions, `[1, 3, tokens, 2]`."),
    "reference_token_counts": (list, None, "Tokens of each."),
    "reference_cross_mask": (_TENSOR, None, "How far the video sees each of them, `[1, tokens]`; `None` is fully."),
    "conditioning_mask": (_TENSOR, None, "1 for tokens that are given, 0 for those to make: `[B, T]` or `[B, T, 1]`."),
    "clean_latents": (_TENSOR, None, "What given tokens are held to, `[B, T, D]`."),
    "appended_coords": (_TENSOR, None, "Positions of tokens behind the video's own, `[B, 3, tokens, 2]`."),
    "base_token_count": (int, None, "The video's own tokens."),
    "num_ref_tokens": (int, None, "Tokens of references, the last ones."),
    "audio_num_frames": (int, None, "Audio latents L."),
    "video_coords": (_TENSOR, None, "Positions of the video tokens, `[B, 3, T, 2]`."),
    "audio_coords": (_TENSOR, None, "Positions of the audio tokens, `[B, 1, L, 2]`."),
    "video_self_attention_mask": (_TENSOR, None, "How far video tokens see each other, `[B, T, T]`."),
    "audio_scheduler": (FlowMatchEulerDiscreteScheduler, None, "The scheduler of the audio, a copy of the video's."),
    "videos": (list, None, "The videos, in the form that `output_type` says."),
    "audio": (_TENSOR, None, "Their sound, `[B, channels, samples]`."),
}

_SIZED = {"vae_scale_factor": 32}
_GUIDER = {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0, "guidance_rescale": 0.7}
# Name: (type, configuration of what is built rather than loaded). A checkpoint says itself which vocoder it has.
_COMPONENTS: dict[str, tuple[type, dict[str, Any] | None]] = {
    "text_encoder": (PreTrainedModel, None),
    "tokenizer": (PreTrainedTokenizerBase, None),
    "processor": (ProcessorMixin, None),
    "prompt_enhancer": (PreTrainedModel, None),
    "connectors": (LTX2TextConnectors, None),
    "duration_head": (LTX2DurationHead, None),
    "vae": (AutoencoderKLLTX2Video, None),
    "diffusion_decoder": (LTX2VideoDiffusionDecoderModel, None),
    "audio_vae": (AutoencoderKLLTX2Audio, None),
    "vocoder": (LTX2Vocoder, None),
    "transformer": (LTX2VideoTransformer3DModel, None),
    "scheduler": (FlowMatchEulerDiscreteScheduler, None),
    "video_processor": (VideoProcessor, _SIZED),
    "guider": (LTX2Guidance, _GUIDER | {"spatio_temporal_guidance_blocks": [28]}),
    "audio_guider": (LTX2Guidance, _GUIDER | {"guidance_scale": 7.0}),
}
_ENCODING = FrozenDict(_SIZED | {"resample": "bilinear"})


def reads(entry: str) -> InputParam:
    """The declaration of an input.

    Args:
        entry: Its name; with what sets it apart from others of the name behind a colon, and `!` behind what is required.
    """
    if entry == FIELDS:
        unnamed: Any = None
        return InputParam(
            unnamed, dict, kwargs_type=FIELDS, description="Further arguments of the transformer, by name."
        )
    key = entry.removesuffix("!")
    kind, default, description = _INPUTS.get(key, (_TENSOR, None, "Read by the guiders."))
    return InputParam(key.partition(":")[0], kind, default, entry.endswith("!"), description)


def _writes(name: str) -> OutputParam:
    kind, _, description = _INPUTS[name]
    untyped: Any = None
    return OutputParam(name, kind, description, FIELDS if name in _TO_THE_TRANSFORMER else untyped)


def _component(name: str) -> ComponentSpec:
    if name == "encoding_processor":
        return replace(_component("video_processor"), config=_ENCODING)
    kind, config = _COMPONENTS[name]
    built: dict[str, Any] = (
        {} if config is None else {"config": FrozenDict(config), "default_creation_method": "from_config"}
    )
    return ComponentSpec(name, kind, **built)


class _Ours:
    """What blocks of every kind share: they make this package's pipelines."""

    model_name: Any = "ltx2"
    block_names: Any
    block_classes: Any
    parts: ClassVar[Mapping[str, Any]] = {}
    """The blocks in it by their names."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.parts:
            cls.block_names, cls.block_classes = [*cls.parts], [*cls.parts.values()]

    @property
    def description(self) -> str:
        """What the block does."""
        return inspect.getdoc(type(self)) or ""

    def init_pipeline(
        self,
        pretrained_model_name_or_path: str | None = None,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
    ) -> Any:
        """A pipeline that runs these blocks.

        Args:
            pretrained_model_name_or_path: Folder or Hub id that components are loaded from. Default none.
            components_manager, collection: As in diffusers.
            workflow: Name of a workflow, whose blocks alone are kept. Default all.
        """
        from .pipeline import PIPELINES

        blocks, place = deepcopy(self), (components_manager, collection)
        return PIPELINES[self.model_name](blocks, pretrained_model_name_or_path, *place, workflow=workflow)


class Leaf(_Ours, BlockBase):
    """A block that computes something."""

    # Names with blanks between them.
    reads: ClassVar[str] = ""
    writes: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    asked_by: ClassVar[Any] = None
    """The block around it that decides whether it runs, for one of which the inputs of a workflow do not say that."""

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads."""
        return [reads(name) for name in self.reads.split()]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it writes."""
        return [_writes(name) for name in self.writes.split()]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """What it computes with."""
        return [_component(name) for name in self.needs.split()]

    def run(self, components: Any, b: Any) -> None:
        """Compute.

        Args:
            components: The pipeline.
            b: What the block reads and writes, as attributes.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        b: Any = self.get_block_state(state)
        self.run(components, b)
        self.set_block_state(state, b)
        return components, state


class LoopLeaf(Leaf):
    """A block that computes something in every step; its state is that of the loop around it."""

    def run(self, components: Any, b: Any, step: int = 0, timestep: Any = None) -> None:
        """Compute.

        Args:
            components: The pipeline.
            b: What the blocks of the loop read and write, as attributes.
            step: Index of the step.
            timestep: Its noise level times 1000.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        self.run(components, block_state, i, t)
        return components, block_state


class Sequential(_Ours, SequentialBase):
    """Blocks that run one after another."""

    def get_execution_blocks(self, **kwargs: Any) -> "Sequential":
        """The blocks that run for these inputs."""
        blocks = super().get_execution_blocks(**kwargs).sub_blocks
        chosen: Any = Sequential.from_blocks_dict(
            {name: getattr(block, "asked_by", None) or block for name, block in blocks.items()}
        )
        chosen.model_name = self.model_name
        return chosen


class Conditional(_Ours, ConditionalBase):
    """Blocks of which the inputs choose one."""


class Auto(_Ours, AutoBase):
    """Blocks of which the first runs whose input is given."""


class Loop(_Ours, LoopBase):
    """Blocks that run in every step."""

"""The settings of a training run: one class per section of its YAML file, with types, ranges and defaults.

Keys and defaults are those of the reference trainer (2.0), whose files load as they are; keys of the newest reference
trainer are taken too, and what is new here stands under keys of its own. `config_files.parse_config` reads a
mapping and names everything that is wrong with it at once.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        SerializeAsAny,
        field_validator,
        model_validator,
    )
except ImportError as error:
    raise ImportError("training needs pydantic: pip install 'ltx2-diffusers[train]'") from error

from ..checkpoints.packaged import PACKAGED, meant_instead
from ..checks import neighbours
from .trained.targets import PRESETS

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = (".safetensors", ".sft", ".gguf")
TRAINED_FILE_SUFFIX = ".safetensors"
SIZE_MULTIPLE, FRAME_STRIDE = 32, 8


def _no_truth_value(value: Any) -> Any:
    """Python counts truth values among the numbers; a person who writes `rank: true` does not."""
    if isinstance(value, bool):
        raise ValueError("has to be a number")
    return value


def _existing(path: Path) -> Path:
    path = path.expanduser()
    if not path.exists():
        raise ValueError("has to be a file or folder that exists")
    return path


def _model_source(name: str) -> str:
    """A local file or folder, the name of a packaged checkpoint, or an id of the Hub."""
    if name.startswith(("http://", "https://")):
        raise ValueError("has to be a local path or a Hub id; fetch the file first, or give owner/name")
    path = os.path.expanduser(name)
    if os.path.exists(path) or name in PACKAGED:
        return path
    if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_SUFFIXES) and not os.path.isdir(name.split("/")[0]):
        return name
    raise ValueError(f"has to be a file or folder that exists, or a Hub id owner/name; {meant_instead(name)}")


def _checkpoint_to_start_from(path: Path) -> Path:
    if path.is_file() and path.suffix != TRAINED_FILE_SUFFIX:
        raise ValueError(f"has to be a {TRAINED_FILE_SUFFIX} file or a folder")
    return path


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _bare_word(word: str) -> BeforeValidator:
    """Take a truth value for the word that YAML reads as one unless it is quoted."""
    return BeforeValidator(lambda value: word if value is False else value)


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Count = Annotated[Whole, Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_truth_value)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]
ExistingPath = Annotated[Path, AfterValidator(_existing)]
ModelSource = Annotated[str, AfterValidator(_model_source)]


class Section(BaseModel):
    """A mapping of the file: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=(), validate_assignment=False)


def _defaults(section: type[Section]) -> Any:
    """A section that may be left out: all its keys have defaults."""
    return Field(default_factory=section)


class ModelConfig(Section):
    """Which model is trained, and what of it."""

    model_path: ModelSource = Field(
        description="Checkpoint to train: an original file, a folder in diffusers' layout, or a Hub id owner/name."
    )
    text_encoder_path: ModelSource | None = Field(
        None, description="Folder or Hub id of the Gemma text encoder, where the checkpoint brings none."
    )
    training_mode: Literal["lora", "full"] = Field("lora", description="Train an adapter, or the whole transformer.")
    load_checkpoint: Annotated[ExistingPath, AfterValidator(_checkpoint_to_start_from)] | None = Field(
        None, description="Weights to start from: a .safetensors file, or a folder whose newest step is taken."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub id.")
    variant: str | None = Field(None, description="Variant of the weights in diffusers' layout, such as fp16.")
    video_vae_path: ExistingPath | None = Field(None, description="Video VAE of a checkpoint in several files.")
    audio_vae_path: ExistingPath | None = Field(None, description="Audio VAE of a checkpoint in several files.")


def _target_names(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(f"has to be a list of module names, or one of {', '.join(PRESETS)}")
    if not isinstance(value, (str, list, tuple)) or not value or not all(isinstance(n, str) and n for n in value):
        raise ValueError("has to be a list of module names and presets, with at least one")
    return value if isinstance(value, str) else list(value)


class LoraConfig(Section):
    """The adapter."""

    rank: Whole = Field(64, ge=2, description="Rank of every adapted layer.")
    alpha: Count = Field(64, description="Scale of the adapter: its layers are multiplied by alpha / rank.")
    dropout: Share = Field(0.0, description="Share of the adapter's inputs that are dropped.")
    target_modules: Annotated[Any, BeforeValidator(_target_names)] = Field(
        ["to_k", "to_q", "to_v", "to_out.0"],
        description=f"Names of layers to adapt, as they end, or presets: {', '.join(PRESETS)}.",
    )
    use_dora: bool = Field(False, description="Train magnitudes apart from directions (DoRA).")
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    lora_bias: bool = Field(False, description="Train a bias in the second factor too.")
    init_lora_weights: Literal[True, "gaussian"] = Field(
        True, description="How the first factor begins: true for Kaiming-uniform, or gaussian; the second is zero."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.use_dora and self.lora_bias:
            raise ValueError("use_dora and lora_bias exclude each other; set one of them to false")
        return self


class StrategySection(Section):
    """What all strategies have; a strategy of one's own begins here, with a `name` of its own."""

    name: str = Field(description="What is trained from what.")
    caption_dropout_p: Share = Field(
        0.0, description="Probability with which a sample's caption is replaced by the empty prompt."
    )


AudioFolder = Annotated[str, Field(min_length=1, description="Folder of the audio latents below the data root.")]
WithAudio = Annotated[bool, Field(description="Train the sound along; clips without sound train the video alone.")]
FirstFrame = Annotated[Share, Field(description="Probability with which a sample's first frame is given.")]


class TextToVideoConfig(StrategySection):
    """Video, with sound or without, from text; now and then from a first frame."""

    name: Literal["text_to_video"] = Field("text_to_video", description="Video from text.")
    first_frame_conditioning_p: FirstFrame = 0.1
    with_audio: WithAudio = False
    audio_latents_dir: AudioFolder = "audio_latents"


class VideoToVideoConfig(StrategySection):
    """Video from a reference video (IC-LoRA)."""

    name: Literal["video_to_video"] = Field("video_to_video", description="Video from a reference video (IC-LoRA).")
    first_frame_conditioning_p: FirstFrame = 0.1
    reference_latents_dir: str = Field(
        "reference_latents", min_length=1, description="Folder of the references' latents below the data root."
    )


class ImageToVideoConfig(StrategySection):
    """Video from its first frame."""

    name: Literal["image_to_video"] = Field("image_to_video", description="Video from its first frame.")
    first_frame_conditioning_p: FirstFrame = 1.0
    with_audio: WithAudio = False
    audio_latents_dir: AudioFolder = "audio_latents"


class AudioToVideoConfig(StrategySection):
    """Video for given sound."""

    name: Literal["audio_to_video"] = Field("audio_to_video", description="Video for given sound.")
    first_frame_conditioning_p: FirstFrame = 0.0
    audio_latents_dir: AudioFolder = "audio_latents"


class VideoToAudioConfig(StrategySection):
    """Sound for a given video."""

    name: Literal["video_to_audio"] = Field("video_to_audio", description="Sound for a given video.")
    audio_latents_dir: AudioFolder = "audio_latents"


class TextToAudioConfig(StrategySection):
    """Sound from text, without a picture."""

    name: Literal["text_to_audio"] = Field("text_to_audio", description="Sound from text alone.")
    audio_latents_dir: AudioFolder = "audio_latents"


class InpaintingConfig(StrategySection):
    """What a mask leaves open of a video; sound is made anew."""

    name: Literal["inpainting"] = Field("inpainting", description="What masks leave open.")
    mask_dir: str = Field(
        "video_masks", min_length=1, description="Folder of the masks below the data root; 1 marks what is given."
    )
    with_audio: WithAudio = False
    audio_latents_dir: AudioFolder = "audio_latents"


class ExtensionConfig(StrategySection):
    """How a clip goes on, or what came before it."""

    name: Literal["extension"] = Field("extension", description="How a clip goes on, or began.")
    temporal_boundary: Count = Field(
        4, description="Latent frames that are given, at the start (forward) or at the end (backward) of a sample."
    )
    direction: Literal["forward", "backward"] = Field(
        "forward", description="Whether what follows the given frames is made, or what precedes them."
    )
    with_audio: WithAudio = False
    audio_latents_dir: AudioFolder = "audio_latents"


class RetakeConfig(StrategySection):
    """A stretch of a clip made anew, at a place of its own in every sample."""

    name: Literal["retake"] = Field("retake", description="A stretch of a clip made anew.")
    min_share: Share = Field(0.2, gt=0, description="Shortest stretch that is made anew, as a share of the clip.")
    max_share: Share = Field(0.8, gt=0, description="Longest stretch that is made anew, as a share of the clip.")
    with_audio: WithAudio = False
    audio_latents_dir: AudioFolder = "audio_latents"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError(f"min_share {self.min_share} is above max_share {self.max_share}; exchange them")
        return self


class ReferenceAudioConfig(StrategySection):
    """Video with sound that takes after a reference recording, a voice for example."""

    name: Literal["reference_audio"] = Field("reference_audio", description="Sound that takes after a recording.")
    first_frame_conditioning_p: FirstFrame = 0.0
    audio_latents_dir: AudioFolder = "audio_latents"
    reference_audio_latents_dir: str = Field(
        "reference_audio_latents", min_length=1, description="Folder of the recordings' latents below the data root."
    )


class TrainingCondition(Section):
    """Something given in training, in a share of the samples; `type` says what."""

    probability: Share = Field(1.0, description="Probability with which a sample gets it.")


class FirstFrameCondition(TrainingCondition):
    """The first latent frame is given."""

    type: Literal["first_frame"]


class PrefixCondition(TrainingCondition):
    """The start is given."""

    type: Literal["prefix"]
    temporal_boundary: Count = Field(description="Latent frames, or audio steps, that are given.")


class SuffixCondition(TrainingCondition):
    """The end is given."""

    type: Literal["suffix"]
    temporal_boundary: Count = Field(description="Latent frames, or audio steps, that are given.")


class SpatialCropCondition(TrainingCondition):
    """A rectangle is given."""

    type: Literal["spatial_crop"]
    spatial_region: tuple[Whole, Whole, Whole, Whole] = Field(description="[y1, x1, y2, x2] in pixels.")

    @field_validator("spatial_region")
    @classmethod
    def _check_region(cls, region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        return checked_region(region)


class MaskCondition(TrainingCondition):
    """What a stored mask marks is given."""

    type: Literal["mask"]
    mask_dir: str = Field(min_length=1, description="Folder of the masks below the data root.")


class ReferenceCondition(TrainingCondition):
    """Reference tokens stand before what is made."""

    type: Literal["reference"]
    latents_dir: str = Field(min_length=1, description="Folder of the references' latents below the data root.")


def checked_region(region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """`(y1, x1, y2, x2)` in pixels, unless it holds nothing."""
    y1, x1, y2, x2 = region
    if not (0 <= y1 < y2 and 0 <= x1 < x2):
        raise ValueError("has to be [y1, x1, y2, x2] with 0 <= y1 < y2 and 0 <= x1 < x2")
    return region


_Modality = PrefixCondition | SuffixCondition | MaskCondition | ReferenceCondition
VideoCondition = Annotated[_Modality | FirstFrameCondition | SpatialCropCondition, Field(discriminator="type")]
AudioCondition = Annotated[_Modality, Field(discriminator="type")]


class ModalityConfig(Section):
    """One stream of the flexible strategy."""

    is_generated: bool = Field(description="Whether the stream is trained; otherwise it is given.")
    latents_dir: str = Field(min_length=1, description="Folder of its latents below the data root.")


class VideoModalityConfig(ModalityConfig):
    """The video stream of the flexible strategy."""

    conditions: list[VideoCondition] = Field(default_factory=list, description="What is given of the video.")


class AudioModalityConfig(ModalityConfig):
    """The audio stream of the flexible strategy."""

    conditions: list[AudioCondition] = Field(default_factory=list, description="What is given of the sound.")


class FlexibleConfig(StrategySection):
    """Any combination of what is given and what is made, as in the newest reference trainer."""

    name: Literal["flexible"] = Field("flexible", description="Any combination of what is given and what is made.")
    video: VideoModalityConfig | None = Field(
        None, description="The video: {is_generated, latents_dir, conditions}; null leaves it out."
    )
    audio: AudioModalityConfig | None = Field(
        None, description="The sound: {is_generated, latents_dir, conditions}; null leaves it out."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(stream is not None and stream.is_generated for stream in (self.video, self.audio)):
            raise ValueError("nothing is trained; set is_generated of video or audio to true")
        for name, stream in (("video", self.video), ("audio", self.audio)):
            kinds = [] if stream is None or stream.is_generated else [one.type for one in stream.conditions]
            if odd := [kind for kind in kinds if kind != "reference"]:
                raise ValueError(
                    f"{name}.conditions has {odd[0]}, but the whole {name} is given; leave it out, or set "
                    f"{name}.is_generated to true"
                )
        return self


STRATEGY_SECTIONS: dict[str, type[StrategySection]] = {}
"""Sections of `training_strategy` by their `name`."""


class OwnStrategyConfig(StrategySection):
    """The section of a strategy from outside the package that brings no class for it: any keys are taken."""

    model_config = ConfigDict(extra="allow")


def register_strategy_section(name: str, section: type[StrategySection] = OwnStrategyConfig) -> None:
    """Take `name` as the `name` of `training_strategy`.

    Args:
        name: The name.
        section: Class of the section; its `name` has to take the name. Default: one that takes any keys.
    """
    STRATEGY_SECTIONS[name] = section


for _section in (
    *(TextToVideoConfig, VideoToVideoConfig, FlexibleConfig, ImageToVideoConfig, AudioToVideoConfig),
    *(VideoToAudioConfig, TextToAudioConfig, InpaintingConfig, ExtensionConfig, RetakeConfig, ReferenceAudioConfig),
):
    register_strategy_section(_section.model_fields["name"].default, _section)


def _strategy(value: Any) -> Any:
    """The section of the named strategy; `text_to_video` where none is named."""
    if isinstance(value, StrategySection) or not isinstance(value, Mapping):
        return value
    name = value.get("name", "text_to_video")
    if not isinstance(name, str) or name not in STRATEGY_SECTIONS:
        raise ValueError(f"name has to be one of {', '.join(STRATEGY_SECTIONS)} but is {name!r}")
    return STRATEGY_SECTIONS[name].model_validate({**value, "name": name})


class OptimizationConfig(Section):
    """Steps, learning rate and optimiser."""

    learning_rate: Number = Field(5e-4, gt=0, description="Learning rate at its highest.")
    steps: Count = Field(3000, description="Steps of the optimiser.")
    batch_size: Count = Field(2, description="Samples per process and forward pass.")
    gradient_accumulation_steps: Count = Field(1, description="Batches whose gradients are summed up for a step.")
    max_grad_norm: Number = Field(1.0, description="Largest norm of all gradients together; 0 clips nothing.")
    optimizer_type: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="Optimiser; adamw8bit keeps its states in 8 bits (bitsandbytes)."
    )
    optimizer_params: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the optimiser, such as {weight_decay: 0.1}."
    )
    scheduler_type: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "step"] = Field(
        "linear", description="How the learning rate changes."
    )
    scheduler_params: dict[str, Any] = Field(
        default_factory=dict, description="Numbers of the schedule, such as {end_factor: 0.0}."
    )
    warmup_steps: Annotated[Whole, Field(ge=0)] = Field(
        0, description="Steps in which the learning rate rises from 0."
    )
    enable_gradient_checkpointing: bool = Field(
        False, description="Compute every block again in the backward pass instead of keeping what it made."
    )
    ema_decay: Number | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the trained weights, which is saved; null for none.",
    )


Quantization = Literal[
    "int8-quanto",
    "int4-quanto",
    "int2-quanto",
    "fp8-quanto",
    "fp8uz-quanto",
    "bnb-int8",
    "bnb-nf4",
    "torchao-int8",
    "torchao-fp8",
]


class AccelerationConfig(Section):
    """Precision, and what saves memory."""

    mixed_precision_mode: Annotated[Literal["no", "fp16", "bf16"] | None, _bare_word("no")] = Field(
        "bf16", description="Precision of the computation, beside float32."
    )
    quantization: Quantization | None = Field(None, description="How the frozen weights under an adapter are stored.")
    load_text_encoder_in_8bit: bool = Field(False, description="Load the text encoder in 8 bits (bitsandbytes).")
    compile: bool = Field(False, description="Compile the transformer's blocks.")
    block_streaming: Annotated[Whole, Field(ge=0)] = Field(
        0, description="Blocks of the transformer kept on the device, the others wait in host memory; 0 keeps all."
    )
    offload_optimizer_during_validation: bool = Field(
        False, description="Keep the optimiser's states in host memory during validation."
    )


class DataConfig(Section):
    """The data."""

    preprocessed_data_root: Path = Field(
        description="Folder that `ltx2 data process` wrote, or the one that holds it as .precomputed."
    )
    num_dataloader_workers: Annotated[Whole, Field(ge=0)] = Field(
        2, description="Processes that read samples; 0 reads in the training process."
    )
    max_sequence_length: Count = Field(
        1024, description="Text positions that the streams attend to, as in a call of a pipeline."
    )


class SampleCondition(Section):
    """Something given to a validation sample; `type` says what."""

    def streams(self) -> set[str]:
        """The streams it gives something of: `"video"`, `"audio"`."""
        return {"audio"} if getattr(self, "audio", None) is not None else {"video"}


class _OneSource(SampleCondition):
    video: ExistingPath | None = Field(None, description="Clip.")
    audio: ExistingPath | None = Field(None, description="Sound.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.video is None) == (self.audio is None):
            raise ValueError("video and audio are both given, or neither is; give one of them")
        return self


class _Stretch(_OneSource):
    num_frames: Count | None = Field(None, description="Frames that are given; all by default.")
    duration: Number | None = Field(None, gt=0, description="Seconds that are given; all by default.")

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.num_frames is not None and self.duration is not None:
            raise ValueError("num_frames and duration exclude each other; give one of them")
        return self


class FirstFrameSample(SampleCondition):
    """The first frame."""

    type: Literal["first_frame"]
    image_or_video: ExistingPath = Field(description="Picture, or clip whose first frame is taken.")


class PrefixSample(_Stretch):
    """How it begins."""

    type: Literal["prefix"]


class SuffixSample(_Stretch):
    """How it ends."""

    type: Literal["suffix"]


class SpatialCropSample(SampleCondition):
    """A rectangle of every frame."""

    type: Literal["spatial_crop"]
    video: ExistingPath = Field(description="Clip.")
    spatial_region: tuple[Whole, Whole, Whole, Whole] = Field(description="[y1, x1, y2, x2] in pixels.")

    @field_validator("spatial_region")
    @classmethod
    def _check_region(cls, region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        return checked_region(region)


class MaskSample(_OneSource):
    """What a mask marks."""

    type: Literal["mask"]
    mask: ExistingPath = Field(description="Mask: a picture or clip for video, a sound or tensor for audio.")


class ReferenceSample(_OneSource):
    """A reference for an IC-LoRA."""

    type: Literal["reference"]
    downscale_factor: Count = Field(1, description="How much smaller than the result it is encoded.")
    temporal_scale_factor: Count = Field(1, description="How many frames of the result one of its frames stands for.")
    include_in_output: bool = Field(False, description="Show it left of the result.")


class VideoToAudioSample(SampleCondition):
    """The whole video; only sound is made."""

    type: Literal["video_to_audio"]
    video: ExistingPath = Field(description="Clip.")


class AudioToVideoSample(SampleCondition):
    """The whole sound; only video is made."""

    type: Literal["audio_to_video"]
    audio: ExistingPath = Field(description="Sound.")


AnySampleCondition = Annotated[
    FirstFrameSample
    | PrefixSample
    | SuffixSample
    | SpatialCropSample
    | MaskSample
    | ReferenceSample
    | VideoToAudioSample
    | AudioToVideoSample,
    Field(discriminator="type"),
]
_FREEZING = ("video_to_audio", "audio_to_video")


def _checked_dims(dims: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    if dims is None:
        return None
    *sides, frames = dims
    for side in sides:
        if side < 1 or side % SIZE_MULTIPLE:
            near = neighbours(side, SIZE_MULTIPLE)
            raise ValueError(f"has to have a width and height divisible by {SIZE_MULTIPLE}; for {side} use {near}")
    if frames < 1 or frames % FRAME_STRIDE != 1:
        near = neighbours(frames, FRAME_STRIDE, 1)
        raise ValueError(f"has to have {FRAME_STRIDE} * k + 1 frames; for {frames} use {near}")
    return dims


Dims = Annotated[tuple[Whole, Whole, Whole], AfterValidator(_checked_dims)]


class SampleConfig(Section):
    """One sample of the validation."""

    prompt: str = Field(description="What to see and hear.")
    conditions: list[AnySampleCondition] = Field(default_factory=list, description="What is given.")
    video_dims: Dims | None = Field(None, description="[width, height, frames]; those of the section by default.")
    seed: Whole | None = Field(None, description="Seed; that of the section by default.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        frozen = [one for one in self.conditions if one.type in _FREEZING]
        if len(frozen) > 1:
            raise ValueError(f"{frozen[0].type} and {frozen[1].type} exclude each other; give one of them")
        for one in frozen:
            if any(one.streams() & other.streams() for other in self.conditions if other is not one):
                stream = "".join(one.streams())
                raise ValueError(f"{one.type} gives the whole {stream}, which may have no other condition")
        return self


class Guidance(NamedTuple):
    """Scales with which validation samples are made.

    Args:
        video_cfg, audio_cfg: Classifier-free guidance; 1 is off.
        video_stg, audio_stg: Spatio-temporal guidance; 0 is off.
        stg_blocks: Blocks that it perturbs; `None` for all.
        rescale: Share in [0, 1] of the rescaling of guided predictions.
        video_modality, audio_modality: Guidance by the other stream; 1 is off.
    """

    video_cfg: float
    audio_cfg: float
    video_stg: float
    audio_stg: float
    stg_blocks: list[int] | None
    rescale: float
    video_modality: float
    audio_modality: float


_GUIDANCE_2_0 = Guidance(4.0, 4.0, 1.0, 1.0, [29], 0.0, 1.0, 1.0)
_GUIDANCE_NEWEST = Guidance(3.0, 7.0, 1.0, 1.0, [28], 0.7, 3.0, 3.0)
# Keys of the 2.0 reference, and those that the newest one has instead.
_REPLACED_KEYS = {
    ("guidance_scale",): ("video_cfg_scale", "audio_cfg_scale"),
    ("stg_scale", "stg_mode"): ("video_stg_scale", "audio_stg_scale"),
}
_ONLY_NEWEST = ("guidance_rescale", "video_modality_guidance_scale", "audio_modality_guidance_scale")
GUIDANCE_KEYS = (
    *(name for pair in _REPLACED_KEYS.items() for part in pair for name in part),
    *_ONLY_NEWEST,
    "stg_blocks",
)
"""Keys of `validation` that mean the reference values of the model's generation unless they are given."""

_CfgScale = Annotated[Number, Field(ge=1.0)]
_StgScale = Annotated[Number, Field(ge=0.0)]


class ValidationConfig(Section):
    """Samples made while training."""

    prompts: list[str] = Field(default_factory=list, description="Prompts of the samples.")
    negative_prompt: str = Field(
        "worst quality, inconsistent motion, blurry, jittery, distorted",
        description="What samples are guided away from.",
    )
    images: list[ExistingPath] | None = Field(None, description="First frames, one per prompt.")
    reference_videos: list[ExistingPath] | None = Field(None, description="References of an IC-LoRA, one per prompt.")
    samples: list[SampleConfig] = Field(
        default_factory=list,
        description="Samples as {prompt, conditions, video_dims, seed}, in place of prompts, images and "
        "reference_videos.",
    )
    reference_downscale_factor: Count = Field(
        1, description="How much smaller than the result references are encoded."
    )
    video_dims: Dims = Field((960, 544, 97), description="[width, height, frames] of the samples.")
    frame_rate: Number = Field(25.0, gt=0, description="Frames per second of the samples.")
    seed: Whole = Field(42, description="Seed of every prompt's first sample.")
    inference_steps: Count = Field(50, description="Denoising steps.")
    interval: Count | None = Field(100, description="Training steps between validations; null for none.")
    videos_per_prompt: Count = Field(1, description="Samples per prompt; sample i has the seed plus i.")
    guidance_scale: _CfgScale | None = Field(4.0, description="Guidance by text of both streams; 1 is off.")
    stg_scale: _StgScale | None = Field(1.0, description="Spatio-temporal guidance; 0 is off.")
    stg_blocks: list[Annotated[Whole, Field(ge=0)]] | None = Field(
        [29], description="Blocks that spatio-temporal guidance perturbs; null for all."
    )
    stg_mode: Literal["stg_av", "stg_v"] | None = Field(
        "stg_av", description="Whether spatio-temporal guidance acts on both streams or on video alone."
    )
    video_cfg_scale: _CfgScale | None = Field(None, description="Guidance by text of the video, for guidance_scale.")
    audio_cfg_scale: _CfgScale | None = Field(None, description="Guidance by text of the sound, for guidance_scale.")
    video_stg_scale: _StgScale | None = Field(
        None, description="Spatio-temporal guidance of the video, for stg_scale and stg_mode."
    )
    audio_stg_scale: _StgScale | None = Field(
        None, description="Spatio-temporal guidance of the sound, for stg_scale and stg_mode."
    )
    guidance_rescale: Share | None = Field(None, description="How far guided predictions are rescaled.")
    video_modality_guidance_scale: _CfgScale | None = Field(
        None, description="Guidance of the video by the sound; 1 is off."
    )
    audio_modality_guidance_scale: _CfgScale | None = Field(
        None, description="Guidance of the sound by the video; 1 is off."
    )
    generate_audio: bool = Field(True, description="Make sound in validation, whether it is trained or not.")
    generate_video: bool = Field(True, description="Make video in validation.")
    skip_initial_validation: bool = Field(False, description="Make no samples before the first step.")
    include_reference_in_output: bool = Field(False, description="Show references left of the results.")

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        """Keys of the newest reference take the place of the older ones; both at once contradict each other."""
        if not isinstance(values, Mapping):
            return values
        given = {name for name, value in values.items() if value is not None}
        values = dict(values)
        for old, new in _REPLACED_KEYS.items():
            if mixed := [name for name in old if name in given and given & set(new)]:
                raise ValueError(f"{mixed[0]} and {sorted(given & set(new))[0]} exclude each other; give one of them")
            if given & set(new):
                values |= dict.fromkeys(old)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("images", "reference_videos"):
            files = getattr(self, name)
            if files is not None and len(files) != len(self.prompts):
                raise ValueError(f"{name} has {len(files)} files for {len(self.prompts)} prompts; give one per prompt")
        if self.samples and (self.prompts or self.images or self.reference_videos):
            raise ValueError("samples and prompts exclude each other; write every prompt as a sample")
        if (self.samples or self.prompts) and not (self.generate_video or self.generate_audio):
            raise ValueError("generate_video and generate_audio are both false; set one to true, or interval to null")
        factor = self.reference_downscale_factor
        for name, side in zip(("width", "height"), self.video_dims):
            if factor > 1 and side % (factor * SIZE_MULTIPLE):
                raise ValueError(
                    f"video_dims has the {name} {side}, of which reference_downscale_factor {factor} leaves no multiple "
                    f"of {SIZE_MULTIPLE}; use {neighbours(side, factor * SIZE_MULTIPLE)}"
                )
        return self

    def guidance(self, generation: str = "2.0") -> Guidance:
        """The scales of samples, where what is not given has the reference's value for a generation of the model.

        Args:
            generation: `"2.0"`, or a later one.
        """
        is_newest = generation != "2.0" or any(
            getattr(self, name) is not None for new in (*_REPLACED_KEYS.values(), _ONLY_NEWEST) for name in new
        )
        base = _GUIDANCE_NEWEST if is_newest else _GUIDANCE_2_0
        old = {name: getattr(self, name) for name in GUIDANCE_KEYS if name in self.model_fields_set}
        cfg, stg = old.get("guidance_scale"), old.get("stg_scale")
        audio_stg = 0.0 if old.get("stg_mode") == "stg_v" else stg
        return Guidance(
            _first(self.video_cfg_scale, cfg, base.video_cfg),
            _first(self.audio_cfg_scale, cfg, base.audio_cfg),
            _first(self.video_stg_scale, stg, base.video_stg),
            _first(self.audio_stg_scale, audio_stg, base.audio_stg),
            old.get("stg_blocks", base.stg_blocks),
            _first(self.guidance_rescale, base.rescale),
            _first(self.video_modality_guidance_scale, base.video_modality),
            _first(self.audio_modality_guidance_scale, base.audio_modality),
        )

    def all_samples(self) -> list[SampleConfig]:
        """`samples`, or what prompts, images and reference_videos say in their words; sizes and seeds filled in."""
        samples = self.samples or [self._sample(index) for index in range(len(self.prompts))]
        defaults = {"video_dims": self.video_dims, "seed": self.seed}
        missing = [{k: v for k, v in defaults.items() if getattr(one, k) is None} for one in samples]
        return [one.model_copy(update=update) for one, update in zip(samples, missing)]

    def _sample(self, index: int) -> SampleConfig:
        conditions: list[dict[str, Any]] = []
        if self.images:
            conditions.append({"type": "first_frame", "image_or_video": self.images[index]})
        if self.reference_videos:
            shown = {"include_in_output": self.include_reference_in_output}
            scale = {"downscale_factor": self.reference_downscale_factor}
            conditions.append({"type": "reference", "video": self.reference_videos[index], **scale, **shown})
        return SampleConfig.model_validate({"prompt": self.prompts[index], "conditions": conditions})


def _first(*values: float | None) -> float:
    """The first value that is given."""
    return next(value for value in values if value is not None)


class CheckpointsConfig(Section):
    """What is saved, and from where one goes on."""

    interval: Count | None = Field(None, description="Steps between checkpoints; null saves only the last one.")
    keep_last_n: Annotated[Whole, Field(ge=-1)] = Field(
        1, description="Checkpoints of this run that are kept, the newest; 0 and -1 keep all."
    )
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="Precision of the saved weights.")
    resume: str | None = Field(
        None, description="Go on with a run: latest for its newest checkpoint, or the path of a checkpoint's folder."
    )
    no_resume: bool = Field(False, description="Begin at step 0 with loaded weights, whatever lies beside them.")
    save_training_state: Annotated[Literal["full", "minimal", "off"], _bare_word("off")] = Field(
        "full",
        description="What is saved beside weights: all that exact resuming needs, that without the optimiser's states, "
        "or nothing.",
    )
    export_original: bool = Field(
        True, description="Save the adapter in the layout of the original files too, which other programs read."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        """diffusers' name of `keep_last_n` is taken too."""
        if isinstance(values, Mapping) and "checkpoints_total_limit" in values:
            if "keep_last_n" in values:
                raise ValueError("keep_last_n and checkpoints_total_limit are the same; give one of them")
            values = {**values, "keep_last_n": values["checkpoints_total_limit"]}
            del values["checkpoints_total_limit"]
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resume is not None and self.no_resume:
            raise ValueError(f"resume {self.resume!r} and no_resume exclude each other; give one of them")
        return self


_SAMPLER_PARAMETERS = {
    "uniform": ("min_value", "max_value"),
    "shifted_logit_normal": ("std", "eps", "uniform_prob"),
    "shifted_logit_normal_2_0": ("std",),
    "shifted_logit_normal_newest": ("std", "eps", "uniform_prob"),
}


class FlowMatchingConfig(Section):
    """Noise levels and losses."""

    timestep_sampling_mode: Literal[
        "uniform", "shifted_logit_normal", "shifted_logit_normal_2_0", "shifted_logit_normal_newest"
    ] = Field(
        "shifted_logit_normal",
        description="Distribution of noise levels; shifted_logit_normal has the form of the model's generation.",
    )
    timestep_sampling_params: dict[str, Number] = Field(
        default_factory=dict, description="Numbers of the distribution, such as {std: 1.0}."
    )
    shared_noise_level: bool | None = Field(
        None, description="Whether the sound has the video's noise level; null and false draw one for each stream."
    )
    video_loss_weight: Annotated[Number, Field(ge=0)] = Field(1.0, description="Weight of the video's loss.")
    audio_loss_weight: Annotated[Number, Field(ge=0)] = Field(1.0, description="Weight of the sound's loss.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = _SAMPLER_PARAMETERS[self.timestep_sampling_mode]
        if unknown := [name for name in self.timestep_sampling_params if name not in known]:
            raise ValueError(
                f"{self.timestep_sampling_mode} has no timestep_sampling_params {unknown[0]!r}; it has "
                f"{', '.join(known)}"
            )
        if self.video_loss_weight == self.audio_loss_weight == 0:
            raise ValueError("video_loss_weight and audio_loss_weight are both 0; raise one of them")
        return self


class HubConfig(Section):
    """Publishing."""

    push_to_hub: bool = Field(False, description="Upload the result to the Hub.")
    hub_model_id: str | None = Field(None, description="Repository to upload to, owner/name.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id; name the repository, owner/name")
        return self


class WandbConfig(Section):
    """Weights & Biases."""

    enabled: bool = Field(False, description="Log to Weights & Biases.")
    project: str = Field("ltxv-trainer", description="Its project.")
    entity: str | None = Field(None, description="Its user or team.")
    tags: list[str] = Field(default_factory=list, description="Tags of the run.")
    log_validation_videos: bool = Field(True, description="Log validation samples too.")


class TrackingConfig(Section):
    """What is shown and logged here."""

    tensorboard: bool = Field(True, description="Log to TensorBoard, in the output folder.")
    progress_bar: bool = Field(True, description="Show a progress bar; without it, a line every 20 steps.")


class TrainingConfig(Section):
    """All settings of a training run."""

    model: ModelConfig
    lora: LoraConfig | None = None
    training_strategy: SerializeAsAny[Annotated[StrategySection, BeforeValidator(_strategy)]] = _defaults(
        TextToVideoConfig
    )
    optimization: OptimizationConfig = _defaults(OptimizationConfig)
    acceleration: AccelerationConfig = _defaults(AccelerationConfig)
    data: DataConfig
    validation: ValidationConfig = _defaults(ValidationConfig)
    checkpoints: CheckpointsConfig = _defaults(CheckpointsConfig)
    flow_matching: FlowMatchingConfig = _defaults(FlowMatchingConfig)
    hub: HubConfig = _defaults(HubConfig)
    wandb: WandbConfig = _defaults(WandbConfig)
    tracking: TrackingConfig = _defaults(TrackingConfig)
    seed: Whole = Field(42, description="Seed of the whole run.")
    output_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path("outputs"), description="Folder for checkpoints, samples and logs."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := list(self._problems()):
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> list[str]:
        """Rules across sections that are broken."""
        is_full, strategy = self.model.training_mode == "full", self.training_strategy.name
        problems = []
        if self.model.revision is not None and (
            self.model.model_path in PACKAGED or os.path.exists(self.model.model_path)
        ):
            problems.append("model.revision: is of a Hub id, but model_path is a local place; leave it out")
        if not is_full and self.lora is None:
            problems.append("lora: is missing; give a section `lora`, or set model.training_mode to full")
        if is_full and self.acceleration.quantization is not None:
            problems.append("acceleration.quantization: belongs to lora mode; full training needs null")
        if strategy == "video_to_video" and is_full:
            problems.append("model.training_mode: video_to_video trains an adapter; use lora")
        if strategy == "video_to_video" and self.validation.interval is not None and not self._shows_references():
            problems.append(
                "validation.reference_videos: video_to_video needs one per prompt; give them, or set "
                "validation.interval to null"
            )
        return problems

    def _shows_references(self) -> bool:
        """Whether every validation sample has a reference, and there is one."""
        samples = self.validation.all_samples()
        return bool(samples) and all(any(c.type == "reference" for c in one.conditions) for one in samples)

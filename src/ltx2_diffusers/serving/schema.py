"""What requests and answers hold. The fields of a video job are the options of `ltx2 generate`, from their one table."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator

from .. import checks
from ..cli.options import OPTIONS, Option
from ..cli.values import stretch, weighted_file
from ..conditioning.shapes import VIDEO_SCALE_FACTORS
from ..schedulers.sigmas import require_steps

NEGATIVE_PROMPT = "blurry, low quality, distorted, glitchy, watermark"
# Options that say what is loaded, where something is kept or how much is made at once: the server's own business.
_OWN = {
    *("output", "preview", "preview_every", "prompt_cache", "no_text_encoder", "num_videos"),
    *("checkpoint", "text_encoder", "upsampler", "diffusion_decoder", "lora", "distilled_lora"),
    *("device", "dtype", "offload", "tiling", "quantize", "calibration", "fuse_lora", "vram", "ram", "allow_lossy"),
    *("release_text_encoder", "step_cache", "compile"),
}
SERVED = {name: option for name, option in OPTIONS.items() if name not in _OWN}
_FLAG = re.compile(r"--([a-z][a-z0-9-]*)")
# How the media of an option are read.
MEDIA_KINDS = {
    "image": "picture",
    "region": "picture",
    "image_at": "pictures",
    "reference": "clip",
    "video": "clip",
    "audio": "sound",
    "reference_audio": "sound",
}

Media = Annotated[
    str,
    Field(
        description="content of a file in base64, best as a data URI", examples=["data:image/png;base64,iVBORw0KGgo="]
    ),
]


def _encodable(text: str) -> str:
    """Half of a pair of UTF-16, which JSON can hold, is no text that could be written anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds {text[error.start]!r}, which is no character; leave it out") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Strict(BaseModel):
    """Refuses what it does not know, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _dimension(value: int, info: ValidationInfo) -> int:
    name = str(info.field_name)
    checks.check_size(**{"height": 32, "width": 32, name: value}, multiple=32)
    return value


def _checked(check: Callable[[int], object]) -> AfterValidator:
    def checked(value: int) -> int:
        check(value)
        return value

    return AfterValidator(checked)


Seed = Annotated[int, _checked(lambda value: checks.check_seed("seed", value))]


class GenerateRequest(BaseModel):
    """A clip to be made while the caller waits. Keys beyond these are not read."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: Text = Field(description='what to see and hear; speech as "A person speaking: ..."')
    negative_prompt: Text = Field(NEGATIVE_PROMPT, description="what to stay away from")
    width: int = Field(
        768, description="pixels, a multiple of 32", json_schema_extra={"multipleOf": 32, "minimum": 32}
    )
    height: int = Field(
        512, description="pixels, a multiple of 32", json_schema_extra={"multipleOf": 32, "minimum": 32}
    )
    num_frames: int = Field(121, description="frames, 8 k + 1", json_schema_extra={"minimum": 1})
    fps: int = Field(25, description="frames per second", ge=1, le=int(checks.MAX_FRAME_RATE))
    guidance_scale: float = Field(
        3.0, description="classifier-free guidance, off at 1; a distilled checkpoint keeps its own unless told"
    )
    num_inference_steps: int = Field(
        40,
        description="denoising steps; a distilled checkpoint keeps its own unless told",
        json_schema_extra={"minimum": 1},
    )
    seed: Seed | None = Field(None, description="equal seeds give equal clips; random if it is left out")
    image: Media | None = Field(None, description="the first frame")
    image_cond_noise_scale: float = Field(0.15, ge=0, le=1, description="0 keeps the picture, 1 ignores it")
    include_audio: bool = Field(True, description="whether the file has sound")
    audio: Media | None = Field(None, description="sound that the clip is made to; silence is put after a shorter one")
    audio_cond_noise_scale: float = Field(0.15, ge=0, le=1, description="0 keeps the sound, 1 ignores it")

    _sides = field_validator("width", "height")(_dimension)

    @field_validator("num_frames")
    @classmethod
    def _frames(cls, value: int) -> int:
        checks.check_num_frames(value, VIDEO_SCALE_FACTORS.time)
        return value

    @field_validator("guidance_scale")
    @classmethod
    def _guidance(cls, value: float) -> float:
        checks.check_scales(guidance_scale=value)
        return value

    @field_validator("num_inference_steps")
    @classmethod
    def _steps(cls, value: int) -> int:
        return require_steps(value)


class GenerateResponse(BaseModel):
    """A finished clip."""

    video: str = Field(description="the MP4 file as a data URI")
    duration_seconds: float
    resolution: str = Field(description="WIDTHxHEIGHT")
    fps: int
    seed: int
    generation_time_seconds: float
    mode: Literal["text-to-video", "image-to-video", "audio-to-video"]
    has_audio: bool


class Weighted(Strict):
    """Media with a strength."""

    media: Media
    strength: float = 1.0


class Placed(Weighted):
    """Media with a strength that are shown at a frame."""

    frame: int = Field(description="negative ones count from the end")


def _wire_type(option: Option) -> Any:
    """The type of a field that holds an option."""
    if option.name == "image_at":
        return list[Placed]
    if option.value is None:
        return bool
    if isinstance(option.value, tuple):
        return Literal[option.value]
    reader: Any = option.reader
    kinds: Mapping[Any, Any] = {
        Path: Media,
        weighted_file: Weighted,
        stretch: Annotated[list[float], Field(min_length=2, max_length=2)],
    }
    kind = kinds.get(reader, reader if reader in (int, float) else Text)
    if option.name == "prompt":
        return Text | list[Text]
    if option.name == "seed":
        return Seed
    return list[kind] if option.is_list else kind  # type: ignore[valid-type]


def in_names(text: str, called: Mapping[str, str] | None = None) -> str:
    """A text about options in which the names of fields stand.

    Args:
        text: The text, in which options are typed with dashes.
        called: Fields that are not called like their options, by the options.
    """

    def field(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return f"`{(called or {}).get(name, name)}`" if name in OPTIONS else match[0]

    return _FLAG.sub(field, text)


def _field(option: Option) -> tuple[Any, Any]:
    """Type and description of a field that holds an option."""
    kind, about = _wire_type(option), in_names(option.help)
    return (
        (kind, Field(description=about)) if option.name == "prompt" else (kind | None, Field(None, description=about))
    )


class _Job(Strict):
    """What a job says beside the options of a generation."""

    model: str | None = Field(None, description="name of the served model")
    seconds: float | None = Field(
        None, gt=0, description="length of the clip, taken to the nearest 8 k + 1 frames, in place of `num_frames`"
    )
    size: str | None = Field(
        None,
        pattern=r"^\d{1,5}x\d{1,5}$",
        description="WIDTHxHEIGHT, in place of `width` and `height`",
        examples=["768x512"],
    )
    input_reference: Media | None = Field(None, description="the first frame, as `image`")
    adapters: dict[str, float] = Field(default_factory=dict, description="strengths of LoRAs of this server, by name")
    stream: bool = Field(False, description="write a file whose content can be read while it grows")
    preview_every: int | None = Field(
        None, ge=1, description="steps from one preview among the events to the next; none by default"
    )


VideoRequest: type[_Job] = create_model(
    "VideoRequest",
    __base__=_Job,
    __doc__="A clip to be made in the background, with the options of `ltx2 generate`.",
    **{name: _field(option) for name, option in SERVED.items()},  # type: ignore[call-overload]
)


class Problem(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Shots(BaseModel):
    """How many shots of a storyboard are finished, and can be fetched, and how many there are."""

    finished: int
    total: int


class Video(BaseModel):
    """A job, in the shape of OpenAI's API of videos."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = Field(ge=0, le=100, description="percent")
    created_at: int = Field(description="seconds since 1970")
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="when the job and its file are removed")
    prompt: str
    size: str | None = Field(None, description="WIDTHxHEIGHT")
    seconds: str | None = None
    seed: int
    mode: str = Field(description="what kind of clip is made")
    shots: Shots | None = Field(None, description="how far a storyboard is")
    error: Problem | None = None
    remixed_from_video_id: str | None = None


class VideoList(BaseModel):
    """Jobs, newest first unless asked otherwise."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Manifest(BaseModel):
    """How a finished clip was made, completely enough to make it again."""

    format: Literal["ltx2 job 1"] = "ltx2 job 1"
    endpoint: str = Field(description="where the request is sent to")
    request: dict[str, Any] = Field(description="the body; in place of a file, its name (sha256) and field")
    seed: int
    model: dict[str, Any] = Field(description="name of the model, and what tells it from others")
    versions: dict[str, Any] = Field(
        description="versions and machine; where they are equal, equal requests give equal frames"
    )
    result: dict[str, Any] = Field(description="what came of it: sizes, and the name of the file's content (sha256)")


class DeletedVideo(BaseModel):
    """A job that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Refusal(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int]
    msg: str
    type: str


class Refusals(BaseModel):
    """What is wrong with a request."""

    detail: list[Refusal] | str


class Health(BaseModel):
    """Whether the server works, and what it serves."""

    status: Literal["ok", "stopping", "down"]
    model: str
    checkpoint_version: str
    checkpoint_kind: str
    device: str
    adapters: list[str]
    queued: int | None = Field(description="jobs that wait; null if the database cannot be reached")
    running: int | None = Field(description="jobs that run; null if the database cannot be reached")


def size_of(text: str) -> dict[str, int]:
    """Width and height of `WIDTHxHEIGHT`."""
    width, height = re.split("x", text)
    return {"width": int(width), "height": int(height)}

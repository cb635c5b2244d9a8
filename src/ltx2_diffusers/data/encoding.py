"""Clips, sounds and captions as the networks of a pipeline encode them.

Shapes: F frames, H and W rows and columns of pixels, C channels, F', h, w latent frames, rows and columns, N samples, L
audio latents, M their mel bins, n tokens of a caption, W width of the text features.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checkpoints.packaged import PACKAGED, packaged_checkpoint
from ..checks import check_choice
from ..extras import library
from ..media.images import still_picture
from ..media.reading import probe, read_audio, read_video
from ..media.waveforms import fit_audio
from ..models.video_vae_tiling_config import SpatialTilingConfig, TilingConfig
from ..pipelines.generation import LTX2GenerationPipeline
from ..pipelines.recipes.text_to_video import LTX2Pipeline
from ..prompts.encoding import Prompts, TextEncoder
from .samples import AUDIO_TEXT, VIDEO_TEXT, valid_rows

OFFLOADS = ("none", "model", "sequential")
"""Where components wait until they run."""
ENCODE_TILES = TilingConfig(SpatialTilingConfig(512, 128))
"""Tiles of the reference trainer: 512 pixels, overlapping by 128, over all frames."""
_SINGLE_FILES = (".safetensors", ".sft")
_TEXT, _MEDIA = ("text_encoder", "tokenizer", "connectors"), ("vae", "audio_vae")
_OTHERS = ("transformer", "processor", "prompt_enhancer")
# Frames per second of a file that does not say, and of a picture.
_USUAL_RATE, _PICTURE_RATE = 24.0, 1.0


@dataclass(frozen=True)
class Source:
    """Where the networks come from and where they run.

    Args:
        checkpoint: Folder or Hub id in diffusers' layout, an original file, or the name of a packaged miniature.
        text_encoder: Gemma folder or Hub id, which an original file needs for captions. Default that of the checkpoint.
        device: Where they run, default the CPU.
        dtype: Data type of weights, default float32.
        offload: `"none"` (default), `"model"` or `"sequential"`: what waits on the CPU until it runs.
        text_encoder_in_8bit: Whether the text encoder is quantised to 8 bits by bitsandbytes. Default False.
    """

    checkpoint: str
    text_encoder: str | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    offload: str = "none"
    text_encoder_in_8bit: bool = False

    def __post_init__(self) -> None:
        check_choice("offload", self.offload, OFFLOADS)
        if self.text_encoder_in_8bit and self.offload != "none":
            raise ValueError(
                f"a text encoder in 8 bits stays on its device, but offload is {self.offload!r}; use 'none'"
            )

    @property
    def is_file(self) -> bool:
        """Whether the checkpoint is an original file."""
        return Path(self.checkpoint).suffix in _SINGLE_FILES

    def check(self) -> None:
        """Raise `ValueError` if the text encoder is missing, or named twice."""
        if self.is_file and self.text_encoder is None:
            raise ValueError(
                f"{self.checkpoint} holds no text encoder; name a Gemma folder or Hub id as `text_encoder`"
            )
        if not self.is_file and self.text_encoder is not None:
            raise ValueError(
                f"`text_encoder` belongs to original files; {self.checkpoint} brings its own, so leave it out"
            )

    def load_text(self) -> LTX2GenerationPipeline:
        """A pipeline of what captions need: language model, tokenizer and connectors."""
        self.check()
        return self._load((*_MEDIA, "vocoder"), _quantized_text_encoder(self) if self.text_encoder_in_8bit else {})

    def load_media(self) -> LTX2GenerationPipeline:
        """A pipeline of what clips and sounds need: the two autoencoders."""
        return self._load((*_TEXT, "vocoder"), {})

    def load_decoders(self) -> LTX2GenerationPipeline:
        """A pipeline of what turns latents back into clips and sounds: the two autoencoders and the vocoder."""
        return self._load(_TEXT, {})

    def _load(self, left_out: Sequence[str], given: dict[str, Any]) -> LTX2GenerationPipeline:
        components = {**dict.fromkeys((*_OTHERS, *left_out)), **given}
        if self.is_file:
            text_encoder = components.pop("text_encoder", self.text_encoder)
            pipeline = LTX2Pipeline.from_single_file(
                self.checkpoint, text_encoder=text_encoder, dtype=self.dtype, **components
            )
        else:
            packaged = self.checkpoint in PACKAGED
            folder = packaged_checkpoint(self.checkpoint) if packaged else self.checkpoint
            pipeline = LTX2Pipeline.from_pretrained(folder, dtype=self.dtype, **components)
        pipeline.set_progress_bar_config(disable=True)
        if self.offload == "none":
            return pipeline.to(self.device)
        getattr(pipeline, f"enable_{self.offload}_cpu_offload")(device=self.device)
        return pipeline


def _quantized_text_encoder(source: Source) -> dict[str, Any]:
    """The language model in 8 bits, and the tokenizer that from_single_file asks for beside a model."""
    library("bitsandbytes", "a text encoder in 8 bits")
    from transformers import AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig

    place: str | Path = source.text_encoder or source.checkpoint
    place = packaged_checkpoint(source.checkpoint) if source.checkpoint in PACKAGED else place
    inside = {name: name if not source.is_file or os.path.isdir(Path(place, name)) else "" for name in _TEXT[:2]}
    model = AutoModelForImageTextToText.from_pretrained(
        place,
        subfolder=inside["text_encoder"],
        dtype=source.dtype,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": source.device},
    )
    return {"text_encoder": model, "tokenizer": AutoTokenizer.from_pretrained(place, subfolder=inside["tokenizer"])}


def release_memory() -> None:
    """Give back the memory of a GPU that networks held to which nobody refers any more."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


class Pixels(NamedTuple):
    """Frames of a file.

    Args:
        frames: Bytes `[F, H, W, 3]`.
        rate: Frames per second; 1.0 of a picture.
        varies: Whether the times between them are not all equal, so that `rate` is their average.
    """

    frames: torch.Tensor
    rate: float
    varies: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.frames.shape[2], self.frames.shape[1]


def read_pixels(path: Path, max_frames: int, frame_rate: float | None = None) -> Pixels:
    """Read the first frames of a video or picture.

    Args:
        path: The file.
        max_frames: Most frames to read.
        frame_rate: Frames per second to bring a video to by the times of its frames; `None` (default) for its own frames
            one by one, at their average rate.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds no pictures.
    """
    picture = still_picture(path)
    if picture is not None:
        return Pixels(torch.from_numpy(np.array(picture))[None], _PICTURE_RATE)
    info = probe(path)
    frames = read_video(path, max_frames, frame_rate=frame_rate)
    rate = float(info.frame_rate or _USUAL_RATE) if frame_rate is None else frame_rate
    return Pixels(frames, rate, frame_rate is None and not info.constant_rate)


class Sound(NamedTuple):
    """A waveform `[1, C, N]` in [-1, 1], its `sampling_rate`, and how many seconds of silence were added at its end."""

    waveform: torch.Tensor
    sampling_rate: int
    missing_s: float


def read_sound(path: Path, duration_s: float | None = None) -> Sound | None:
    """Read the sound of a file from its own zero, the first picture or sample.

    Args:
        path: The file.
        duration_s: Seconds to cut it to, or to fill it up to by silence; `None` (default) for all.

    Returns:
        The sound, or `None` if the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    if still_picture(path) is not None:
        return None
    read = read_audio(path, 0.0, duration_s)
    if read is None:
        return None
    waveform, rate = read
    if duration_s is None:
        return Sound(waveform, rate, 0.0)
    return Sound(fit_audio(waveform, duration_s, rate), rate, max(0.0, duration_s - waveform.shape[-1] / rate))


@torch.no_grad()
def encode_pixels(pipeline: LTX2GenerationPipeline, pixels: torch.Tensor, tiled: bool = False) -> torch.Tensor:
    """Normalised latents of a clip.

    Args:
        pipeline: With its video VAE.
        pixels: `[1, 3, F, H, W]` in [-1, 1].
        tiled: Whether to encode in `ENCODE_TILES`, to save memory. Default False.

    Returns:
        bfloat16 `[C, F', h, w]` on the CPU.
    """
    if not tiled:
        latents = pipeline.encode_video(pixels)
    else:
        pipeline.require("vae")
        posterior = pipeline.vae.encode_in_tiles(pixels.to(pipeline.vae.dtype), ENCODE_TILES).latent_dist
        latents = pipeline.vae.normalize_latents(posterior.mode().float())
    return latents[0].to("cpu", torch.bfloat16)


@torch.no_grad()
def encode_sound(pipeline: LTX2GenerationPipeline, sound: Sound) -> torch.Tensor:
    """Normalised latents float32 `[C, L, M]` of a sound, on the CPU."""
    return pipeline.encode_audio(sound.waveform, sound.sampling_rate)[0].float().cpu()


def check_caption_length(pipeline: LTX2GenerationPipeline, max_sequence_length: int) -> None:
    """Raise `ValueError` if captions cannot have so many tokens, or a network that they need is not loaded."""
    encoder = _text_encoder(pipeline)
    encoder.require("text_encoder", "tokenizer", "connectors")
    encoder.check_length(encoder.fitting_length(max_sequence_length))


def _text_encoder(pipeline: LTX2GenerationPipeline) -> TextEncoder:
    # Offloaded networks are not where they run.
    device = torch.device(pipeline._execution_device)
    return TextEncoder(pipeline.tokenizer, pipeline.text_encoder, pipeline.connectors, device)


@torch.no_grad()
def encode_captions(
    pipeline: LTX2GenerationPipeline, captions: Sequence[str], max_sequence_length: int = 1024
) -> list[dict[str, torch.Tensor]]:
    """What the connectors read of captions, encoded in one batch.

    Args:
        pipeline: With its text encoder, tokenizer and connectors.
        captions: Texts.
        max_sequence_length: Most tokens of a text; longer ones are cut. Default 1024, or the tokenizer's
            `model_max_length` if that is less.

    Returns:
        For each caption `video_prompt_embeds` bfloat16 `[n, W]` and, where the streams have projections of their own,
        `audio_prompt_embeds`; rows of its tokens only.
    """
    check_caption_length(pipeline, max_sequence_length)
    encoder, prompts = _text_encoder(pipeline), Prompts(list(captions), max_sequence_length=max_sequence_length)
    states, _ = encoder.states(prompts, with_negative=False)
    video, audio = pipeline.connectors.extract_features(states.hidden.to(pipeline.connectors.dtype), states.mask)
    streams = {VIDEO_TEXT: video} if audio is video else {VIDEO_TEXT: video, AUDIO_TEXT: audio}
    return [
        {name: valid_rows(features[i], states.mask[i]).to("cpu", torch.bfloat16) for name, features in streams.items()}
        for i in range(len(captions))
    ]

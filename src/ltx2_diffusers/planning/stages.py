"""The stages of a generation as functions that can be counted without values, and measured with them.

Every one runs the code that a generation runs, on models that are on the meta device or on a real one.

Shapes: B videos, N tokens of the longest prompt, P text positions, C width of the language model, L its states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..conditioning.streams import States, Streams, TextContext, on_streams
from ..guidance.presets import NEUTRAL, Preset
from ..guidance.scales import Scales, build_guiders
from ..prompts.encoding import DEFAULT_TEXT_POSITIONS, TextEncoder, TextStates
from ..sampling.denoiser import ONE_BY_ONE, GuidedDenoiser, PassLayout
from ..sampling.loop import StepPredictor
from ..sampling.samplers import EulerSampler
from .parts import DIFFUSION

if TYPE_CHECKING:
    from ..pipelines.plan import ClipPlan

Run = Callable[[], Any]
Models = Mapping[str, Any]
DECODINGS = ("whole", "streamed", "tiled")
# A step from pure noise to less of it.
_SIGMAS = (1.0, 0.9)


@dataclass(frozen=True)
class Place:
    """Where a stage runs.

    Args:
        device: Device of the models, `meta` for those without values.
        dtype: Type of the models.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module) -> "Place":
        """That of a model."""
        parameter = next(model.parameters())
        return cls(parameter.device, parameter.dtype if parameter.dtype.itemsize > 1 else torch.bfloat16)

    @property
    def values(self) -> torch.device:
        """Where tensors are whose values decide what is computed; models without values read them from the CPU."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def zeros(self, *shape: int) -> torch.Tensor:
        """A tensor as models hand it on."""
        return torch.zeros(shape, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Reading:
    """What is read.

    Args:
        prompts: Positive and negative texts.
        tokens: Tokens N of the longest one.
        positions: Text positions P that the streams attend to.
    """

    prompts: int
    tokens: int
    positions: int = DEFAULT_TEXT_POSITIONS


def reading_text(models: Models, reading: Reading) -> Run:
    """The language model over all prompts."""
    model = models["text_encoder"]
    place = Place.of(model)

    def run() -> TextStates:
        ids = torch.ones(reading.prompts, reading.tokens, dtype=torch.long, device=place.values)
        mask = torch.ones_like(ids)
        # Texts differ in length, so that there is a mask to make.
        mask[0, : reading.tokens // 2] = 0
        encoder = TextEncoder(None, model, None, place.values)  # type: ignore[arg-type]  # neither is read
        return encoder.run(ids, mask, reading.positions, place.dtype)

    return run


def connecting(models: Models, reading: Reading) -> Run:
    """The connectors over the states of the language model, which the run holds."""
    connectors = models["connectors"]
    place, config = Place.of(connectors), connectors.config

    def run() -> Any:
        hidden = place.zeros(reading.prompts, reading.tokens, config.caption_channels, config.text_proj_in_factor)
        mask = torch.ones(reading.prompts, reading.tokens, dtype=torch.long, device=place.values)
        encoder = TextEncoder(None, None, connectors, place.values)  # type: ignore[arg-type]  # neither is read
        return encoder.contexts((TextStates(hidden, mask), None), reading.positions)

    return run


@dataclass(frozen=True)
class Denoising:
    """What a step of a stage does.

    Args:
        preset: Settings of the checkpoint.
        scales: Guidance of both streams; `None` for a stage without.
        image: Whether the first frame is given, so that tokens differ in their noise level.
        positions: Text positions P.
        layout: How the passes are made.
    """

    preset: Preset
    scales: Scales | None
    image: bool = False
    positions: int = DEFAULT_TEXT_POSITIONS
    layout: PassLayout = ONE_BY_ONE


def denoiser_of(transformer: Any, clip: "ClipPlan", wish: Denoising) -> GuidedDenoiser:
    """What makes the predictions of a stage."""
    place, depth = Place.of(transformer), transformer.config.num_layers
    widths = _context_widths(transformer.config)
    size = clip.batch_size, wish.positions
    positive, negative = (TextContext(*(place.zeros(*size, width) for width in widths)) for _ in range(2))
    blocks = wish.preset.stg_blocks(depth)
    guiders = build_guiders(Streams(*(wish.scales or (NEUTRAL, NEUTRAL))), blocks, wish.preset, depth)
    denoiser = GuidedDenoiser(transformer, positive, negative, guiders, wish.preset.cross_timestep, layout=wish.layout)
    if not denoiser.needed.negative:
        # Nothing else reads it, and a call would not have it.
        denoiser.negative_context = None
    return denoiser


def _context_widths(config: Any) -> tuple[int, int]:
    if config.use_prompt_embeddings:
        return config.caption_channels, config.caption_channels
    return config.cross_attention_dim, config.audio_cross_attention_dim


def initial_states(clip: "ClipPlan", image: bool, device: torch.device) -> States:
    """States without noise, whose first latent frame is given or not."""
    tools = clip.tools
    states: States = on_streams(lambda tool: tool.create_initial_state(device), tools)
    video = states.video
    if image and video is not None:
        mask = video.denoise_mask.clone()
        mask[:, : tools.video.tokens_per_frame] = 0
        states = states._replace(video=replace(video, denoise_mask=mask))
    return states


def denoising(models: Models, clip: "ClipPlan", wish: Denoising) -> Run:
    """One step of the loop: all passes, guidance and the sampler."""
    transformer = models["transformer"]
    place = Place.of(transformer)

    def run() -> Any:
        states = initial_states(clip, wish.image, place.values)
        predictor = StepPredictor(denoiser_of(transformer, clip, wish), 0)
        return EulerSampler().step(predictor, states, torch.tensor(_SIGMAS), 0)

    return run


def upsampling(models: Models, clip: "ClipPlan") -> Run:
    """The latents of the stage before at twice the size; `clip` is that of the smaller one."""
    upsampler, shape = models["latent_upsampler"], tuple(clip.video)
    place = Place.of(upsampler)
    return lambda: upsampler(place.zeros(*shape))


def encoding_given(models: Models, clip: "ClipPlan", frames: int = 1) -> Run:
    """A picture, or so many frames of a clip, of the size of the clip to latents."""
    vae = models["vae"]
    place = Place.of(vae)
    shape = clip.batch_size, vae.config.in_channels, frames, clip.height, clip.width
    return lambda: vae.encode(place.zeros(*shape)).latent_dist.mode()


def decoding_video(models: Models, clip: "ClipPlan", how: str) -> Run:
    """Latents to pixels; `how` is one of `DECODINGS`, or `"tiled_in_space"`, as `--tiling` does it."""
    vae, shape = models["vae"], tuple(clip.video)
    place = Place.of(vae)
    temb = torch.zeros(clip.batch_size, device=place.device) if vae.config.timestep_conditioning else None

    def run() -> None:
        set_decoding(vae, how)
        latents = place.zeros(*shape)
        if not vae.streams(latents):
            vae.decode(latents, temb)
            return
        for chunk in vae.decode_streamed(latents, temb):
            # It would live on while the next one is made.
            del chunk

    return run


def decoding_by_diffusion(models: Models, clip: "ClipPlan", how: str) -> Run:
    """Latents to pixels by the diffusion decoder, in tiles or, whatever else `how` is, as a whole."""
    network, shape = models[DIFFUSION], tuple(clip.video)
    place = Place.of(network)

    def run() -> None:
        set_diffusion_decoding(network, how)
        for chunk in network.decode_streamed(place.zeros(*shape)):
            # It would live on while the next one is made.
            del chunk

    return run


def set_diffusion_decoding(network: Any, how: str) -> None:
    """Let a diffusion decoder decode in safe tiles, or as a whole, from now on."""
    network.disable_tiling()
    if how == "tiled":
        network.enable_tiling(safe=True)


def set_decoding(vae: Any, how: str) -> None:
    """Let a video autoencoder decode in one of `DECODINGS` from now on, or in tiles of all frames."""
    vae.use_tiling = vae.use_framewise_decoding = False
    if how == "streamed":
        vae.enable_streaming()
        return
    vae.disable_streaming()
    if how in ("tiled", "tiled_in_space"):
        vae.enable_tiling()
        vae.use_framewise_decoding = how == "tiled"


def decoding_audio(models: Models, clip: "ClipPlan") -> Run:
    """Latents of the sound to a waveform."""
    audio_vae, vocoder, shape = models["audio_vae"], models["vocoder"], tuple(clip.audio)
    place = Place.of(audio_vae)
    return lambda: vocoder(audio_vae.decode(place.zeros(*shape), return_dict=False)[0])

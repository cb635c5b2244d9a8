"""One pass of DFR: a video with single frames beside it, from noise or from what earlier passes made.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns, L audio latents, M
latent mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from ....conditioning import GaussianNoiser
from ....conditioning.dfr_layout import LTX2DFREpilogueTile, conditioning_frame_rate
from ....declared import takes_declared
from ....media.pixels import decoded_frames
from ....media.preprocess import normalize_pixels
from ....schedulers.sigmas import DISTILLED_SIGMAS
from ...arguments import Stage
from ...conditions import Conditions, KeyframeCarrier, as_conditions
from ...engine import Generated, Originals, generated, with_decoder_noise
from .. import Delivery, LTX2GenerationPipeline, Result, Size, check_said, extends, takes
from .common import POSITIONS, PassArguments, check_marks, handed_over, listed

# Seeds of the noise with which keyframes are decoded lie apart from those of the passes.
_REBUILDING_SEED = 4000


@dataclass(frozen=True)
class _Carried:
    """What comes first, in diffusers' order."""

    prompt: str | list[str] | None = None
    conditions: Conditions = None
    height: int = 704
    width: int = 1216
    num_frames: int | None = None
    frame_rate: float = 24.0
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    keyframes_latents: torch.Tensor | None = None
    keyframe_positions: Sequence[int] | None = None
    reference_latents: torch.Tensor | None = None
    reference_downscale_factor: int = 2
    guidance_keyframe_latents: torch.Tensor | None = None
    guidance_keyframe_positions: Sequence[int] | None = None
    guidance_keyframe_strength: float = 1.0
    generate_slots: bool = True
    sigmas: Sequence[float] = DISTILLED_SIGMAS[:-1]
    noise_scale: float | None = None
    freeze_audio: bool = False
    video_tiles: Sequence[tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class DFRArguments(PassArguments, _Carried):
    """What the call takes. All latents are un-normalised, as the call returns them.

    Args:
        conditions: Pictures and clips, as in [`LTX2ConditionPipeline`]; their places are those of a clip of `num_frames`.
        num_frames: Frames, 8 k + 1 and at least 9; the pass pads them to its canvas, which is that of `latents` if there are
            any. Default that of `latents`, else what the
            `duration_head` predicts.
        frame_rate: Frames per second, above 0 and up to 1000. The network counts positions at 60 for any above 30.
        latents: Video to refine, `[B, C, F, h, w]` of the whole canvas, as the pass before returned it.
        audio_latents: Sound to refine or to keep, `[B, C, L, M]`.
        keyframes_latents: What the slots start from, `[B, C, K, h, w]`.
        keyframe_positions: Pixel frames of the slots. Default the ends of the canvas' segments.
        reference_latents: A video to follow, mostly that of the first pass `[B, C, F, h, w]`, with an IC-LoRA loaded.
        reference_downscale_factor: Size of this pass over that of the reference. Default 2.
        guidance_keyframe_latents: Finished keyframes to hold to, `[B, C, K, h, w]`.
        guidance_keyframe_positions: Their pixel frames.
        guidance_keyframe_strength: How strongly they are held, 0 to 1. Default 1.0.
        generate_slots: Whether keyframes are made beside the video. Default `True`.
        sigmas: Noise levels of the pass, in (0, 1] and falling, taken as they are. Default the 8 of distilled models.
        freeze_audio: Whether `audio_latents` are kept. Default `False`.
        video_tiles: Windows in which the transformer runs one after another, made with
            [`~ltx2_diffusers.conditioning.epilogue_tiles`]. Default `None`, over the whole video.
    """

    num_frames: int | None = None
    frame_rate: float = 24.0
    sigmas: Sequence[float] = DISTILLED_SIGMAS[:-1]

    @property
    def carrier(self) -> KeyframeCarrier:
        """What the pass carries beside its video."""
        return KeyframeCarrier(
            self.generate_slots,
            self.keyframe_positions,
            self.keyframes_latents,
            self.guidance_keyframe_latents,
            self.guidance_keyframe_positions,
            self.guidance_keyframe_strength,
            self.reference_latents,
            self.reference_downscale_factor,
            self.freeze_audio,
        )

    @property
    def size(self) -> Size:
        """Size of the clip, which is padded to whole segments."""
        speed = self.frame_rate / conditioning_frame_rate(self.frame_rate)
        seconds = (self.min_seconds, self.max_seconds)
        return Size(self.height, self.width, self.num_frames, self.frame_rate, speed, seconds, in_segments=True)

    @property
    def stage(self) -> Stage:
        """The pass."""
        tiles = None if self.video_tiles is None else [LTX2DFREpilogueTile(*tile) for tile in self.video_tiles]
        return Stage(sigmas=self.sigmas, noise_scale=self.noise_scale, sampler="euler", tiles=tiles)


class LTX2DFRPipeline(LTX2GenerationPipeline):
    """Makes one pass of diffusion fidelity rendering: a video, its sound and single frames beside it, the keyframes.

    A call at half the size begins, one at full size refines what an upsampler has enlarged, and a last one may go beyond that in
    tiles; [`LTX2DFRTemporalRefinePipeline`] doubles the frame rate in between. Takes the components and call arguments of
    diffusers' pipeline of the same name; there is no guidance, so that the weights have to be distilled ones, or have their
    distilled LoRA active. Noise levels are taken as they are given, whatever the scheduler's config says.
    """

    kind = "distilled"

    @extends(LTX2GenerationPipeline)
    def __init__(self, **components: Any) -> None:
        super().__init__(**listed(components))

    @takes(DFRArguments)
    def __call__(self, call: DFRArguments) -> Result:
        """Make a pass. Its latents are those of a canvas of whole segments; decoded, it is as long as `num_frames`.

        Returns:
            [`LTX2DFRPipelineOutput`], or the tuple `(frames, audio, keyframes, keyframe_positions)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        check_pass(self, call)
        conditions = [*as_conditions("conditions", call.conditions), call.carrier]
        noise = {"packed_noise": True, "blend": "clean"}
        prompts, request = call.request([call.stage], conditions, call.size, **noise)
        made, originals = generated(self, prompts, request)
        return _finished(self, call, made, request.delivery, originals)

    @takes_declared
    @torch.no_grad()
    def rebuild_epilogue_keyframes(
        self,
        keyframe_latents: torch.Tensor,
        decode_timestep: float,
        decode_noise_scale: float | None,
        seed: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Keyframes at twice their height and width, by way of pixels, for the `guidance_keyframe_latents` of a last pass.

        Each is decoded, enlarged by Lanczos' filter and encoded alone: they are stills, and a causal decoder would let one run
        into the next.

        Args:
            keyframe_latents: Un-normalised latents `[B, C, K, h, w]`.
            decode_timestep, decode_noise_scale: As in the call.
            seed: Seed of the decoder's noise; each keyframe has noise of its own.
            device, dtype: Of the result, and where the decoder's noise is drawn.

        Returns:
            Un-normalised latents `[B, C, K, 2 h, 2 w]`.
        """
        self.require("vae")
        if keyframe_latents.ndim != 5:
            raise ValueError(
                f"`keyframe_latents` has to be [B, C, K, h, w] but has shape {tuple(keyframe_latents.shape)}; add the axis of keyframes"
            )
        encoded = []
        for index, frame in enumerate(keyframe_latents.to(self._execution_device, torch.float32).split(1, dim=2)):
            generator = torch.Generator(device).manual_seed(seed + _REBUILDING_SEED + index)
            wish = Delivery(
                "latent", decode_timestep=decode_timestep, decode_noise_scale=decode_noise_scale, generator=generator
            )
            latent, timestep = with_decoder_noise(self, frame, wish)
            pixels = self.vae.decode(latent.to(self.vae.dtype), timestep, return_dict=False)[0]
            large = torch.stack([_enlarged(clip) for clip in pixels])
            encoded.append(self.vae.encode(large.to(pixels)).latent_dist.mode())
        self.maybe_free_model_hooks()
        return torch.cat(encoded, dim=2).to(device, dtype)


def check_pass(pipeline: LTX2DFRPipeline, call: DFRArguments) -> None:
    """Raise `ValueError` for what a pass is given and does not read, or reads and is not given."""
    if call.generate_slots:
        check_marks(pipeline)
    else:
        check_said("generate_slots=False makes no keyframes", call, "keyframes_latents", POSITIONS)
    if call.guidance_keyframe_latents is None:
        names = ("guidance_keyframe_positions", "guidance_keyframe_strength")
        check_said("there are no `guidance_keyframe_latents`", call, *names)
    elif call.guidance_keyframe_positions is None:
        raise ValueError(
            "`guidance_keyframe_latents` need their `guidance_keyframe_positions`; give a pixel frame for each"
        )
    if call.reference_latents is None:
        check_said("there are no `reference_latents`", call, "reference_downscale_factor")
    if call.freeze_audio and call.audio_latents is None:
        raise ValueError(
            "`freeze_audio` is True, but there are no `audio_latents` to keep; give those of the first pass"
        )
    if call.num_frames is None and call.latents is None and not pipeline.has("duration_head"):
        raise ValueError(
            "`num_frames` is not given, nor `latents` from which it would follow, and there is no `duration_head` to predict it; use "
            "for example 121"
        )


def _finished(
    pipeline: LTX2DFRPipeline, call: DFRArguments, made: Generated, delivery: Delivery, originals: Originals
) -> Result:
    """The pass handed over; one that makes no keyframes hands on those that it was given."""
    positions = call.carrier.positions(made.plan)
    if call.freeze_audio:
        # diffusers draws noise for a sound that takes none, after which its decoder draws.
        GaussianNoiser(delivery.generator).draw(made.plan.audio, pipeline._execution_device)
    if made.keyframes is None and call.guidance_keyframe_latents is not None:
        made = made._replace(keyframes=pipeline.normalized_video(call.guidance_keyframe_latents, made.plan))
        positions = list(call.guidance_keyframe_positions or ())
    return handed_over(pipeline, made, delivery, originals, positions)


def _enlarged(clip: torch.Tensor) -> torch.Tensor:
    """A frame `[3, 1, H, W]` in [-1, 1] at twice its size."""
    image = PIL.Image.fromarray(next(decoded_frames(clip))[0].numpy())
    image = image.resize((2 * image.width, 2 * image.height), PIL.Image.Resampling.LANCZOS)
    return normalize_pixels(torch.from_numpy(np.array(image)).movedim(-1, 0)[:, None].float())

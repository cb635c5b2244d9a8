"""Reference settings per model version and kind: what a call uses when the caller does not say.

Values of the dev kind are those of the reference pipelines for LTX-2.0, 2.3 and 2.5; the distilled kind runs its fixed
sigma list without guidance.
"""

from dataclasses import dataclass, replace

from ..schedulers.sigmas import DISTILLED_SIGMAS, STAGE_2_DISTILLED_SIGMAS
from .guiders import MultiModalGuiderParams

DEFAULT_SIZE = (512, 768, 121)
"""Height, width and frames of the reference recipes."""
DEFAULT_IMAGE_CRF = 33
"""H.264 quality of the round trip that conditioning pictures take, up to LTX-2.3."""
LTX2_5_IMAGE_CRF = 18
"""The same from LTX-2.5 on."""
NEUTRAL = MultiModalGuiderParams()
"""Scales of a stream without guidance."""

RECOMMENDED_NEGATIVE_PROMPT = (
    "soft focus, smeared detail, low resolution, blocky compression, banding, crushed blacks, blown highlights, faded or "
    "garish colour, flickering light, trembling camera, stuttering or frozen motion, faces that warp, malformed hands, "
    "missing or surplus limbs, bodies that melt together, things that appear from nowhere or vanish, plastic skin, "
    "captions, logos, watermarks, unreadable lettering, black bars, muffled or clipped sound, hum, hiss, crackle, hollow "
    "echo, metallic or slurred voices, speech out of step with the lips, music that cuts off"
)
"""What guided runs of dev checkpoints may be steered away from: common faults of pictures and sound.

No call takes it by itself; pass it as `negative_prompt`. The reference's command line has a text of this kind as its default.
"""


@dataclass(frozen=True)
class Preset:
    """Settings of one model version and kind.

    Args:
        version: `"2.0"`, `"2.3"` or `"2.5"`.
        kind: `"dev"` (guided, many steps) or `"distilled"` (fixed sigmas, no guidance).
        num_inference_steps: Denoising steps of a guided run, or of the fixed list.
        sigmas: Fixed noise levels without the final zero, or `None` to take them from the scheduler.
        stage_2_sigmas: Noise levels of a refining second stage, without the final zero.
        sampler: Sampler of the first stage where a call leaves it open.
        video, audio: Guidance scales.
        stg_block: Block that spatio-temporal guidance perturbs in the 48-block model.
        cross_timestep: Which noise level modulates the exchange between the streams: `"own"` or `"gate"` (the other
            stream's level for the gate only).
        image_crf: H.264 quality of the round trip that conditioning images take; 0 skips it.
    """

    version: str
    kind: str
    num_inference_steps: int
    video: MultiModalGuiderParams
    audio: MultiModalGuiderParams
    stg_block: int
    cross_timestep: str
    image_crf: int
    sigmas: tuple[float, ...] | None = None
    stage_2_sigmas: tuple[float, ...] = tuple(STAGE_2_DISTILLED_SIGMAS[:-1])
    sampler: str = "euler"

    def stg_blocks(self, num_layers: int) -> list[int]:
        """The perturbed block; a shallower model takes the block at the same relative depth."""
        return [self.stg_block if num_layers == 48 else min(num_layers - 1, self.stg_block * num_layers // 48)]


_VIDEO = MultiModalGuiderParams(cfg_scale=3.0, stg_scale=1.0, rescale_scale=0.7, modality_scale=3.0)
_AUDIO = replace(_VIDEO, cfg_scale=7.0)
# version: (steps, STG block, cross-modal noise level, image CRF)
_DEV = {
    "2.0": (40, 29, "own", DEFAULT_IMAGE_CRF),
    "2.3": (30, 28, "gate", DEFAULT_IMAGE_CRF),
    "2.5": (30, 28, "gate", LTX2_5_IMAGE_CRF),
}


def preset(version: str, kind: str = "dev") -> Preset:
    """The preset of a model version (`"2.0"`, `"2.3"`, `"2.5"`) and kind (`"dev"`, `"distilled"`)."""
    if version not in _DEV:
        raise ValueError(f"unknown model version {version!r}; choose one of {', '.join(_DEV)}")
    if kind not in ("dev", "distilled"):
        raise ValueError(f"unknown model kind {kind!r}; choose 'dev' or 'distilled'")
    steps, block, cross_timestep, crf = _DEV[version]
    if kind == "dev":
        return Preset(version, kind, steps, _VIDEO, _AUDIO, block, cross_timestep, crf)
    sigmas, sampler = tuple(DISTILLED_SIGMAS[:-1]), "euler_ancestral" if version == "2.5" else "euler"
    return Preset(version, kind, len(sigmas), NEUTRAL, NEUTRAL, block, cross_timestep, crf, sigmas, sampler=sampler)

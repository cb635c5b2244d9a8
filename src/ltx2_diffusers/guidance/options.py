"""Ways of guiding beyond the scales: what is skipped, which formula is used, and a negative prompt without a pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..checks import check_choice, check_scales
from ..declared import settle
from ..models.negative_text import NAG_ALPHA, NAG_TAU, NagWeights
from .guiders import (
    CFGGuider,
    CFGStarRescalingGuider,
    Guider,
    LtxAPGGuider,
    MultiModalGuiderParams,
    StatefulAPGGuider,
    check_interval,
)

_APG_OPTIONS = ("apg_eta", "apg_norm_threshold", "apg_momentum")
# Formulas of classifier-free guidance, and the options that each does not read.
_UNREAD = {"cfg": _APG_OPTIONS, "cfg_star": _APG_OPTIONS, "apg": ("apg_momentum",), "apg_momentum": ()}
CFG_METHODS = tuple(_UNREAD)

SigmaBins = Mapping[float, MultiModalGuiderParams]


@dataclass(frozen=True)
class GuidanceOptions:
    """Options of guidance; the defaults change nothing and cost nothing.

    Normalized attention guidance (the `nag_` options) lets the negative prompt act without classifier-free guidance, on
    distilled models too: only the attention to the text runs twice, the rest of the network once. It acts in the
    second stage of a recipe as well; all other options belong to the guided first stage.

    Args:
        skip_step: Steps after each guided one that reuse the video's prediction. Default 0 (none); with n, step i is
            skipped unless i is a multiple of n + 1. A step that both streams skip costs nothing.
        audio_skip_step: The same for the audio. Default 0.
        cfg_method: Formula of classifier-free guidance. `"cfg"` (default): the plain difference. `"cfg_star"`: the
            negative prediction is scaled to fit first (CFG-Zero*). `"apg"`: adaptive projected guidance, which weakens
            the share along the prediction and shortens what is too long. `"apg_momentum"`: the same with momentum over
            predictions; each video starts without.
        apg_eta: Weight of the share along the prediction. Default 0.0 (dropped, as its authors recommend); 1 keeps it.
        apg_norm_threshold: Largest norm of the guidance, over all latents of a video. Default 0.0 (any).
        apg_momentum: Share of earlier guidance that is added; negative values push away from it. Default 0.0, which
            `"apg_momentum"` refuses.
        bins: Guidance scales of the video by noise level: upper bound of sigma in (0, 1] to
            [`~ltx2_diffusers.guidance.MultiModalGuiderParams`]; a bin begins above the next smaller bound, the largest
            also holds beyond its bound. They take the place of the call's scales, which have to be left out; `stg_blocks`,
            `skip_step` and `interval` left empty take the call's. Passes that a bin does not need are not run there.
        audio_bins: The same for the audio.
        nag_scale: Strength of normalized attention guidance: attended values are `scale * positive - (scale - 1) *
            negative`. Default 1.0 (off). It acts in every pass that reads the prompt.
        nag_tau: Longest allowed L1 norm of a token's guided values, as a multiple of that of the positive ones. Default
            2.5.
        nag_alpha: Share of the guided values in the result, 0 to 1. Default 0.25.
        guidance_interval: Lowest and highest noise level in [0, 1] at which both streams are guided, such as (0.2, 0.8);
            at others the prediction with the prompt is taken as it is, and the other passes are not made. Default None
            (everywhere).
    """

    skip_step: int = 0
    audio_skip_step: int = 0
    cfg_method: str = "cfg"
    apg_eta: float = 0.0
    apg_norm_threshold: float = 0.0
    apg_momentum: float = 0.0
    bins: SigmaBins | None = None
    audio_bins: SigmaBins | None = None
    nag_scale: float = 1.0
    nag_tau: float = NAG_TAU
    nag_alpha: float = NAG_ALPHA
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        settle(self)
        for name in ("skip_step", "audio_skip_step"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"`{name}` has to be a whole number of at least 0 but is {value!r}; use 0")
        check_interval("guidance_interval", self.guidance_interval)
        self._check_method()
        for name in ("bins", "audio_bins"):
            _check_bins(name, getattr(self, name))
        check_scales(apg_eta=self.apg_eta, apg_momentum=self.apg_momentum, nag_scale=self.nag_scale)
        for name, wrong, nearest in (
            ("nag_scale", self.nag_scale < 1, 1.0),
            ("nag_tau", self.nag_tau <= 0, 1.0),
            ("nag_alpha", not 0 <= self.nag_alpha <= 1, min(max(self.nag_alpha, 0.0), 1.0)),
        ):
            if wrong:
                raise ValueError(f"`{name}` is {getattr(self, name)}, which is out of range; use {nearest}")

    def _check_method(self) -> None:
        method = self.cfg_method
        check_choice("cfg_method", method, CFG_METHODS)
        if unread := [name for name in _UNREAD[method] if getattr(self, name) != getattr(GuidanceOptions, name)]:
            raise ValueError(f"cfg_method={method!r} does not read {unread}; leave them out, or use 'apg_momentum'")
        if method == "apg_momentum" and self.apg_momentum == 0:
            raise ValueError("`apg_momentum` is 0.0, which is cfg_method='apg'; use that, or -0.5 for example")
        if self.apg_norm_threshold < 0:
            raise ValueError(f"`apg_norm_threshold` has to be at least 0 but is {self.apg_norm_threshold}; use 0.0")

    @property
    def nag(self) -> NagWeights | None:
        """How the negative prompt acts in the attention to the text; `None` if it does not."""
        is_neutral = self.nag_scale == 1 or self.nag_alpha == 0
        return None if is_neutral else NagWeights(self.nag_scale, self.nag_tau, self.nag_alpha)

    @property
    def reads_negative(self) -> bool:
        """Whether these options alone make a call read the negative prompt."""
        binned = [params for bins in (self.bins, self.audio_bins) for params in (bins or {}).values()]
        return self.nag is not None or any(params.cfg_scale != 1 for params in binned)

    def cfg_guider(self, scale: float) -> Guider:
        """A fresh guider of the chosen formula; a scale of 1 is neutral in all of them."""
        if self.cfg_method == "cfg_star":
            return CFGStarRescalingGuider(scale)
        if self.cfg_method == "apg":
            return LtxAPGGuider(scale, self.apg_eta, self.apg_norm_threshold)
        if self.cfg_method == "apg_momentum":
            # This guider counts its weight from 0.
            return StatefulAPGGuider(scale - 1, self.apg_eta, self.apg_norm_threshold, self.apg_momentum)
        return CFGGuider(scale)

    def refining(self) -> "GuidanceOptions":
        """What is left of the options in a stage that refines without guidance."""
        return GuidanceOptions(nag_scale=self.nag_scale, nag_tau=self.nag_tau, nag_alpha=self.nag_alpha)

    def of_stream(self, prefix: str) -> tuple[int, SigmaBins | None]:
        """Skipped steps and bins of the video (`""`) or the audio (`"audio_"`)."""
        return getattr(self, f"{prefix}skip_step"), getattr(self, f"{prefix}bins")


def completed_bins(
    bins: SigmaBins,
    stg_blocks: tuple[int, ...] | list[int],
    skip_step: int,
    is_alone: bool,
    interval: tuple[float, float] | None = None,
) -> dict[float, MultiModalGuiderParams]:
    """Bins whose empty `stg_blocks`, `skip_step` and `interval` are filled.

    Args:
        bins: Params by upper bound of sigma.
        stg_blocks: Blocks for bins that name none.
        skip_step: Skipped steps for bins that skip none.
        is_alone: Whether there is no other stream to isolate this one from.
        interval: Noise levels for bins that name none.
    """
    return {
        bound: replace(
            params,
            stg_blocks=stg_blocks if params.stg_blocks == () else params.stg_blocks,
            skip_step=params.skip_step or skip_step,
            interval=params.interval or interval,
            modality_scale=1.0 if is_alone else params.modality_scale,
        )
        for bound, params in bins.items()
    }


def _check_bins(name: str, bins: SigmaBins | None) -> None:
    if bins is None:
        return
    if not bins or not all(isinstance(params, MultiModalGuiderParams) for params in bins.values()):
        raise ValueError(
            f"`{name}` has to map upper bounds of sigma to MultiModalGuiderParams but is {bins!r}; use "
            "{1.0: MultiModalGuiderParams(cfg_scale=3.0)} for example"
        )
    if wrong := [bound for bound in bins if not 0 < bound <= 1]:
        raise ValueError(f"the bounds of `{name}` have to be above 0 and at most 1 but {wrong} are not; use 1.0")

"""What the options of `ltx2 generate` ask for: a table of modes, and which options belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .values import flag, flags


@dataclass(frozen=True)
class Mode:
    """One kind of generation.

    Args:
        name: In words.
        pipeline: Public name of the pipeline class.
        chosen_by: Options any of which chooses it.
        two_stage: Whether it runs in two stages without being asked to.
        makes_video: Whether pictures are made, and not only sound.
    """

    name: str
    pipeline: str
    chosen_by: tuple[str, ...] = ()
    two_stage: bool = False
    makes_video: bool = True

    @property
    def pipeline_class(self) -> type:
        """The pipeline class, imported when it is asked for."""
        import ltx2_diffusers

        return getattr(ltx2_diffusers, self.pipeline)


# The first one that is chosen by an option runs; the last one needs none.
MODES = (
    Mode("sound from text", "LTX2TextToAudioPipeline", ("audio_only",), makes_video=False),
    Mode("a stretch of a clip made anew", "LTX2RetakePipeline", ("retake",)),
    Mode("a clip made longer", "LTX2ExtendPipeline", ("extend",)),
    Mode("sound for a clip", "LTX2VideoToAudioPipeline", ("add_sound",), makes_video=False),
    Mode("motion between pictures", "LTX2KeyframeInterpolationPipeline", ("interpolate",)),
    Mode("a distilled model's few steps", "LTX2DistilledPipeline", ("distilled",), two_stage=True),
    Mode("pictures for a sound", "LTX2AudioToVideoPipeline", ("audio",)),
    Mode("video in two stages, or silent", "LTX2TwoStagePipeline", ("two_stage", "no_audio")),
    Mode("video after references", "LTX2InContextPipeline", ("reference", "reference_audio")),
    Mode("video with given pictures", "LTX2ConditionPipeline", ("image_at",)),
    Mode("video from its first frame", "LTX2ImageToVideoPipeline", ("image",)),
    Mode("video from text", "LTX2Pipeline"),
)

# Option -> options of which it needs one.
NEEDS = {
    "video": ("retake", "extend", "add_sound"),
    "retake": ("video",),
    "region": ("retake",),
    "keep_video": ("retake",),
    "keep_audio": ("retake",),
    "backwards": ("extend",),
    "overlap": ("extend",),
    "drift_control": ("extend",),
    "add_sound": ("video",),
    "interpolate": ("image", "image_at"),
    "image_crf": ("image", "image_at"),
    "audio_fit": ("audio",),
    "audio_start": ("audio",),
    "audio_cond_noise_scale": ("audio",),
    "one_stage": ("distilled",),
    "stage_2_sigmas": ("two_stage", "distilled"),
    "upsampler": ("two_stage", "distilled"),
    "distilled_lora": ("two_stage", "distilled"),
    "refine_with_same_weights": ("two_stage",),
    "duration": ("audio_only",),
    "nag_scale": ("negative_prompt",),
    "nag_tau": ("nag_scale",),
    "nag_alpha": ("nag_scale",),
    "apg_eta": ("cfg_method",),
    "apg_norm_threshold": ("cfg_method",),
    "apg_momentum": ("cfg_method",),
    "system_prompt": ("enhance_prompt",),
    "enhance_tokens": ("enhance_prompt",),
    "no_text_encoder": ("prompt_cache",),
    "preview_every": ("preview",),
}

# Pairs that contradict each other, beyond what a pipeline does not take.
CONFLICTS = (
    ("one_stage", "two_stage"),
    ("one_stage", "stage_2_sigmas"),
    ("keep_video", "keep_audio"),
    ("keep_video", "region"),
    ("steps", "sigmas"),
    ("distilled_lora", "refine_with_same_weights"),
    ("enhance_prompt", "no_text_encoder"),
    ("text_encoder", "no_text_encoder"),
)


def choose_mode(options: Mapping[str, Any]) -> Mode:
    """The mode of the given options.

    Raises:
        ValueError: If options are missing, or contradict each other whatever the pipeline.
    """
    for option, needed in NEEDS.items():
        if option in options and not any(other in options for other in needed):
            raise ValueError(f"{flag(option)} needs {flags(needed)}")
    for pair in CONFLICTS:
        if all(option in options for option in pair):
            raise ValueError(f"{flags(pair, 'and')} contradict each other; leave one of them out")
    mode = next(mode for mode in MODES if not mode.chosen_by or any(option in options for option in mode.chosen_by))
    if "preview" in options and not mode.makes_video:
        raise ValueError(f"--preview shows pictures as they are made, but {chosen(mode, options)} makes none")
    return mode


def chosen(mode: Mode, options: Mapping[str, Any]) -> str:
    """The mode by the options that chose it, for messages."""
    given = [option for option in mode.chosen_by if option in options]
    return flags(given, "and") if given else mode.name


def mode_table() -> str:
    """The modes for the help text."""
    rows = [(flags(mode.chosen_by) if mode.chosen_by else "(none of these)", mode) for mode in MODES]
    width = max(len(row) for row, _ in rows)
    return "\n".join(f"  {row:<{width}}  {mode.name} ({mode.pipeline})" for row, mode in rows)

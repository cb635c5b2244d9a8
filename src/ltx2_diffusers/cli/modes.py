"""What the options of `ltx2 generate` ask for: a table of modes, which options belong together, and the call they make."""

import inspect
from collections.abc import Collection, KeysView
from dataclasses import dataclass
from typing import Any

from ..checkpoints.class_names import FAMILIES
from .calls import Arguments
from .loading import CHECKPOINT
from .options import OPTIONS
from .values import Options, flag, flags, input_files


@dataclass(frozen=True)
class Mode:
    """One kind of generation.

    Args:
        name: In words.
        pipeline: Public name of the pipeline class.
        chosen_by: Options any of which chooses it.
        two_stage: Whether it runs in two stages without being asked to.
        makes_video: Whether pictures are made, and not only sound.
        size: Height, width, frames and frames per second by default, if not those of LTX-2.
    """

    name: str
    pipeline: str
    chosen_by: tuple[str, ...] = ()
    two_stage: bool = False
    makes_video: bool = True
    size: tuple[int, int, int, float] | None = None

    @property
    def pipeline_class(self) -> Any:
        """The pipeline class, imported when it is asked for."""
        import ltx2_diffusers

        return getattr(ltx2_diffusers, self.pipeline)

    @property
    def takes(self) -> KeysView[str]:
        """Names of the arguments of the pipeline's call."""
        return inspect.signature(self.pipeline_class.__call__).parameters.keys()


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
    Mode("high dynamic range for a clip", "LTX2HDRPipeline", ("hdr",)),
    Mode("video after references", "LTX2InContextPipeline", ("reference", "reference_audio")),
    Mode("video with given pictures", "LTX2ConditionPipeline", ("image_at",)),
    Mode("video from its first frame", "LTX2ImageToVideoPipeline", ("image",)),
    Mode("video from text", "LTX2Pipeline"),
)

# Whatever is asked of a checkpoint of LTX-Video.
LTX_VIDEO = Mode("video of LTX-Video", "LTXVideoPipeline", size=(704, 1216, 121, 30.0))


def choose_mode(options: Options, offered: Collection[str] = OPTIONS) -> Mode:
    """The mode of the given options.

    Args:
        options: The options.
        offered: Names of those that can be given. Default all.

    Raises:
        ValueError: If options are missing, or contradict each other whatever the pipeline.
    """
    from ..checkpoints.versions import checkpoint_family

    check_together(options, offered)
    if checkpoint_family(options.get("checkpoint", CHECKPOINT)) != FAMILIES[0]:
        return LTX_VIDEO
    mode = next(mode for mode in MODES if not mode.chosen_by or not options.keys().isdisjoint(mode.chosen_by))
    if "preview" in options and not mode.makes_video:
        raise ValueError(f"--preview shows pictures as they are made, but {_chosen(mode, options)} makes none")
    return mode


def check_together(options: Options, offered: Collection[str] = OPTIONS) -> None:
    """Raise `ValueError` for an option without another that it needs, and for two that contradict each other.

    Takes the arguments of [`choose_mode`].
    """
    given = [option for name, option in OPTIONS.items() if name in options]
    for option in given:
        if option.needs and options.keys().isdisjoint(option.needs):
            raise ValueError(f"{flag(option.name)} needs {flags([n for n in option.needs if n in offered])}")
    if pairs := [(option.name, other) for option in given for other in option.excludes if other in options]:
        raise ValueError(f"{flags(pairs[0], 'and')} contradict each other; leave one of them out")


def call_arguments(mode: Mode, options: Options) -> Arguments:
    """Arguments of the call, without generator and callback.

    Raises:
        ValueError: If an option means nothing to the mode's pipeline.
    """
    takes, choosing = mode.takes, {name for other in MODES if other is not mode for name in other.chosen_by}
    call: Arguments = {}
    # In this order, so that an option stands before those that go with it and are filled in for it.
    for name in (name for name in OPTIONS if name in options):
        arguments = OPTIONS[name].arguments(options, takes)
        # An option that only chooses another mode would do nothing.
        if not arguments.keys() <= takes or (not arguments and name in choosing):
            raise ValueError(f"{flag(name)} means nothing for {_chosen(mode, options)}; leave one of them out")
        call |= arguments
    return {"two_stage": mode.two_stage, **call} if "two_stage" in takes else call


def check_call(mode: Mode, call: Arguments, options: Options) -> None:
    """Find what is wrong with a call and its files before a checkpoint is loaded for it."""
    from ..declared import settle
    from ..media.frames import read_frames
    from ..media.reading import probe

    given = mode.pipeline_class.__call__.arguments(**call)
    settle(given)
    given.check()
    for path, option in input_files(options).items():
        if option in ("audio", "reference_audio", "video"):
            probe(path)
        elif option in ("image", "image_at", "reference"):
            read_frames(path, 1)


def _chosen(mode: Mode, options: Options) -> str:
    """The mode by the options that chose it, for messages."""
    given = [option for option in mode.chosen_by if option in options]
    return flags(given, "and") if given else mode.name


def mode_table() -> str:
    """The modes for the help text."""
    rows = [(flags(mode.chosen_by) if mode.chosen_by else "(none of these)", mode) for mode in MODES]
    width = max(len(row) for row, _ in rows)
    lines = [f"  {row:<{width}}  {mode.name} ({mode.pipeline})" for row, mode in rows]
    return "\n".join([*lines, f"whatever is given, a checkpoint of LTX-Video is run by {LTX_VIDEO.pipeline}"])

"""What a long clip is to show: shots, pictures at their times, one sound; and the YAML file that says so."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import PIL.Image

from ... import checks
from ...declared import settle, shown
from ...guidance import GuidanceOptions
from ...media.files import exact_frame_rate
from ...media.frames import is_video_file
from ...pipelines.plan import DEFAULT_SIZE
from ...pipelines.recipes.extension.plan import ExtendArguments
from ...yaml_files import read_mapping

# Arguments of an extension that a storyboard says in its own way, or that belong to whoever makes it.
_OWN = (
    *("prompt", "negative_prompt", "video", "audio", "sampling_rate", "latents", "audio_latents", "num_segments"),
    *("direction", "drift_control", "overlap_frames", "save_path", "generate_audio", "height", "width", "num_frames"),
    *("frame_rate", "generator", "system_prompt", "enable_prompt_enhancement", "prompt_max_new_tokens"),
    *("prompt_enhancement_kwargs", "prompt_enhancement_seed", "output_type", "return_dict", "callback_on_step_end"),
    *("callback_on_step_end_tensor_inputs", "stages"),
)
SETTINGS = [one.name for one in fields(ExtendArguments) if one.init and one.name not in _OWN]
"""Arguments of [`LTX2ExtendPipeline`] that hold for every segment as they are."""
_NEAR = 0.6


@dataclass(frozen=True)
class Keyframe:
    """A picture that a shot shows.

    Args:
        image: Name of a picture's file, or the picture.
        at_s: When, in seconds from the start of the shot. Default 0.0.
        strength: 1 shows it exactly, 0 ignores it. Default 1.0.
        crf: H.264 quality of the round trip that the picture takes, 0 (none) to 51. Default the checkpoint's.
        mode: `"append"` shows it to the model beside the shot; `"replace"` writes it into the shot itself, where it stands
            for the eight frames of the latent frame that holds its time. Default `"auto"`: replace at the start of the clip,
            where it is a single frame, append elsewhere.
    """

    image: str | os.PathLike | PIL.Image.Image
    at_s: float = 0.0
    strength: float = 1.0
    crf: int | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Shot:
    """One shot of a storyboard.

    Args:
        prompt: What to see and hear; or a list with a text for each of the segments that the shot is made of.
        duration_s: Length in seconds. A shot ends with the latent frame that is nearest, so that it may be 4 frames longer
            or shorter; this does not add up.
        keyframes: Pictures that it shows.
        negative_prompt: Text to steer away from. Default the storyboard's.
        seed: Seed of its first segment, to which each further one adds 1. Default the storyboard's, to which every
            segment adds 1.
        adapters: LoRA strengths by adapter name that the shot adds to the active adapters, or changes; 0 takes one out.
    """

    prompt: str | list[str]
    duration_s: float
    keyframes: Sequence[Keyframe] = ()
    negative_prompt: str | None = None
    seed: int | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Storyboard:
    """A long clip, shot by shot.

    Args:
        shots: The shots, in the order of time.
        prompt: Idea of the whole, for the director.
        director: Whether a language model writes the prompt of every segment from the idea, the prompt of the shot and the
            prompt of the segment before, so that people, places and sounds stay the same; see [`PromptDirector`]. Default
            `False`: the prompts of the shots are taken as they are.
        director_tokens: Length of what it writes. Default 512 (600 with a dedicated `prompt_enhancer`).
        negative_prompt: Text to steer away from. Default the empty text.
        height, width: Size in pixels, multiples of 32, or of 64 in two stages. Default 512 and 768.
        num_frames: Most frames of a segment, those included that it takes over, 8 k + 1. Default 121, the length that the
            models were trained for.
        overlap_frames: Frames that a segment takes over from the one before, 8 k + 1. Default 25.
        frame_rate: Frames per second. Default 24.0.
        seed: Seed of the first segment; each further one adds 1. Default 10.
        drift_control: How far the colours and contrasts of later segments are moved to those of the first one, 0 (default,
            not at all) to 1.
        generate_audio: Whether the clip has sound. Default `True`.
        audio: File with the sound of the whole clip, which is kept; every segment is made for its part of it.
        audio_start_s: Where in that sound the clip begins, in seconds. Default 0.0.
        audio_fit: What happens to sound that is shorter than the clip: `"crop"` (default) is an error, `"pad"` adds silence.
        settings: Further arguments of [`LTX2ExtendPipeline`] for all segments, such as `num_inference_steps`,
            `guidance_scale` or `two_stage`. In a file they stand beside the others.
        model: What `ltx2 storyboard` loads: `checkpoint`, `text_encoder`, `upsampler`, `loras` by adapter name and
            `distilled_lora`. Who gives a pipeline has loaded it; for them this is a note.
    """

    shots: Sequence[Shot]
    prompt: str | None = None
    director: bool = False
    director_tokens: int | None = None
    negative_prompt: str | None = None
    height: int = DEFAULT_SIZE[0]
    width: int = DEFAULT_SIZE[1]
    num_frames: int = DEFAULT_SIZE[2]
    overlap_frames: int = 25
    frame_rate: float = 24.0
    seed: int = 10
    drift_control: float = 0.0
    generate_audio: bool = True
    audio: str | os.PathLike | None = None
    audio_start_s: float = 0.0
    audio_fit: str = "crop"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self)

    def check(self) -> None:
        """Find what is wrong with it whatever the checkpoint; nothing is loaded but the heads of its files.

        Raises:
            ValueError: Naming all that is wrong, a line each; shots and keyframes are counted from 1.
            FileNotFoundError: If a file is not there.
        """
        problems = Problems()
        problems.tried("", self._check_call)
        problems.tried("", exact_frame_rate, self.frame_rate)
        problems.tried("", checks.check_unit, drift_control=self.drift_control)
        problems.tried("", checks.check_seed, "seed", self.seed)
        problems.tried("", checks.check_choice, "audio_fit", self.audio_fit, ("crop", "pad"))
        problems.tried("", checks.check_from_zero, audio_start_s=self.audio_start_s)
        problems.tried("", self._check_unread)
        for place, shot in enumerate(self.shots, start=1):
            _check_shot(problems, f"shot {place}: ", shot)
        problems.raise_any()

    def call(self, **further: Any) -> ExtendArguments:
        """The call of an extension that the sizes, the settings and further arguments make.

        Raises:
            ValueError: If a setting is unknown or of another type.
        """
        if unknown := [name for name in self.settings if name not in SETTINGS]:
            own = [one.name for one in fields(self)]
            if unknown[0] in own:
                raise ValueError(f"`{unknown[0]}` belongs to the storyboard itself; move it there from its `settings`")
            raise ValueError(_unknown(unknown[0], [*SETTINGS, *own]))
        given = {name: getattr(self, name) for name in ("height", "width", "num_frames", "frame_rate")}
        given |= self.settings
        if isinstance(options := given.get("guidance_options"), Mapping):
            names = [one.name for one in fields(GuidanceOptions)]
            if wrong := [name for name in options if name not in names]:
                raise ValueError(f"guidance_options: {_unknown(wrong[0], names)}")
            given["guidance_options"] = GuidanceOptions(**options)
        call = ExtendArguments(**{"prompt": "", **given, **further})
        settle(call)
        return call

    def _check_call(self) -> None:
        self.call().check()

    def as_mapping(self) -> dict[str, Any]:
        """What a file would hold that says the same."""
        values = asdict(self)
        return {**values.pop("settings"), **values}

    def _check_unread(self) -> None:
        """What is given and would mean nothing."""
        if not self.shots:
            raise ValueError("`shots` is empty; give at least one shot with `prompt` and `duration_s`")
        if not self.director and (self.prompt is not None or self.director_tokens is not None):
            name = "prompt" if self.prompt is not None else "director_tokens"
            raise ValueError(
                f"`{name}` is {shown(getattr(self, name))}, which only the director reads; set `director: true`, or leave it out"
            )
        if self.director and not (self.prompt or "").strip():
            raise ValueError(
                f"`director` needs the idea of the whole as `prompt`, but that is {self.prompt!r}; give a text"
            )
        if self.director_tokens is not None:
            checks.check_at_least_one(director_tokens=self.director_tokens)
        if self.audio is None:
            if self.audio_start_s > 0:
                raise ValueError(
                    f"`audio_start_s` is {self.audio_start_s:g}, but there is no `audio`; give one, or leave it out"
                )
            return
        if not self.generate_audio:
            raise ValueError("`audio` is given, but `generate_audio` is False; leave one of them out")
        if not os.path.isfile(self.audio):
            raise ValueError(f"`audio`: there is no file {os.fspath(self.audio)!r}")


class Problems:
    """What is wrong with a storyboard, gathered so that all of it can be said at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tried(self, place: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """What a function returns; `None` if it finds something wrong, which is noted with its place."""
        try:
            return function(*given, **named)
        except (ValueError, OSError) as error:
            self.lines += [f"{place}{line}" for line in str(error).splitlines()]
            return None

    def raise_any(self) -> None:
        """Raise `ValueError` if there is anything."""
        if self.lines:
            raise ValueError("\n".join(dict.fromkeys(self.lines)))


def _check_shot(problems: Problems, place: str, shot: Shot) -> None:
    texts = [shot.prompt] if isinstance(shot.prompt, str) else shot.prompt
    if not texts or not all(text.strip() for text in texts):
        problems.lines.append(f"{place}`prompt` has to be a text, or a list with one per segment, but is {texts!r}")
    if not shot.duration_s > 0:
        problems.lines.append(f"{place}`duration_s` has to be greater than 0 but is {shot.duration_s}; use 1.0")
    if shot.seed is not None:
        problems.tried(place, checks.check_seed, "seed", shot.seed)
    for number, keyframe in enumerate(shot.keyframes, start=1):
        problems.tried(f"{place}keyframe {number}: ", _check_keyframe, keyframe, shot)


def _check_keyframe(keyframe: Keyframe, shot: Shot) -> None:
    checks.check_unit(strength=keyframe.strength)
    checks.check_choice("mode", keyframe.mode, ("auto", "append", "replace"))
    if not 0 <= keyframe.at_s <= shot.duration_s:
        nearest = min(max(keyframe.at_s, 0.0), shot.duration_s)
        raise ValueError(
            f"`at_s` {keyframe.at_s} lies outside the shot of {shot.duration_s:g} seconds; use {nearest:g}"
        )
    if isinstance(keyframe.image, PIL.Image.Image):
        return
    if not os.path.isfile(keyframe.image):
        raise ValueError(f"`image`: there is no file {os.fspath(keyframe.image)!r}")
    if is_video_file(keyframe.image):
        raise ValueError(f"`image` {os.fspath(keyframe.image)!r} is a clip; give a picture")


def read_storyboard(path: str | os.PathLike) -> Storyboard:
    """The storyboard in a YAML file, checked; names of files count from where it lies.

    The keys are the fields of [`Storyboard`], and beside them those of its `settings`; every shot is a mapping with the
    fields of [`Shot`], every keyframe one with those of [`Keyframe`].

    Args:
        path: The file.

    Raises:
        ValueError: Naming all that is wrong, a line each.
        FileNotFoundError: If there is no such file.
    """
    values = read_mapping(path, "storyboard", "keys such as `shots:`")
    board = parse_storyboard(values, Path(path).parent)
    board.check()
    return board


def parse_storyboard(values: Mapping[str, Any], folder: str | os.PathLike = ".") -> Storyboard:
    """The storyboard in a mapping, as files hold it.

    Args:
        values: The mapping.
        folder: Where names of files count from. Default the current folder.

    Raises:
        ValueError: Naming all that has a wrong name or type, a line each.
    """
    problems, given = Problems(), dict(values)
    settings = {name: given.pop(name) for name in SETTINGS if name in given}
    shots = given.pop("shots", ())
    if not isinstance(shots, Sequence) or isinstance(shots, str):
        problems.lines.append(f"`shots` has to be a list of shots but is {shown(shots)}")
        shots = ()
    read = [_shot(problems, f"shot {place}: ", shot, Path(folder)) for place, shot in enumerate(shots, start=1)]
    if isinstance(given.get("audio"), (str, os.PathLike)):
        given["audio"] = Path(folder) / given["audio"]
    named = {**given, "settings": settings, "shots": [shot for shot in read if shot is not None]}
    board = _record(problems, "", Storyboard, named, SETTINGS)
    problems.raise_any()
    return board


def _shot(problems: Problems, place: str, values: Any, folder: Path) -> Shot | None:
    if not isinstance(values, Mapping):
        return _record(problems, place, Shot, values)
    given = dict(values)
    keyframes = given.pop("keyframes", None) or ()
    if not isinstance(keyframes, Sequence) or isinstance(keyframes, str):
        problems.lines.append(f"{place}`keyframes` has to be a list of pictures but is {shown(keyframes)}")
        keyframes = ()
    read = []
    for number, keyframe in enumerate(keyframes, start=1):
        if isinstance(keyframe, Mapping) and isinstance(keyframe.get("image"), (str, os.PathLike)):
            keyframe = {**keyframe, "image": folder / keyframe["image"]}
        read.append(_record(problems, f"{place}keyframe {number}: ", Keyframe, keyframe))
    return _record(problems, place, Shot, {**given, "keyframes": [one for one in read if one is not None]})


def _record(problems: Problems, place: str, kind: Any, values: Any, also: Sequence[str] = ()) -> Any:
    """A dataclass of a mapping's values; `None` if something is wrong, which is noted."""
    own = {one.name: one for one in fields(kind)}
    if not isinstance(values, Mapping):
        problems.lines.append(f"{place}has to be a mapping with {', '.join(own)} but is {shown(values)}")
        return None
    unknown = [_unknown(str(name), [*own, *also]) for name in values if name not in own]
    required = [n for n, one in own.items() if one.default is MISSING and one.default_factory is MISSING]
    missing = [f"`{name}` is missing" for name in required if name not in values]
    problems.lines += [f"{place}{line}" for line in unknown + missing]
    # What is left empty has its default.
    given = {name: value for name, value in values.items() if value is not None or name in required}
    return None if unknown or missing else problems.tried(place, kind, **given)


def _unknown(name: str, known: Sequence[str]) -> str:
    meant = get_close_matches(name, known, n=1, cutoff=_NEAR)
    hint = f"did you mean `{meant[0]}`?" if meant else f"there are {', '.join(known)}"
    return f"unknown key `{name}`; {hint}"

"""The model card of a pipeline: its settings, and how it is used here and in diffusers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..guidance.guiders import MultiModalGuiderParams
from ..guidance.presets import DEFAULT_SIZE, Preset
from ..guidance.scales import SCALE_ARGUMENTS
from ..publishing.card import CLIP_TAGS, Card, Origin, table
from ..publishing.scripts import CALLS, PROMPT, Script, quoted
from .packaged import PACKAGED, PACKAGED_SIZE

FRAME_RATE = 24.0
MINIATURE_PROMPT = "a red circle bounces on a blue background"
# A scheduler of diffusers that uses given noise levels as they are.
_FIXED_LEVELS = (
    "pipe.scheduler = type(pipe.scheduler).from_config(",
    "    pipe.scheduler.config, use_dynamic_shifting=False, shift_terminal=None",
    ")",
)
_TEXT_ENCODER = "gemma-3-12b"


@dataclass(frozen=True)
class PipelineFacts:
    """What a card says of a pipeline.

    Args:
        pipeline: Name of its class.
        origin: What the weights come from.
        preset: Settings that its calls take by default; `None` for one that does not denoise.
        num_layers: Blocks of its transformer.
        extra: Arguments of its call that its components ask for, as they are written.
        has_text_encoder: Whether it reads texts itself.
    """

    pipeline: str
    origin: Origin = field(default_factory=Origin)
    preset: Preset | None = None
    num_layers: int = 48
    extra: Sequence[str] = ()
    has_text_encoder: bool = True


def pipeline_card(facts: PipelineFacts, name: str) -> Card:
    """The card of a folder or repository `name` that holds a pipeline."""
    call = CALLS[facts.pipeline]
    made = f", made from {facts.origin.shown}" if facts.origin.name else ""
    said = f"An LTX-2 pipeline for video with sound, saved as `{facts.pipeline}`{made}."
    if facts.preset is not None and not facts.has_text_encoder:
        said += f" It has no text encoder: `{_TEXT_ENCODER}` stands for the folder or Hub id of one."
    if "stage_2_adapters={}" in facts.extra:
        said += " Its second stage runs the same weights; a distilled LoRA, loaded as the adapter `distilled`, does better."
    settings = "" if facts.preset is None else _settings(facts.preset, facts.num_layers)
    sections = [said, _script(facts, name).section, settings]
    return Card(name.split("/")[-1], sections, facts.origin, (*CLIP_TAGS, *call.tags), pipeline_tag=call.task)


def _script(facts: PipelineFacts, name: str) -> Script:
    script = sized_script(facts.pipeline, quoted(name), facts.origin.name)
    script = replace(script, extra=facts.extra)
    if facts.preset is None:
        return script
    script = with_settings(script, facts.preset, facts.num_layers)
    if facts.has_text_encoder:
        return script
    return replace(
        script,
        before=[
            "from transformers import AutoModelForImageTextToText, AutoTokenizer",
            "",
            f'encoder = AutoModelForImageTextToText.from_pretrained("{_TEXT_ENCODER}", dtype=torch.bfloat16)',
            f'tokenizer = AutoTokenizer.from_pretrained("{_TEXT_ENCODER}")',
        ],
        loaded=["text_encoder=encoder", "tokenizer=tokenizer"],
    )


def sized_script(pipeline: str, source: str, base: str | None) -> Script:
    """A script with size and prompt that weights of this origin were made for."""
    is_packaged = base in PACKAGED
    height, width, num_frames = DEFAULT_SIZE
    size = PACKAGED_SIZE if is_packaged else {"width": width, "height": height, "num_frames": num_frames}
    prompt = MINIATURE_PROMPT if is_packaged else PROMPT
    # A miniature runs on CPUs, of which few compute in bfloat16.
    return Script(CALLS[pipeline], source, size, prompt, half=not is_packaged)


def with_settings(script: Script, preset: Preset, num_layers: int) -> Script:
    """A script whose call of diffusers runs as ours does by default."""
    given = _FIXED_LEVELS if preset.sigmas is not None else ()
    return replace(script, settings=_explicit(preset, num_layers), theirs_after=given)


def _explicit(preset: Preset, num_layers: int) -> dict[str, Any]:
    steps = {"num_inference_steps": preset.num_inference_steps}
    levels = {"sigmas": list(preset.sigmas)} if preset.sigmas is not None else {}
    streams = (("", preset.video), ("audio_", preset.audio))
    scales = {f"{prefix}{name}": value for prefix, scales in streams for name, value in _scales(scales).items()}
    blocks = {"spatio_temporal_guidance_blocks": preset.stg_blocks(num_layers)} if preset.video.stg_scale else {}
    return {**(levels or steps), **scales, **blocks, "use_cross_timestep": preset.cross_timestep == "gate"}


def _scales(scales: MultiModalGuiderParams) -> Mapping[str, float]:
    return {argument: getattr(scales, name) for name, argument in SCALE_ARGUMENTS.items()}


def _settings(preset: Preset, num_layers: int) -> str:
    """What a call takes that does not say otherwise."""
    height, width, num_frames = DEFAULT_SIZE
    video, audio = (" / ".join(f"{value:g}" for value in _scales(s).values()) for s in (preset.video, preset.audio))
    names = " / ".join(SCALE_ARGUMENTS.values())
    levels = ", ".join(f"{level:g}" for level in preset.sigmas or ())
    rows = [
        ("Version", f"LTX-{preset.version} {preset.kind}"),
        ("Steps", preset.num_inference_steps),
        *([("Noise levels", levels)] if levels else []),
        ("Sampler", preset.sampler),
        (f"Video: {names}", video),
        (f"Sound: {names}", audio),
        *([("STG blocks", preset.stg_blocks(num_layers))] if preset.video.stg_scale else []),
        ("Size", f"{width} x {height} pixels, {num_frames} frames, {FRAME_RATE:g} per second"),
    ]
    said = "What a call with ltx2-diffusers takes where it does not say otherwise:"
    return f"## Settings\n\n{said}\n\n{table(['Setting', 'Default'], rows)}"

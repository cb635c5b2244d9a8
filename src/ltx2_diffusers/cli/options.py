"""The options of `ltx2 generate`: one table from which come the parser, the call of a pipeline, manifest and messages."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import calls
from .fitting.plan import memory
from .loading import CHECKPOINT, DTYPES, QUANTIZATIONS
from .values import AppendPlaced, Options, flag, negative_prompt, stretch, weighted_file, weighted_lora

# How a text is read, by what stands for it in the help; others are taken as they are. An input file is a `Path`, by
# which checks and manifests know it.
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("N", "PIXELS", "TOKENS", "CRF", "BLOCK"), int),
    **dict.fromkeys(("SCALE", "SHARE", "NORM", "SECONDS", "FPS", "SPEED", "SIGMA", "T"), float),
    **dict.fromkeys(("FILE", "MASK", "PATH"), Path),
    "FILE[:STRENGTH]": weighted_file,
    "FILE[:WEIGHT]": weighted_lora,
    "FROM:TO": stretch,
}


@dataclass(frozen=True)
class Option:
    """One option of `ltx2 generate`.

    None has a default in the parser, so that what was given can be told from what was not.

    Args:
        name: Its name in manifests; it is typed with dashes.
        value: What stands for its value in the help and says how it is read, or words to choose from; `None` for a switch.
        argument: Argument of a pipeline's call that takes its value, if one does as it is.
        help: What it does.
        gives: What the argument takes of a switch.
        becomes: Makes arguments of a call from all options, where one value is not one argument.
        called: Further names that it has in messages of pipelines.
        parts: Names that messages of pipelines have for a part of its value.
        needs: Options one of which has to be given with it.
        excludes: Options that contradict it, beyond what a pipeline does not take.
        default: Value that it has in calls and manifests if none was given, where a call takes it.
        record: How it stands in a manifest: as its `"value"`; as `"place"`, the whole path of what is no input; as
            `"checkpoint"`, the same with the identity of what lies there; or as `"nothing"`, without influence on results.
        short: Its short form.
        parsing: Further settings of its parser.
    """

    name: str
    value: str | tuple[str, ...] | None = None
    argument: str | None = None
    help: str = field(kw_only=True)
    gives: Any = True
    becomes: calls.Becomes | None = None
    called: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    default: Any = None
    record: str = "value"
    short: tuple[str, ...] = ()
    parsing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reader(self) -> Callable[[str], Any]:
        """How a text of one value is read."""
        return _READERS.get(str(self.value), str)

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        return self.parsing.get("action") == "append" or "nargs" in self.parsing

    def add_to(self, group: Any) -> None:
        """Add it to a group of a parser."""
        settings: dict[str, Any] = {"metavar": self.value, "type": self.reader}
        if self.value is None:
            settings = {"action": "store_true", "default": None}
        elif isinstance(self.value, tuple):
            settings = {"choices": self.value}
        group.add_argument(*self.short, flag(self.name), help=self.help, **{**settings, **self.parsing})

    def arguments(self, options: Options, takes: Collection[str]) -> calls.Arguments:
        """What it contributes to a call whose arguments are `takes`."""
        if self.becomes is not None:
            return self.becomes(options, takes)
        if self.argument is None:
            return {}
        return {self.argument: self.gives if self.value is None else options[self.name]}

    @property
    def names(self) -> set[str]:
        """Its names in messages of pipelines."""
        return {self.name, self.argument or self.name, *self.called, *self.parts}


def _same(name: str, value: str | tuple[str, ...], **rest: Any) -> Option:
    """An option whose value is the argument of the same name."""
    return Option(name, value, name, **rest)


_guided = partial(Option, becomes=calls.guidance)
_REPEATED = {"action": "append"}
_SEVERAL = {"nargs": "+"}
_STRENGTH = ("strength", "strengths")

_GUIDANCE = "guidance (default: the reference values of the checkpoint)"
# fmt: off
_GROUPS: dict[str, tuple[Option, ...]] = {
    "text": (
        Option("prompt", "TEXT", becomes=calls.prompts, parsing={**_REPEATED, "required": True},
            help="what to see and hear; repeat it for several clips, or for the parts of --extend"),
        _same("negative_prompt", "TEXT", parsing={"type": negative_prompt},
            help="what to stay away from; 'recommended' stands for a text against common faults"),
        Option("enhance_prompt", None, "enable_prompt_enhancement", excludes=("no_text_encoder",),
            help="have the language model write out the prompt first"),
        _same("system_prompt", "TEXT", needs=("enhance_prompt",), help="your instructions for --enhance-prompt"),
        Option("enhance_tokens", "N", "prompt_max_new_tokens", needs=("enhance_prompt",),
            help="of --enhance-prompt: longest text; default 512"),
        Option("prompt_cache", "DIR", record="place",
            help="keep encoded prompts in this folder, and take them from there"),
        Option("release_text_encoder", excludes=("no_text_encoder", "vram"),
            help="load the language model only to read prompts that are not in --prompt-cache"),
        Option("no_text_encoder", needs=("prompt_cache",),
            help="do without the language model; every prompt has to be in --prompt-cache"),
        _same("max_sequence_length", "TOKENS", help="longer prompts are cut; default 1024"),
    ),
    "pictures, clips and sound to follow": (
        Option("image", "FILE", becomes=calls.pictures, help="the first frame"),
        Option("image_at", "", becomes=calls.pictures, called=("images", "frame", "frame_indices", "frame_index"), parts=_STRENGTH,
            parsing={"nargs": 2, "action": AppendPlaced, "metavar": ("N", "FILE[:STRENGTH]")},
            help="a picture or clip at frame N, negative from the end, shown with a strength from 0 to 1; repeatable"),
        Option("image_crf", "CRF", called=("crf",), needs=("image", "image_at"),
            help="H.264 quality that pictures are given; 0 for none"),
        Option("reference", "FILE[:STRENGTH]", becomes=calls.references, parts=_STRENGTH, parsing=_REPEATED,
            help="a clip that an IC-LoRA (see --lora) translates; repeatable"),
        Option("frame_by_frame", needs=("image_at", "reference"), excludes=("interpolate",),
            help="take every frame of the clips of --image-at and --reference, at another speed if their rate is another; by "
            "default frames are left out or repeated by their times"),
        Option("reference_audio", "FILE[:STRENGTH]", becomes=calls.references, parts=_STRENGTH, parsing=_REPEATED,
            help="a sound, such as a voice, that a LoRA follows; repeatable"),
        _same("audio", "FILE", help="the sound of the clip"),
        _same("audio_fit", ("crop", "pad", "stretch"), needs=("audio",),
            help="what happens to sound shorter than the clip: crop (default) is an error, pad adds silence, stretch changes "
            "the tempo"),
        Option("audio_start", "SECONDS", "audio_start_s", needs=("audio",), help="where in --audio the clip begins"),
        _same("audio_cond_noise_scale", "SCALE", needs=("audio",),
            help="0 (default) keeps the sound exactly, more makes a new one after it, 1 ignores it"),
    ),
    "working on a clip": (
        Option("video", "FILE", becomes=calls.source, called=("media_items",), needs=("retake", "extend", "add_sound", "denoise_strength"),
            help="the clip to work on"),
        _same("denoise_strength", "SHARE", needs=("video",),
            help="with LTX-Video: how far the result goes from --video, 0 to 1"),
        Option("retake", "FROM:TO", becomes=calls.retake, called=("start_s", "end_s"), needs=("video",),
            help="make these seconds of --video anew"),
        Option("region", "MASK", becomes=calls.region, needs=("retake",),
            help="of --retake: where, a picture that is white there"),
        Option("keep_video", becomes=calls.sound_alone, called=("regenerate_video",), needs=("retake",),
            excludes=("keep_audio", "region"), help="of --retake: leave the pictures alone"),
        Option("keep_audio", None, "regenerate_audio", gives=False, needs=("retake",),
            help="of --retake: leave the sound alone"),
        Option("extend", "SECONDS", becomes=calls.segments, called=("num_segments",),
            help="make --video so much longer, part by part, or make a clip of this length from nothing; rounded up to parts "
            "of 8 frames"),
        Option("backwards", None, "direction", gives="backward", needs=("extend",),
            help="of --extend: at the start of the clip"),
        Option("overlap", "N", "overlap_frames", needs=("extend",),
            help="of --extend: frames that parts share; default 25"),
        _same("drift_control", "SHARE", needs=("extend",), help="of --extend: hold the colours to the start, 0 to 1"),
        Option("add_sound", needs=("video",), help="make the sound of --video"),
    ),
    "recipe": (
        Option("two_stage", becomes=calls.scales, called=("multi_scale",),
            help="start at half the size with guidance, then refine at full size; with LTX-Video at two thirds"),
        Option("distilled", help="a distilled checkpoint's 8 + 3 steps without guidance, in two stages"),
        Option("one_stage", becomes=calls.scales, called=("multi_scale",), needs=("distilled", "checkpoint"),
            excludes=("two_stage", "stage_2_sigmas"), help="of --distilled, and of LTX-Video: at full size at once"),
        Option("interpolate", needs=("image", "image_at"),
            help="move between the pictures of --image and --image-at, which guide without pinning"),
        Option("hdr", ("pq", "hlg"), needs=("reference",), excludes=("reference_audio", "auto_length"),
            help="give --reference a high dynamic range, with the IC-LoRA for it (see --lora): 10-bit HEVC in PQ or HLG"),
        Option("no_audio", None, "generate_audio", gives=False, help="make a silent clip"),
        Option("audio_only", help="make sound alone, a .wav file"),
    ),
    "size (default with --video: the clip's)": (
        _same("width", "PIXELS", help="a multiple of 32, of 64 in two stages; any with LTX-Video; default 768"),
        _same("height", "PIXELS", help="the same; default 512"),
        _same("num_frames", "N", help="8 k + 1, any with LTX-Video; of --extend: those of a part; default 121"),
        Option("auto_length", becomes=calls.predicted_length, excludes=("num_frames", "audio", "extend"),
            help="as long as the checkpoint predicts for the prompt, which those of LTX-2.5 do"),
        Option("min_seconds", "SECONDS", becomes=calls.predicted_length, needs=("auto_length",), help="of --auto-length: shortest clip; default 1"),
        Option("max_seconds", "SECONDS", becomes=calls.predicted_length, needs=("auto_length",), help="of --auto-length: longest clip; default 20"),
        _same("frame_rate", "FPS", help="23.976 and the like are exact; clips of another rate are brought to it by the times of their frames; default 24; "
            "miniatures: see below"),
        Option("duration", "SECONDS", "duration_s", needs=("audio_only",), default=5.0, help="of --audio-only; default 5"),
        _same("motion_speed", "SPEED", help="how fast things move, against real time; default 1"),
        Option("num_videos", "N", "num_videos_per_prompt", help="clips per prompt; default 1"),
    ),
    "sampling (default: the reference values of the checkpoint)": (
        Option("seed", "N", default=10, help="equal seeds give equal clips; default 10"),
        Option("steps", "N", "num_inference_steps", excludes=("sigmas",), help="denoising steps"),
        _same("sigmas", "SIGMA", parsing=_SEVERAL, help="noise levels instead of --steps"),
        _same("stage_2_sigmas", "SIGMA", called=("sigmas",), needs=("two_stage", "distilled"), parsing=_SEVERAL,
            help="noise levels of the refining stage"),
        _same("sampler", "NAME", help="default the checkpoint's; euler, gradient_estimating, euler_ancestral, euler_cfg_pp or res_2s"),
        _same("decode_timestep", "T", help="of video VAEs that take one; default 0"),
        _same("decode_noise_scale", "SCALE", help="default that of --decode-timestep"),
        _same("decoder", ("vae", "diffusion"),
            help="what makes frames of latents: the video VAE (default), or the diffusion decoder of LTX-2.5"),
    ),
    _GUIDANCE: (
        _same("guidance_scale", "SCALE", help="classifier-free guidance of the video, off at 1"),
        _same("stg_scale", "SCALE", help="spatio-temporal guidance of the video, off at 0"),
        _same("modality_scale", "SCALE", help="modality guidance of the video, off at 1"),
        _same("guidance_rescale", "SHARE", called=("rescale_scale",), help="rescaling of the guided video, 0 to 1"),
        _same("audio_guidance_scale", "SCALE", help="classifier-free guidance of the sound, off at 1"),
        _same("audio_stg_scale", "SCALE", help="spatio-temporal guidance of the sound, off at 0"),
        _same("audio_modality_scale", "SCALE", help="modality guidance of the sound, off at 1"),
        _same("audio_guidance_rescale", "SHARE", called=("rescale_scale",), help="rescaling of the guided sound, 0 to 1"),
        Option("stg_blocks", "BLOCK", "spatio_temporal_guidance_blocks", parsing=_SEVERAL,
            help="blocks that spatio-temporal guidance perturbs"),
        _guided("skip_step", "N", help="steps after each guided one that reuse the video's result"),
        _guided("audio_skip_step", "N", help="the same for the sound"),
        _guided("guidance_interval", "SIGMA", parsing={"nargs": 2, "metavar": ("LOW", "HIGH")},
            help="guide between two noise levels alone, such as 0.2 0.8, and make one forward a step elsewhere"),
        _guided("cfg_method", ("cfg", "cfg_star", "apg", "apg_momentum"),
            help="formula of classifier-free guidance: plain (default), rescaled, or projected without and with momentum"),
        _guided("apg_eta", "SHARE", needs=("cfg_method",),
            help="of apg: share along the prediction that is kept; default 0"),
        _guided("apg_norm_threshold", "NORM", needs=("cfg_method",), help="of apg: longest guidance; default 0, any"),
        _guided("apg_momentum", "SHARE", needs=("cfg_method",), help="of apg_momentum: share of earlier guidance"),
        _guided("nag_scale", "SCALE", needs=("negative_prompt",),
            help="have --negative-prompt act within the attention to the text, at no more forwards; off at 1"),
        _guided("nag_tau", "NORM", needs=("nag_scale",), help="of --nag-scale: longest guided values; default 2.5"),
        _guided("nag_alpha", "SHARE", needs=("nag_scale",),
            help="of --nag-scale: share of the guided values; default 0.25"),
    ),
    # Besides the result, a manifest is written: FILE.json, for `ltx2 replay`. Files that are written are no `Path`.
    "output": (
        Option("output", "FILE", short=("-o",), record="nothing", parsing={"required": True, "type": str},
            help="file to write, .mp4, .mov or (--audio-only) .wav; FILE.json beside it says how it was made; several clips "
            "are numbered"),
        Option("preview", "FILE", record="nothing", parsing={"nargs": "?", "const": "", "type": str},
            help="keep a contact sheet of what is being made, a .png or .jpg file; default beside the output"),
        Option("preview_every", "N", needs=("preview",), default=5, record="nothing",
            help="steps from one --preview to the next; default 5"),
    ),
    "checkpoint and LoRA": (
        Option("checkpoint", "NAME", default=CHECKPOINT, record="checkpoint", called=("pretrained_model_name_or_path",),
            help="folder or Hub id in diffusers layout, an original .safetensors file, or a packaged name: ltx2-mini (the "
            "default) or ltx-video-tiny"),
        Option("text_encoder", "NAME", excludes=("no_text_encoder",), record="checkpoint",
            help="folder or Hub id of Gemma, or of T5 for LTX-Video; needed with an original file"),
        Option("upsampler", "PATH", needs=("two_stage", "distilled", "checkpoint"),
            help="file or folder of the upsampler, if --checkpoint has none"),
        Option("diffusion_decoder", "PATH", needs=("decoder",),
            help="file or folder of the decoder of --decoder diffusion, if --checkpoint has none"),
        Option("lora", "FILE[:WEIGHT]", parsing=_REPEATED,
            help="a LoRA to apply, with a strength, or one per part such as video=1,audio=0.5 (the others are cross_modal and "
            "connectors); repeatable"),
        Option("fuse_lora", needs=("lora",), excludes=("reference",),
            help="make --lora part of the weights once they are loaded, so that it costs neither memory nor time"),
        Option("distilled_lora", "FILE[:WEIGHT]", becomes=calls.refining_lora, called=("stage_2_adapters",),
            needs=("two_stage", "distilled"), excludes=("refine_with_same_weights",),
            help="the LoRA with which a dev checkpoint refines (--two-stage) or runs throughout (--distilled)"),
        Option("refine_with_same_weights", None, "stage_2_adapters", gives={}, needs=("two_stage",),
            help="refine without --distilled-lora, as the packaged miniature does"),
        Option("device", "NAME", help="cpu, cuda, cuda:1, mps; default the best present"),
        Option("parallel", ("tokens", "passes"), record="nothing",
            help="started by torchrun -m ltx2_diffusers, what the processes share: the video's tokens (default), or the passes of guidance"),
        Option("dtype", DTYPES, help="default bfloat16 on a GPU, float32 on a CPU"),
        Option("quantize", QUANTIZATIONS, called=("quantization_config",),
            help="store the transformer's layers in float8, in half the memory: fp8-cast computes as before, fp8-scaled-mm multiplies in "
            "float8; both cost exactness"),
        Option("calibration", "FILE", called=("calibration_amax_path",), needs=("quantize",),
            help="of --quantize fp8-scaled-mm: scales of inputs, a file of `ltx2 calibrate`"),
        Option("step_cache", "SCALE", called=("threshold",), excludes=("vram",),
            help="reuse most of a step where the first block changes by less than this share since the last full one, such as 0.1; the "
            "result is another one; FILE.json tells the share of steps"),
        Option("offload", ("none", "model", "sequential", "blocks", "disk"), default="none",
            help="keep components on the CPU until they run, or blocks of the large ones there or in their files"),
        Option("vram", "GB", called=("vram_gb",), excludes=("offload", "tiling"), parsing={"type": memory},
            help="load so that the generation keeps within so much memory of the device, as `ltx2 plan` shows; auto reads the card, and "
            "takes the host's on a CPU and on Apple's processors"),
        Option("ram", "GB", called=("ram_gb",), needs=("vram",), parsing={"type": memory}, help="of --vram: host memory; default auto, what is free"),
        Option("allow_lossy", needs=("vram",), help="of --vram: float8 and tiles may be chosen where they help, which changes the result"),
        Option("tiling", help="decode large pictures in tiles, to save memory"),
        Option("compile", help="compile the networks at the first clip, which takes minutes once and makes the steps faster; results "
            "differ by rounding"),
    ),
}
# fmt: on
_NOTES = {
    _GUIDANCE: "--guidance-scale 1 alone switches all guidance off. Where only sound is made, the options without 'audio' "
    "belong to it."
}
OPTIONS = {option.name: option for options in _GROUPS.values() for option in options}


def add_options(parser: Any) -> None:
    """Add all options of a generation, in groups."""
    for title, options in _GROUPS.items():
        group = parser.add_argument_group(title, _NOTES.get(title))
        for option in options:
            option.add_to(group)

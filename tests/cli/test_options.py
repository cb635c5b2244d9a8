"""The table of options: it fits the pipelines, and a wrong value of any option is reported under the option's name."""

import os
import re
from pathlib import Path

import pytest

from ltx2_diffusers.cli.messages import in_options
from ltx2_diffusers.cli.modes import LTX_VIDEO, MODES
from ltx2_diffusers.cli.options import _READERS, OPTIONS
from ltx2_diffusers.cli.values import flag
from tests.cli.running import SMALL, STAGED, complaint, generate, located

# Option -> options with a wrong value of it, and what is said about that.
WRONG = {
    "prompt": (["--prompt"], "argument --prompt: expected one argument"),
    "negative_prompt": (["--distilled", "--negative-prompt", "hum", *STAGED], "--negative-prompt is given, but"),
    "enhance_prompt": (
        ["--enhance-prompt", "--prompt-cache", "cache", "--no-text-encoder"],
        "--enhance-prompt and --no-text-encoder contradict each other",
    ),
    "system_prompt": (["--system-prompt", "Be brief."], "--system-prompt needs --enhance-prompt"),
    "enhance_tokens": (["--enhance-prompt", "--enhance-tokens", "0", *SMALL], "--enhance-tokens has to be a whole"),
    "prompt_cache": (["--prompt-cache", "RED.PNG", *SMALL], "--prompt-cache: a prompt cache needs a folder"),
    "step_cache": (["--step-cache", "0", *SMALL], "--step-cache has to be more than 0 and finite but is 0.0; use 0.1"),
    "parallel": (["--parallel", "passes", *SMALL], "--parallel shares a generation among processes, and there is one"),
    "guidance_interval": (
        ["--guidance-interval", "0.8", "0.2", *SMALL],
        "--guidance-interval has to be two rising noise levels in [0, 1] but is [0.8, 0.2]; use (0.2, 0.8)",
    ),
    "vram": (["--vram", "0", *SMALL], "--vram has to be greater than 0 but is 0.0"),
    "ram": (["--ram", "4"], "--ram needs --vram"),
    "allow_lossy": (["--allow-lossy"], "--allow-lossy needs --vram"),
    "release_text_encoder": (
        ["--release-text-encoder", "--prompt-cache", "cache", "--no-text-encoder"],
        "--release-text-encoder and --no-text-encoder contradict each other",
    ),
    "no_text_encoder": (["--no-text-encoder"], "--no-text-encoder needs --prompt-cache"),
    "max_sequence_length": (["--max-sequence-length", "0", *SMALL], "--max-sequence-length has to be a whole number"),
    "image": (["--image", "TONE.WAV", *SMALL], "--image: '"),
    "image_at": (["--image-at", "9", "RED.PNG", *SMALL], "--image-at 9 lies outside the clip"),
    "image_crf": (["--image-at", "0", "RED.PNG", "--image-crf", "99", *SMALL], "--image-crf has to be between 0"),
    "reference": (["--reference", "CLIP.MP4:3", *SMALL], "the strength of --reference has to be between 0 and 1"),
    "frame_by_frame": (["--image", "RED.PNG", "--frame-by-frame"], "--frame-by-frame needs --image-at or --reference"),
    "reference_audio": (
        ["--reference-audio", "TONE.WAV:3", *SMALL],
        "the strength of --reference-audio has to be between 0 and 1",
    ),
    "audio": (["--audio", "SILENT.MP4", *SMALL], "--audio: '"),
    "audio_fit": (["--audio", "TONE.WAV", "--audio-fit", "squeeze"], "argument --audio-fit: invalid choice"),
    "audio_start": (["--audio", "TONE.WAV", "--audio-start", "-1", *SMALL], "--audio-start has to be at least 0"),
    "audio_cond_noise_scale": (
        ["--audio", "TONE.WAV", "--audio-cond-noise-scale", "2", *SMALL],
        "--audio-cond-noise-scale has to be between 0 and 1",
    ),
    "video": (["--video", "none.mp4", "--add-sound"], "--video: there is no file 'none.mp4'"),
    "retake": (["--video", "CLIP.MP4", "--retake", "5:6"], "--retake 5.0 lies behind the end of the clip"),
    "region": (["--video", "CLIP.MP4", "--retake", "0:0.5", "--region", "RED.PNG"], "--region is empty during"),
    "keep_video": (
        ["--video", "SILENT.MP4", "--retake", "0:0.5", "--keep-video"],
        "--keep-video leaves nothing to be made anew",
    ),
    "keep_audio": (["--keep-audio"], "--keep-audio needs --retake"),
    "extend": (["--extend", "0"], "--extend has to be more than 0 seconds but is 0.0"),
    "backwards": (["--backwards"], "--backwards needs --extend"),
    "overlap": (["--extend", "1", "--overlap", "10", *SMALL[:4]], "--overlap has to be 8 k + 1"),
    "drift_control": (["--extend", "1", "--drift-control", "2", *SMALL[:4]], "--drift-control has to be between 0"),
    "add_sound": (["--add-sound"], "--add-sound needs --video"),
    "hdr": (["--hdr", "pq"], "--hdr needs --reference"),
    "two_stage": (["--distilled", "--one-stage", "--two-stage"], "--one-stage and --two-stage contradict each other"),
    "distilled": (["--distilled", "--retake", "0:1", "--video", "CLIP.MP4"], "--distilled means nothing for --retake"),
    "one_stage": (["--one-stage"], "--one-stage needs --distilled"),
    "interpolate": (["--interpolate"], "--interpolate needs --image or --image-at"),
    "no_audio": (
        ["--video", "CLIP.MP4", "--extend", "0.5", "--overlap", "9", "--no-audio"],
        "--no-audio is given, but the clip has sound to go on from",
    ),
    "audio_only": (["--audio-only"], "--output of --audio-only is written as .wav"),
    "width": (["--width", "50"], "--width has to be divisible by 32 but is 50"),
    "height": (["--height", "50"], "--height has to be divisible by 32 but is 50"),
    "num_frames": (["--num-frames", "10"], "--num-frames has to be 8 * k + 1 but is 10"),
    "auto_length": (["--auto-length", *SMALL], "--auto-length and --num-frames contradict each other"),
    "min_seconds": (
        ["--auto-length", "--min-seconds", "30"],
        "--min-seconds has to be less than --max-seconds 20 but is 30",
    ),
    "max_seconds": (["--max-seconds", "3"], "--max-seconds needs --auto-length"),
    "frame_rate": (["--extend", "1", "--frame-rate", "0"], "--frame-rate has to be greater than 0 but is 0.0"),
    "duration": (["--duration", "1"], "--duration needs --audio-only"),
    "motion_speed": (["--motion-speed", "0", *SMALL], "--motion-speed has to be greater than 0"),
    "num_videos": (["--num-videos", "0", *SMALL], "--num-videos has to be a whole number of at least 1"),
    "seed": (["--seed", "later"], "argument --seed: invalid int value"),
    "steps": (["--steps", "0", *SMALL], "--steps has to be a whole number of at least 1 but is 0"),
    "sigmas": (["--sigmas", "0.5", "0.7", *SMALL], "--sigmas must fall strictly, got 0.5 then 0.7"),
    "stage_2_sigmas": (["--two-stage", "--stage-2-sigmas", "7", *STAGED], "--stage-2-sigmas must lie in (0, 1]"),
    "sampler": (["--sampler", "eulr", *SMALL], "--sampler must be one of euler"),
    "decode_timestep": (["--decode-timestep", "soon"], "argument --decode-timestep: invalid float value"),
    "decode_noise_scale": (["--decode-noise-scale", "much"], "argument --decode-noise-scale: invalid float value"),
    "guidance_scale": (["--distilled", "--guidance-scale", "3"], "--guidance-scale means nothing for --distilled"),
    "stg_scale": (["--distilled", "--stg-scale", "1"], "--stg-scale means nothing for --distilled"),
    "modality_scale": (["--distilled", "--modality-scale", "3"], "--modality-scale means nothing for --distilled"),
    "guidance_rescale": (
        ["--guidance-rescale", "7", *SMALL],
        "--guidance-rescale has to be between 0 and 1 but is 7.0",
    ),
    "audio_guidance_scale": (
        ["--distilled", "--audio-guidance-scale", "3"],
        "--audio-guidance-scale means nothing for --distilled",
    ),
    "audio_stg_scale": (["--distilled", "--audio-stg-scale", "1"], "--audio-stg-scale means nothing for --distilled"),
    "audio_modality_scale": (
        ["--distilled", "--audio-modality-scale", "3"],
        "--audio-modality-scale means nothing for --distilled",
    ),
    "audio_guidance_rescale": (
        ["--audio-guidance-rescale", "7", *SMALL],
        "--audio-guidance-rescale has to be between 0 and 1 but is 7.0",
    ),
    "stg_blocks": (
        ["--stg-blocks", "99", *SMALL],
        "--stg-blocks contains [99], but the transformer has blocks 0 to 1",
    ),
    "skip_step": (["--skip-step", "-1"], "--skip-step has to be a whole number of at least 0"),
    "audio_skip_step": (["--audio-skip-step", "-1"], "--audio-skip-step has to be a whole number of at least 0"),
    "cfg_method": (["--cfg-method", "apg", "--guidance-scale", "1", *SMALL], "--cfg-method is 'apg', but"),
    "apg_eta": (["--cfg-method", "cfg", "--apg-eta", "1"], "--cfg-method cfg does not read ['--apg-eta']"),
    "apg_norm_threshold": (
        ["--cfg-method", "apg", "--apg-norm-threshold", "-1"],
        "--apg-norm-threshold has to be at least 0",
    ),
    "apg_momentum": (
        ["--cfg-method", "apg_momentum", "--apg-momentum", "0"],
        "--apg-momentum is 0.0, which is --cfg-method apg; use that",
    ),
    "nag_scale": (["--negative-prompt", "hum", "--nag-scale", "0.5"], "--nag-scale is 0.5, which is out of range"),
    "nag_tau": (
        ["--negative-prompt", "hum", "--nag-scale", "5", "--nag-tau", "0"],
        "--nag-tau is 0.0, which is out of range",
    ),
    "nag_alpha": (
        ["--negative-prompt", "hum", "--nag-scale", "5", "--nag-alpha", "2"],
        "--nag-alpha is 2.0, which is out of range",
    ),
    "denoise_strength": (["--denoise-strength", "0.5"], "--denoise-strength needs --video"),
    "output": (["--output", "clip.gif"], "--output is written as .mp4 or .mov"),
    "preview": (["--preview", "sheet.gif"], "--preview is written as .png"),
    "preview_every": (["--preview", "--preview-every", "0"], "--preview-every has to be at least 1"),
    "checkpoint": (["--checkpoint", "/nowhere/at/all"], "--checkpoint '/nowhere/at/all': there is no such folder"),
    "text_encoder": (["--text-encoder", "gemma"], "--text-encoder belongs to original files"),
    "upsampler": (["--two-stage", "--upsampler", "none.sft"], "--upsampler: there is no file 'none.sft'"),
    "decoder": (
        ["--decoder", "diffusion", *SMALL],
        '--decoder is "diffusion", but this pipeline has no --diffusion-decoder',
    ),
    "diffusion_decoder": (["--diffusion-decoder", "RED.PNG"], "--diffusion-decoder needs --decoder"),
    "lora": (["--lora", "RED.PNG:0.5"], "--lora: '"),
    "fuse_lora": (["--fuse-lora"], "--fuse-lora needs --lora"),
    "distilled_lora": (["--distilled-lora", "STRONG.SAFETENSORS"], "--distilled-lora needs --two-stage"),
    "refine_with_same_weights": (["--refine-with-same-weights"], "--refine-with-same-weights needs --two-stage"),
    "device": (["--device", "abacus"], "--device abacus cannot be used"),
    "dtype": (["--dtype", "int8"], "argument --dtype: invalid choice"),
    "quantize": (["--quantize", "fp8"], "argument --quantize: invalid choice"),
    "calibration": (["--calibration", "RED.PNG"], "--calibration needs --quantize"),
    "offload": (["--offload", "some"], "argument --offload: invalid choice"),
    "tiling": (["--tiling=no"], "argument --tiling: ignored explicit argument"),
    "compile": (["--compile=no"], "argument --compile: ignored explicit argument"),
}
# Names that only Python has.
ARGUMENTS = {name for option in OPTIONS.values() for name in option.names if "_" in name}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.quick_cases(29)
def test_a_wrong_value_is_reported_under_the_name_that_was_typed(tmp_path, media, capsys, name):
    options, message = WRONG[name]
    device = [] if name == "device" else ["--device", "cpu"]
    try:
        status = generate(tmp_path / "out.mp4", *located(options, media), *device)
        line = complaint(capsys)
    except SystemExit as error:
        status, line = error.code, complaint(capsys).removeprefix("error: ")
    assert status == 2
    assert message in line
    assert flag(name) in message
    assert "`" not in line
    assert not ARGUMENTS & set(re.findall(r"(?<!')\b\w+\b", line))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if _READERS.get(str(o.value)) in (int, float)])
def test_an_option_whose_help_shows_a_number_takes_no_word(capsys, tmp_path, name):
    with pytest.raises(SystemExit, match="2"):
        generate(tmp_path / "out.mp4", flag(name), *["word"] * (2 if OPTIONS[name].parsing.get("nargs") == 2 else 1))
    assert f"argument {flag(name)}: invalid {_READERS[OPTIONS[name].value].__name__} value: 'word'" in complaint(
        capsys
    )


def test_the_table_knows_its_options_and_the_pipelines_their_arguments():
    related = [name for option in OPTIONS.values() for name in (*option.needs, *option.excludes)]
    assert {*related, *(name for mode in MODES for name in mode.chosen_by)} <= OPTIONS.keys()
    arguments = {option.argument for option in OPTIONS.values()} - {None}
    assert arguments <= {name for mode in (*MODES, LTX_VIDEO) for name in mode.takes}


@pytest.mark.parametrize(
    ("message", "given", "typed"),
    [
        ("`num_frames` and `width` are odd", (), "--num-frames and --width are odd"),
        ("`latents` of a width of num_frames=9", (), "`latents` of a width of --num-frames 9"),
        ('use audio_fit="pad" or "stretch"', (), 'use --audio-fit pad or "stretch"'),
        ("sigmas must fall, the sigmas of it", ("sigmas",), "--sigmas must fall, the sigmas of it"),
        ("sigmas must fall", ("stage_2_sigmas",), "--stage-2-sigmas must fall"),
        ("sigmas must fall", (), "--sigmas or --stage-2-sigmas must fall"),
        ("`strength` is 2", ("image_at", "reference"), "the strength of --image-at or --reference is 2"),
        ("leave generate_audio=False out", (), "leave --no-audio out"),
        ("`generate_audio` is False", ("no_audio",), "--no-audio is given"),
        ("pass stage_2_adapters={}", ("distilled_lora",), "pass --refine-with-same-weights"),
        ("guidance_options=GuidanceOptions(nag_scale=5.0)", (), "--nag-scale 5.0"),
        ("'my num_frames.mp4' and clips/num_frames/a.mp4 are bad, num_frames.sft too", (), None),
        ("this model's `width` isn't 'num_frames'", (), "this model's --width isn't 'num_frames'"),
    ],
)
def test_names_in_messages_become_those_of_options(message, given, typed):
    assert in_options(message, dict.fromkeys(given)) == (message if typed is None else typed)


def test_a_message_about_a_file_begins_with_the_option_that_names_it():
    given = {"output": "a.mp4", "lora": [[Path("a.sft"), 1.0], [Path("b.sft"), 0.5]], "image": Path("b.sft")}
    assert in_options("'b.sft' is damaged", given) == "--lora: 'b.sft' is damaged"
    whole = repr(os.path.abspath("b.sft"))
    assert in_options(f"{whole} is damaged", given) == f"--lora: {whole} is damaged"
    assert in_options("'c.sft' is damaged", given) == "'c.sft' is damaged"
    assert in_options("`width` is odd in 'b.sft'", given) == "--width is odd in 'b.sft'"

"""`ltx2 generate` in every mode: the options choose the pipeline, and what contradicts them is said."""

import re

import numpy as np
import pytest

from ltx2_diffusers.cli.calls import call_arguments
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.cli.modes import CONFLICTS, MODES, NEEDS, choose_mode
from ltx2_diffusers.cli.options import weighted_file
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from tests.cli.running import QUICK, SMALL, STAGED, complaint, generate, manifest

# Mode -> options (names of files in capitals), pipeline, steps, and frames, rows and seconds of sound of the result.
RUNS = {
    "text": ([*SMALL, *QUICK], "LTX2Pipeline", [2], (9, 64, 9 / 24)),
    "first frame": (["--image", "RED.PNG", *SMALL, *QUICK], "LTX2ImageToVideoPipeline", [2], (9, 64, 9 / 24)),
    "pictures": (
        ["--image", "RED.PNG", "--image-at", "-1", "BLUE.PNG:0.7", *SMALL, *QUICK],
        "LTX2ConditionPipeline",
        [2],
        (9, 64, 9 / 24),
    ),
    "clip": (["--image-at", "0", "CLIP.MP4", *SMALL, *QUICK], "LTX2ConditionPipeline", [2], (9, 64, 9 / 24)),
    "references": (
        ["--reference", "CLIP.MP4", "--lora", "REFERENCE.SAFETENSORS", "--image", "RED.PNG", *SMALL, *QUICK],
        "LTX2InContextPipeline",
        [2],
        (9, 64, 9 / 24),
    ),
    "two stages": (["--two-stage", *STAGED, *QUICK], "LTX2TwoStagePipeline", [2, 3], (9, 128, 9 / 24)),
    "two stages, all combined": (
        [
            "--two-stage",
            "--image",
            "RED.PNG",
            "--image-at",
            "-1",
            "BLUE.PNG",
            "--reference",
            "CLIP.MP4",
            "--audio",
            "TONE.WAV",
        ]
        + [*STAGED, *QUICK],
        "LTX2AudioToVideoPipeline",
        [2, 3],
        (9, 128, 9 / 24),
    ),
    "silent": (["--no-audio", *SMALL, *QUICK], "LTX2TwoStagePipeline", [2], (9, 64, None)),
    "sound given": (["--audio", "TONE.WAV", *SMALL, *QUICK], "LTX2AudioToVideoPipeline", [2], (9, 64, 9 / 24)),
    "distilled": (["--distilled", *STAGED], "LTX2DistilledPipeline", [8, 3], (9, 128, 9 / 24)),
    "distilled, one stage": (
        ["--distilled", "--one-stage", "--audio", "TONE.WAV", *SMALL],
        "LTX2DistilledPipeline",
        [8],
        (9, 64, 9 / 24),
    ),
    "interpolation": (
        ["--interpolate", "--image", "RED.PNG", "--image-at", "8", "BLUE.PNG", *SMALL, *QUICK],
        "LTX2KeyframeInterpolationPipeline",
        [2],
        (9, 64, 9 / 24),
    ),
    "retake": (
        ["--video", "CLIP.MP4", "--retake", "0.2:0.5", "--region", "MASK.PNG", *QUICK],
        "LTX2RetakePipeline",
        [2],
        (17, 64, 17 / 24),
    ),
    "retake of the sound": (
        ["--video", "CLIP.MP4", "--retake", "0.2:0.5", "--keep-video", *QUICK],
        "LTX2RetakePipeline",
        [2],
        (17, 64, 17 / 24),
    ),
    "extension": (
        ["--video", "CLIP.MP4", "--extend", "0.5", "--overlap", "9", *QUICK],
        "LTX2ExtendPipeline",
        [2],
        (17 + 16, 64, 33 / 24),
    ),
    "extension backwards": (
        ["--video", "SILENT.MP4", "--extend", "0.3", "--backwards", "--overlap", "9", *QUICK],
        "LTX2ExtendPipeline",
        [2],
        (17 + 8, 64, None),
    ),
    "long clip": (
        ["--extend", "1", "--num-frames", "17", "--overlap", "9", "--width", "64", "--height", "64", *QUICK],
        "LTX2ExtendPipeline",
        [2],
        (25, 64, 25 / 24),
    ),
    "sound for a clip": (
        ["--video", "SILENT.MP4", "--add-sound", *QUICK],
        "LTX2VideoToAudioPipeline",
        [2],
        (17, 64, 17 / 24),
    ),
}


def located(options: list[str], media) -> list[str]:
    """The options with names of files in capitals replaced by the files."""
    capitals = re.compile(r"[A-Z]+\.[A-Z0-9]+(:.*)?")
    return [str(media / option.lower()) if capitals.fullmatch(option) else option for option in options]


@pytest.mark.parametrize("name", RUNS)
def test_every_mode_makes_what_its_options_say(tmp_path, media, capsys, name):
    options, pipeline, steps, (frames, rows, sound) = RUNS[name]
    path = tmp_path / "out.mp4"
    assert generate(path, *located(options, media)) == 0, capsys.readouterr().err
    info = probe(path)
    assert (info.num_frames, info.height) == (frames, rows)
    assert (info.sampling_rate is None) == (sound is None)
    if sound is not None:
        waveform, rate = read_audio(path)
        assert waveform.shape[-1] / rate == pytest.approx(sound, abs=2 * 1024 / rate)
    written = manifest(path)
    assert written["pipeline"] == pipeline
    sigmas = written["result"]["sigmas"]
    assert [len(stage) - 1 for stage in (sigmas if isinstance(sigmas[0], list) else [sigmas])] == steps
    assert f"{path}: {frames} frames of {info.width}x{rows}" in capsys.readouterr().out


def test_sound_alone_is_a_wav_file(tmp_path, capsys):
    path = tmp_path / "waves.wav"
    assert generate(path, "--audio-only", "--duration", "0.5", *QUICK) == 0
    waveform, rate = read_audio(path)
    assert waveform.shape[-1] / rate == pytest.approx(0.5, abs=0.05)
    assert manifest(path)["pipeline"] == "LTX2TextToAudioPipeline"
    assert "s of sound" in capsys.readouterr().out


def test_every_mode_of_the_table_was_run():
    assert {pipeline for _, pipeline, _, _ in RUNS.values()} | {"LTX2TextToAudioPipeline"} == {
        mode.pipeline for mode in MODES
    }


def test_what_is_kept_of_a_clip_is_copied(tmp_path, media):
    kept = tmp_path / "out.mp4"
    assert generate(kept, "--video", media / "silent.mp4", "--add-sound", *QUICK) == 0
    assert (read_video(kept) == read_video(media / "silent.mp4")).all()


def test_a_lora_changes_the_clip_by_its_weight(tmp_path, media):
    clips = []
    for weight in (None, "", ":0.5", ":0"):
        options = [] if weight is None else ["--lora", f"{media / 'strong.safetensors'}{weight}"]
        path = tmp_path / f"{len(clips)}.mp4"
        assert generate(path, *options, *SMALL, *QUICK) == 0
        clips.append(read_video(path).numpy().astype(int))
    assert (clips[0] == clips[3]).all()
    differences = [np.abs(clip - clips[0]).mean() for clip in clips[1:3]]
    assert differences[0] > 1
    assert differences[1] > 1
    assert differences[0] != differences[1]


def test_two_loras_act_together(tmp_path, media):
    lora = str(media / "strong.safetensors")
    assert generate(tmp_path / "1.mp4", "--lora", lora, *SMALL, *QUICK) == 0
    assert generate(tmp_path / "2.mp4", "--lora", f"{lora}:0.5", "--lora", f"{lora}:0.5", *SMALL, *QUICK) == 0
    one, two = (read_video(tmp_path / f"{n}.mp4").numpy().astype(int) for n in (1, 2))
    assert np.abs(one - two).mean() < 1


def test_a_distilled_lora_refines_and_leaves_the_first_stage_alone(tmp_path, media):
    options = ["--two-stage", *STAGED, *QUICK]
    assert generate(tmp_path / "same.mp4", *options) == 0
    assert generate(tmp_path / "none.mp4", *options, "--distilled-lora", f"{media / 'strong.safetensors'}:0") == 0
    assert generate(tmp_path / "lora.mp4", *options, "--distilled-lora", media / "strong.safetensors") == 0
    same, none, lora = (read_video(tmp_path / f"{name}.mp4").numpy().astype(int) for name in ("same", "none", "lora"))
    assert (same == none).all()
    assert np.abs(same - lora).mean() > 0.1


def test_several_prompts_make_numbered_clips(tmp_path, capsys):
    assert generate(tmp_path / "out.mp4", "--prompt", "wind", "--num-videos", "2", *SMALL, *QUICK) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"out-{i}.mp4" for i in range(4)] + ["out.mp4.json"]
    assert [made["file"] for made in manifest(tmp_path / "out.mp4")["outputs"]] == [f"out-{i}.mp4" for i in range(4)]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_prompt_in_the_cache_needs_no_text_encoder(tmp_path):
    cache = ["--prompt-cache", str(tmp_path / "cache")]
    assert generate(tmp_path / "1.mp4", *cache, *SMALL, *QUICK) == 0
    assert generate(tmp_path / "2.mp4", *cache, "--no-text-encoder", *SMALL, *QUICK) == 0
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()
    assert generate(tmp_path / "3.mp4", *cache, "--no-text-encoder", *SMALL, *QUICK, prompt="wind") == 2


def test_miniatures_make_small_clips_by_default():
    from ltx2_diffusers.cli.generate import with_defaults

    text = MODES[-1]
    assert with_defaults({}, text)["width"] == 256
    assert with_defaults({"checkpoint": "Lightricks/LTX-2", "height": 64}, text)["num_frames"] == 121


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"extend": 4.0}, (1, 97)),
        ({"extend": 10.0}, (3, 97)),
        ({"extend": 10.0, "num_frames": 121}, (3, 121)),
        ({"extend": 10.0, "prompt": ["a", "b", "c", "d"]}, (4, 81)),
        ({"extend": 0.1}, (1, 9)),
    ],
    ids=str,
)
def test_an_extension_is_cut_into_parts_of_one_length(options, expected):
    call = call_arguments(MODES[2], {"prompt": ["a"], **options})
    assert (call["num_segments"], call["num_frames"]) == expected
    count, frames = expected
    assert frames + (count - 1) * (frames - 25) >= options["extend"] * 24


def test_a_number_after_a_file_is_its_weight(tmp_path):
    assert weighted_file("a.png") == [weighted_file("a.png:1")[0], 1.0]
    assert weighted_file("dir:x/a.png:0.25")[1] == 0.25
    assert weighted_file("a:b")[1] == 1.0
    (tmp_path / "take:2").write_text("")
    assert weighted_file(str(tmp_path / "take:2")) == [tmp_path / "take:2", 1.0]


@pytest.mark.parametrize(("option", "needed"), NEEDS.items())
def test_an_option_that_needs_another_one_says_so(option, needed):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} needs .*--{needed[0].replace('_', '-')}"):
        choose_mode({"prompt": ["a"], option: True})


@pytest.mark.parametrize("pair", CONFLICTS, ids=" and ".join)
def test_options_that_contradict_each_other_are_named(pair):
    needed = {other: True for option in pair for other in NEEDS.get(option, ())[-1:]}
    needed |= {"video": True} if "retake" in needed else {}
    with pytest.raises(ValueError, match=" and ".join(f"--{option.replace('_', '-')}" for option in pair)):
        choose_mode({**needed, **dict.fromkeys(pair, True)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--audio", "TONE.WAV", "--no-audio"], "--no-audio means nothing for --audio"),
        (["--retake", "0:1", "--extend", "1", "--video", "CLIP.MP4"], "--extend means nothing for --retake"),
        (["--distilled", "--guidance-scale", "3"], "--guidance-scale means nothing for --distilled"),
        (["--distilled", "--interpolate", "--image", "RED.PNG"], "--distilled means nothing for --interpolate"),
        (["--interpolate", "--image", "RED.PNG", "--audio", "TONE.WAV"], "--audio means nothing for --interpolate"),
        (["--extend", "1", "--image", "RED.PNG"], "--image means nothing for --extend"),
        (["--duration", "1", "--width", "64"], "--duration needs --audio-only"),
        (["--video", "CLIP.MP4"], "--video needs --retake, --extend or --add-sound"),
        (["--video", "CLIP.MP4", "--add-sound", "--preview"], "--preview shows pictures"),
        (["--sigmas", "1", "0.5", "--steps", "2"], "--steps and --sigmas contradict each other"),
        (["--extend", "0"], "--extend has to be more than 0"),
        (["--extend", "1", "--overlap", "200"], "--overlap has to be less than --num-frames 121"),
        (["--extend", "99", "--prompt", "wind"], "give more prompts, or --num-frames 1201"),
        (["--image", "missing.png"], "--image: there is no file 'missing.png'"),
        (["--image-at", "0", "missing.png:0.5"], "--image-at: there is no file 'missing.png'"),
        (["--lora", "missing.safetensors"], "--lora: there is no file 'missing.safetensors'"),
        (["--preview", "sheet.gif"], "--preview is written as .png"),
        (["--preview", "--preview-every", "0"], "--preview-every has to be at least 1"),
        (["--text-encoder", "gemma"], "--text-encoder belongs to original files"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_contradictions_and_missing_files_end_before_a_model_runs(tmp_path, media, capsys, options, message):
    assert generate(tmp_path / "out.mp4", *located(options, media)) == 2
    assert message in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "BROKEN.PNG"], "broken.png"),
        (["--audio", "BROKEN.WAV"], "broken.wav"),
        (["--video", "BROKEN.MP4", "--add-sound"], "broken.mp4"),
        (["--lora", "BROKEN.SAFETENSORS"], "broken.safetensors"),
        (["--image-at", "9", "RED.PNG"], "--image-at 9 lies outside the clip; use -9 to 8"),
        (["--image-at", "0", "RED.PNG:2"], "strength"),
        (["--image", "RED.PNG", "--image-at", "0", "BLUE.PNG"], "two conditions claim video frame 0"),
        (["--video", "CLIP.MP4", "--retake", "0.5:9"], "--retake 9.0 lies behind the end of the clip"),
        (["--video", "CLIP.MP4", "--extend", "1"], "--overlap is 25, but the clip has 17 frames"),
        (["--audio", "TONE.WAV", "--num-frames", "49"], "--audio-fit pad"),
        (["--two-stage", "--width", "96"], "--width has to be divisible by 64 but is 96; use 64 or 128"),
        (["--sampler", "eulr"], "sampler must be one of euler"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_the_pipelines_refuse_are_named_as_options(tmp_path, media, capsys, options, message):
    broken = tmp_path / "broken.png"
    for name in ("png", "wav", "mp4", "safetensors"):
        broken.with_suffix(f".{name}").write_bytes(b"not a media file at all")
    sizes = [] if "--video" in options or "--width" in options else SMALL[:4]
    sizes += [] if "--video" in options or "--num-frames" in options else SMALL[4:]
    files = [str(tmp_path / option.lower()) if "BROKEN" in option else option for option in options]
    assert generate(tmp_path / "out.mp4", *located(files, media), *sizes, "--device", "cpu") == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "out.mp4").exists()


def test_an_input_is_not_overwritten(tmp_path, media, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((media / "clip.mp4").read_bytes())
    assert generate(clip, "--video", clip, "--add-sound") == 2
    assert "--output would overwrite --video" in complaint(capsys)
    assert clip.read_bytes() == (media / "clip.mp4").read_bytes()


def test_a_dev_checkpoint_names_the_options_that_it_needs(tmp_path, capsys):
    from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint

    checkpoint = ["--checkpoint", str(packaged_checkpoint("ltx2-tiny"))]
    for option, other in (("--two-stage", "--refine-with-same-weights"), ("--distilled", "a distilled checkpoint")):
        assert generate(tmp_path / "out.mp4", option, *checkpoint, *STAGED) == 2
        line = complaint(capsys)
        assert "--distilled-lora" in line
        assert other in line
    assert (
        generate(tmp_path / "out.mp4", "--two-stage", "--refine-with-same-weights", *checkpoint, *STAGED, *QUICK) == 0
    )


@pytest.mark.parametrize("option", ["--image-at x red.png", "--retake later", "--retake 1"])
def test_values_of_another_form(capsys, tmp_path, option):
    with pytest.raises(SystemExit, match="2"):
        generate(tmp_path / "out.mp4", *option.split())
    assert f"argument {option.split()[0]}" in capsys.readouterr().err


def test_help_lists_groups_modes_and_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["generate", "--help"])
    printed = capsys.readouterr().out
    for group in ("text", "pictures, clips", "working on a clip", "recipe", "size", "sampling", "guidance", "output"):
        assert f"\n{group}" in printed
    assert "\ncheckpoint and LoRA:" in printed
    assert all(mode.name in printed and mode.pipeline in printed for mode in MODES)
    assert "\n  ltx2 generate --prompt" in printed
    assert "default 768" in printed

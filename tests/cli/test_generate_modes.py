"""`ltx2 generate` in every mode: the options choose the pipeline."""

import numpy as np
import pytest
import torch

from ltx2_diffusers.cli.generate import _run_arguments
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.cli.modes import MODES, call_arguments
from ltx2_diffusers.cli.values import weighted_file, weighted_lora
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from tests.cli.running import QUICK, SMALL, STAGED, generate, located, manifest
from tests.golden_data import GOLDEN_DIR
from tests.media.clips import write_timed

CHECKPOINTS = GOLDEN_DIR / "checkpoint"

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
    "reference sound": (
        ["--reference-audio", "TONE.WAV:0.9", *SMALL, *QUICK],
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
    "retake of another sound": (
        ["--video", "SILENT.MP4", "--audio", "TONE.WAV", "--retake", "0.2:0.5", "--keep-video", *QUICK],
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
    "high dynamic range": (
        ["--hdr", "hlg", "--reference", "CLIP.MP4", *SMALL, *QUICK],
        "LTX2HDRPipeline",
        [2],
        (9, 64, None),
    ),
    "sound for a clip": (
        ["--video", "SILENT.MP4", "--add-sound", *QUICK],
        "LTX2VideoToAudioPipeline",
        [2],
        (17, 64, 17 / 24),
    ),
}


@pytest.mark.quick_cases(5)
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


def test_given_clips_keep_their_speed_or_their_frames(tmp_path):
    path = write_timed(tmp_path / "fast.mp4", [i / 60 for i in range(30)])
    clips = []
    for options in ((), ("--frame-by-frame",), ("--frame-by-frame", "--frame-rate", "60"), ("--frame-rate", "60")):
        clips.append(tmp_path / f"{len(clips)}.mp4")
        assert generate(clips[-1], "--image-at", "0", path, *options, *SMALL, *QUICK) == 0
    by_time, one_by_one, *own_rate = (read_video(clip) for clip in clips)
    assert not torch.equal(by_time, one_by_one)
    assert torch.equal(*own_rate)


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


def test_a_lora_acts_on_parts_and_may_be_fused(tmp_path, media):
    lora, clips = str(media / "strong.safetensors"), {}
    for name, options in {
        "none": [],
        "half": [f"{lora}:0.5"],
        "by part": [f"{lora}:video=0.5"],
        "without": [f"{lora}:video=0"],
        "fused": [f"{lora}:video=0.5", "--fuse-lora"],
    }.items():
        path = tmp_path / f"{len(clips)}.mp4"
        assert generate(path, *(["--lora", *options] if options else []), *SMALL, *QUICK) == 0
        clips[name] = read_video(path).numpy().astype(int)
    assert (clips["by part"] == clips["half"]).all() and (clips["without"] == clips["none"]).all()
    assert np.abs(clips["half"] - clips["none"]).mean() > 1
    assert np.abs(clips["fused"] - clips["half"]).mean() < 0.1


def test_a_distilled_lora_refines_and_leaves_the_first_stage_alone(tmp_path, media):
    options = ["--two-stage", *STAGED, *QUICK]
    assert generate(tmp_path / "same.mp4", *options) == 0
    assert generate(tmp_path / "none.mp4", *options, "--distilled-lora", f"{media / 'strong.safetensors'}:0") == 0
    assert generate(tmp_path / "lora.mp4", *options, "--distilled-lora", media / "strong.safetensors") == 0
    same, none, lora = (read_video(tmp_path / f"{name}.mp4").numpy().astype(int) for name in ("same", "none", "lora"))
    assert (same == none).all()
    assert np.abs(same - lora).mean() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        ["--skip-step", "1", "--audio-skip-step", "1"],
        ["--cfg-method", "apg_momentum", "--apg-momentum", "-0.5", "--apg-eta", "0.5"],
        ["--nag-scale", "8", "--nag-alpha", "0.9", "--nag-tau", "9", "--negative-prompt", "calm"],
    ],
    ids=lambda options: options[0],
)
def test_options_of_guidance_act(tmp_path, options):
    negative = [] if "--negative-prompt" in options else ["--negative-prompt", "calm"]
    for name, chosen in (("plain", ["--negative-prompt", "calm"]), ("guided", [*options, *negative])):
        assert generate(tmp_path / f"{name}.mp4", *chosen, *SMALL, *QUICK) == 0
    plain, guided = (manifest(tmp_path / f"{name}.mp4")["outputs"][0] for name in ("plain", "guided"))
    assert plain["video"]["sha256"] != guided["video"]["sha256"]
    assert plain["audio"]["sha256"] != guided["audio"]["sha256"]


def test_an_original_file_refines_with_an_upsampler_of_its_own(tmp_path):
    original, upsampler = (
        CHECKPOINTS / f"ltx-2-tiny-{name}.safetensors" for name in ("dev", "spatial-upscaler-x2-1.0")
    )
    gemma = CHECKPOINTS / "expected_diffusers" / "ltx-2-tiny-dev"
    files = ["--checkpoint", original, "--text-encoder", gemma, "--upsampler", upsampler]
    options = [*files, "--two-stage", "--refine-with-same-weights", *STAGED, *QUICK]
    assert generate(tmp_path / "out.mp4", *options) == 0
    assert main(["replay", str(tmp_path / "out.mp4.json")]) == 0


def test_several_prompts_make_numbered_clips(tmp_path, capsys):
    assert generate(tmp_path / "out.mp4", "--prompt", "wind", "--num-videos", "2", *SMALL, *QUICK) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"out-{i}.mp4" for i in range(4)] + ["out.mp4.json"]
    assert [made["file"] for made in manifest(tmp_path / "out.mp4")["outputs"]] == [f"out-{i}.mp4" for i in range(4)]
    files = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in files] == [str(tmp_path / f"out-{i}.mp4") for i in range(4)]


def test_a_prompt_in_the_cache_needs_no_text_encoder(tmp_path):
    cache = ["--prompt-cache", str(tmp_path / "cache")]
    assert generate(tmp_path / "1.mp4", *cache, *SMALL, *QUICK) == 0
    assert generate(tmp_path / "2.mp4", *cache, "--no-text-encoder", *SMALL, *QUICK) == 0
    assert (tmp_path / "1.mp4").read_bytes() == (tmp_path / "2.mp4").read_bytes()
    assert generate(tmp_path / "3.mp4", *cache, "--no-text-encoder", *SMALL, *QUICK, prompt="wind") == 2


def test_miniatures_make_small_clips_by_default():
    from ltx2_diffusers.cli.generate import with_defaults

    text = MODES[-1]
    for given in ({}, {"two_stage": True}, {"distilled": True}, {"distilled": True, "one_stage": True}):
        assert [with_defaults(given, text)[name] for name in ("width", "height", "num_frames")] == [128, 128, 25]
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
    assert weighted_lora("a.sft:video=1,audio=0.5")[1] == {"video": 1.0, "audio": 0.5}
    assert weighted_lora("a.sft:0.5") == weighted_file("a.sft:0.5")
    (tmp_path / "take:2").write_text("")
    assert weighted_file(str(tmp_path / "take:2")) == [tmp_path / "take:2", 1.0]


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


@pytest.mark.parametrize("signal", ["pq", "hlg"])
def test_the_signal_of_a_high_dynamic_range_is_the_one_asked_for(tmp_path, signal):
    arguments = _run_arguments({"hdr": signal, "seed": 1}, tmp_path / "out.mp4", writes=False)
    assert (arguments["save_path"].curve, arguments["output_type"]) == (signal, "pt")

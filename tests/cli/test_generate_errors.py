"""`ltx2 generate` says what is wrong in one line that names options and files, before anything is computed."""

import os

import PIL.Image
import pytest

from ltx2_diffusers.cli.main import main
from ltx2_diffusers.cli.modes import choose_mode
from ltx2_diffusers.cli.options import OPTIONS
from tests.cli.running import QUICK, SMALL, STAGED, complaint, generate, located
from tests.media.sources import Track, write_source
from tests.tiny_checkpoints import tiny_checkpoint

NEEDS = {name: option.needs for name, option in OPTIONS.items() if option.needs}
CONFLICTS = [(name, other) for name, option in OPTIONS.items() for other in option.excludes]


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
        (["--nag-scale", "0.5", "--negative-prompt", "hum"], "--nag-scale is 0.5, which is out of range; use 1.0"),
        (["--duration", "1", "--width", "64"], "--duration needs --audio-only"),
        (["--video", "CLIP.MP4"], "--video needs --retake, --extend, --add-sound or --denoise-strength"),
        (["--video", "CLIP.MP4", "--add-sound", "--preview"], "--preview shows pictures"),
        (["--sigmas", "1", "0.5", "--steps", "2"], "--steps and --sigmas contradict each other"),
        (["--extend", "0"], "--extend has to be more than 0"),
        (["--extend", "inf"], "--extend has to be more than 0 seconds and finite but is inf; use 1.0"),
        (["--extend", "1e308"], "--extend has to be more than 0 seconds and finite but is 1e+308"),
        (
            ["--extend", "1", "--frame-rate", "inf"],
            "--frame-rate must be a positive number of frames per second, got inf",
        ),
        (["--seed", str(2**64)], f"--seed has to be a whole number of at most 64 bits but is {2**64}; use 10"),
        (["--seed", str(-(2**63) - 1)], "--seed has to be a whole number of at most 64 bits"),
        (
            ["--no-audio", "--audio-skip-step", "1", *SMALL],
            "--audio-skip-step is given, but this call generates no audio;",
        ),
        (["--extend", "1", "--overlap", "200"], "--overlap has to be less than --num-frames 121"),
        (["--extend", "99", "--prompt", "wind"], "give more prompts, or --num-frames 1201"),
        (["--image", "missing.png"], "--image: there is no file 'missing.png'"),
        (["--image-at", "0", "missing.png:0.5"], "--image-at: there is no file 'missing.png'"),
        (
            ["--lora", "STRONG.SAFETENSORS", "--fuse-lora", "--reference", "CLIP.MP4"],
            "--fuse-lora and --reference contradict each other",
        ),
        (["--lora", "missing.safetensors:video=1"], "--lora: there is no file 'missing.safetensors'"),
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


@pytest.fixture
def odd(tmp_path, media, monkeypatch):
    """A folder of files that cannot be taken for what they seem to be."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10_000)
    folder = tmp_path / "odd"
    (folder / "folder.mp4").mkdir(parents=True)
    os.mkfifo(folder / "pipe.mp4")
    PIL.Image.new("RGB", (300, 200)).save(folder / "huge.png")
    (folder / "cut.png").write_bytes((folder / "huge.png").read_bytes()[:200])
    clip = (media / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(clip[: len(clip) * 2 // 3])
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nclip.mp4\n")
    return folder


@pytest.mark.parametrize("options", [["--image"], ["--image-at", "0"], ["--add-sound", "--video"]], ids=" ".join)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("huge.png", "too large: Image size"),
        ("cut.png", "cut.png"),
        ("cut.mp4", "is cut off: its header promises"),
        ("photo.heic", "install pillow-heif"),
        ("list.m3u8", "an M3U playlist"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "is a device or a pipe"),
    ],
)
def test_odd_files_end_with_one_line_that_names_them(tmp_path, odd, capsys, options, name, words):
    sizes = [] if "--video" in options else SMALL
    assert generate(tmp_path / "out.mp4", *options, odd / name, *sizes, "--device", "cpu") == 2
    line = complaint(capsys)
    assert words in line
    assert name in line
    assert not (tmp_path / "out.mp4").exists()


def test_any_file_name_works(tmp_path, media):
    clip, sound, written = (tmp_path / name for name in ("take:1.mp4", "12:30 sound", "out:1%d.mp4"))
    clip.write_bytes((media / "clip.mp4").read_bytes())
    sound.write_bytes((media / "tone.wav").read_bytes())
    assert generate(written, "--image-at", "0", clip, "--reference-audio", sound, *SMALL, *QUICK) == 0
    assert written.stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "100"], "--height has to be divisible by 32 but is 100; use 96 or 128"),
        (["--two-stage", "--width", "96"], "--width has to be divisible by 64 but is 96; use 64 or 128"),
        (["--num-frames", "10"], "--num-frames has to be 8 * k + 1 but is 10; use 9 or 17"),
        (["--steps", "0"], "--steps has to be a whole number of at least 1 but is 0"),
        (["--sigmas", "0.5", "0.9"], "--sigmas must fall strictly"),
        (["--two-stage", "--stage-2-sigmas", "2"], "--stage-2-sigmas must lie in (0, 1]"),
        (["--sampler", "heun"], "--sampler must be one of euler"),
        (["--guidance-scale", "nan"], "--guidance-scale has to be a finite number but is nan"),
        (["--nag-scale", "inf", "--negative-prompt", "x"], "--nag-scale has to be a finite number but is inf"),
        (["--audio-stg-scale", "1e9"], "--audio-stg-scale has to be from -1000 to 1000"),
        (["--frame-rate", "1e6"], "--frame-rate has to be at most 1000"),
        (["--frame-rate", "0.01", "--num-frames", "9"], "use a --frame-rate of at least 1"),
        (["--motion-speed", "0"], "--motion-speed has to be greater than 0"),
        (["--audio-only", "--duration", "0"], "--duration has to be at least 0.04"),
        (["--num-videos", "0"], "--num-videos has to be a whole number of at least 1"),
        (["--image", "BROKEN.PNG"], "broken.png"),
        (["--image-at", "0", "BROKEN.PNG"], "broken.png"),
        (["--audio", "BROKEN.WAV"], "broken.wav"),
        (["--video", "BROKEN.MP4", "--add-sound"], "broken.mp4"),
    ],
)
def test_what_needs_no_checkpoint_is_found_without_one(tmp_path, capsys, options, message):
    for name in ("broken.png", "broken.wav", "broken.mp4"):
        (tmp_path / name).write_bytes(b"not a media file at all")
    files = [str(tmp_path / option.lower()) if "BROKEN" in option else option for option in options]
    output = ["out.wav" if "--audio-only" in options else "out.mp4"]
    assert generate(tmp_path / output[0], *files, "--device", "cpu", "--checkpoint", tmp_path / "nowhere") == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--promt", "a", "-o", "x.mp4"], "unknown option --promt; did you mean --prompt?"),
        (["generate", "--prompt", "a", "--guidence-scale=3", "-o", "x.mp4"], "did you mean --guidance-scale?"),
        (["generate", "--wobble"], "unknown option --wobble\n"),
        (["replay", "x.json", "--forse"], "unknown option --forse; did you mean --force?"),
        (["doctor", "--nope"], "unknown option --nope\n"),
        (["--promt", "a", "-o", "x.mp4"], "unknown option --promt; did you mean `ltx2 generate --prompt`?"),
        (["--prompt", "a", "-o", "x.mp4"], "unknown option --prompt; did you mean `ltx2 generate --prompt`?"),
        (["-o", "x.mp4"], "unknown option -o; did you mean `ltx2 generate -o`?"),
        (["generte", "--prompt", "a"], "unknown command 'generte'; did you mean 'generate'?"),
        (
            ["sing"],
            "unknown command 'sing'; there are generate, storyboard, replay, info, convert, calibrate, plan, doctor, data, train, serve\n",
        ),
    ],
)
def test_unknown_options_are_named_before_missing_ones(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_an_input_is_not_overwritten(tmp_path, media, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((media / "clip.mp4").read_bytes())
    assert generate(clip, "--video", clip, "--add-sound") == 2
    assert "--output would overwrite --video" in complaint(capsys)
    assert clip.read_bytes() == (media / "clip.mp4").read_bytes()


def test_a_dev_checkpoint_names_the_options_that_it_needs(tmp_path, capsys):

    checkpoint = ["--checkpoint", str(tiny_checkpoint("2.0"))]
    for option, other in (("--two-stage", "--refine-with-same-weights"), ("--distilled", "a distilled checkpoint")):
        assert generate(tmp_path / "out.mp4", option, *checkpoint, *STAGED) == 2
        line = complaint(capsys)
        assert "--distilled-lora" in line
        assert other in line
    assert (
        generate(tmp_path / "out.mp4", "--two-stage", "--refine-with-same-weights", *checkpoint, *STAGED, *QUICK) == 0
    )


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--image-at x red.png", ""),
        ("--retake later", ""),
        ("--retake 1", ""),
        ("--lora a.sft:video=1,audoi=0", "'audoi' in 'video=1,audoi=0' is no part of a model; use 'audio'"),
        ("--lora a.sft:video=1,video=0", "names a part twice in 'video=1,video=0'; give each part one strength"),
        ("--distilled-lora a.sft:video=much", "needs strengths like video=1,audio=0.5, got 'video=much'"),
    ],
)
def test_values_of_another_form(capsys, tmp_path, option, why):
    with pytest.raises(SystemExit, match="2"):
        generate(tmp_path / "out.mp4", *option.split())
    assert f"argument {option.split()[0]}: {why}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "name", "notice"),
    [
        (["--video", "CLIP.MOV", "--add-sound"], "out.mp4", "the pictures will be encoded anew as H.264"),
        (
            ["--video", "CLIP.MOV", "--retake", "0:0.2", "--keep-video"],
            "out.mp4",
            "the pictures will be encoded anew as H.264",
        ),
        (
            ["--video", "CLIP.MOV", "--retake", "0:0.2", "--keep-audio"],
            "out.mp4",
            "the sound will be encoded anew as AAC",
        ),
        (["--audio", "CLIP.MOV"], "out.mp4", "the sound will be encoded anew as AAC"),
        (["--video", "CLIP.MOV", "--add-sound"], "out.mov", None),
        (["--video", "CLIP.MOV", "--retake", "0:0.2", "--keep-audio"], "out.mov", None),
        (["--audio", "CLIP.MOV", "--audio-start", "0.1"], "out.mp4", None),
        (["--video", "CLIP.MOV", "--retake", "0:0.2"], "out.mp4", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
@pytest.mark.quick_cases(3)
def test_what_the_file_cannot_hold_is_said_before_anything_is_loaded(
    tmp_path, capsys, monkeypatch, options, name, notice
):
    write_source(tmp_path / "clip.mov", Track("prores_ks"), Track("pcm_s16le"))

    def no_loading(*_):
        raise ValueError("would be loaded now")

    monkeypatch.setattr("ltx2_diffusers.cli.generate.load_pipeline", no_loading)
    assert generate(tmp_path / name, *located(options, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "would be loaded now" in said
    assert (f"warning: {notice}" in said and "use .mov" in said) if notice else "warning" not in said

"""Sound to video, video to sound, and sound alone: what is given comes back untouched, what is made has its length."""

import subprocess
import sys
import warnings

import av
import numpy as np
import pytest
import torch

from ltx2_diffusers.media.copying import EncodedAnewWarning
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.writing import write_audio, write_video
from ltx2_diffusers.pipelines.arguments import Stage
from ltx2_diffusers.pipelines.recipes.audio_to_video import LTX2AudioToVideoPipeline
from ltx2_diffusers.pipelines.recipes.text_to_audio import LTX2TextToAudioPipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from ltx2_diffusers.pipelines.recipes.video_to_audio import LTX2VideoToAudioPipeline
from tests.golden_data import EQUAL_MODELS
from tests.media.clips import gradient_clip, tone
from tests.media.sources import Track, write_source
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    RATE,
    TWO_STAGES,
    assert_tokens,
    encoded,
    no_computation,
    recipe,
    watched,
)
from tests.pipelines.tiny import CFG, NO_GUIDANCE, max_difference, seeded

ONE_STAGE = {**CALL, "two_stage": False}
QUICK = {**ONE_STAGE, **NO_GUIDANCE}
SOUND = tone(1.0, 44100)
GIVEN = {"audio": SOUND, "sampling_rate": 44100}
DURATION_S = 9 / 24
AUDIO_QUICK = {name: value for name, value in NO_GUIDANCE.items() if not name.startswith("audio_")}


def packets(path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


@pytest.fixture(scope="module")
def to_video() -> LTX2AudioToVideoPipeline:
    return recipe(LTX2AudioToVideoPipeline)


@pytest.fixture(scope="module")
def to_sound() -> LTX2VideoToAudioPipeline:
    return recipe(LTX2VideoToAudioPipeline)


@pytest.fixture(scope="module")
def to_sound_alone() -> LTX2TextToAudioPipeline:
    return recipe(LTX2TextToAudioPipeline)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """Ten frames at 23.976 per second with a second of sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, gradient_clip(10, 80, 112), 24000 / 1001, tone(1.0, RATE), RATE)
    return path


# --- sound to video ---


def test_the_given_sound_comes_back_untouched(to_video):
    output = to_video(**QUICK | {"output_type": "np"}, **GIVEN, audio_start_s=0.25)
    assert output.sampling_rate == 44100
    start = round(0.25 * 44100)
    assert torch.equal(output.audio[0], SOUND[:, start : start + round(DURATION_S * 44100)])
    assert (output.frames.shape[1], output.audio_source) == (9, None)


def test_the_packets_of_a_file_are_copied(to_video, clip_file, tmp_path):
    output = to_video(**QUICK | {"output_type": "uint8"}, audio=clip_file)
    assert torch.equal(output.audio, read_audio(clip_file, 0.0, DURATION_S)[0])
    (path,) = output.save(tmp_path / "out.mp4")
    copied, original = packets(path, "audio"), packets(clip_file, "audio")
    assert 0 < len(copied) < len(original)
    assert copied == original[: len(copied)]
    assert probe(path).num_frames == 9


def test_a_window_or_a_codec_that_cannot_be_copied_is_encoded(to_video, clip_file, tmp_path):
    wave = tmp_path / "sound.wav"
    write_audio(wave, tone(1.0, RATE), RATE)
    for source, start_s in ((wave, 0.0), (clip_file, 0.2)):
        output = to_video(**QUICK | {"output_type": "uint8"}, audio=source, audio_start_s=start_s)
        (path,) = output.save(tmp_path / "out.mp4")
        heard, rate = read_audio(path)
        assert abs(heard.shape[-1] / rate - DURATION_S) < 0.04
        expected = read_audio(source, start_s, start_s + DURATION_S)[0]
        length = min(heard.shape[-1], expected.shape[-1])
        error = (heard[..., 1024 : length - 1024] - expected[..., 1024 : length - 1024]).abs().mean()
        assert error < 0.02


@pytest.mark.parametrize(("channels", "rate"), [(1, 44100), (6, 48000), (2, 11111)])
def test_sound_of_any_form_can_be_saved(to_video, tmp_path, channels, rate):
    sound = tone(0.5, rate)[:1].expand(channels, -1)
    output = to_video(**QUICK | {"output_type": "uint8"}, audio=sound, sampling_rate=rate)
    assert output.audio.shape == (1, channels, round(DURATION_S * rate))
    (path,) = output.save(tmp_path / "out.mp4")
    assert probe(path).sampling_rate == {44100: 44100, 48000: 48000, 11111: 12000}[rate]
    assert abs(read_audio(path)[0].shape[-1] / probe(path).sampling_rate - DURATION_S) < 0.1


def test_each_video_of_a_batch_has_its_own_sound(to_video):
    sounds = torch.stack([tone(0.5, RATE), tone(0.5, RATE, 880.0)])
    output = to_video(**QUICK | {"prompt": ["Rain.", "Waves."]}, audio=sounds, sampling_rate=RATE)
    for row, sound in enumerate(sounds):
        held = to_video.encode_audio(sound[None, :, : round(DURATION_S * RATE)], RATE)[:, :, :9]
        torch.testing.assert_close(output.audio[[row]], to_video.audio_vae.denormalize_latents(held))


def test_the_sound_takes_part(to_video):
    outputs = [to_video(**QUICK, audio=s, sampling_rate=44100, generator=seeded(0)) for s in (SOUND, -0.2 * SOUND)]
    assert not torch.equal(outputs[0].frames, outputs[1].frames)


def test_a_given_sound_never_reads_the_negative_prompt(to_video):
    read = []
    hook = to_video.transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(
            (inputs["encoder_hidden_states"], inputs["audio_encoder_hidden_states"])
        ),
        with_kwargs=True,
    )
    try:
        to_video(**ONE_STAGE | CFG | {"audio_guidance_scale": 1.0}, **GIVEN, negative_prompt="blurry")
    finally:
        hook.remove()
    positive, negative = read[:2]
    assert not torch.equal(positive[0], negative[0])
    assert torch.equal(positive[1], negative[1])


def test_guidance_of_a_given_sound_is_refused(to_video):
    with no_computation(to_video), pytest.raises(ValueError, match=r"`audio_guidance_scale` is given \(7\.0\)"):
        to_video(**ONE_STAGE | CFG, **GIVEN)
    seen = watched(to_video, **ONE_STAGE | NO_GUIDANCE, **GIVEN)
    assert seen.output.info["forwards_per_step"] == 1


def test_a_hint_is_made_anew(to_video):
    held, hint, ignored = (
        to_video(**QUICK, **GIVEN, audio_cond_noise_scale=scale, generator=seeded(0)) for scale in (0.0, 0.15, 1.0)
    )
    differences = [(output.audio - held.audio).abs().mean() for output in (hint, ignored)]
    assert 0 < differences[0] < differences[1]
    text = recipe(LTX2TwoStagePipeline)(**QUICK, generator=seeded(0))
    assert max_difference(ignored, text) <= EQUAL_MODELS
    heard = to_video(**QUICK | {"output_type": "np"}, **GIVEN, audio_cond_noise_scale=0.15)
    assert heard.sampling_rate == to_video.vocoder.config.output_sampling_rate


def test_short_sound_is_filled_up_with_silence(to_video):
    short = SOUND[:, : round(0.2 * 44100)]
    output = to_video(**QUICK | {"output_type": "np"}, audio=short, sampling_rate=44100, audio_fit="pad")
    length = short.shape[-1]
    assert torch.equal(output.audio[0, :, :length], short)
    assert output.audio.shape[-1] == round(DURATION_S * 44100)
    assert not output.audio[0, :, length:].any()
    seen = watched(to_video, **QUICK, audio=short, sampling_rate=44100, audio_fit="pad")
    silent = torch.nn.functional.pad(short, (0, round(DURATION_S * 44100) - length))
    held = to_video.encode_audio(silent[None], 44100)[:, :, :9]
    assert_tokens(seen.steps[-1]["audio_latents"], 0, [held])


@pytest.mark.parametrize("duration_s", [0.2, 1.0])
def test_stretched_sound_fills_the_clip_and_is_made_from_latents(to_video, duration_s):
    sound = SOUND[:, : round(duration_s * 44100)]
    seen = watched(to_video, **QUICK, audio=sound, sampling_rate=44100, audio_fit="stretch")
    whole = to_video.encode_audio(sound[None], 44100)
    stretched = torch.nn.functional.interpolate(
        whole.transpose(2, 3).flatten(1, 2), size=9, mode="linear", align_corners=False
    )
    stretched = stretched.unflatten(1, (whole.shape[1], whole.shape[3])).transpose(2, 3)
    held = seen.steps[-1]["audio_latents"]
    torch.testing.assert_close(held, stretched.transpose(1, 2).flatten(2))
    output = to_video(**QUICK | {"output_type": "np"}, audio=sound, sampling_rate=44100, audio_fit="stretch")
    assert output.sampling_rate == to_video.vocoder.config.output_sampling_rate
    # 9 latents decode to 33 mel frames of 10 ms.
    assert output.audio.shape[-1] == 33 * 240


def test_samples_as_whole_numbers_are_named(to_video):
    with (
        no_computation(to_video),
        pytest.raises(ValueError, match=r"`audio` has to lie in \[-1, 1\] but reaches .*32768"),
    ):
        to_video(**QUICK, audio=SOUND * 32768, sampling_rate=44100)


def test_a_file_without_sound_is_named(to_video, tmp_path):
    write_video(tmp_path / "silent.mp4", gradient_clip(9, 64, 64), 24)
    with no_computation(to_video), pytest.raises(ValueError, match=r"silent\.mp4' has no sound"):
        to_video(**QUICK, audio=tmp_path / "silent.mp4")


def test_sound_that_an_mp4_file_cannot_hold_is_announced_before_any_computation(to_video, tmp_path):
    source = write_source(tmp_path / "a.mkv", None, Track("mp2"))
    with (
        no_computation(to_video),
        warnings.catch_warnings(),
        pytest.raises(EncodedAnewWarning, match=r"as AAC.*\(mp2\)"),
    ):
        warnings.simplefilter("error", EncodedAnewWarning)
        to_video(**QUICK | {"output_type": "uint8"}, audio=source)


def test_a_window_of_a_sound_has_no_packets_and_is_not_announced(to_video, tmp_path, recwarn):
    to_video(
        **QUICK | {"output_type": "uint8"},
        audio=write_audio(tmp_path / "sound.wav", tone(1.0, RATE), RATE),
        audio_start_s=0.2,
    )
    assert [w for w in recwarn if w.category is EncodedAnewWarning] == []


# --- video to sound ---


def test_the_packets_of_the_video_are_kept(to_sound, clip_file, tmp_path):
    """Ten frames are no 8 k + 1; the network sees seventeen, the result has ten."""
    output = to_sound(clip_file, CALL["prompt"], num_inference_steps=2, max_sequence_length=64, output_type="uint8")
    assert output.info["forwards_per_step"] == 4
    assert torch.equal(output.frames[0], read_video(clip_file))
    assert output.frame_rate == pytest.approx(24000 / 1001)
    (path,) = output.save(tmp_path / "out.mp4")
    assert packets(path, "video") == packets(clip_file, "video")
    assert packets(path, "audio") != packets(clip_file, "audio")
    assert probe(path).frame_rate == probe(clip_file).frame_rate
    assert abs(output.audio.shape[-1] / output.sampling_rate - 10 * 1001 / 24000) <= 0.04


@pytest.mark.parametrize(("rate", "count"), [(8.0, 3), (50.0, 21), (24.0, 10)])
def test_the_network_may_see_a_file_at_another_rate(to_sound, clip_file, tmp_path, rate, count):
    """The file is handed over as it is, and its sound is as long."""
    output = to_sound(
        clip_file, CALL["prompt"], **AUDIO_QUICK, frame_rate=rate, num_inference_steps=1, output_type="uint8"
    )
    assert (output.frame_rate, output.frames.shape[1]) == (rate, count)
    assert torch.equal(output.frames[0], read_video(clip_file, frame_rate=rate))
    (path,) = output.save(tmp_path / "out.mp4")
    assert packets(path, "video") == packets(clip_file, "video")
    assert output.audio.shape[-1] / output.sampling_rate == pytest.approx(10 * 1001 / 24000, abs=0.001)
    sound, sampling_rate = read_audio(path)
    assert sound.shape[-1] / sampling_rate == pytest.approx(10 * 1001 / 24000, abs=0.03)


def test_options_of_the_encoder_ask_for_new_packets(to_sound, clip_file, tmp_path):
    output = to_sound(clip_file, CALL["prompt"], **AUDIO_QUICK, num_inference_steps=1, max_sequence_length=64)
    (path,) = output.save(tmp_path / "out.mp4", crf=40)
    assert packets(path, "video") != packets(clip_file, "video")


def test_sound_that_is_replaced_need_not_be_heard(to_sound, tmp_path):
    """All of it precedes the first picture."""
    clip = write_source(tmp_path / "in.mkv", Track("libx264", 5.0), Track("aac"))
    with pytest.raises(ValueError, match="has no sound"):
        read_audio(clip)
    output = to_sound(clip, CALL["prompt"], **AUDIO_QUICK, num_inference_steps=1, output_type="uint8")
    (path,) = output.save(tmp_path / "out.mp4")
    assert (probe(path).num_frames, packets(path, "video")) == (25, packets(clip, "video"))


def test_part_of_a_video_is_no_copy(to_sound, clip_file, tmp_path):
    output = to_sound(
        clip_file, CALL["prompt"], **AUDIO_QUICK, num_frames=9, num_inference_steps=1, output_type="uint8"
    )
    assert output.video_source is None
    assert torch.equal(output.frames[0], read_video(clip_file, 9))
    (path,) = output.save(tmp_path / "out.mp4")
    assert probe(path).num_frames == 9


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("uint8", 1), ("pil", 1 + 4 / 3), ("np", 1 + 4)])
def test_a_long_video_is_held_once_beside_its_result(tmp_path, kind, times):
    """A process of its own, whose peak of memory tells. Pillow takes four bytes for a pixel, NumPy four for a value."""
    num_frames, height, width = 97, 704, 1280
    write_video(tmp_path / "clip.mp4", (np.zeros((height, width, 3), np.uint8)[None] for _ in range(num_frames)), 24)
    write_video(tmp_path / "small.mp4", np.zeros((9, 64, 64, 3), np.uint8), 24)
    code = f"""
import resource, torch, ltx2_diffusers
pipe = ltx2_diffusers.LTX2VideoToAudioPipeline.from_pretrained(ltx2_diffusers.tiny_checkpoint("2.0"))
def peak(name):
    pipe({str(tmp_path)!r} + "/" + name, "rain", width=64, height=64, output_type={kind!r}, num_inference_steps=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small = peak("small.mp4")
print(peak("clip.mp4") - small)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The floats of a few frames come to it.
    assert int(finished.stdout) < times * num_frames * height * width * 3 + 2**28


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "uint8"])
def test_given_frames_come_back_in_every_form(to_sound, kind):
    output = to_sound(CLIP[:9], CALL["prompt"], **AUDIO_QUICK, num_inference_steps=1, output_type=kind)
    frames = output.frames[0]
    if kind == "pil":
        frames = np.stack([np.array(image) for image in frames])
    if kind == "pt":
        frames = frames.movedim(1, -1)
    frames = np.asarray(frames)
    expected = CLIP[:9] / 255 if kind in ("np", "pt") else CLIP[:9]
    np.testing.assert_allclose(frames, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ({}, 3 * 2 * 3),
        ({"height": 64, "width": 64}, 3 * 2 * 2),
        ({"two_stage": True, "stage_2_adapters": {}}, 3 * 1 * 1),
    ],
)
def test_the_network_sees_the_video_at_a_valid_size(to_sound, clip_file, arguments, tokens):
    seen = watched(to_sound, video=clip_file, prompt=CALL["prompt"], **AUDIO_QUICK, num_inference_steps=1, **arguments)
    assert seen.video_tokens[0] == tokens
    assert seen.output.frames[0][0].size == (112, 80)


def test_a_video_smaller_than_what_can_be_decoded_gets_its_sound(to_sound):
    video = np.zeros((9, 36, 40, 3), np.uint8)
    output = to_sound(video, CALL["prompt"], **AUDIO_QUICK, num_inference_steps=1, generator=seeded(1))
    assert output.frames[0][0].size == (40, 36)
    assert output.audio.shape[-1] / output.sampling_rate == pytest.approx(9 / 24, abs=0.05)


def test_two_stages_refine_the_sound_and_keep_the_video(to_sound):
    arguments = {
        "prompt": CALL["prompt"],
        "num_inference_steps": 2,
        "output_type": "latent",
        "max_sequence_length": 64,
    }
    seen = watched(to_sound, video=CLIP, **arguments, **TWO_STAGES, generator=seeded(0))
    assert seen.output.info["forwards_per_step"] == [4, 1]
    for side, stage in zip((32, 64), seen.stages()):
        assert_tokens(stage[-1]["latents"], 0, [encoded(to_sound, CLIP, side, side)])
    first = to_sound(CLIP, **arguments, **TWO_STAGES, audio_stage=0, generator=seeded(0))
    assert not torch.equal(first.audio, seen.output.audio)


def test_a_lower_frame_rate_first_is_a_list_of_stages(to_sound):
    stages = [Stage(temporal_scale=0.5, sigmas=[1.0]), Stage(sigmas=[0.6])]
    arguments = {"prompt": CALL["prompt"], "output_type": "latent", "max_sequence_length": 64}
    seen = watched(to_sound, video=CLIP, **arguments, stages=stages)
    for frames, stage in zip((CLIP[::2], CLIP), seen.stages()):
        assert_tokens(stage[-1]["latents"], 0, [encoded(to_sound, frames, 64, 64)])
    assert seen.output.audio.shape[2] == round(17 / 24 * 25)


@pytest.mark.parametrize(
    ("video", "arguments", "message"),
    [
        (CLIP, {"num_frames": 18}, "`num_frames` is 18, but the video has 17 frames; use 17"),
        (CLIP, {"height": 48}, "`height` has to be divisible by 32 but is 48"),
        (CLIP, {"two_stage": True}, "needs its distilled LoRA"),
        (CLIP.astype(np.float32) * 2, {}, "between 0 and 255"),
        ("nowhere.mp4", {}, r"nowhere\.mp4"),
        (None, {}, "`video` has to be an image"),
    ],
)
def test_wrong_videos_are_named_before_any_computation(to_sound, video, arguments, message):
    with no_computation(to_sound), pytest.raises((ValueError, FileNotFoundError), match=message):
        to_sound(video, CALL["prompt"], **arguments)


@pytest.mark.parametrize("content", [b"", b"not a video"])
def test_damaged_videos_are_named(to_sound, tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with no_computation(to_sound), pytest.raises(ValueError, match=r"clip\.mp4"):
        to_sound(tmp_path / "clip.mp4", CALL["prompt"])


def test_pictures_that_an_mp4_file_cannot_hold_are_announced_before_any_computation(to_sound, tmp_path):
    source = write_source(tmp_path / "clip.mov", Track("prores_ks"))
    with no_computation(to_sound), warnings.catch_warnings(), pytest.raises(EncodedAnewWarning, match=r"use \.mov"):
        warnings.simplefilter("error", EncodedAnewWarning)
        to_sound(source, CALL["prompt"])


# --- sound alone ---


@pytest.mark.parametrize("duration_s", [0.04, 0.5, 1.234])
def test_sound_alone_has_the_nearest_number_of_latents(to_sound_alone, duration_s, tmp_path):
    seen = watched(
        to_sound_alone, prompt="Rain.", duration_s=duration_s, num_inference_steps=2, max_sequence_length=64
    )
    assert seen.output.info["forwards_per_step"] == 3
    assert seen.video_tokens == [None] * len(seen.video_tokens)
    assert seen.steps[0]["audio_latents"].shape[1] == round(duration_s * 25)
    assert seen.output.frames is None
    (path,) = seen.output.save(tmp_path / "sound.wav")
    assert probe(path).sampling_rate == 24000
    # A latent decodes to 40 ms but the first one, which is shorter.
    assert -0.06 < read_audio(path)[0].shape[-1] / 24000 - duration_s <= 0.04


def test_sound_alone_takes_the_schedule_of_the_trained_length(to_sound_alone):
    """Noise levels do not depend on the size of a video that is not there."""
    info = to_sound_alone("Rain.", duration_s=0.2, num_inference_steps=8, max_sequence_length=64).info
    expected = [1.0, 0.9657, 0.9219, 0.8639, 0.7834, 0.6646, 0.4710, 0.1, 0.0]
    assert info["sigmas"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration_s": 0.0}, "`duration_s` has to be at least 0.04"),
        ({"duration_s": float("nan")}, "`duration_s` has to be a finite number but is nan"),
        ({"two_stage": True}, "needs its distilled LoRA"),
        ({"stages": [Stage(), Stage(upsampler="latent_upsampler")]}, "a call without video has nothing to enlarge"),
        ({"output_type": "wav"}, "`output_type` has to be one of"),
    ],
)
def test_wrong_sounds_are_named_before_any_computation(to_sound_alone, arguments, message):
    with no_computation(to_sound_alone), pytest.raises(ValueError, match=message):
        to_sound_alone("Rain.", **arguments)

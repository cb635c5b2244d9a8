"""Retakes: what is made anew, what is kept exactly, and what is refused before anything is computed."""

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.pipelines.arguments import Stage
from ltx2_diffusers.pipelines.conditions.pictures import LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.retake import LTX2RetakePipeline
from tests.media.clips import gradient_clip, tone, write_timed
from tests.pipelines.tiny import NO_GUIDANCE, PROMPT, load, seeded
from tests.pipelines.watching import no_forward, packets

FRAMES = (gradient_clip(17, 64, 64) * 255).round().to(torch.uint8)
RATE = 24000
SOUND = tone(17 / 24, RATE)
# Latent frames of 17 frames at 24 per second: 0 to 1/24 s, to 9/24 s, to 17/24 s.
MIDDLE = (0.1, 0.3)
CALL = {"prompt": PROMPT, "num_inference_steps": 2, "max_sequence_length": 64, "output_type": "latent", **NO_GUIDANCE}
WITH_SOUND = {"audio": SOUND, "sampling_rate": RATE}
TWO_STAGES = {"two_stage": True, "stage_2_adapters": {}, "stage_2_sigmas": [0.9, 0.4, 0.0]}


@pytest.fixture(scope="module")
def pipe() -> LTX2RetakePipeline:
    return load("2.0", LTX2RetakePipeline)


@pytest.fixture(scope="module")
def source_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "source.mp4"
    write_video(path, FRAMES, 24.0, SOUND, RATE)
    return path


def retake(pipe, video=FRAMES, start_s=MIDDLE[0], end_s=MIDDLE[1], **kwargs):
    return pipe(video, start_s, end_s, **{**CALL, "generator": seeded(1), **kwargs})


def encoded(pipe, frames=FRAMES, sound=SOUND):
    """The un-normalised latents of the source."""
    video = pipe.encode_video(frames.movedim(0, 1)[None].float() / 127.5 - 1)
    audio = pipe.encode_audio(sound[None], RATE)
    return pipe.vae.denormalize_latents(video), pipe.audio_vae.denormalize_latents(audio)


def changed(actual: torch.Tensor, expected: torch.Tensor) -> list[int]:
    """Latent frames, or audio latents, that are not bit-equal."""
    assert actual.shape == expected.shape
    return [i for i in range(actual.shape[2]) if not torch.equal(actual[:, :, i], expected[:, :, i])]


def audio_latents_within(start_s: float, end_s: float, count: int) -> list[int]:
    """Audio latents that overlap a stretch; the first lasts 10 ms and every other 40 ms."""
    bounds = [(max(4 * i - 3, 0) / 100, (4 * i + 1) / 100) for i in range(count)]
    return [i for i, (begin, end) in enumerate(bounds) if end > start_s and begin < end_s]


# --- what is kept ---


@pytest.mark.parametrize("stages", [{}, TWO_STAGES], ids=["one stage", "two stages"])
def test_only_latents_of_the_stretch_change(pipe, stages):
    frames = FRAMES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    output = retake(pipe, frames, **WITH_SOUND, **stages)
    video, audio = encoded(pipe, frames)
    assert changed(output.frames, video) == [1]
    length = output.audio.shape[2]
    assert changed(output.audio, audio[:, :, :length]) == audio_latents_within(*MIDDLE, length)


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [((0.0, 0.02), [0]), ((0.02, 0.2), [0, 1]), ((9 / 24, 17 / 24), [2]), ((0.4, 17 / 24 + 0.03), [2])],
)
def test_a_latent_frame_is_new_as_soon_as_it_overlaps_the_stretch(pipe, stretch, expected):
    assert changed(retake(pipe, start_s=stretch[0], end_s=stretch[1]).frames, encoded(pipe)[0]) == expected


def test_a_clip_shown_slower_is_cut_at_the_same_seconds(pipe):
    output = retake(pipe, start_s=0.4, end_s=0.7, motion_speed=2.0)
    assert changed(output.frames, encoded(pipe)[0]) == [2]


def test_the_end_of_the_clip_can_be_retaken_with_its_sound(pipe):
    # The audio latents end before the video does: 18 of them last 0.69 s, 17 frames 0.708 s.
    output = retake(pipe, start_s=0.7, end_s=17 / 24, **WITH_SOUND)
    video, audio = encoded(pipe)
    assert changed(output.frames, video) == [2]
    assert changed(output.audio, audio[:, :, : output.audio.shape[2]]) == [output.audio.shape[2] - 1]


@pytest.mark.parametrize("stages", [{}, TWO_STAGES], ids=["one stage", "two stages"])
def test_a_region_is_kept_around_its_latents(pipe, stages):
    frames = FRAMES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    mask = torch.zeros(128, 128)
    mask[70:90, 10:60] = 1  # latent row 2 and columns 0 and 1
    output = retake(pipe, frames, region=mask, **stages)
    new = (output.frames != encoded(pipe, frames)[0]).any(dim=1)[0]
    expected = torch.zeros(3, 4, 4, dtype=torch.bool)
    # The first stage has half as many latents, but the second one keeps all that lies outside at full size.
    expected[1, 2, :2] = True
    assert torch.equal(new, expected)


def test_a_region_is_an_image_an_array_or_a_tensor_of_any_size(pipe):
    mask = np.zeros((32, 48), np.uint8)
    mask[:16, :24] = 255
    as_image = retake(pipe, region=PIL.Image.fromarray(mask)).frames
    as_array = retake(pipe, region=mask).frames
    as_clip = retake(pipe, region=(torch.from_numpy(mask) > 0).expand(17, -1, -1)).frames
    assert torch.equal(as_image, as_array)
    assert torch.equal(as_image, as_clip)
    new = (as_image != encoded(pipe)[0]).any(dim=1)[0]
    assert new.nonzero().tolist() == [[1, 0, 0]]


def test_a_region_may_move(pipe):
    mask = torch.zeros(17, 64, 64)
    mask[1:9, :32, :32] = 1
    mask[12, 32:, 32:] = 1
    new = (retake(pipe, start_s=0.0, end_s=17 / 24, region=mask).frames != encoded(pipe)[0]).any(dim=1)[0]
    assert new.nonzero().tolist() == [[1, 0, 0], [2, 1, 1]]


# --- one stream alone ---


def test_pictures_alone_leave_the_sound_as_it_was(pipe, source_file, tmp_path):
    output = retake(pipe, source_file, regenerate_audio=False, output_type="uint8")
    sound, rate = read_audio(source_file)
    assert output.sampling_rate == rate
    length = min(output.audio.shape[-1], sound.shape[-1])
    assert torch.equal(output.audio[..., :length], sound[..., :length])
    output.save(tmp_path / "new.mp4")
    assert packets(tmp_path / "new.mp4", "audio") == packets(source_file, "audio")
    assert packets(tmp_path / "new.mp4", "video") != packets(source_file, "video")


def test_sound_alone_leaves_the_pictures_as_they_were(pipe, source_file, tmp_path):
    output = retake(pipe, source_file, regenerate_video=False, output_type="uint8")
    assert torch.equal(output.frames[0], read_video(source_file))
    assert output.audio.shape[-1] <= output.sampling_rate * 17 / 24 + 1
    output.save(tmp_path / "new.mp4")
    assert packets(tmp_path / "new.mp4", "video") == packets(source_file, "video")
    assert packets(tmp_path / "new.mp4", "audio") != packets(source_file, "audio")


def test_sound_alone_leaves_the_latents_of_the_pictures(pipe):
    output = retake(pipe, regenerate_video=False, **WITH_SOUND)
    video, audio = encoded(pipe)
    assert changed(output.frames, video) == []
    length = output.audio.shape[2]
    assert changed(output.audio, audio[:, :, :length]) == audio_latents_within(*MIDDLE, length)


def test_sound_given_beside_a_file_replaces_the_sound_of_the_file(pipe, source_file, tmp_path):
    other = tone(17 / 24, RATE, frequency=1000.0)
    call = {"regenerate_audio": False, "output_type": "uint8"}
    output = retake(pipe, source_file, audio=other, sampling_rate=RATE, **call)
    assert torch.equal(output.audio[0], other)
    output.save(tmp_path / "new.mp4")
    write_video(tmp_path / "expected.mp4", output.frames[0], 24.0, other, RATE)
    assert packets(tmp_path / "new.mp4", "audio") == packets(tmp_path / "expected.mp4", "audio")
    # A file's packets are copied, also beside frames from elsewhere.
    retake(pipe, FRAMES, audio=tmp_path / "expected.mp4", **call).save(tmp_path / "copied.mp4")
    assert packets(tmp_path / "copied.mp4", "audio") == packets(tmp_path / "expected.mp4", "audio")


def test_a_silent_clip_stays_silent(pipe):
    assert retake(pipe).audio is None


def test_frames_are_taken_from_the_start_of_a_file(pipe, source_file, tmp_path):
    output = retake(pipe, source_file, num_frames=9, regenerate_audio=False, output_type="uint8")
    assert output.frames.shape[1] == 9
    output.save(tmp_path / "short.mp4")
    copied = packets(tmp_path / "short.mp4", "audio")
    assert copied == packets(source_file, "audio")[: len(copied)]


def test_a_file_is_brought_to_the_wished_rate_by_its_times(pipe, source_file):
    """17 frames at 24 per second are 34 at 48, each twice, and 8.5 at 12."""
    for rate, count in ((48.0, 33), (12.0, 9)):
        output = retake(pipe, source_file, frame_rate=rate, num_frames=count, regenerate_audio=False)
        expected = read_video(source_file, count, frame_rate=rate).movedim(-1, 1)
        frames, _ = encoded(pipe, expected)
        assert output.frame_rate == rate
        assert changed(output.frames, frames) == changed(retake(pipe, expected, frame_rate=rate).frames, frames)
    with no_forward(pipe), pytest.raises(ValueError, match="`num_frames` is 17, but the video has 9 frames"):
        retake(pipe, source_file, frame_rate=12.0, num_frames=17)
    with no_forward(pipe), pytest.raises(ValueError, match=r"`frame_rate` has to be at most 1000 .*; use 1000"):
        retake(pipe, source_file, frame_rate=1e30, num_frames=17)


def test_a_varying_rate_becomes_the_average_one_with_a_warning(pipe, tmp_path):
    # 9 frames per second and then 36; on average 17 in 1.111 s.
    times = [i / 9 for i in range(7)] + [7 / 9 + i / 36 for i in range(10)]
    path = write_timed(tmp_path / "phone.mp4", times, SOUND[:1, :RATE], bf="0")
    with pytest.warns(UserWarning, match=r"the frame rate of .*phone\.mp4' varies"):
        output = retake(pipe, path, regenerate_audio=False, output_type="uint8", height=64, width=64)
    rate = probe(path).frame_rate
    assert output.frame_rate == pytest.approx(float(rate))
    assert output.frames.shape[1] == 17
    (saved,) = output.save(tmp_path / "out.mp4")
    assert probe(saved).duration_s == pytest.approx(times[-1] + 1 / 36, abs=0.5 / float(rate))


def test_a_clip_whose_pictures_start_late_keeps_its_sound_in_step(pipe, tmp_path):
    times = [0.5 + i / 24 for i in range(17)]
    path = write_timed(tmp_path / "late.mov", times, tone(1.3, RATE)[:1], bf="0")
    output = retake(pipe, path, regenerate_audio=False, output_type="uint8", height=64, width=64)
    assert torch.allclose(output.audio[0, 0], tone(1.3, RATE)[0, RATE // 2 :][: round(17 / 24 * RATE)], atol=1e-4)


# --- other arguments ---


def test_the_stretch_follows_the_prompt(pipe):
    one, other = (retake(pipe, prompt=prompt).frames for prompt in (PROMPT, "Waves."))
    assert changed(one, other) == [1]


def test_pictures_can_be_shown_within_the_stretch(pipe):
    shown = LTX2VideoCondition(np.full((64, 64, 3), 255, np.uint8), frame=4, mode="append")
    output = retake(pipe, conditions=shown)
    assert changed(output.frames, encoded(pipe)[0]) == [1]
    assert changed(output.frames, retake(pipe).frames) == [1]


def test_a_batch_keeps_the_same_clip(pipe):
    output = retake(pipe, prompt=[PROMPT, "Waves."], generator=seeded(1, 2), **WITH_SOUND)
    video = encoded(pipe)[0]
    for row in range(2):
        assert changed(output.frames[[row]], video) == [1]
    assert changed(output.frames[:1], output.frames[1:]) == [1]


def test_a_stage_at_half_the_frame_rate_sees_every_other_frame(pipe):
    stages = [Stage(sigmas=[1.0, 0.5, 0.0], temporal_scale=0.5)]
    stages.append(Stage(sigmas=[0.9, 0.4, 0.0], upsampler="temporal_upsampler"))
    upsampler = type(pipe.latent_upsampler).from_config(
        {**pipe.latent_upsampler.config, "spatial_upsample": False, "temporal_upsample": True}
    )
    whole = LTX2RetakePipeline(**{**pipe.components, "temporal_upsampler": upsampler.eval()})
    whole.set_progress_bar_config(disable=True)
    mask = torch.zeros(17, 64, 64)
    mask[:, :32] = 1
    output = retake(whole, stages=stages, region=mask, **WITH_SOUND)
    new = (output.frames != encoded(pipe)[0]).any(dim=1)[0]
    assert new.nonzero().tolist() == [[1, 0, 0], [1, 0, 1]]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_s": 0.3, "end_s": 0.3}, "0 <= start_s < end_s"),
        ({"start_s": 0.5, "end_s": 0.3}, "0 <= start_s < end_s"),
        ({"start_s": -0.1}, "0 <= start_s < end_s"),
        ({"start_s": float("nan")}, "`start_s` has to be a finite number but is nan"),
        ({"end_s": 2.0}, r"`end_s` 2.0 lies behind the end of the clip; its 17 frames .* last 0.708 s"),
        ({"start_s": 0.71, "end_s": 0.72}, "`start_s` 0.71 .* 0.708 s"),
        ({"region": torch.zeros(64, 64)}, "`region` .* nothing would be made anew"),
        ({"region": torch.zeros(17, 64, 64).index_fill_(0, torch.tensor([16]), 1.0)}, "nothing would be made anew"),
        ({"region": torch.ones(5, 64, 64)}, r"has to be a mask \[H, W\] or \[17, H, W\]"),
        ({"region": torch.ones(1, 1)}, "too few for 2 x 2 latents"),
        ({"region": torch.ones(64, 64), "regenerate_video": False, **WITH_SOUND}, "leave one of them out"),
        ({"regenerate_video": False}, "both False"),
        ({"regenerate_audio": True}, "no sound to keep"),
        ({"video": FRAMES[:16]}, "`video` has 16 frames at a `frame_rate` of 24, .*`num_frames`=9"),
        ({"video": FRAMES[:, :, :50]}, "50"),
        ({"num_frames": 25}, "has 17 frames; use 17"),
        ({"conditions": LTX2VideoCondition(FRAMES[0], frame=17)}, "17 lies outside the clip"),
        ({"video": FRAMES, "output_type": "gif"}, "output_type"),
        ({"two_stage": True, "stage_2_adapters": {}}, "64"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(pipe, change, message):
    if change.get("two_stage"):
        change = {**change, "video": FRAMES.repeat(1, 1, 1, 2)[..., :96]}
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        retake(pipe, **change)


def test_a_damaged_file_is_named(pipe, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    with no_forward(pipe), pytest.raises(ValueError, match=r"broken\.mp4"):
        retake(pipe, path)

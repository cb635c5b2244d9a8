"""Clips made of storyboards: what segments share, what they show, and that nothing tells an interrupted run from another."""

import gc
import json
import os
import signal
from dataclasses import replace

import PIL.Image
import pytest
import torch

from ltx2_diffusers import (
    Keyframe,
    LTX2ExtendPipeline,
    LTX2Pipeline,
    Shot,
    Storyboard,
    make_storyboard,
    packaged_checkpoint,
)
from ltx2_diffusers.application.storyboard.finished import FinishedSegments
from ltx2_diffusers.media.frames import read_frames
from ltx2_diffusers.media.preprocess import fitted_frames
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.media.writing import write_audio, write_video
from scripts.pages import write_media
from tests.adapters.files import save_random_loras
from tests.killing import child, contents, count_steps, ended, hidden, killed_before, some_steps
from tests.media.clips import gradient_clip, tone
from tests.pipelines.tiny import NO_GUIDANCE, load, seeded
from tests.pipelines.watching import calls_of, no_forward, packets, segments_alive
from tests.tiny_checkpoints import tiny_checkpoint

SETTINGS = {"num_inference_steps": 2, "max_sequence_length": 64, **NO_GUIDANCE}
SIZE = {"height": 64, "width": 64, "num_frames": 17, "overlap_frames": 9}
RATE = 24000
# Three segments of 17 frames, of which the last two add 8: 33 frames.
SHOTS = (Shot("A fox walks.", 0.7), Shot("Waves break.", 0.7))
STEPS = 2


class Stopped(Exception):
    """What a callback raises to end a call."""


@pytest.fixture(scope="module")
def pipe() -> LTX2ExtendPipeline:
    return load("2.0", LTX2ExtendPipeline)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Names of a red and of a blue picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for color in ("red", "blue"):
        PIL.Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    return {color: str(folder / f"{color}.png") for color in ("red", "blue")}


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """The clip of the storyboard, made at once, with its segments."""
    path = tmp_path_factory.mktemp("whole") / "film.mp4"
    make_storyboard(board(), pipe, path, keep_segments=True)
    return path


def board(*shots: Shot, **fields) -> Storyboard:
    settings = {**SETTINGS, **fields.pop("settings", {})}
    return Storyboard(shots=shots or SHOTS, settings=settings, **{**SIZE, **fields})


def equal(path, other) -> bool:
    return all(packets(path, kind) == packets(other, kind) for kind in ("video", "audio"))


def stopping(segment: int, step: int):
    """A function for `on_progress` that ends the call at a step of a segment."""

    def on_progress(progress):
        if (progress.segment, progress.step, progress.path) == (segment, step, None):
            raise Stopped

    return on_progress


# --- the clip ---


def test_a_storyboard_of_one_segment_is_the_clip_of_one_call(pipe, tmp_path):
    make_storyboard(board(Shot("A fox walks.", 0.7), seed=4), pipe, tmp_path / "film.mp4")
    call = {"height": 64, "width": 64, "num_frames": 17, "overlap_frames": 9, **SETTINGS}
    pipe("A fox walks.", save_path=tmp_path / "clip.mp4", generator=seeded(4), output_type="pil", **call)
    assert equal(tmp_path / "film.mp4", tmp_path / "clip.mp4")


def test_segments_are_joined_without_a_seam_and_the_sound_is_in_step(whole):
    finished = FinishedSegments(whole)
    finished.read()
    assert len(finished) == 3
    first, second, third = (finished.latents(index) for index in range(3))
    for before, after in ((first, second), (second, third)):
        assert torch.equal(after.video[:, :, :2], before.video[:, :, -2:])
    # 17 frames last 18 audio latents, 25 frames 26 and 33 frames 34: each adds 8 and shares 10.
    assert torch.equal(second.audio[:, :, :10], first.audio[:, :, -10:])
    assert torch.equal(third.audio[:, :, :10], second.audio[:, :, -10:])
    clips = [read_video(clip) for clip in finished.clips]
    assert [len(clip) for clip in clips] == [17, 8, 8]
    assert torch.equal(read_video(whole), torch.cat(clips))
    # The sound is that of a file written in one go.
    with ClipWriter(whole.with_name("at_once.mp4"), 24.0, RATE) as writer:
        for clip, samples in zip(clips, finished.samples()):
            writer.write(clip, samples)
    assert packets(whole, "audio") == packets(whole.with_name("at_once.mp4"), "audio")
    assert probe(whole).num_frames == 33
    assert abs(read_audio(whole)[0].shape[-1] / RATE - 33 / 24) < 1025 / RATE


def test_the_output_and_progress_tell_what_was_made(pipe, whole, tmp_path):
    seen = []
    path = tmp_path / "new" / "film.mp4"
    output = make_storyboard(board(), pipe, path, on_progress=seen.append)
    assert (output.frames, output.audio, output.frame_rate, output.sampling_rate) == (None, None, 24.0, RATE)
    assert (output.info["segments"], output.info["num_frames"], output.info["path"]) == (3, 33, str(path))
    assert output.info["prompts"] == ["A fox walks.", "Waves break.", "Waves break."]
    assert equal(path, whole)
    steps = [(one.segment, one.num_segments, one.step, one.num_steps) for one in seen]
    assert steps == [(s, 3, step, 2) for s in (1, 2, 3) for step in (1, 2, 2)]
    files = [one.path.name for one in seen if one.path is not None]
    assert files == ["0001.mp4", "0002.mp4", "0003.mp4"]
    assert [item.name for item in path.parent.iterdir()] == ["film.mp4"]


def test_other_pipelines_share_their_components(pipe, whole, tmp_path):
    other = LTX2Pipeline.from_pipe(pipe)
    make_storyboard(board(), other, tmp_path / "film.mp4")
    assert equal(tmp_path / "film.mp4", whole)


def test_a_clip_may_have_no_sound_and_two_stages(pipe, tmp_path):
    two = {"two_stage": True, "stage_2_adapters": {}, "stage_2_sigmas": [0.9, 0.4, 0.0]}
    make_storyboard(board(generate_audio=False, height=128, width=128, settings=two), pipe, tmp_path / "film.mp4")
    info = probe(tmp_path / "film.mp4")
    assert (info.num_frames, info.height, info.sampling_rate) == (33, 128, None)


def test_callbacks_see_what_those_of_every_pipeline_see(pipe, tmp_path):
    seen = []

    def callback(given, step, _timestep, tensors):
        seen.append((given is pipe, step, sorted(tensors)))
        return {}

    names = ["latents", "denoised"]
    watch = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    make_storyboard(board(SHOTS[0]), pipe, tmp_path / "film.mp4", **watch)
    assert seen == [(True, 0, sorted(names)), (True, 1, sorted(names))]


def test_drift_control_holds_to_the_first_segment(pipe, whole, tmp_path):
    make_storyboard(board(drift_control=1.0), pipe, tmp_path / "film.mp4", keep_segments=True)
    finished = FinishedSegments(tmp_path / "film.mp4")
    finished.read()
    first, last = finished.latents(0).video, finished.latents(2).video[:, :, 2:]
    torch.testing.assert_close(last.mean((2, 3, 4)), first.mean((2, 3, 4)), atol=1e-4, rtol=1e-4)
    assert not equal(tmp_path / "film.mp4", whole)


# --- pictures ---


def test_a_picture_at_the_start_is_the_first_latent_frame(pipe, pictures, tmp_path):
    shot = replace(SHOTS[0], keyframes=[Keyframe(pictures["red"], crf=0)])
    make_storyboard(board(shot), pipe, tmp_path / "film.mp4", keep_segments=True)
    finished = FinishedSegments(tmp_path / "film.mp4")
    finished.read()
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(1, 64, 64, 3)
    shown = pipe.encode_video(fitted_frames(red, [0], 64, 64))
    assert torch.equal(finished.latents(0).video[:, :, :1], shown)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("at_s", "segment", "latent"), [(0.0, 1, 2), (0.3, 1, 2), (0.5, 2, 2)])
def test_a_picture_that_replaces_is_the_latent_frame_of_its_time(pipe, pictures, tmp_path, at_s, segment, latent):
    shots = [SHOTS[0], replace(SHOTS[1], keyframes=[Keyframe(pictures["blue"], at_s, crf=0, mode="replace")])]
    make_storyboard(board(*shots), pipe, tmp_path / "film.mp4", keep_segments=True)
    finished = FinishedSegments(tmp_path / "film.mp4")
    finished.read()
    blue = torch.tensor([0, 0, 255], dtype=torch.uint8).expand(1, 64, 64, 3)
    shown = pipe.encode_video(fitted_frames(blue, [0], 64, 64))
    assert torch.equal(finished.latents(segment).video[:, :, latent : latent + 1], shown)


@pytest.mark.slow
def test_the_miniature_shows_pictures_at_their_times(tmp_path):
    pipe = LTX2ExtendPipeline.from_pretrained(packaged_checkpoint("ltx2-mini"))
    write_media(tmp_path)
    pictures = {name: read_frames(tmp_path / f"{name}.png")[0].float() for name in ("first", "last")}
    shots = [
        Shot("a red circle moves to the right on a blue background", 1.0, [Keyframe(tmp_path / "first.png")]),
        Shot(
            "a red circle moves to the left on a blue background",
            1.35,
            [Keyframe(tmp_path / "first.png", 1.35, mode="replace")],
        ),
    ]
    settings = {"num_inference_steps": 15, "stg_scale": 0.0}
    size = {"height": 128, "width": 128, "num_frames": 33, "overlap_frames": 9}
    make_storyboard(Storyboard(shots, **size, settings=settings), pipe, tmp_path / "film.mp4")
    frames = read_video(tmp_path / "film.mp4").float()

    def distance(frame, name):
        return (frames[frame] - pictures[name]).abs().mean()

    assert distance(0, "first") < 6 and distance(-5, "first") < 12
    # Between them the circle is at the right.
    assert distance(24, "last") < 12 < 40 < distance(24, "first")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("at_s", "first_changed"), [(0.0, 17), (0.2, 17), (0.5, 25)])
def test_a_later_picture_changes_its_segment_and_nothing_before_it(
    pipe, whole, pictures, tmp_path, at_s, first_changed
):
    shots = [SHOTS[0], replace(SHOTS[1], keyframes=[Keyframe(PIL.Image.open(pictures["red"]), at_s)])]
    make_storyboard(board(*shots), pipe, tmp_path / "film.mp4")
    frames, others = read_video(tmp_path / "film.mp4"), read_video(whole)
    assert torch.equal(frames[:first_changed], others[:first_changed])
    segment = slice(first_changed, first_changed + 8)
    assert not torch.equal(frames[segment], others[segment])


# --- one sound for all ---


def test_packets_of_the_given_sound_are_kept(pipe, tmp_path):
    write_video(tmp_path / "song.mp4", gradient_clip(48), 24.0, tone(2.0, RATE), RATE)
    made = board(audio=tmp_path / "song.mp4")
    make_storyboard(made, pipe, tmp_path / "film.mp4", keep_segments=True)
    kept, given = packets(tmp_path / "film.mp4", "audio"), packets(tmp_path / "song.mp4", "audio")
    assert kept == given[: len(kept)]
    assert abs(len(kept) * 1024 / RATE - 33 / 24) < 2 * 1024 / RATE
    # The pictures of a segment are made for its own part of the sound.
    loud, _ = read_audio(tmp_path / "film.mp4.segments" / "0002.mp4")
    assert abs(loud.shape[-1] / RATE - 8 / 24) < 1025 / RATE
    assert loud.abs().max() > 0.3


@pytest.mark.parametrize("start_s", [0.0, 0.25])
def test_a_sound_that_cannot_be_copied_is_encoded_as_a_whole(pipe, tmp_path, start_s):
    sound = tone(2.0, RATE)
    write_audio(tmp_path / "song.wav", sound, RATE)
    make_storyboard(board(audio=tmp_path / "song.wav", audio_start_s=start_s), pipe, tmp_path / "film.mp4")
    read, _ = read_audio(tmp_path / "song.wav")
    begin, length = round(start_s * RATE), round(33 / 24 * RATE)
    frames = torch.zeros(33, 64, 64, 3, dtype=torch.uint8)
    write_video(tmp_path / "at_once.mp4", frames, 24.0, read[0, :, begin : begin + length], RATE)
    assert packets(tmp_path / "film.mp4", "audio") == packets(tmp_path / "at_once.mp4", "audio")


def test_each_segment_hears_its_part_of_the_sound(pipe, monkeypatch, tmp_path):
    sound = torch.arange(2 * RATE).float()[None].repeat(2, 1) / (2 * RATE)
    write_audio(tmp_path / "ramp.wav", sound, RATE)
    heard, encode = [], pipe.encode_audio
    monkeypatch.setattr(pipe, "encode_audio", lambda wave, rate: heard.append(wave) or encode(wave, rate))
    make_storyboard(board(audio=tmp_path / "ramp.wav"), pipe, tmp_path / "film.mp4")
    starts = [wave[0, 0, 0].item() * 2 for wave in heard]
    assert starts == pytest.approx([0, 8 / 24, 16 / 24], abs=1e-3)
    assert [wave.shape[-1] for wave in heard] == [round(17 / 24 * RATE)] * 3


def test_a_short_sound_is_refused_or_filled_with_silence(pipe, tmp_path):
    write_audio(tmp_path / "song.wav", tone(0.5, RATE), RATE)
    short = board(audio=tmp_path / "song.wav")
    with no_forward(pipe), pytest.raises(ValueError, match=r"`audio` lasts 0\.50 s .* and the shots 1\.38 s"):
        make_storyboard(short, pipe, tmp_path / "film.mp4")
    make_storyboard(replace(short, audio_fit="pad"), pipe, tmp_path / "film.mp4")
    samples, _ = read_audio(tmp_path / "film.mp4")
    assert abs(samples.shape[-1] / RATE - 33 / 24) < 1025 / RATE
    assert samples[..., : RATE // 4].abs().max() > 0.3 > 1e-3 > samples[..., RATE:].abs().max()


# --- going on ---


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("segment", "step"), [(1, 2), (2, 1), (3, 2)])
def test_a_run_that_failed_is_gone_on_with(pipe, whole, tmp_path, segment, step):
    path, seen = tmp_path / "film.mp4", []
    with pytest.raises(Stopped):
        make_storyboard(board(), pipe, path, on_progress=stopping(segment, step))
    assert not path.exists()
    make_storyboard(board(), pipe, path, on_progress=seen.append)
    assert [one.segment for one in seen if one.step == 1] == list(range(segment, 4))
    assert equal(path, whole)
    assert [item.name for item in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.gpu
def test_a_run_that_failed_on_a_gpu_is_gone_on_with(tmp_path):
    gpu = load("2.0", LTX2ExtendPipeline).to("cuda")
    fields = {"drift_control": 0.5}
    with pytest.raises(Stopped):
        make_storyboard(board(**fields), gpu, tmp_path / "film.mp4", on_progress=stopping(3, 1))
    make_storyboard(board(**fields), gpu, tmp_path / "film.mp4")
    make_storyboard(board(**fields), gpu, tmp_path / "at_once.mp4")
    assert equal(tmp_path / "film.mp4", tmp_path / "at_once.mp4")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("fields", [{}, {"drift_control": 0.5}], ids=["plain", "drift"])
def test_after_a_kill_frames_and_samples_are_those_of_a_run_without(pipe, tmp_path, fields):
    path, other = tmp_path / "film.mp4", tmp_path / "other" / "film.mp4"

    def kill(progress):
        if (progress.segment, progress.step) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(child(lambda: make_storyboard(board(**fields), pipe, path, on_progress=kill))) == -signal.SIGKILL
    assert sorted(contents(tmp_path)) == [
        f"film.mp4.segments/{n}" for n in ("0001.mp4", "0001.safetensors", "state.json")
    ]
    with calls_of(pipe.vae.decoder) as decoded:
        make_storyboard(board(**fields), pipe, path)
    assert len(decoded) == 2
    make_storyboard(board(**fields), pipe, other)
    assert torch.equal(read_video(path), read_video(other))
    assert torch.equal(read_audio(path)[0], read_audio(other)[0])


@pytest.mark.slow
def test_whenever_it_is_killed_it_can_be_gone_on_with(pipe, whole, tmp_path):
    def write(folder):
        return lambda: make_storyboard(board(), pipe, folder / "film.mp4")

    (tmp_path / "count").mkdir()
    count = count_steps(write(tmp_path / "count"), tmp_path / "count")
    for number in some_steps(count, 24):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert killed_before(write(folder), folder, number)
        make_storyboard(board(), pipe, folder / "film.mp4")
        assert equal(folder / "film.mp4", whole), number
        assert sorted(contents(folder)) == ["film.mp4"]
        assert hidden(folder) == []


def test_damaged_segments_are_made_anew(pipe, whole, tmp_path):
    path = tmp_path / "film.mp4"
    make_storyboard(board(), pipe, path, keep_segments=True)
    (tmp_path / "film.mp4.segments" / "0002.safetensors").write_bytes(b"")
    with calls_of(pipe.vae.decoder) as decoded:
        make_storyboard(board(), pipe, path)
    assert len(decoded) == 2
    assert equal(path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message", "remade"),
    [
        (
            board(SHOTS[0], replace(SHOTS[1], prompt="Rain.")),
            r"of segment 2, `prompt` was 'Waves break.' and is 'Rain.'",
            2,
        ),
        (board(SHOTS[0], replace(SHOTS[1], seed=99)), "of segment 2, `seed` was 11 and is 99", 2),
        (board(SHOTS[0], Shot(["Waves break.", "Rain."], 0.7)), "of segment 3, `prompt` was", 1),
        (board(seed=3), "of segment 1, `seed` was 10 and is 3", 3),
        (board(settings={"guidance_scale": 2.0}), r"`guidance_scale` was 1\.0 and is 2\.0", 3),
        (board(width=96), "`width` was 64 and is 96", 3),
    ],
)
def test_a_changed_storyboard_is_noticed_and_what_changed_is_remade(pipe, whole, tmp_path, changed, message, remade):
    path = tmp_path / "film.mp4"
    make_storyboard(board(), pipe, path, keep_segments=True)
    before = contents(tmp_path)
    with (
        no_forward(pipe),
        pytest.raises(ValueError, match=f"holds segments of another storyboard: {message}.*remake=True"),
    ):
        make_storyboard(changed, pipe, path)
    assert contents(tmp_path) == before
    with calls_of(pipe.vae.decoder) as decoded:
        make_storyboard(changed, pipe, path, remake=True)
    assert len(decoded) == remade
    make_storyboard(changed, pipe, tmp_path / "fresh.mp4")
    assert equal(path, tmp_path / "fresh.mp4")
    assert not equal(path, whole)


def test_another_pipeline_is_noticed_by_what_the_caller_says_of_it(pipe, tmp_path):
    make_storyboard(board(), pipe, tmp_path / "film.mp4", keep_segments=True, identity={"weights": "one"})
    with pytest.raises(ValueError, match="`identity` was"):
        make_storyboard(board(), pipe, tmp_path / "film.mp4", identity={"weights": "other"})


def test_shots_can_be_added_behind_finished_ones(pipe, tmp_path):
    path = tmp_path / "film.mp4"
    make_storyboard(board(SHOTS[0]), pipe, path, keep_segments=True)
    with calls_of(pipe.vae.decoder) as decoded:
        make_storyboard(board(), pipe, path)
    assert len(decoded) == 2


def test_an_interrupt_leaves_a_clip_of_the_finished_segments(pipe, whole, tmp_path):
    path, seen = tmp_path / "film.mp4", []

    def interrupt(given, _step, _timestep, _tensors):
        seen.append(None)
        given._interrupt = len(seen) == 2 * STEPS + 1
        return {}

    output = make_storyboard(board(), pipe, path, callback_on_step_end=interrupt)
    assert (output.info["segments"], output.info["num_frames"], probe(path).num_frames) == (2, 25, 25)
    make_storyboard(board(), pipe, path)
    assert equal(path, whole)
    seen[:] = [None] * 2 * STEPS
    with pytest.raises(RuntimeError, match="before a segment was finished"):
        make_storyboard(board(), pipe, tmp_path / "other.mp4", callback_on_step_end=interrupt)
    assert not (tmp_path / "other.mp4").exists()


# --- memory ---


def test_memory_does_not_grow_with_the_number_of_segments(pipe, monkeypatch, tmp_path):
    """Counted: no decoded frames of earlier segments, latents of two, and no more bytes in tensors from one to the next."""
    held = []

    def weigh(progress):
        if progress.path is not None and progress.segment in (3, 5):
            gc.collect()
            tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
            held.append(sum({one.data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values()))

    # What was there before need not be looked at.
    gc.freeze()
    try:
        with segments_alive(pipe, monkeypatch) as alive:
            make_storyboard(board(Shot("Waves.", 2.0)), pipe, tmp_path / "film.mp4", on_progress=weigh)
    finally:
        gc.unfreeze()
    # Of their latents those that are decoded, and those of the first segment, which drift control compares with.
    assert alive == [(0, 1)] + [(0, 2)] * 4
    assert held[0] == held[1] > 0


# --- adapters and the director ---


def test_a_shot_may_change_the_strength_of_adapters(whole, tmp_path):
    own = load("2.0", LTX2ExtendPipeline)
    save_random_loras(tiny_checkpoint("2.0"), tmp_path, ("style",))
    own.load_lora_weights(str(tmp_path / "style.safetensors"), adapter_name="style")
    own.set_adapters(["style"], [0.0])
    shots = [SHOTS[0], replace(SHOTS[1], adapters={"style": 2.0})]
    make_storyboard(board(*shots), own, tmp_path / "film.mp4")
    frames, others = read_video(tmp_path / "film.mp4"), read_video(whole)
    assert torch.equal(frames[:17], others[:17])
    assert not torch.equal(frames[17:], others[17:])
    assert own.transformer.get_submodule("transformer_blocks.0.attn1.to_q").scaling["style"] == 0.0
    wrong = board(SHOTS[0], replace(SHOTS[1], adapters={"camera": 1.0}))
    with (
        no_forward(own),
        pytest.raises(ValueError, match=r"shot 2: `adapters` names 'camera', but loaded are \['style'\]"),
    ):
        make_storyboard(wrong, own, tmp_path / "wrong.mp4")


def test_a_director_writes_prompts_once(pipe, tmp_path):
    path = tmp_path / "film.mp4"
    directed = board(director=True, prompt="A day at the sea.", director_tokens=6)
    with pytest.raises(Stopped):
        make_storyboard(directed, pipe, path, on_progress=stopping(2, 1))
    written = json.loads((tmp_path / "film.mp4.segments" / "state.json").read_text())["prompts"]
    assert len(written) == 3
    with calls_of(pipe.text_encoder.lm_head) as words:
        output = make_storyboard(directed, pipe, path)
    # The texts of both segments are read once; to write one would take a call per token.
    assert len(words) == len(set(written[1:]))
    assert output.info["prompts"] == written
    told = [replace(SHOTS[0], prompt=written[0]), replace(SHOTS[1], prompt=written[1:])]
    make_storyboard(board(*told), pipe, tmp_path / "told.mp4")
    assert equal(path, tmp_path / "told.mp4")


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (board(settings={"num_inference_steps": 0}), "`num_inference_steps` .* 0"),
        (board(settings={"spatio_temporal_guidance_blocks": [99], "stg_scale": 1.0}), "99"),
        (board(settings={"two_stage": True}, height=128, width=128), "stage_2_adapters={}"),
        (
            board(replace(SHOTS[0], keyframes=[Keyframe(PIL.Image.new("RGB", (64, 64)))] * 2)),
            "shot 1: two conditions claim video frame 0",
        ),
        (board(Shot("A fox.", 0.1), SHOTS[1]), "shot 1: `duration_s` 0.1 is too short"),
        (board(frame_rate=400.0), "`frame_rate` 400"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused_before_anything_is_computed(pipe, tmp_path, wrong, message):
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        make_storyboard(wrong, pipe, tmp_path / "film.mp4")
    assert contents(tmp_path) == {}


def test_files_that_are_in_the_way_are_not_touched(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"written as \.mp4 or \.mov"):
        make_storyboard(board(), pipe, tmp_path / "film.gif")
    (tmp_path / "film.mp4.segments").mkdir()
    (tmp_path / "film.mp4.segments" / "letter.txt").write_text("mine")
    with no_forward(pipe), pytest.raises(ValueError, match="is in the way: it holds something else"):
        make_storyboard(board(), pipe, tmp_path / "film.mp4")
    (tmp_path / "film.mp4.segments" / "state.json").write_text("{}")
    with no_forward(pipe), pytest.raises(ValueError, match="was not written by this version"):
        make_storyboard(board(), pipe, tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4.segments" / "letter.txt").read_text() == "mine"


def test_windows_of_a_sound_need_no_more_memory_than_a_segment(tmp_path):
    """Exact windows: they meet at one sample, and silence stands behind the end."""
    from ltx2_diffusers.application.storyboard.plan import plan_storyboard
    from ltx2_diffusers.application.storyboard.track import Track

    write_audio(tmp_path / "song.wav", tone(1.2, RATE), RATE)
    made = board(Shot("a", 1.5), frame_rate=24000 / 1001, audio=tmp_path / "song.wav", audio_fit="pad")
    planned = plan_storyboard(made)
    track = Track(made, planned[-1].end)
    joined = torch.cat([track.window(one) for one in planned], dim=1)
    given = read_audio(tmp_path / "song.wav")[0][0]
    assert joined.shape[1] == round(planned[-1].end * 1001 / 24000 * RATE)
    assert torch.equal(joined[:, : given.shape[1]], given)
    assert not joined[:, given.shape[1] :].any()

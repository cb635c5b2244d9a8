"""Extension: what segments share, what they add, lengths of both streams, streaming to a file, and refusals."""

import itertools

import numpy as np
import pytest
import torch

from ltx2_diffusers import ClipFile
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.models.mel import resample
from ltx2_diffusers.pipelines import engine
from ltx2_diffusers.pipelines.arguments import Delivery, Stage
from ltx2_diffusers.pipelines.recipes.extension import segments
from ltx2_diffusers.pipelines.recipes.extension.pipeline import LTX2ExtendPipeline
from tests.media.clips import gradient_clip, tone
from tests.pipelines.tiny import NO_GUIDANCE, PROMPT, load, seeded
from tests.pipelines.watching import calls_of, no_forward, packets, segments_alive

# A segment of 17 frames (3 latent frames) that shares 9 (2 latent frames) with its neighbour adds 8.
CALL = {
    "prompt": PROMPT,
    "height": 64,
    "width": 64,
    "num_frames": 17,
    "overlap_frames": 9,
    "num_inference_steps": 2,
    "max_sequence_length": 64,
    "output_type": "latent",
    **NO_GUIDANCE,
}
FRAMES = (gradient_clip(17, 64, 64) * 255).round().to(torch.uint8)
RATE = 24000
SOUND = tone(17 / 24, RATE)
TWO_STAGES = {"two_stage": True, "stage_2_adapters": {}, "stage_2_sigmas": [0.9, 0.4, 0.0]}
DIRECTIONS = ["forward", "backward"]
NTSC = 24000 / 1001


@pytest.fixture(scope="module")
def pipe() -> LTX2ExtendPipeline:
    return load("2.0", LTX2ExtendPipeline)


@pytest.fixture(scope="module")
def source(pipe):
    """The un-normalised latents of a clip of 17 frames with sound."""
    output = extend(pipe, generator=seeded(5))
    return {"latents": output.frames, "audio_latents": output.audio}


def extend(pipe, **kwargs):
    return pipe(**{**CALL, "generator": seeded(1), **kwargs})


def segments_of(pipe, monkeypatch, **kwargs):
    """The normalised latents of each segment as the model made them, and the output."""
    made, generate = [], segments.generate

    def keeping(*request):
        made.append(generate(*request))
        return made[-1]

    monkeypatch.setattr(segments, "generate", keeping)
    output = extend(pipe, **kwargs)
    return [one.latents for one in made], output


def audio_length(num_frames: int, frame_rate: float) -> int:
    return round(num_frames / frame_rate * 25)


# --- lengths ---


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("frame_rate", [24.0, NTSC, 30000 / 1001, 25.0, 50.0])
def test_video_and_audio_stay_equally_long(pipe, direction, frame_rate):
    output = extend(pipe, num_segments=5, direction=direction, frame_rate=frame_rate)
    num_frames = 17 + 4 * 8
    assert output.frames.shape == (1, 128, (num_frames - 1) // 8 + 1, 2, 2)
    assert output.audio.shape[2] == audio_length(num_frames, frame_rate)
    assert abs(output.audio.shape[2] / 25 - num_frames / frame_rate) <= 0.04
    assert output.frame_rate == frame_rate
    assert (output.info["segments"], output.info["num_frames"]) == (5, num_frames)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_decoded_pieces_are_as_long_as_the_latents_say(pipe, direction):
    output = extend(pipe, num_segments=3, direction=direction, frame_rate=NTSC, output_type="uint8")
    assert output.frames.shape == (1, 33, 64, 64, 3)
    assert output.audio.shape == (1, 2, round(33 / NTSC * RATE))
    # L latents decode to 40 L - 30 ms and L is rounded to 20 ms, so that no more than 50 ms are filled with silence.
    assert output.audio[..., -round(0.05 * RATE) :].abs().amax() > 0


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
def test_every_output_type_is_put_together(pipe, output_type):
    output = extend(pipe, num_segments=2, output_type=output_type)
    assert len(output.frames[0]) == 25
    bytes_ = extend(pipe, num_segments=2, output_type="uint8").frames[0]
    frames = output.frames[0]
    if output_type == "pil":
        frames = torch.from_numpy(np.stack([np.array(image) for image in frames]))
    elif output_type in ("np", "pt"):
        frames = torch.as_tensor(frames)
        frames = (frames if output_type == "np" else frames.movedim(1, -1)).mul(255).round()
    assert (frames.float() - bytes_.float()).abs().amax() <= 1


def test_a_clip_may_have_no_sound(pipe, source, tmp_path):
    assert extend(pipe, num_segments=2, generate_audio=False).audio is None
    assert extend(pipe, latents=source["latents"]).audio is None
    extend(pipe, generate_audio=False, output_type="pil", save_path=tmp_path / "silent.mp4")
    assert probe(tmp_path / "silent.mp4").sampling_rate is None


def test_a_tuple_on_request(pipe):
    frames, audio = extend(pipe, return_dict=False)
    assert (frames.shape[2], audio.shape[2]) == (3, 18)


# --- what is carried over ---


@pytest.mark.parametrize("stages", [{}, TWO_STAGES], ids=["one stage", "two stages"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_segments_share_latents_exactly(pipe, monkeypatch, direction, stages):
    made, _ = segments_of(pipe, monkeypatch, num_segments=3, direction=direction, **stages, **size(stages))
    for (video, audio), (next_video, next_audio) in itertools.pairwise(made):
        # 25 frames last 26 latents and 33 frames 34: a segment of 18 adds 8 and shares 10.
        if direction == "forward":
            assert torch.equal(next_video[:, :, :2], video[:, :, -2:])
            assert torch.equal(next_audio[:, :, :10], audio[:, :, -10:])
        else:
            # The first latent of a clip stands for one frame; inside the longer clip it is the eight frames before it.
            assert torch.equal(next_video[:, :, -1:], video[:, :, 1:2])
            assert torch.equal(next_audio[:, :, -9:], audio[:, :, 1:10])


@pytest.mark.parametrize("stages", [{}, TWO_STAGES], ids=["one stage", "two stages"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_given_latents_come_out_bit_equal_and_meet_no_vae(pipe, direction, stages):
    given = extend(pipe, generator=seeded(5), **size(stages))
    autoencoders = (pipe.vae.encoder, pipe.vae.decoder, pipe.audio_vae.encoder, pipe.audio_vae.decoder)
    with calls_of(*autoencoders) as calls:
        output = extend(
            pipe,
            latents=given.frames,
            audio_latents=given.audio,
            num_segments=2,
            direction=direction,
            **stages,
            **size(stages),
        )
    assert calls == []
    assert output.frames.shape[2] == 5
    assert output.audio.shape[2] == audio_length(33, 24)
    if direction == "forward":
        assert torch.equal(output.frames[:, :, :3], given.frames)
        assert torch.equal(output.audio[:, :, :18], given.audio)
    else:
        assert torch.equal(output.frames[:, :, -2:], given.frames[:, :, 1:])
        assert torch.equal(output.audio[:, :, -17:], given.audio[:, :, 1:])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_given_latents_are_only_decoded(pipe, source, direction):
    with calls_of(pipe.vae.encoder, pipe.audio_vae.encoder) as calls:
        output = extend(pipe, **source, direction=direction, output_type="uint8")
    assert calls == []
    assert output.frames.shape[1] == 25
    clip = engine.decode_video(pipe, pipe.vae.normalize_latents(source["latents"]), Delivery("uint8"))[0]
    own = output.frames[0, :17] if direction == "forward" else output.frames[0, 8:]
    assert torch.equal(own, clip)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_of_a_clip_only_the_overlap_is_encoded(pipe, direction):
    seen = []
    hook = pipe.vae.encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        output = extend(pipe, video=FRAMES, audio=SOUND, sampling_rate=RATE, direction=direction, output_type="uint8")
    finally:
        hook.remove()
    assert [pixels.shape[2] for pixels in seen] == [9]
    forward = direction == "forward"
    shown = FRAMES[-9:] if forward else FRAMES[:9]
    torch.testing.assert_close(seen[0], shown.movedim(0, 1)[None] / 127.5 - 1)
    assert output.frames.shape[1] == 25
    assert torch.equal(output.frames[0, :17] if forward else output.frames[0, -17:], FRAMES.movedim(1, -1))
    own = resample(SOUND[None], RATE, pipe.vocoder.config.output_sampling_rate)[0]
    heard = output.audio[0, :, : own.shape[1]] if forward else output.audio[0, :, -own.shape[1] :]
    if forward:
        assert torch.equal(heard, own)
    assert output.audio.shape[-1] == round(25 / 24 * RATE)


def test_the_end_of_a_sound_is_encoded_without_a_gap(pipe, monkeypatch):
    heard, encode = [], pipe.encode_audio

    def hearing(waveform, rate):
        heard.append(waveform)
        return encode(waveform, rate)

    monkeypatch.setattr(pipe, "encode_audio", hearing)
    extend(pipe, video=FRAMES, audio=SOUND, sampling_rate=RATE, output_type="uint8")
    # 25 frames last 26 latents and 17 frames 18: the segment of 18 adds 8 and shares 10, that is 10 + 9 * 40 ms, for
    # its first latent stands for 10 ms. Its new sound begins after these, where the given one ends.
    assert torch.equal(heard[0][0], SOUND[:, -round(0.37 * RATE) :])


def test_a_clip_from_a_file_keeps_its_rate_and_sound(pipe, tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, FRAMES, NTSC, SOUND, RATE)
    output = extend(pipe, video=path, output_type="uint8", height=None, width=None)
    assert torch.equal(output.frames[0, :17], read_video(path))
    assert abs(output.frame_rate - NTSC) < 1e-9
    sound = read_audio(path)[0]
    length = min(round(17 / NTSC * RATE), sound.shape[-1])
    assert torch.equal(output.audio[..., :length], sound[..., :length])


def test_a_clip_from_a_file_is_brought_to_the_wished_rate(pipe, tmp_path):
    write_video(tmp_path / "clip.mp4", FRAMES, 12.0, tone(17 / 12, RATE), RATE)
    output = extend(pipe, video=tmp_path / "clip.mp4", frame_rate=24.0, output_type="uint8", height=None, width=None)
    assert torch.equal(output.frames[0, :34], read_video(tmp_path / "clip.mp4").repeat_interleave(2, 0))
    assert output.frame_rate == 24.0
    assert output.audio.shape[-1] / output.sampling_rate == pytest.approx(output.frames.shape[1] / 24, abs=0.04)


def test_a_clip_of_another_size_is_fitted(pipe):
    output = extend(pipe, video=FRAMES.repeat_interleave(2, 2).repeat_interleave(2, 3), output_type="uint8")
    assert output.frames.shape == (1, 25, 64, 64, 3)


# --- prompts, drift, seeds ---


def test_each_segment_has_its_prompt(pipe):
    one = extend(pipe, prompt=[PROMPT, PROMPT, PROMPT])
    other = extend(pipe, prompt=[PROMPT, "Waves.", PROMPT])
    assert torch.equal(one.frames, extend(pipe, num_segments=3).frames)
    assert torch.equal(one.frames[:, :, :3], other.frames[:, :, :3])
    assert not torch.equal(one.frames[:, :, 3], other.frames[:, :, 3])


def test_a_prompt_is_read_once_for_the_segments_that_follow_each_other_with_it(pipe):
    with calls_of(pipe.connectors) as read:
        extend(pipe, num_segments=3)
        assert len(read) == 1
        extend(pipe, prompt=[PROMPT, PROMPT, "Waves.", PROMPT])
        assert len(read) == 1 + 3


def test_the_rewritten_prompts_of_all_segments_are_told(pipe):
    call = {"enable_prompt_enhancement": True, "prompt_max_new_tokens": 4}
    texts = [extend(pipe, prompt=text, **call).info["enhanced_prompt"][0] for text in (PROMPT, "Waves.")]
    assert extend(pipe, prompt=[PROMPT, "Waves."], **call).info["enhanced_prompt"] == texts


def test_backwards_the_first_prompt_is_that_of_the_last_segment_in_time(pipe):
    one = extend(pipe, prompt=[PROMPT, PROMPT], direction="backward")
    other = extend(pipe, prompt=[PROMPT, "Waves."], direction="backward")
    assert torch.equal(one.frames[:, :, -2:], other.frames[:, :, -2:])
    assert not torch.equal(one.frames[:, :, :2], other.frames[:, :, :2])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_drift_control_takes_statistics_back_to_those_of_the_start(pipe, source, direction):
    def new_latents(**kwargs):
        frames = extend(pipe, **source, direction=direction, **kwargs).frames
        frames = pipe.vae.normalize_latents(frames)
        return frames[:, :, 3:] if direction == "forward" else frames[:, :, :2]

    plain, none, half, full = (
        new_latents(**{"drift_control": x} if x is not None else {}) for x in (None, 0.0, 0.5, 1.0)
    )
    assert torch.equal(plain, none)
    reference = pipe.vae.normalize_latents(source["latents"])
    for statistic in (torch.mean, torch.std):
        wanted = statistic(reference, dim=(2, 3, 4))
        torch.testing.assert_close(statistic(full, dim=(2, 3, 4)), wanted, atol=1e-4, rtol=1e-4)
        assert (statistic(plain, dim=(2, 3, 4)) - wanted).abs().amax() > 1e-2
    torch.testing.assert_close(half, (plain + full) / 2, atol=1e-4, rtol=1e-4)


def test_drift_control_leaves_what_is_carried(pipe, source, monkeypatch):
    output = extend(pipe, **source, num_segments=2, drift_control=1.0)
    assert torch.equal(output.frames[:, :, :3], source["latents"])
    first = extend(pipe, drift_control=1.0)
    assert torch.equal(first.frames, extend(pipe).frames)
    made, _ = segments_of(pipe, monkeypatch, **source, num_segments=2, drift_control=1.0)
    assert torch.equal(made[0].video[:, :, 1], made[1].video[:, :, 0])  # the carried latent that was not new
    assert not torch.equal(made[0].video[:, :, 2], made[1].video[:, :, 1])  # the new one, its statistics changed


def test_equal_seeds_give_equal_clips(pipe):
    one, other = (extend(pipe, num_segments=2).frames for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, extend(pipe, num_segments=2, generator=seeded(2)).frames)


# --- streaming ---


@pytest.mark.parametrize("given", ["nothing", "latents", "clip"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.quick_cases(2)
def test_a_streamed_file_holds_what_the_result_in_memory_holds(pipe, source, tmp_path, direction, given):
    clip = {"video": FRAMES, "audio": SOUND, "sampling_rate": RATE}
    call = {"num_segments": 2, "direction": direction, "output_type": "uint8"}
    call |= {"nothing": {}, "latents": source, "clip": clip}[given]
    expected = extend(pipe, **call)
    expected.save(tmp_path / "memory.mp4")
    output = extend(pipe, **call, save_path=tmp_path / "new" / "streamed.mp4")
    assert (output.frames, output.audio) == (None, None)
    assert output.info["path"] == str(tmp_path / "new" / "streamed.mp4")
    assert output.info["num_frames"] == expected.frames.shape[1]
    for kind in ("video", "audio"):
        assert packets(output.info["path"], kind) == packets(tmp_path / "memory.mp4", kind)


def test_streaming_holds_the_frames_of_one_segment_at_a_time(pipe, monkeypatch, tmp_path):
    with segments_alive(pipe, monkeypatch) as alive:
        extend(pipe, num_segments=5, save_path=tmp_path / "long.mp4", output_type="pil")
    # No decoded frames of earlier segments; of their latents only those that drift control compares with.
    assert alive == [(0, 1), (0, 2), (0, 2), (0, 2), (0, 2)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_file_grows_by_chunks_of_segments(pipe, tmp_path, direction):
    call, told, decoded = {"num_segments": 2, "direction": direction, "output_type": "uint8"}, [], []
    hook = pipe.vae.decoder.up_blocks[-1].register_forward_hook(lambda *_: decoded.append(1))
    pipe.vae.enable_streaming(4)
    extend(pipe, **call, save_path=tmp_path / "plain.mp4")
    whole, decoded[:] = len(decoded), []
    file = ClipFile(
        tmp_path / "clip.mp4", tmp_path / "growing.mp4", on_frames=lambda n: told.append((n, len(decoded)))
    )
    extend(pipe, **call, save_path=file)
    extend(pipe, **call, save_path=ClipFile(tmp_path / "silent.mp4", sound=False))
    pipe.vae.use_streaming = None
    hook.remove()
    # Nothing of a segment is decoded before what comes before it is written.
    assert told[0][1] < whole // 2 and told[-1][0] == probe(file).num_frames
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "plain.mp4", "silent.mp4"]
    for kind in ("video", "audio"):
        assert packets(file, kind) == packets(tmp_path / "plain.mp4", kind)
    assert packets(tmp_path / "silent.mp4", "video") == packets(file, "video")
    assert probe(tmp_path / "silent.mp4").sampling_rate is None


# --- interruption ---


def stop_in(segment: int, steps: int = 2):
    """A callback that interrupts in the first step of a segment."""
    seen = []

    def callback(pipe, _step, _timestep, _tensors):
        seen.append(None)
        pipe._interrupt = len(seen) == segment * steps + 1
        return {}

    return {"callback_on_step_end": callback}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_interrupt_leaves_out_the_segment_in_progress(pipe, direction):
    whole = extend(pipe, num_segments=2, direction=direction)
    output = extend(pipe, num_segments=4, direction=direction, **stop_in(2))
    assert torch.equal(output.frames, whole.frames)
    assert torch.equal(output.audio, whole.audio)
    assert output.info["segments"] == 2


def test_an_interrupted_stage_leaves_no_smaller_frames(pipe):
    output = extend(pipe, num_segments=2, output_type="uint8", **TWO_STAGES, **size(TWO_STAGES), **stop_in(1, 4))
    assert output.frames.shape == (1, 17, 128, 128, 3)


def test_an_interrupt_leaves_a_valid_file(pipe, tmp_path):
    path = tmp_path / "clip.mp4"
    output = extend(pipe, num_segments=3, save_path=path, output_type="pil", **stop_in(1))
    assert (output.info["num_frames"], output.info["segments"]) == (17, 1)
    assert read_video(path).shape == (17, 64, 64, 3)
    assert abs(read_audio(path)[0].shape[-1] / RATE - 17 / 24) < 1025 / RATE


def test_an_interrupt_in_the_first_segment_leaves_the_given_clip(pipe, source, tmp_path):
    output = extend(pipe, **source, num_segments=2, **stop_in(0))
    assert torch.equal(output.frames, source["latents"])
    assert (output.info["segments"], output.info["num_frames"]) == (0, 17)
    extend(pipe, video=FRAMES, output_type="pil", save_path=tmp_path / "same.mp4", **stop_in(0))
    assert probe(tmp_path / "same.mp4").num_frames == 17


def test_an_interrupt_with_nothing_else_returns_what_there_is(pipe):
    output = extend(pipe, num_segments=3, **stop_in(0))
    assert (output.frames.shape[2], output.info["segments"]) == (3, 1)


def test_an_error_leaves_no_file(pipe, tmp_path):
    def fail(_pipe, _step, _timestep, _tensors):
        if len(calls) == 2:
            raise RuntimeError("stop")
        calls.append(None)

    calls = []
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="stop"):
        extend(pipe, num_segments=3, save_path=path, output_type="pil", callback_on_step_end=fail)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"older"


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlap_frames": 10}, r"`overlap_frames` has to be 8 k \+ 1, .* use 9"),
        ({"overlap_frames": 1}, "at least 9"),
        ({"overlap_frames": 17}, "less than `num_frames` 17"),
        ({"overlap_frames": None}, "`overlap_frames` has to be"),
        ({"overlap_frames": 9.0}, "`overlap_frames` has to be"),
        ({"num_frames": 20}, "`num_frames` has to be"),
        ({"num_frames": 9}, "too few to share 9 frames and add 8; use 17"),
        ({"direction": "sideways"}, "`direction`"),
        ({"drift_control": 1.5}, "`drift_control`"),
        ({"prompt": []}, "`prompt` has to be a text"),
        ({"prompt": None}, "`prompt` has to be a `str`"),
        ({"prompt": [PROMPT, 3]}, "`prompt` has to be a `str`"),
        ({"prompt": [PROMPT, PROMPT], "num_segments": 3}, "has 2 texts"),
        ({"num_segments": 0}, "`num_segments` has to be"),
        ({"video": FRAMES, "latents": torch.zeros(1, 128, 3, 2, 2)}, "either `video` or `latents`"),
        ({"video": FRAMES}, 'output_type="latent"'),
        ({"video": FRAMES[:8], "output_type": "pil"}, "has 8 frames"),
        ({"video": FRAMES, "output_type": "pil", "generate_audio": True}, "no sound to go on from"),
        ({"audio": SOUND, "sampling_rate": RATE}, "belongs to `video`"),
        ({"audio_latents": torch.zeros(1, 2, 18, 16)}, "`audio_latents` to `latents`"),
        ({"latents": torch.zeros(1, 12, 128)}, "un-normalised"),
        ({"latents": torch.zeros(1, 128, 3, 4, 4)}, r"those of \(128, 128\) pixels"),
        ({"latents": torch.zeros(1, 64, 3, 2, 2)}, r"\[1, 128, F, h, w\]"),
        (
            {"latents": torch.zeros(1, 128, 3, 2, 2), "audio_latents": torch.zeros(1, 2, 5, 16)},
            "`audio_latents` has to",
        ),
        ({"latents": torch.zeros(1, 128, 3, 2, 2), "audio_latents": torch.zeros(1, 3, 18, 16)}, "`audio_latents`"),
        ({"frame_rate": 0.0}, "frame_rate"),
        ({"frame_rate": 1000.0, "num_segments": 2}, "audio latents .* use more frames"),
        ({"save_path": "clip.mp4"}, '`save_path` is given, but output_type="latent"'),
        ({"save_path": "clip.gif", "output_type": "pil"}, r"clip\.mp4"),
        ({"stages": [Stage(temporal_scale=0.5), Stage(upsampler="latent_upsampler")]}, "frame rate between `stages`"),
        ({"height": 96, **TWO_STAGES}, "64"),
        ({"output_type": "gif"}, "output_type"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(pipe, change, message):
    with no_forward(pipe), pytest.raises(ValueError, match=message):
        extend(pipe, **change)


@pytest.mark.parametrize("name", ["folder.mp4", "file/x.mp4", "n" * 252 + ".mp4"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_computed(pipe, tmp_path, name):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("kept")
    with no_forward(pipe), pytest.raises(OSError, match="cannot write to '"):
        extend(pipe, save_path=tmp_path / name, output_type="pil")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def size(stages) -> dict[str, int]:
    return {"height": 128, "width": 128} if stages else {}

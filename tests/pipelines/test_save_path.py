"""A call with `save_path` writes what saving its output would write, while it decodes, and a whole file or none."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from ltx2_diffusers import ClipFile, LTX2LatentUpsamplePipeline, LTX2TextToAudioPipeline, LTX2VideoToAudioPipeline
from ltx2_diffusers.media import writing
from ltx2_diffusers.media.reading import probe
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.tiny import NO_GUIDANCE, PROMPT, SIZE, load, seeded
from tests.pipelines.watching import packets

CALL = {**SIZE, **NO_GUIDANCE, "max_sequence_length": 64, "num_frames": 17}


@pytest.fixture(scope="module")
def shared():
    return load()


@pytest.fixture(params=[None, True, False], ids=["by itself", "streamed", "whole"])
def pipe(shared, request):
    shared.vae.use_streaming = request.param
    yield shared
    shared.vae.use_streaming = None


@pytest.fixture
def streaming(shared):
    shared.vae.enable_streaming(4)
    yield shared
    shared.vae.use_streaming = None


def make(pipe, **kwargs):
    return pipe(PROMPT, **{**CALL, "generator": seeded(1), **kwargs})


def make_two(pipe, **kwargs):
    return make(pipe, num_videos_per_prompt=2, generator=seeded(1, 2), **kwargs)


@pytest.mark.quick_cases(2)
def test_the_file_is_that_of_saving_the_output(pipe, tmp_path):
    make(pipe, output_type="uint8").save(tmp_path / "saved.mp4")
    output = make(pipe, save_path=tmp_path / "new" / "written.mp4")
    assert (output.frames, output.audio) == (None, None)
    assert output.info["path"] == str(tmp_path / "new" / "written.mp4")
    assert (tmp_path / "new" / "written.mp4").read_bytes() == (tmp_path / "saved.mp4").read_bytes()
    assert make(pipe, save_path=tmp_path / "tuple.mp4", return_dict=False) == (None, None)
    assert (tmp_path / "tuple.mp4").read_bytes() == (tmp_path / "saved.mp4").read_bytes()


@pytest.mark.quick_cases(2)
def test_a_batch_has_a_file_for_each_clip(pipe, tmp_path):
    saved = make_two(pipe, output_type="uint8").save(tmp_path / "saved.mp4")
    output = make_two(pipe, save_path=tmp_path / "written.mp4")
    assert output.info["path"] == [str(tmp_path / f"written-{index}.mp4") for index in (0, 1)]
    for one, other in zip(saved, output.info["path"]):
        with open(one, "rb") as first, open(other, "rb") as second:
            assert first.read() == second.read()


@pytest.mark.parametrize("slicing", [False, True])
def test_streamed_frames_are_those_of_whole_decoding_in_every_form(shared, slicing):
    results = {}
    shared.vae.use_slicing = slicing
    for use in (False, True):
        shared.vae.use_streaming = use
        for kind in ("uint8", "np", "pt", "pil"):
            results[kind, use] = make_two(shared, output_type=kind).frames
    shared.vae.use_streaming, shared.vae.use_slicing = None, False
    for kind in ("np", "pt"):
        whole, streamed = (torch.as_tensor(results[kind, use]) for use in (False, True))
        assert whole.shape == streamed.shape and (whole - streamed).abs().max() <= EQUAL_PIPELINES
        assert type(results[kind, False]) is type(results[kind, True])
    for whole, streamed in (
        (results["uint8", False], results["uint8", True]),
        *((torch.from_numpy(np.stack([np.asarray(i) for i in results["pil", use][1]])) for use in (False, True)),),
    ):
        # A value on the edge of two integers may fall to either side.
        assert whole.shape == streamed.shape and (whole.int() - streamed.int()).abs().max() <= 1


def test_frames_are_encoded_while_the_rest_is_decoded(streaming, tmp_path, monkeypatch):
    events = []
    write = writing.VideoTrack.write

    def noted(track, chunk):
        events.append(("encoded", threading.current_thread() is threading.main_thread()))
        return write(track, chunk)

    monkeypatch.setattr(writing.VideoTrack, "write", noted)
    hook = streaming.vae.decoder.up_blocks[-1].register_forward_hook(lambda *_: events.append(("decoded", True)))
    make(streaming, save_path=tmp_path / "clip.mp4", num_frames=33)
    hook.remove()
    first, last = events.index(("encoded", False)), len(events) - events[::-1].index(("decoded", True))
    assert first < last - 2
    assert ("encoded", True) not in events


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_an_error_on_either_side_leaves_no_file(streaming, tmp_path, monkeypatch, side):
    calls = []

    def fails(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("that did not work")

    block, decoded = streaming.vae.decoder.up_blocks[-1], []
    hooks = [block.register_forward_hook(lambda *_: decoded.append(1))]
    if side == "decoder":
        hooks.append(block.register_forward_pre_hook(fails))
    else:
        write = writing.VideoTrack.write
        monkeypatch.setattr(writing.VideoTrack, "write", lambda *args: (fails(), write(*args))[1])
    with pytest.raises(RuntimeError, match="that did not work"):
        make(streaming, save_path=tmp_path / "clip.mp4", num_frames=65)
    assert list(tmp_path.iterdir()) == []
    stopped = len(decoded)
    for hook in hooks[1:]:
        hook.remove()
    monkeypatch.undo()
    make(streaming, save_path=tmp_path / "clip.mp4", num_frames=65)
    hooks[0].remove()
    # Neither side ran to its end alone.
    assert stopped < len(decoded) - stopped
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.quick_cases(2)
def test_a_file_that_grows_holds_the_same(pipe, tmp_path):
    plain, file = tmp_path / "plain.mp4", ClipFile(tmp_path / "clip.mp4", tmp_path / "growing.mp4")
    make(pipe, save_path=plain, num_frames=33)
    output = make(pipe, save_path=file, num_frames=33)
    assert output.info["path"] == str(file.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "plain.mp4"]
    assert b"moof" in file.path.read_bytes()
    for kind in ("video", "audio"):
        assert packets(file.path, kind) == packets(plain, kind)
    make(pipe, output_type="uint8", num_frames=33).save(replace(file, path=tmp_path / "saved.mp4"))
    assert (tmp_path / "saved.mp4").read_bytes() == file.path.read_bytes()


def test_each_clip_of_a_batch_grows_under_a_name_of_its_own(streaming, tmp_path):
    told = []
    names = {f"{stem}-{index}.mp4" for stem in ("growing", "clip") for index in (0, 1)}

    def note(_):
        told.append({path.name for path in tmp_path.iterdir()} & names)

    make_two(streaming, save_path=ClipFile(tmp_path / "clip.mp4", tmp_path / "growing.mp4", on_frames=note))
    assert sorted(told[-1]) == ["clip-0.mp4", "growing-1.mp4"]
    assert {"growing-0.mp4"} in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-0.mp4", "clip-1.mp4"]


def test_without_sound_the_frames_are_the_same_and_none_is_decoded(shared, tmp_path):
    make(shared, save_path=tmp_path / "plain.mp4")
    hook = shared.vocoder.register_forward_pre_hook(lambda *_: pytest.fail("sound was decoded"))
    make(shared, save_path=ClipFile(tmp_path / "silent.mp4", sound=False))
    hook.remove()
    assert packets(tmp_path / "silent.mp4", "video") == packets(tmp_path / "plain.mp4", "video")
    assert probe(tmp_path / "silent.mp4").sampling_rate is None


@pytest.mark.parametrize("call", [make, make_two])
def test_a_watcher_ends_the_decoding_between_its_chunks(streaming, tmp_path, call):
    decoded, stops = [], [False]

    def watch(_):
        if stops[0] and len(decoded) > 1:
            raise KeyError("enough")

    hook = streaming.vae.decoder.up_blocks[-1].register_forward_hook(lambda *_: decoded.append(1))
    file = ClipFile(tmp_path / "clip.mp4", tmp_path / "growing.mp4", on_frames=watch)
    call(streaming, save_path=file, num_frames=33)
    whole, stops[0] = len(decoded), True
    decoded.clear()
    with pytest.raises(KeyError, match="enough"):
        call(streaming, save_path=replace(file, path=tmp_path / "other.mp4"), num_frames=33)
    hook.remove()
    assert len(decoded) <= 4 < whole
    assert not list(tmp_path.glob("other*")) and not list(tmp_path.glob("growing*"))


def test_an_interrupted_call_writes_what_there_is(streaming, tmp_path):
    def stop(pipeline, _step, _timestep, _tensors):
        pipeline._interrupt = True

    output = make(streaming, save_path=tmp_path / "clip.mp4", callback_on_step_end=stop)
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert output.info["path"] == str(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"save_path": "clip.avi"}, r"`save_path` is written as \.mp4 or \.mov"),
        ({"save_path": "clip.mp4", "output_type": "latent"}, "makes no frames"),
        ({"save_path": "folder.mp4"}, "folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_computed(streaming, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    hook = streaming.transformer.register_forward_pre_hook(lambda *_: pytest.fail("something was computed"))
    with pytest.raises((ValueError, OSError), match=message):
        make(streaming, **change)
    hook.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_contradictory_ways_of_decoding_are_said_before_anything_is_computed(streaming):
    streaming.vae.use_tiling = True
    hook = streaming.transformer.register_forward_pre_hook(lambda *_: pytest.fail("something was computed"))
    with pytest.raises(ValueError, match="streaming and tiling"):
        make(streaming)
    hook.remove()
    streaming.vae.use_tiling = False


def test_sound_alone_becomes_a_wav_file(shared, tmp_path):
    pipe = LTX2TextToAudioPipeline.from_pipe(shared)
    call = {"duration_s": 0.5, "num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 64}
    pipe(PROMPT, **call, generator=seeded(1)).save(tmp_path / "saved.wav")
    output = pipe(PROMPT, **call, generator=seeded(1), save_path=tmp_path / "written.wav")
    assert (output.audio, output.info["path"]) == (None, str(tmp_path / "written.wav"))
    assert (tmp_path / "written.wav").read_bytes() == (tmp_path / "saved.wav").read_bytes()
    with pytest.raises(ValueError, match=r"\.wav"):
        pipe(PROMPT, **call, save_path=tmp_path / "written.mp4")
    with pytest.raises(ValueError, match="makes sound alone"):
        pipe(PROMPT, **call, save_path=ClipFile(tmp_path / "written.wav"))
    with pytest.raises(ValueError, match="the output holds none"):
        pipe(PROMPT, **call).save(ClipFile(tmp_path / "other.wav"))


def test_given_pictures_are_copied_beside_new_sound(shared, tmp_path):
    make(shared, save_path=tmp_path / "given.mp4")
    pipe = LTX2VideoToAudioPipeline.from_pipe(shared)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 64, "generator": None}
    results = []
    for name in ("saved", "written"):
        call["generator"] = seeded(2)
        save = {"save_path": tmp_path / "written.mp4"} if name == "written" else {"output_type": "uint8"}
        results.append(pipe(str(tmp_path / "given.mp4"), prompt=PROMPT, **call, **save))
    results[0].save(tmp_path / "saved.mp4")
    assert (tmp_path / "written.mp4").read_bytes() == (tmp_path / "saved.mp4").read_bytes()


def test_an_enlarged_clip_is_written(tmp_path):
    pipe = load("2.0", LTX2LatentUpsamplePipeline)
    latents = torch.randn(1, pipe.vae.config.latent_channels, 2, 2, 3, generator=seeded(0))
    pipe.vae.enable_streaming(4)
    pipe(latents=latents, output_type="uint8").save(tmp_path / "saved.mp4")
    output = pipe(latents=latents, save_path=tmp_path / "written.mp4")
    assert (output.frames, output.info["path"]) == (None, str(tmp_path / "written.mp4"))
    assert (tmp_path / "written.mp4").read_bytes() == (tmp_path / "saved.mp4").read_bytes()
    with pytest.raises(ValueError, match="makes no frames"):
        pipe(latents=latents, save_path=tmp_path / "other.mp4", output_type="latent")


@pytest.mark.gpu
def test_bytes_of_a_card_come_to_pinned_memory_and_into_the_file(tmp_path):
    pipe = load().to("cuda")
    expected = make(pipe, output_type="uint8").frames
    pipe.vae.enable_streaming(4)
    frames = make(pipe, output_type="uint8").frames
    assert frames.device.type == "cpu" and frames.is_pinned()
    # A value on the edge of two integers may fall to either side.
    assert frames.shape == expected.shape and (frames.int() - expected.int()).abs().max() <= 1
    make(pipe, output_type="uint8").save(tmp_path / "saved.mp4")
    make(pipe, save_path=tmp_path / "written.mp4")
    assert len((tmp_path / "written.mp4").read_bytes()) > 0
    pipe.enable_model_cpu_offload()
    make(pipe, save_path=tmp_path / "offloaded.mp4")
    assert all(part.device.type == "cpu" for part in pipe.vae.parameters())

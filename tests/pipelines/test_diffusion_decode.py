"""Frames by the diffusion decoder: its own pipeline, and `decoder="diffusion"` of the others."""

import copy
from functools import cache

import diffusers
import pytest
import torch

from ltx2_diffusers import (
    ClipFile,
    LTX2DistilledPipeline,
    LTX2ExtendPipeline,
    LTX2Pipeline,
    LTX2VideoDecodeOutput,
    LTX2VideoDiffusionDecodePipeline,
    LTX2VideoDiffusionDecoderModel,
    MemoryPlan,
    plan_memory,
)
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.media.reading import read_video
from ltx2_diffusers.pipelines.planned import clip_sizes
from ltx2_diffusers.planning import DIFFUSION, Clips, ClipWish, Counts, Needs, parts_of, stages
from ltx2_diffusers.planning.counting import counted
from tests.golden_data import assert_within, load_metadata, load_tensors
from tests.models.test_diffusion_decoder import fresh
from tests.pipelines import tiny
from tests.pipelines.tiny import EXPLICIT, NO_GUIDANCE, PROMPT, seeded

CALL = {**EXPLICIT, **NO_GUIDANCE, "prompt": PROMPT}


@cache
def small_decoder() -> LTX2VideoDiffusionDecoderModel:
    """One for the latents of the tiny checkpoints."""
    channels = tiny.ours().vae.config.latent_channels
    torch.manual_seed(0)
    return LTX2VideoDiffusionDecoderModel(
        latent_channels=channels,
        decoder_head_dim=8,
        decoder_stage_channels=(16, 8, 8, 8, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_upsample_channel_reductions=(2, 1, 1, 1),
        decoder_stage5_kernel=(3, 5, 5),
        decoder_t_emb_dim=8,
    ).eval()


@cache
def pipeline() -> LTX2Pipeline:
    parts = tiny.ours().components | {"diffusion_decoder": small_decoder()}
    pipe = LTX2Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def _in_tiles():
    small_decoder().enable_tiling(64, 64, 8, 32, 64, 4)
    yield
    small_decoder().disable_tiling()


@pytest.mark.parametrize("denormalize", [True, False])
def test_golden_frames(denormalize):
    recorded, name = load_tensors("ltx25/diffusion_decoder/x0/decode_pipeline.safetensors"), "diffusion_decoder/x0"
    about = load_metadata(f"ltx25/{name}/decode_pipeline.safetensors")
    pipe = LTX2VideoDiffusionDecodePipeline(fresh())
    generator = seeded(int(about["seed"]))
    output = pipe(recorded["latents"], generator, "np", denormalize=denormalize)
    assert isinstance(output, LTX2VideoDecodeOutput)
    frames = torch.from_numpy(output.frames)[:, :: int(about["keep_every_nth_frame"])]
    assert_within(frames, recorded[f"frames_np_denormalize_{denormalize}"], "diffusion decoder")


def test_statistics_are_those_of_an_autoencoder_that_is_given():
    z, vae = torch.randn(1, tiny.ours().vae.config.latent_channels, 3, 3, 3), tiny.ours().vae
    pipe = LTX2VideoDiffusionDecodePipeline(small_decoder(), vae=vae)
    (own,) = pipe(z, seeded(0), "pt", return_dict=False)
    (given,) = pipe(vae.denormalize_latents(z), seeded(0), "pt", False, denormalize=False)
    assert torch.equal(own, given)
    (more,) = pipe(z, seeded(0), "pt", return_dict=False, num_inference_steps=2)
    assert not torch.equal(own, more)


def test_the_pipeline_is_saved_and_loaded_by_both_libraries(tmp_path):
    z = torch.randn(1, small_decoder().config.latent_channels, 3, 3, 3)
    pipe = LTX2VideoDiffusionDecodePipeline(small_decoder(), diffusers.FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(tmp_path)
    assert "LTX2VideoDiffusionDecoderModel" in (tmp_path / "README.md").read_text()
    expected = pipe(z, seeded(1), "pt").frames
    ours = LTX2VideoDiffusionDecodePipeline.from_pretrained(tmp_path)
    theirs = diffusers.LTX2VideoDiffusionDecodePipeline.from_pretrained(tmp_path)
    assert torch.equal(ours(z, seeded(1), "pt").frames, expected)
    assert isinstance(theirs.diffusion_decoder, diffusers.LTX2VideoDiffusionDecoderModel)
    assert [list(kind) for kind in (ours.components, theirs.components)] == [
        ["diffusion_decoder", "scheduler", "vae"]
    ] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"output_type": "latent"}, "`output_type` has to be one of 'pil', 'np', 'pt', 'uint8' but is 'latent'"),
        ({"num_inference_steps": 0}, "`num_inference_steps` has to be a whole number of at least 1 but is 0"),
        ({"latents": torch.zeros(1, 3, 3)}, r"latents must have shape \[B, 4, F, h, w\]"),
        ({"generator": [seeded(0), seeded(1)]}, "`generator`"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    z = torch.zeros(1, small_decoder().config.latent_channels, 3, 3, 3)
    message = message.replace("4, F", f"{small_decoder().config.latent_channels}, F")
    with pytest.raises(ValueError, match=message):
        LTX2VideoDiffusionDecodePipeline(small_decoder())(**{"latents": z, **call})


def test_a_call_decodes_its_latents_by_the_decoder_with_the_noise_that_follows():
    call = CALL | {"return_dict": False}
    generator = seeded(3)
    latents, _ = pipeline()(**call, generator=generator)
    # The generator has drawn all but the noise of the decoder.
    decode = LTX2VideoDiffusionDecodePipeline(small_decoder())
    expected = decode(latents, generator, "pt", denormalize=False).frames
    frames, sound = pipeline()(**call | {"output_type": "pt"}, generator=seeded(3), decoder="diffusion")
    assert_within(frames, expected, "equal pipelines")
    plain, same = pipeline()(**call | {"output_type": "pt"}, generator=seeded(3))
    assert torch.equal(sound, same)
    assert not torch.allclose(frames, plain, atol=1e-2)


@pytest.mark.usefixtures("_in_tiles")
def test_tiles_are_streamed_into_a_file(tmp_path):
    seen: list[int] = []
    call = CALL | {"num_frames": 25, "decoder": "diffusion"}
    file = ClipFile(tmp_path / "clip.mp4", on_frames=seen.append)
    output = pipeline()(**call | {"output_type": "pil"}, generator=seeded(4), save_path=file)
    assert output.frames is None
    frames = pipeline()(**call | {"output_type": "uint8"}, generator=seeded(4)).frames
    assert frames.shape[1] == 25 == seen[-1]
    assert len(seen) > 2
    written = read_video(tmp_path / "clip.mp4")
    assert tuple(written.shape) == tuple(frames.shape[1:])


def test_recipes_in_stages_decode_so_too():
    parts = tiny.load("2.0", LTX2DistilledPipeline).components | {"diffusion_decoder": small_decoder()}
    pipe = LTX2DistilledPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 9, "two_stage": False, "output_type": "pt"}
    frames = [
        pipe(prompt=PROMPT, **size, generator=seeded(5), max_sequence_length=64, **how).frames
        for how in ({}, {"decoder": "diffusion"})
    ]
    assert frames[0].shape == frames[1].shape
    assert not torch.equal(*frames)


def test_it_is_saved_and_loaded_with_the_pipeline(tmp_path):
    pipeline().save_pretrained(tmp_path)
    loaded = LTX2Pipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.diffusion_decoder, LTX2VideoDiffusionDecoderModel)
    theirs = diffusers.LTX2Pipeline.from_pretrained(tmp_path)
    assert "diffusion_decoder" not in theirs.components
    (tmp_path / "model_index.json").write_text(
        (tmp_path / "model_index.json").read_text().replace("diffusion_decoder", "not_listed")
    )
    decode = LTX2VideoDiffusionDecodePipeline.from_pretrained(tmp_path)
    assert decode.has("vae")


@pytest.mark.parametrize(
    ("given", "call", "message"),
    [
        (
            {"diffusion_decoder": None},
            {},
            '`decoder` is "diffusion", but this pipeline has no `diffusion_decoder`; load one by',
        ),
        ({}, {"decoder": "flow"}, "`decoder` has to be one of 'vae', 'diffusion' but is 'flow'"),
        ({}, {"output_type": "latent"}, "`decoder` is given .*, but this call decodes no video"),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_anything_is_computed(monkeypatch, given, call, message):
    pipe = LTX2Pipeline(**pipeline().components | given)
    monkeypatch.setattr(type(pipe.transformer), "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe(**CALL | {"output_type": "pt", "decoder": "diffusion"} | call)


def test_it_has_to_be_the_decoder_of_these_latents():
    pipe = LTX2Pipeline(**pipeline().components | {"diffusion_decoder": fresh()})
    with pytest.raises(
        ValueError, match="`diffusion_decoder` has a spatial_compression_ratio of 8, but that of `vae` is 32"
    ):
        pipe(**CALL | {"output_type": "pt", "decoder": "diffusion"})


def test_a_clip_is_made_longer():
    parts = tiny.load("2.0", LTX2ExtendPipeline).components | {"diffusion_decoder": small_decoder()}
    pipe = LTX2ExtendPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 17, "overlap_frames": 9, "num_segments": 2, "two_stage": False}
    call = {"prompt": PROMPT, **size, "num_inference_steps": 1, "output_type": "pt", "max_sequence_length": 64}
    frames = pipe(**call, generator=seeded(6), decoder="diffusion").frames
    assert frames.shape[1] > 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("with_decoder") / "folder"
    pipeline().save_pretrained(place)
    return place


def test_plans_of_memory_hold_it_where_it_decodes(folder):
    size = {"height": 64, "width": 96, "num_frames": 9, "device": "cpu", "dtype": torch.float32}
    plans = {decoder: plan_memory(folder, 8, 64, decoder=decoder, **size) for decoder in ("vae", "diffusion")}
    assert "diffusion_decoder" not in plans["vae"].parts
    part = plans["diffusion"].parts["diffusion_decoder"]
    assert part.total == sum(tensor.nbytes for tensor in small_decoder().state_dict().values())
    assert "decoded by diffusion" in str(plans["diffusion"])
    assert LTX2Pipeline.from_plan(plans["vae"], device="cpu").diffusion_decoder is None
    planned = LTX2Pipeline.from_plan(plans["diffusion"], device="cpu")
    planned.set_progress_bar_config(disable=True)
    call = CALL | {"output_type": "pt", "decoder": "diffusion"}
    frames = [pipe(**call, generator=seeded(7)).frames for pipe in (planned, pipeline())]
    assert_within(*frames, "equal pipelines")
    with pytest.raises(
        ValueError, match="but ltx2-mini has no diffusion_decoder; name one with `diffusion_decoder`, or leave it out"
    ):
        plan_memory("ltx2-mini", 8, 64, decoder="diffusion", **size)


def test_a_plan_takes_it_from_elsewhere(folder, tmp_path):
    """From its own folder, or from that of a pipeline; and it is loaded from there."""
    size = {"height": 64, "width": 96, "num_frames": 9, "device": "cpu", "dtype": torch.float32}
    bare = tiny.tiny_checkpoint("2.0")
    parts = [
        plan_memory(bare, 8, 64, decoder="diffusion", diffusion_decoder=place, **size)
        for place in (folder, folder / "diffusion_decoder")
    ]
    assert parts[0].parts == parts[1].parts == plan_memory(folder, 8, 64, decoder="diffusion", **size).parts
    parts[0].save(tmp_path / "plan.json")
    plan = MemoryPlan.load(tmp_path / "plan.json")
    loaded = LTX2Pipeline.from_plan(plan, device="cpu").diffusion_decoder
    assert torch.equal(loaded.decoder.conv_in.weight, small_decoder().decoder.conv_in.weight)
    with pytest.raises(ValueError, match=r"`diffusion_decoder` is .*, which is no folder of a diffusion_decoder, nor"):
        plan_memory(bare, 8, 64, decoder="diffusion", diffusion_decoder=bare, **size)
    with pytest.raises(ValueError, match=r"`diffusion_decoder` is 'x', but ltx-2-19b is a name that stands"):
        plan_memory("ltx-2-19b", 8, 64, decoder="diffusion", diffusion_decoder="x")


def test_its_layers_are_compiled():
    pipe = LTX2Pipeline(**pipeline().components | {"diffusion_decoder": copy.deepcopy(small_decoder())})
    pipe.set_progress_bar_config(disable=True)
    call = CALL | {"output_type": "pt", "decoder": "diffusion"}
    pipe.compile("diffusion_decoder", backend="eager")
    frames = [one(**call, generator=seeded(7)).frames for one in (pipe, pipeline())]
    assert_within(*frames, "equal pipelines")
    assert 0 < pipe.compiled["diffusion_decoder"].graphs <= 5
    pipe.uncompile()
    assert pipe.compiled == {}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("latent_frames", [8, 20])
def test_what_a_plan_says_of_decoding_is_what_is_counted(folder, latent_frames):
    """From short clips to a longer one, whole and in tiles. Attention holds all of small clips up to some length: it says more."""
    parts = parts_of(folder, dtype=torch.float32)
    wish = ClipWish(128, 128, latent_frames * 8 - 7, decoder="diffusion")
    clip, first = clip_sizes(parts, wish)
    counts = Counts(parts, "cpu", lambda model, _: model)
    for how in ("whole", "tiled"):
        said = Needs(counts, wish, Clips(clip, first))._decoding(DIFFUSION, how).peak
        models = {DIFFUSION: parts.model(DIFFUSION)}
        assert 0.6 * said < counted(stages.decoding_by_diffusion(models, clip, how), "cpu").peak < 1.1 * said


def test_the_command_takes_it_from_elsewhere_within_a_plan(folder, tmp_path, capsys):
    checkpoint = ["--checkpoint", str(tiny.tiny_checkpoint("2.0")), "--prompt", "wind", "--device", "cpu"]
    size = ["--width", "96", "--height", "64", "--num-frames", "9", "--steps", "1", "--decoder", "diffusion"]
    plan = ["--vram", "1", "--ram", "1"]

    def made(*way: str) -> int:
        return main(["generate", *checkpoint, *size, *way, "-o", str(tmp_path / "clip.mp4")])

    assert made(*plan, "--diffusion-decoder", str(folder)) == 0, capsys.readouterr().err
    assert "diffusion_decoder" in capsys.readouterr().err
    for way in ([], plan):
        assert made(*way) == 2
        assert "--diffusion-decoder" in capsys.readouterr().err
        assert made(*way, "--diffusion-decoder", checkpoint[1]) == 2
        assert f"--diffusion-decoder is '{checkpoint[1]}', which is no folder of" in capsys.readouterr().err


def test_the_command_decodes_so(folder, tmp_path, capsys):
    size = ["--width", "96", "--height", "64", "--num-frames", "9", "--steps", "2", "--device", "cpu"]
    clips = [tmp_path / "plain.mp4", tmp_path / "diffused.mp4", tmp_path / "given.mp4"]
    ways = (
        [],
        ["--decoder", "diffusion", "--tiling"],
        ["--decoder", "diffusion", "--diffusion-decoder", str(folder / "diffusion_decoder")],
    )
    for clip, way in zip(clips, ways):
        assert (
            main(["generate", "--checkpoint", str(folder), "--prompt", "wind", "-o", str(clip), *size, *way]) == 0
        ), capsys.readouterr().err
    plain, *others = (read_video(clip) for clip in clips)
    assert torch.equal(*map(torch.as_tensor, others))
    assert not torch.equal(torch.as_tensor(plain), torch.as_tensor(others[0]))

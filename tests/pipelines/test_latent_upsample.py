"""`LTX2LatentUpsamplePipeline` computes what diffusers' pipeline of that name computes."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video as DiffusersVideoVAE
from diffusers import LTX2LatentUpsamplePipeline as DiffusersPipeline

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2LatentUpsamplerModel
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.pipelines.recipes.latent_upsample import LTX2LatentUpsamplePipeline
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.tiny import load, ours, seeded, theirs

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
IMAGES = [PIL.Image.fromarray(frame) for frame in PIXELS]
FLOATS = PIXELS.astype(np.float32) / 255
SIZE = {"height": 64, "width": 96}
LATENT = {**SIZE, "output_type": "latent"}


@pytest.fixture(scope="module")
def upsampler() -> LTX2LatentUpsamplePipeline:
    return load("2.0", LTX2LatentUpsamplePipeline)


@pytest.fixture(scope="module")
def reference(upsampler) -> DiffusersPipeline:
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel as Model

    model = Model.from_config(dict(upsampler.latent_upsampler.config))
    model.load_state_dict(upsampler.latent_upsampler.state_dict())
    pipe = DiffusersPipeline(vae=theirs().vae, latent_upsampler=model.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video_latents(batch_size: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, ours().transformer.config.in_channels, 2, 2, 3, generator=seeded(0))


def difference(actual, expected) -> float:
    actual, expected = (torch.as_tensor(np.asarray(output.frames)) for output in (actual, expected))
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


# --- parity with diffusers ---


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"latents_normalized": True},
        {"adain_factor": 1.5},
        {"tone_map_compression_ratio": 0.6},
        {"adain_factor": 0.5, "tone_map_compression_ratio": 1.0},
        {"output_type": "np"},
        {"output_type": "pt", "latents_normalized": True},
    ],
    ids=lambda arguments: " ".join(arguments) or "plain",
)
def test_same_result_as_diffusers_for_latents(upsampler, reference, arguments):
    call = {**LATENT, "latents": video_latents(2), **arguments}
    assert difference(upsampler(**call), reference(**call)) <= EQUAL_PIPELINES


def test_same_result_as_diffusers_for_packed_latents(upsampler, reference):
    tokens = video_latents().flatten(2).transpose(1, 2)
    call = {**LATENT, "latents": tokens, "num_frames": 9}
    assert difference(upsampler(**call), reference(**call)) <= EQUAL_PIPELINES


def test_packed_patches_are_put_together_again(upsampler):
    # diffusers takes height and width for the number of patches; here they are what they are called.
    latents = torch.randn(1, video_latents().shape[1], 4, 2, 4, generator=seeded(0))
    patches = latents.unflatten(4, (2, 2)).unflatten(3, (1, 2)).unflatten(2, (2, 2))
    tokens = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    call = {"output_type": "latent", "height": 64, "width": 128, "num_frames": 25}
    packed = upsampler(latents=tokens, spatial_patch_size=2, temporal_patch_size=2, **call)
    assert torch.equal(packed.frames, upsampler(latents=latents, **call).frames)


@pytest.mark.parametrize(
    "video",
    [IMAGES, [image.resize((50, 40)) for image in IMAGES], list(FLOATS), torch.from_numpy(FLOATS).movedim(-1, 1)],
    ids=["images", "images of another size", "arrays", "tensor"],
)
def test_same_result_as_diffusers_for_a_clip(upsampler, reference, video):
    results = [pipe(video, **LATENT, generator=seeded(3)) for pipe in (upsampler, reference)]
    assert difference(*results) <= EQUAL_PIPELINES


def test_a_clip_is_cut_to_what_can_be_encoded(upsampler, reference):
    results = [pipe(IMAGES + IMAGES[:2], **LATENT, generator=seeded(3)) for pipe in (upsampler, reference)]
    assert difference(*results) <= EQUAL_PIPELINES
    # diffusers asks for a ninth frame of eight, and cannot encode them.
    assert upsampler(IMAGES[:8], **LATENT).frames.shape[2] == 1


def test_a_decoder_with_timestep_conditioning(upsampler, reference, tmp_path):
    config = {**ours().vae.config, "timestep_conditioning": True, "decoder_inject_noise": [False] * 4}
    torch.manual_seed(0)
    vae = DiffusersVideoVAE.from_config(config).eval()
    vae.save_pretrained(tmp_path)
    mine = LTX2LatentUpsamplePipeline(AutoencoderKLLTX2Video.from_pretrained(tmp_path), upsampler.latent_upsampler)
    theirs_ = DiffusersPipeline(vae, reference.latent_upsampler)
    for arguments in ({"decode_timestep": 0.05}, {"decode_timestep": [0.05], "decode_noise_scale": 0.1}):
        call = {"latents": video_latents(), **SIZE, **arguments, "output_type": "np"}
        results = [pipe(**call, generator=seeded(4)) for pipe in (mine, theirs_)]
        assert difference(*results) <= EQUAL_PIPELINES


# --- behaviour ---


def test_it_loads_from_a_checkpoint_whose_index_does_not_name_the_upsampler(upsampler):
    assert isinstance(upsampler.latent_upsampler, LTX2LatentUpsamplerModel)
    assert isinstance(upsampler.vae, AutoencoderKLLTX2Video)


def test_what_is_saved_loads_in_both_libraries(upsampler, tmp_path):
    upsampler.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["latent_upsampler"] == ["ltx2", "LTX2LatentUpsamplerModel"]
    call = {**LATENT, "latents": video_latents()}
    expected = upsampler(**call)
    for kind in (LTX2LatentUpsamplePipeline, DiffusersPipeline):
        assert difference(load(tmp_path, kind)(**call), expected) <= EQUAL_PIPELINES


def test_both_sides_are_doubled(upsampler):
    output = upsampler(latents=video_latents(), output_type="uint8")
    assert output.frames.shape == (1, 9, 128, 192, 3)
    assert output.audio is None
    assert upsampler(latents=video_latents(), output_type="latent", return_dict=False)[0].shape[-2:] == (4, 6)


def test_a_temporal_upsampler_doubles_the_frame_rate(upsampler):
    model = LTX2LatentUpsamplerModel(
        in_channels=upsampler.latent_upsampler.config.in_channels,
        mid_channels=32,
        num_blocks_per_stage=1,
        spatial_upsample=False,
        temporal_upsample=True,
    )
    output = LTX2LatentUpsamplePipeline(upsampler.vae, model)(
        latents=video_latents(), output_type="uint8", frame_rate=12.0
    )
    assert output.frames.shape == (1, 17, 64, 96, 3)
    assert output.frame_rate == 24.0


def test_a_file_becomes_a_larger_file(upsampler, tmp_path):
    write_video(tmp_path / "small.mp4", IMAGES, frame_rate=12)
    output = upsampler(tmp_path / "small.mp4", **SIZE, generator=seeded(0))
    output.save(tmp_path / "large.mp4")
    info = probe(tmp_path / "large.mp4")
    assert (info.num_frames, info.height, info.width, info.frame_rate) == (9, 128, 192, 12)


# --- wrong input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `video` or `latents`"),
        ({"video": IMAGES, "latents": torch.zeros(1, 4, 2, 2, 3)}, "either `video` or `latents`"),
        ({"video": IMAGES, "height": 50}, "`height` has to be divisible by 32 but is 50; use 32 or 64"),
        ({"video": 7}, "`video` has to be an image"),
        ({"video": PIXELS.astype(np.float32)}, "`video` as floats has to lie between 0 and 1"),
        ({"video": IMAGES, "tone_map_compression_ratio": 1.2}, "`tone_map_compression_ratio` .* is 1.2; use 1.0"),
        ({"video": IMAGES, "adain_factor": -1.0}, "`adain_factor` has to be between 0 and 10"),
        ({"video": IMAGES, "output_type": "gif"}, "`output_type` has to be one of"),
        ({"video": IMAGES, "frame_rate": 0.0}, "`frame_rate` has to be greater than 0"),
        ({"latents": torch.zeros(1, 12, 4), "num_frames": 17}, "need 18 tokens"),
        ({"latents": torch.zeros(1, 3, 2, 2, 3)}, "have 3 channels"),
        ({"latents": torch.zeros(2, 3)}, r"\[B, C, F, h, w\] or packed"),
        ({"latents": torch.zeros(1, 4, 2, 2, 3, dtype=torch.int64)}, "`latents`"),
        ({"latents": torch.zeros(2, 4, 2, 2, 3), "generator": [torch.Generator()]}, "1 generators for a batch of 2"),
        ({"latents": torch.zeros(2, 4, 2, 2, 3), "decode_timestep": [0.0] * 3}, "`decode_timestep`"),
    ],
)
def test_wrong_input_is_named(upsampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        upsampler(**{**SIZE, **arguments})

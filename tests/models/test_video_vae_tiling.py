"""Tiles: the arithmetic of splits and masks, equality with diffusers and with the whole, bounded memory."""

import json
import math
from itertools import pairwise

import pytest
import torch
from diffusers.utils import logging

from ltx2_diffusers.models.video_vae_tiling import (
    Interval,
    blend_into,
    blended_spans,
    plan_decode,
    plan_encode,
    rectangle_mask,
    split_causal_latent,
    split_frames,
    split_symmetric,
    stream_weighted,
    trapezoid_mask,
)
from ltx2_diffusers.models.video_vae_tiling_config import SpatialTilingConfig, TemporalTilingConfig, TilingConfig
from tests.golden_data import EQUAL_MODELS, assert_within, load_json, load_metadata, load_tensors
from tests.models.video_vae_tools import TINY, TINY_23, TINY_CONDITIONED, max_difference, pair

# Relative difference of tiled and whole for networks that hardly look beyond a position, see `_near_sighted`.
SEAM_BOUND = 0.05


def _latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def _config(spatial=None, temporal=None) -> TilingConfig:
    return TilingConfig(
        SpatialTilingConfig(*spatial) if spatial else None, TemporalTilingConfig(*temporal) if temporal else None
    )


def _relative(tiled: torch.Tensor, whole: torch.Tensor) -> float:
    assert tiled.shape == whole.shape
    return ((tiled - whole).norm() / whole.norm()).item()


@torch.no_grad()
def _near_sighted(vae):
    """Weaken the off-centre taps of all convolutions: random weights see across any tile, trained ones do not."""
    # The causal encoder's current frame is its last tap.
    for half, current in ((vae.encoder, 2), (vae.decoder, 1)):
        for module in half.modules():
            if isinstance(module, torch.nn.Conv3d):
                centre = module.weight[:, :, current, 1, 1].clone()
                module.weight.mul_(0.003)
                module.weight[:, :, current, 1, 1] = 3 * centre
    return vae


class _Recorder:
    """Counts what a decoder or encoder is given, by a forward hook."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.shapes = []
        module.register_forward_pre_hook(lambda _, args: self.shapes.append(tuple(args[0].shape[2:])))


# Splits and masks


def test_splits_are_the_reference_s():
    rules = {"symmetric": split_symmetric, "causal_latent": split_causal_latent, "frames": split_frames}
    for case in load_json("video_vae/cases/intervals.json"):
        for name, rule in rules.items():
            columns = (case[name][key] for key in ("starts", "ends", "left_ramps", "right_ramps"))
            expected = [Interval(*row) for row in zip(*columns)]
            assert rule(case["dimension"], case["size"], case["overlap"]) == expected


def test_masks_are_the_reference_s():
    masks = load_tensors("video_vae/cases/masks_1d.safetensors")
    for name, p in json.loads(load_metadata("video_vae/cases/masks_1d.safetensors")["params"]).items():
        if name.startswith("rectangle"):
            mask = rectangle_mask(p["length"], p["left"], p["right"])
        else:
            mask = trapezoid_mask(p["length"], p["ramp_left"], p["ramp_right"], p["left_starts_from_0"])
        assert_within(mask, masks[name], "equal layers")


def test_trapezoid_by_hand():
    assert trapezoid_mask(6, 1, 2).tolist() == pytest.approx([1 / 2, 1, 1, 1, 2 / 3, 1 / 3])
    assert trapezoid_mask(4, 2, 0, from_zero=True).tolist() == [0, 0.5, 1, 1]


def test_number_of_chunks_is_the_number_of_temporal_groups():
    for case in load_json("video_vae/cases/chunk_counts.json"):
        config = _config(temporal=(case["tile"], case["overlap"]))
        plan = plan_decode(((case["num_frames"] - 1) // 8 + 1, 2, 2), config, (32, 8), 2)
        assert len(plan.time) == case["actual_groups"]


def test_a_short_last_interval_joins_the_one_before():
    assert split_symmetric(5, 2, 0) == [Interval(0, 2, 0, 0), Interval(2, 4, 0, 0), Interval(4, 5, 0, 0)]
    assert split_symmetric(5, 2, 0, min_size=2) == [Interval(0, 2, 0, 0), Interval(2, 5, 0, 0)]
    assert blended_spans(15, 16, 14) == ((0, 15), (14, 15))
    assert blended_spans(15, 16, 14, min_size=2) == ((0, 15),)
    assert blended_spans(5, 2, 2, min_size=2) == ((0, 2), (2, 5))


@pytest.mark.parametrize("shape", [(1, 2, 3), (7, 9, 5), (16, 24, 16), (31, 17, 33)])
@pytest.mark.parametrize("config", [TilingConfig.default(), _config((128, 32), (16, 8)), _config((96, 64), (24, 0))])
def test_weights_sum_to_one_everywhere(shape, config):
    pixels = (8 * (shape[0] - 1) + 1, 32 * shape[1], 32 * shape[2])
    for plan, sizes in (
        (plan_decode(shape, config, (32, 8), 2), pixels),
        (plan_encode(pixels, config, (32, 8), 1, discard_seams=False), shape),
    ):
        for axis, size in zip((plan.time, plan.height, plan.width), sizes):
            total = torch.zeros(size)
            for span in axis:
                total[span.target] += span.weight
            assert_within(total, torch.ones(size), "equal layers")


def test_blend_by_hand():
    current, previous = torch.ones(1, 1, 1, 1, 6), torch.zeros(1, 1, 1, 1, 6)
    blend_into(current, previous, 4, dim=4)
    assert current.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    blend_into(current, None, 4, dim=4)
    assert current.flatten().tolist() == [0, 0.25, 0.5, 0.75, 1, 1]


# Blended tiles

BLENDED = {"tile_sample_min_height": 96, "tile_sample_min_width": 96}
BLENDED |= {"tile_sample_stride_height": 64, "tile_sample_stride_width": 64}


@pytest.mark.parametrize("config", [TINY, TINY_23])
@pytest.mark.parametrize(("space", "time"), [(True, False), (False, True), (True, True)])
@torch.no_grad()
def test_blended_tiles_as_diffusers(config, space, time):
    ours, theirs = pair(config)
    latents, video = _latents(1, 4, 4, 4, 2), _video(1, 3, 33, 128, 32)
    for vae in (ours, theirs):
        if space:
            vae.enable_tiling(**BLENDED)
        vae.use_framewise_decoding = time
    assert max_difference(ours.decode(latents).sample, theirs.decode(latents).sample) <= EQUAL_MODELS
    expected = theirs.encode(video).latent_dist.parameters
    assert max_difference(ours.encode(video).latent_dist.parameters, expected) <= EQUAL_MODELS


@torch.no_grad()
def test_blended_tiles_with_a_one_wide_last_tile_where_diffusers_can():
    ours, theirs = pair(TINY_23)
    latents = _latents(1, 4, 1, 5, 5)
    for vae in (ours, theirs):
        vae.enable_tiling(**BLENDED)
    assert max_difference(ours.decode(latents).sample, theirs.decode(latents).sample) <= EQUAL_MODELS


@pytest.mark.parametrize("sides", [(5, 5), (4, 7), (5, 2)])
@torch.no_grad()
def test_blended_tiles_with_a_one_wide_last_tile_where_diffusers_fails(sides):
    ours, theirs = pair(TINY)
    _near_sighted(ours)
    latents = _latents(1, 4, 1, *sides)
    whole = ours.decode(latents).sample
    for vae in (ours, theirs):
        vae.enable_tiling(**BLENDED)
    with pytest.raises(RuntimeError):
        theirs.decode(latents)
    recorder = _Recorder(ours.decoder)
    assert _relative(ours.decode(latents).sample, whole) < SEAM_BOUND
    assert min(min(shape[1:]) for shape in recorder.shapes) >= 2


@torch.no_grad()
def test_either_framewise_flag_serves_encode():
    ours, _ = pair(TINY)
    video = _video(1, 3, 33, 32, 32)
    results = []
    for flag in ("use_framewise_encoding", "use_framewise_decoding"):
        ours.use_framewise_encoding = ours.use_framewise_decoding = False
        setattr(ours, flag, True)
        recorder = _Recorder(ours.encoder)
        results.append(ours.encode(video).latent_dist.parameters)
        # Tiles of 16 + 1 frames at multiples of 8; the one-frame tile at 32 would give nothing.
        assert [shape[0] for shape in recorder.shapes[:4]] == [17, 17, 17, 9]
    assert torch.equal(*results)


@torch.no_grad()
def test_tiling_can_be_switched_off_and_small_videos_are_not_tiled():
    ours, _ = pair(TINY)
    latents = _latents(1, 4, 1, 4, 4)
    whole = ours.decode(latents).sample
    ours.enable_tiling()
    assert ours.tile_sample_min_height == 512 and ours.tile_sample_stride_width == 448
    assert torch.equal(ours.decode(latents).sample, whole)
    ours.enable_tiling(**BLENDED)
    assert not torch.equal(ours.decode(latents).sample, whole)
    ours.disable_tiling()
    assert torch.equal(ours.decode(latents).sample, whole)


@torch.no_grad()
def test_slicing_and_blended_tiles_thread_timestep_and_generator():
    ours, _ = pair(TINY_CONDITIONED)
    ours.enable_tiling(**BLENDED)
    ours.enable_slicing()
    latents, temb = _latents(2, 4, 1, 4, 2), torch.tensor([0.1, 0.5])
    runs = [ours.decode(latents, temb, generator=torch.Generator().manual_seed(s)).sample for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tile_sample_min_height": 100},
            "`tile_sample_min_height` must be a positive multiple of 32, got 100; use 96",
        ),
        ({"tile_sample_stride_width": 16}, "`tile_sample_stride_width` must be a positive multiple of 32.*use 32"),
        ({"tile_sample_stride_width": 128}, "`tile_sample_stride_width` must not exceed `tile_sample_min_width` = 96"),
    ],
)
def test_tiles_off_the_latent_grid_are_refused(change, message):
    ours, _ = pair(TINY)
    ours.enable_tiling(**BLENDED | change)
    with pytest.raises(ValueError, match=message):
        ours.decode(_latents(1, 4, 1, 6, 6))


# Weighted tiles


def _repeat_latents(x: torch.Tensor) -> torch.Tensor:
    """A decoder that looks at one latent only: 32 x 32 pixels each, 8 frames each but a single first one."""
    frames = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(8, 2)], dim=2)
    return frames.repeat_interleave(32, 3).repeat_interleave(32, 4)


@pytest.mark.parametrize("config", [TilingConfig.default(), _config((64, 32), (16, 8)), _config((96, 64), (24, 0))])
def test_tiles_of_a_local_decoder_are_exactly_the_whole(config):
    latents = _latents(1, 2, 9, 5, 7)
    plan = plan_decode(latents.shape[2:], config, (32, 8), 2)
    tiled = torch.cat(list(stream_weighted(latents, _repeat_latents, plan)), dim=2)
    assert max_difference(tiled, _repeat_latents(latents)) <= EQUAL_MODELS


@pytest.mark.parametrize("config", [TINY, TINY_23])
@torch.no_grad()
def test_weighted_tiles_are_near_the_whole(config):
    ours = _near_sighted(pair(config)[0])
    latents, video = _latents(1, 4, 5, 6, 3), _video(1, 3, 33, 192, 64)
    tiled = torch.cat(list(ours.decode_in_tiles(latents, _config((128, 64), (32, 16)))), dim=2)
    assert _relative(tiled, ours.decode(latents).sample) < SEAM_BOUND
    whole = ours.encode(video).latent_dist.mode()
    for discard in (False, True):
        encoded = ours.encode_in_tiles(video, _config((128, 64), (24, 16)), discard_seams=discard)
        assert _relative(encoded.latent_dist.mode(), whole) < SEAM_BOUND


@torch.no_grad()
def test_one_tile_is_the_whole():
    ours, _ = pair(TINY)
    latents, video = _latents(1, 4, 2, 2, 3), _video(1, 3, 9, 64, 96)
    for config in (TilingConfig.default(), TilingConfig()):
        (chunk,) = ours.decode_in_tiles(latents, config)
        assert torch.equal(chunk, ours.decode(latents).sample)
        moments = ours.encode_in_tiles(video, config, return_dict=False)[0].parameters
        assert torch.equal(moments, ours.encode(video).latent_dist.parameters)


@torch.no_grad()
def test_chunks_are_the_sum_over_all_tiles():
    """The stream equals the plain definition: sum of mask times tile over the sum of masks, on the whole video."""
    ours, _ = pair(TINY)
    latents, config = _latents(1, 4, 6, 3, 2), _config((64, 32), (24, 16))
    chunks = list(ours.decode_in_tiles(latents, config))
    plan = plan_decode(latents.shape[2:], config, (32, 8), 2)
    total = torch.zeros(1, 3, 41, 96, 64)
    for t in plan.time:
        for h in plan.height:
            for w in plan.width:
                tile = ours.decode(latents[:, :, t.source, h.source, w.source]).sample
                mask = t.weight[:, None, None] * h.weight[:, None] * w.weight
                total[:, :, t.target, h.target, w.target] += mask * tile
    assert max_difference(torch.cat(chunks, dim=2), total) <= EQUAL_MODELS
    starts = [t.target.start for t in plan.time] + [41]
    assert [c.shape[2] for c in chunks] == [b - a for a, b in pairwise(starts) if b > a]


@pytest.mark.parametrize("latent_frames", [9, 33])
@torch.no_grad()
def test_memory_does_not_grow_with_the_clip(latent_frames):
    ours, _ = pair(TINY)
    recorder = _Recorder(ours.decoder)
    sizes = []
    stream = ours.decode_in_tiles(_latents(1, 4, latent_frames, 2, 2), _config(None, (24, 8)))
    assert recorder.shapes == []
    for count, chunk in enumerate(stream, start=1):
        # Nothing is decoded ahead of the chunk that is handed out, and what the generator keeps is the overlap.
        assert len(recorder.shapes) == count
        held = stream.gi_frame.f_locals
        sizes.append((chunk.shape[2], held["group"].shape[2], held["overlap"].shape[2]))
    assert max(shape[0] for shape in recorder.shapes) == 4
    assert max(frames for chunk in sizes for frames in chunk) == 25
    assert sum(chunk for chunk, *_ in sizes) == 8 * (latent_frames - 1) + 1


@torch.no_grad()
def test_reflect_padding_never_sees_a_one_wide_tile():
    ours, _ = pair(TINY)
    recorder = _Recorder(ours.decoder)
    (video,) = ours.decode_in_tiles(_latents(1, 4, 1, 5, 5), _config((64, 0)))
    assert video.shape == (1, 3, 1, 160, 160)
    assert min(min(shape[1:]) for shape in recorder.shapes) >= 2


@torch.no_grad()
def test_a_single_size_follows_the_aspect_ratio_and_a_pair_does_not():
    ours, _ = pair(TINY_23)
    latents = _latents(1, 4, 1, 3, 6)
    recorder = _Recorder(ours.decoder)
    list(ours.decode_in_tiles(latents, _config((128, 32))))
    list(ours.decode_in_tiles(latents, _config(((0, 128), (0, 32)))))
    assert recorder.shapes == [(1, 2, 4), (1, 2, 3), (1, 2, 4), (1, 2, 3), (1, 3, 4), (1, 3, 3)]


@torch.no_grad()
def test_weighted_tiles_take_timestep_causality_and_generator():
    ours, _ = pair(TINY_CONDITIONED)
    latents, config = _latents(1, 4, 4, 2, 2), _config(None, (16, 8))

    def run(temb=0.1, seed=0, causal=None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat(list(ours.decode_in_tiles(latents, config, torch.tensor([temb]), causal, generator)), dim=2)

    base = run()
    assert torch.equal(run(), base)
    assert all(not torch.equal(run(**change), base) for change in ({"temb": 0.9}, {"seed": 1}, {"causal": True}))
    with pytest.raises(ValueError, match="`temb` is None"):
        ours.decode_in_tiles(latents, config)


@torch.no_grad()
def test_half_precision_is_summed_in_single_precision():
    ours, _ = pair(TINY_23)
    latents, config = _latents(1, 4, 3, 2, 4), _config((96, 64), (16, 8))
    expected = torch.cat(list(ours.decode_in_tiles(latents, config)), dim=2)
    chunks = list(ours.to(torch.bfloat16).decode_in_tiles(latents.bfloat16(), config))
    assert all(chunk.dtype == torch.bfloat16 for chunk in chunks)
    assert _relative(torch.cat(chunks, dim=2).float(), expected) < 0.05


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SpatialTilingConfig(32),
            "`tile_size_in_pixels` must be a multiple of 32, at least 64, got 32; use 64",
        ),
        (lambda: SpatialTilingConfig(500), "got 500; use 512"),
        (lambda: SpatialTilingConfig(64, 64), "`tile_overlap_in_pixels`.*got 64; use 32"),
        (lambda: SpatialTilingConfig(128, 20), "`tile_overlap_in_pixels`.*got 20; use 32"),
        (lambda: SpatialTilingConfig((64, 100)), "got 100; use 96"),
        (lambda: SpatialTilingConfig((0, 64, 64)), r"a number or \(height, width\)"),
        (lambda: SpatialTilingConfig(64, (32, 32)), "give both as numbers"),
        (lambda: TemporalTilingConfig(8), "`tile_size_in_frames` must be a multiple of 8, at least 16, got 8; use 16"),
        (lambda: TemporalTilingConfig(24, 25), "`tile_overlap_in_frames`.*got 25; use 16"),
        (lambda: TemporalTilingConfig(24, -8), "`tile_overlap_in_frames`.*got -8; use 0"),
    ],
)
def test_tile_sizes_are_checked(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_encoding_overlaps_are_refused_or_raised(monkeypatch):
    ours, _ = pair(TINY)
    video = _video(1, 3, 17, 160, 32)
    with pytest.raises(ValueError, match="`tile_overlap_in_pixels` must be at least 64 for encoding, got 32; use 64"):
        ours.encode_in_tiles(video, _config((96, 32)))
    with pytest.raises(ValueError, match="`tile_overlap_in_frames` must be at least 16 for encoding, got 8; use 16"):
        ours.encode_in_tiles(video, _config(None, (24, 8)))
    with pytest.raises(ValueError, match=r"`tile_size_in_pixels` must be above the 64 pixels.*got 64; use 96"):
        ours.encode_in_tiles(video, _config((64, 32)), discard_seams=True)
    messages = []
    logger = logging.get_logger("ltx2_diffusers.models.video_vae_tiling_config")
    monkeypatch.setattr(logger, "warning", messages.append)
    recorder = _Recorder(ours.encoder)
    ours.encode_in_tiles(video, _config(((96, 0), (32, 0))), discard_seams=True)
    assert len(messages) == 1 and "raised from 32 to 64" in messages[0]
    assert len(recorder.shapes) == math.ceil((160 - 64) / (96 - 64))


@torch.no_grad()
def test_encode_in_tiles_crops_and_leaves_its_input_alone():
    ours, _ = pair(TINY)
    video = _video(1, 3, 14, 64, 64)
    before = video.clone()
    cropped = ours.encode_in_tiles(video, TilingConfig.default()).latent_dist.mode()
    assert cropped.shape == (1, 4, 2, 2, 2)
    assert torch.equal(video, before)


def test_tiles_off_the_models_own_grid_are_refused():
    small = TINY_23 | {"patch_size": 6, "spatial_compression_ratio": 48}
    ours, _ = pair(small)
    with pytest.raises(ValueError, match="compression, 48, got 64; use 48"):
        ours.decode_in_tiles(_latents(1, 4, 1, 4, 4), _config((64, 0)))

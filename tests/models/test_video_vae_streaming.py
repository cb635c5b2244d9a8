"""Decoding in chunks of frames gives the numbers of decoding whole, early, in memory that does not grow."""

import copy
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.vae import CONFIGS, peak_bytes
from ltx2_diffusers.models import video_vae, video_vae_blocks
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.models.video_vae_blocks import CausalConv3d, Upsampler, has_channels_last
from tests.golden_data import EQUAL_MODELS, assert_within, golden_cases
from tests.models.video_vae_tools import TINY, TINY_23, TINY_CONDITIONED, golden_vae, load_case, max_difference, pair

STRUCTURES = {"2.0": TINY, "2.3": TINY_23, "conditioned": TINY_CONDITIONED}
MODES = ["zeros", "reflect", "replicate", "circular"]
TEMB = torch.tensor([0.05, 0.4])
# In float64 nothing but the order of additions in the convolutions is left to differ.
ROUNDING = 1e-12
SIDES = {"height": 1024, "width": 1536}


def _vae(config: dict, **changes) -> AutoencoderKLLTX2Video:
    return pair(config | changes)[0]


def _latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_chunks_are_the_whole(structure, mode):
    vae = _vae(STRUCTURES[structure], decoder_spatial_padding_mode=mode).double()
    for frames in (1, 2, 5):
        latents = _latents(2, 4, frames, 2, 3).double()
        for causal in (None, True):
            whole = vae.decode(latents, TEMB, causal, generator=_seeded()).sample
            for size in (1, 3, 8):
                chunks = list(vae.decode_streamed(latents, TEMB, causal, _seeded(), chunk_frames=size))
                assert max_difference(torch.cat(chunks, dim=2), whole) <= ROUNDING
                assert all(1 <= chunk.shape[2] <= size + 1 for chunk in chunks)


@torch.no_grad()
def test_a_long_clip_in_small_chunks_is_the_whole():
    for config in (TINY, TINY_23):
        vae, latents = _vae(config).double(), _latents(1, 4, 17, 2, 2).double()
        chunks = list(vae.decode_streamed(latents, chunk_frames=np.int64(5)))
        assert len(chunks) > 20
        assert max_difference(torch.cat(chunks, dim=2), vae.decode(latents).sample) <= ROUNDING


@torch.no_grad()
def test_stages_that_change_the_width_or_do_not_upsample():
    unusual = {
        "decoder_block_out_channels": (16, 16, 24),
        "decoder_spatio_temporal_scaling": (True, False, True),
        "upsample_factor": (2, 1, 1),
        "upsample_residual": (True, True, False),
        "spatial_compression_ratio": None,
        "temporal_compression_ratio": None,
    }
    vae, latents = _vae(TINY, **unusual).double(), _latents(1, 4, 4, 2, 2).double()
    streamed = torch.cat(list(vae.decode_streamed(latents, chunk_frames=2)), dim=2)
    assert max_difference(streamed, vae.decode(latents).sample) <= ROUNDING


@pytest.mark.parametrize("path", golden_cases("video_vae/cases", "decode*"), ids=lambda path: path.stem)
@torch.no_grad()
def test_the_reference_s_numbers(path):
    vae, (case, _) = copy.deepcopy(golden_vae("video_vae")), load_case(path)
    whole = vae.decode(case["latent"]).sample
    vae.enable_streaming(3)
    streamed = vae.decode(case["latent"]).sample
    # Convolutions of few frames may run another kernel; what is left is rounding, not a seam.
    assert (streamed - whole).square().mean().sqrt() <= 1e-6
    every, key = (1, "video") if "video" in case else (2, "video_every_2nd_pixel")
    assert_within(streamed[..., ::every, ::every], case[key], "video VAE")


def test_gradients_flow_through_chunks():
    vae = _vae(TINY).double()
    results = []
    for size in (None, 2):
        latents = _latents(1, 4, 3, 2, 2).double().requires_grad_()
        if size:
            vae.enable_streaming(size)
        video = vae.decode(latents).sample
        video.square().mean().backward()
        results.append((video.detach(), latents.grad))
    assert all(max_difference(a, b) <= ROUNDING for a, b in zip(*results))
    vae.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="cannot replay"):
        vae.decode(_latents(1, 4, 3, 2, 2).double().requires_grad_())


@torch.no_grad()
def test_noise_is_drawn_once_and_in_the_order_of_whole_decoding():
    vae, latents = _vae(TINY_CONDITIONED), _latents(2, 4, 5, 2, 2)
    torch.manual_seed(3)
    whole = vae.decode(latents, TEMB).sample
    state = torch.get_rng_state()
    torch.manual_seed(3)
    chunks = []
    for chunk in vae.decode_streamed(latents, TEMB, chunk_frames=2):
        chunks.append(chunk)
        if len(chunks) == 1:
            assert torch.equal(torch.get_rng_state(), state)
        torch.randn(5)
    assert max_difference(torch.cat(chunks, dim=2), whole) <= EQUAL_MODELS


@torch.no_grad()
def test_decodes_do_not_meet():
    vae = _vae(TINY)
    many = [_latents(1, 4, 4, 2, 2, seed=seed) for seed in range(3)]
    expected = [torch.cat(list(vae.decode_streamed(latents)), dim=2) for latents in many]
    left = vae.decode_streamed(many[0])
    next(left)
    left.close()
    two = list(zip(vae.decode_streamed(many[0]), vae.decode_streamed(many[1])))
    for index in (0, 1):
        assert torch.equal(torch.cat([chunks[index] for chunks in two], dim=2), expected[index])

    @torch.no_grad()
    def decoded(latents):
        return torch.cat(list(vae.decode_streamed(latents)), dim=2)

    with ThreadPoolExecutor(3) as pool:
        assert all(map(torch.equal, pool.map(decoded, many), expected))


@torch.no_grad()
def test_an_error_in_the_middle_leaves_nothing_behind():
    vae, latents = _vae(TINY), _latents(1, 4, 4, 2, 2)
    expected = torch.cat(list(vae.decode_streamed(latents)), dim=2)
    calls = []

    def fails(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    hook = vae.decoder.up_blocks[-1].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(vae.decode_streamed(latents))
    hook.remove()
    assert torch.equal(torch.cat(list(vae.decode_streamed(latents)), dim=2), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_stream():
    vae, latents = _vae(TINY), _latents(1, 4, 3, 2, 2)
    expected = torch.cat(list(vae.decode_streamed(latents, chunk_frames=4)), dim=2)
    vae.decoder.up_blocks[2].compile(backend="eager")
    assert (
        max_difference(torch.cat(list(vae.decode_streamed(latents, chunk_frames=4)), dim=2), expected) <= EQUAL_MODELS
    )


@torch.no_grad()
def test_memory_does_not_grow_with_the_clip():
    with torch.device("meta"):
        vae = AutoencoderKLLTX2Video(**TINY).eval()

    def peak(frames: int) -> int:
        latents = torch.empty(1, 4, (frames - 1) // 8 + 1, 4, 6, device="meta")

        def run() -> None:
            shown = 0
            for chunk in vae.decode_streamed(latents, chunk_frames=16):
                shown += chunk.shape[2]
                del chunk
            assert shown == frames

        return peak_bytes(run)

    # The lengths of chunks fall into step after some of them.
    assert peak(1001) <= 1.01 * peak(513)


@pytest.mark.parametrize("version", CONFIGS)
@torch.no_grad()
def test_a_large_clip_takes_two_fifths_of_the_memory_and_shows_its_first_frames_early(version):
    latents = torch.empty(1, 128, 16, SIDES["height"] // 32, SIDES["width"] // 32, dtype=torch.bfloat16, device="meta")
    with torch.device("meta"):
        ours, theirs = (
            cls(**CONFIGS[version]).to(torch.bfloat16)
            for cls in (AutoencoderKLLTX2Video, diffusers.AutoencoderKLLTX2Video)
        )
    assert ours.streams(latents)
    assert peak_bytes(lambda: ours.decode(latents).sample) <= 0.4 * peak_bytes(lambda: theirs.decode(latents).sample)
    with FlopCounterMode(display=False) as counter:
        chunks = ours.decode_streamed(latents)
        next(chunks)
        first = counter.get_total_flops()
        for _ in chunks:
            pass
    with FlopCounterMode(display=False) as whole:
        ours.decoder(latents)
    # No frame is computed twice.
    assert counter.get_total_flops() == whole.get_total_flops()
    assert first <= 0.35 * whole.get_total_flops()


def test_large_clips_stream_by_themselves():
    vae = _vae(TINY)
    large, small = (torch.empty(1, 4, frames, 16, 24, device="meta") for frames in (7, 6))
    assert not vae.streams(large)
    with torch.no_grad():
        assert (vae.streams(large), vae.streams(small)) == (True, False)
        assert vae.streams(torch.cat([small, small]))
        vae.enable_slicing()
        assert not vae.streams(torch.cat([small, small]))
        vae.enable_tiling()
        assert not vae.streams(large)
        vae.disable_tiling()
        vae.disable_streaming()
        assert not vae.streams(large)
        vae.enable_streaming()
        assert vae.streams(small)


@torch.no_grad()
def test_decode_streams_when_told_to_and_gives_the_same_video():
    vae, latents = _vae(TINY_CONDITIONED, decoder_inject_noise=False).double(), _latents(2, 4, 3, 2, 2).double()
    whole = vae.decode(latents, TEMB).sample
    calls = []
    vae.decoder.mid_block.register_forward_pre_hook(lambda *_: calls.append(1))
    vae.enable_streaming(2)
    assert max_difference(vae.decode(latents, TEMB).sample, whole) <= ROUNDING
    vae.enable_slicing()
    assert max_difference(vae.decode(latents, TEMB, return_dict=False)[0], whole) <= ROUNDING
    assert len(calls) == 6
    vae.disable_streaming()
    vae.decode(latents, TEMB)
    assert len(calls) == 8


def test_streaming_and_tiling_exclude_each_other():
    vae, latents = _vae(TINY), _latents(1, 4, 2, 2, 2)
    vae.enable_tiling()
    with pytest.raises(ValueError, match=r"use_tiling.*disable_tiling"):
        vae.enable_streaming()
    assert vae.use_streaming is None
    vae.disable_tiling()
    vae.enable_streaming()
    with pytest.raises(ValueError, match="disable_streaming"):
        vae.enable_tiling()
    assert not vae.use_tiling
    vae.use_framewise_decoding = True
    with pytest.raises(ValueError, match="use_framewise_decoding"):
        vae.decode(latents)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_chunks_have_a_whole_number_of_frames(size):
    vae = _vae(TINY)
    with pytest.raises(ValueError, match="chunk_frames"):
        vae.decode_streamed(_latents(1, 4, 2, 2, 2), chunk_frames=size)
    with pytest.raises(ValueError, match="chunk_frames"):
        vae.enable_streaming(size)
    assert (vae.use_streaming, vae.chunk_frames) == (None, video_vae.CHUNK_FRAMES)


def test_bad_latents_and_timesteps_are_refused_before_the_first_frame():
    with pytest.raises(ValueError, match="latents must have shape"):
        _vae(TINY).decode_streamed(_latents(1, 3, 2, 2, 2))
    with pytest.raises(ValueError, match="temb"):
        _vae(TINY_CONDITIONED).decode_streamed(_latents(1, 4, 2, 2, 2))


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_both_memory_layouts_give_the_same_video(structure):
    vae, latents = _vae(STRUCTURES[structure]).double(), _latents(2, 4, 3, 2, 3).double()
    whole = vae.decode(latents, TEMB, generator=_seeded()).sample
    last = latents.contiguous(memory_format=torch.channels_last_3d)
    vae.to(memory_format=torch.channels_last_3d)
    assert max_difference(vae.decode(last, TEMB, generator=_seeded()).sample, whole) <= ROUNDING
    chunks = list(vae.decode_streamed(last, TEMB, generator=_seeded(), chunk_frames=3))
    assert max_difference(torch.cat(chunks, dim=2), whole) <= ROUNDING


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_layers_keep_the_memory_layout(mode):
    x = _latents(2, 8, 5, 4, 6)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    conv, upsampler = CausalConv3d(8, 8, mode), Upsampler(8, 4, (2, 2, 2), True, mode)
    for layer in (lambda y: conv.pad(y, False), lambda y: conv.activate(y, False), upsampler):
        first, second = layer(x), layer(last)
        assert not has_channels_last(first)
        assert max_difference(first, second) <= EQUAL_MODELS
    assert has_channels_last(conv.pad(last, False)) and has_channels_last(conv.activate(last, True))


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_the_encoder_keeps_the_layout_that_a_card_prefers(structure, monkeypatch):
    vae = _vae(STRUCTURES[structure])
    video = _latents(2, 3, 9, 64, 96)
    expected = vae.encode(video).latent_dist.parameters
    monkeypatch.setattr(
        video_vae_blocks, "preferred_layout", lambda x: x.contiguous(memory_format=torch.channels_last_3d)
    )
    # As cuDNN's convolutions do; some of a processor give channels first whatever they are given.
    convolve = torch.nn.Conv3d.forward

    def keeping(conv, x):
        y = convolve(conv, x)
        return y.contiguous(memory_format=torch.channels_last_3d) if has_channels_last(x) else y

    monkeypatch.setattr(torch.nn.Conv3d, "forward", keeping)
    layouts = []
    for block in (*vae.encoder.down_blocks, vae.encoder.mid_block):
        block.register_forward_hook(lambda _module, _args, out: layouts.append(has_channels_last(out)))
    assert max_difference(vae.encode(video).latent_dist.parameters, expected) <= EQUAL_MODELS
    assert layouts and all(layouts)


@pytest.mark.gpu
@pytest.mark.parametrize("version", CONFIGS)
@torch.no_grad()
def test_a_card_decodes_with_channels_last_and_the_same_numbers(version, monkeypatch):
    vae = _vae({"2.0": TINY, "2.3": TINY_23}[version])
    latents = _latents(1, 4, 5, 4, 6)
    expected = vae.decode(latents).sample
    vae.to("cuda")
    layouts = []

    def note(_module, _args, out):
        if out.shape[2]:
            layouts.append(has_channels_last(out))

    vae.decoder.up_blocks[-1].register_forward_hook(note)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for size in (None, 4):
        if size:
            vae.enable_streaming(size)
        assert max_difference(vae.decode(latents.cuda()).sample.cpu(), expected) <= 10 * EQUAL_MODELS
    assert layouts and all(layouts)


@pytest.mark.gpu
@torch.no_grad()
def test_a_card_encodes_with_channels_last_and_the_same_numbers(monkeypatch):
    vae, video = _vae(TINY), _latents(1, 3, 9, 64, 96)
    expected = vae.encode(video).latent_dist.parameters
    vae.to("cuda")
    layouts = []
    vae.encoder.mid_block.register_forward_hook(lambda _module, _args, out: layouts.append(has_channels_last(out)))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert max_difference(vae.encode(video.cuda()).latent_dist.parameters.cpu(), expected) <= 10 * EQUAL_MODELS
    assert layouts == [True]

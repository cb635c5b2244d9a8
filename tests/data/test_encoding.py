import copy
from functools import cache

import pytest
import torch
from torch import nn

from ltx2_diffusers.checkpoints.convert import convert_to_original
from ltx2_diffusers.data.encoding import (
    ENCODE_TILES,
    Sound,
    Source,
    encode_captions,
    encode_pixels,
    encode_sound,
    read_pixels,
    read_sound,
)
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.models.video_vae_tiling import plan_encode, run_weighted
from ltx2_diffusers.models.video_vae_tiling_config import SpatialTilingConfig, TilingConfig
from tests.golden_data import load_json
from tests.media.clips import gradient_clip, tone, write_timed
from tests.tiny_checkpoints import tiny_checkpoint

GOLDEN = load_json("training/tiled_encode.json")
TINY = str(tiny_checkpoint("2.0"))
TEXTS = ["A cat", "", "A dog that runs along the shore of a lake"]


@cache
def media(checkpoint=TINY):
    return Source(checkpoint).load_media()


@cache
def language(checkpoint=TINY):
    return Source(checkpoint).load_text()


class StandIn(nn.Module):
    """The golden encoder: the mean of each square of the first frame, plus the number of the call."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.calls = channels, []
        self.conv_in = nn.Conv3d(1, 1, 1)

    def forward(self, x, _causal=None):
        self.calls.append(list(x.shape[-2:]))
        squares = nn.functional.avg_pool2d(x[:, :1, 0], 32) + len(self.calls)
        frames = (x.shape[2] - 1) // 8 + 1
        return squares[:, :, None].expand(-1, self.channels, frames, -1, -1).clone()


def ramp(case):
    rows, columns = torch.arange(case["height"]) / case["height"], torch.arange(case["width"]) / case["width"]
    return (rows[:, None] + 2 * columns).expand(1, 3, case["frames"], -1, -1)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['height']}x{c['width']}/{c['tile_size']}")
def test_tiles_are_those_of_the_reference(case):
    tiles = TilingConfig(SpatialTilingConfig(case["tile_size"], case["tile_overlap"]))
    encoder, pixels = StandIn(256), ramp(case)
    if case["tile_overlap"] == 0:
        # The network's own method wants tiles that overlap; its tiles are these.
        plan = plan_encode(pixels.shape[2:], tiles, (32, 8), 1, discard_seams=False)
        latents = run_weighted(pixels, encoder, plan)[:, :128]
    else:
        vae = copy.copy(media().vae)
        vae._modules = {**vae._modules, "encoder": encoder}
        latents = vae.encode_in_tiles(pixels, tiles).latent_dist.mode()
    assert encoder.calls == case["encoder_calls"]
    assert list(latents.shape) == case["output_shape"]
    assert torch.allclose(latents[0, 0, 0], torch.tensor(case["output_map_channel0_frame0"]), atol=1e-4)


@pytest.mark.parametrize("case", GOLDEN["invalid"], ids=lambda c: f"{c['tile_size']}/{c['tile_overlap']}")
def test_impossible_tiles_are_refused(case):
    with pytest.raises(ValueError, match="tile_"):
        SpatialTilingConfig(case["tile_size"], case["tile_overlap"])


def test_the_tiles_in_use_are_those_of_the_reference():
    assert (ENCODE_TILES.spatial_config.tile_size_in_pixels, ENCODE_TILES.spatial_config.tile_overlap_in_pixels) == (
        512,
        128,
    )
    assert ENCODE_TILES.temporal_config is None


def test_latents_are_the_normalised_means():
    pixels = gradient_clip(9, 64, 96).movedim(0, 1)[None] * 2 - 1
    latents = encode_pixels(media(), pixels)
    vae = media().vae
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mode()
    expected = (mean - vae.latents_mean.view(1, -1, 1, 1, 1)) / vae.latents_std.view(1, -1, 1, 1, 1)
    assert (latents.shape, latents.dtype) == ((128, 2, 2, 3), torch.bfloat16)
    assert torch.equal(latents, expected[0].to(torch.bfloat16))
    # One tile holds all of it.
    assert torch.allclose(encode_pixels(media(), pixels, tiled=True).float(), latents.float(), atol=0.02)


def test_large_clips_are_encoded_in_tiles():
    pixels = gradient_clip(1, 64, 640).movedim(0, 1)[None] * 2 - 1
    whole, tiled = (encode_pixels(media(), pixels, tiled).float() for tiled in (False, True))
    assert whole.shape == tiled.shape == (128, 1, 2, 20)
    assert not torch.equal(whole, tiled)
    assert (whole - tiled).abs().mean() < 0.05 * whole.abs().mean()


def test_sound_is_encoded_in_float32():
    waveform = tone(1.0)[None]
    audio_vae = media().audio_vae
    with torch.no_grad():
        expected = audio_vae.normalize_latents(audio_vae.encode_waveform(waveform, 24000))[0]
    for pipeline in (media(), Source(TINY, dtype=torch.bfloat16).load_media()):
        latents = encode_sound(pipeline, Sound(waveform, 24000, 0.0))
        assert (latents.shape, latents.dtype) == (expected.shape, torch.float32)
        # Weights in bfloat16 differ; the spectrogram does not.
        assert (latents - expected).norm() < 0.02 * expected.norm()
    surround = torch.cat([waveform, waveform, waveform], 1)
    assert encode_sound(media(), Sound(surround, 24000, 0.0)).shape == expected.shape


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_captions_are_what_the_connectors_read(version):
    """They give the contexts that the pipeline gives its transformer, whether in one batch or alone."""
    pipeline = language(str(tiny_checkpoint(version)))
    captions = encode_captions(pipeline, TEXTS)
    streams = ["video_prompt_embeds"] + ["audio_prompt_embeds"] * (version == "2.3")
    assert all(list(caption) == streams for caption in captions)
    assert len(captions[1][streams[0]]) == 1
    for text, caption in zip(TEXTS, captions):
        embeds, mask, _, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
        with torch.no_grad():
            expected = pipeline.connectors(embeds, mask)
            rows = [caption[name][None].float() for name in (streams[0], streams[-1])]
            assert rows[0].shape[1] == mask.sum()
            found = pipeline.connectors.run_connectors(*rows, torch.ones(1, rows[0].shape[1]), 1024)
        for one, other in zip(found[:2], expected):
            # Features are stored in bfloat16.
            assert (one - other).norm() < 0.01 * other.norm()
        for name in streams:
            alone = encode_captions(pipeline, [text])[0][name].float()
            assert torch.allclose(alone, caption[name].float(), rtol=0.01, atol=0.01)


def test_long_captions_are_cut():
    assert len(encode_captions(language(), [" ".join(["word"] * 100)], 32)[0]["video_prompt_embeds"]) == 32
    with pytest.raises(ValueError, match="`max_sequence_length` has to be a multiple of 16"):
        encode_captions(language(), ["x"], 30)


def test_an_original_file_is_a_source(tmp_path):
    file = tmp_path / "model.safetensors"
    convert_to_original(tiny_checkpoint("2.0"), file)
    pixels = torch.zeros(1, 3, 1, 64, 64)
    assert torch.equal(encode_pixels(Source(str(file)).load_media(), pixels), encode_pixels(media(), pixels))
    with pytest.raises(ValueError, match="holds no text encoder"):
        Source(str(file)).load_text()
    gemma = TINY
    (caption,) = encode_captions(Source(str(file), text_encoder=gemma).load_text(), ["A cat"])
    assert torch.equal(
        caption["video_prompt_embeds"], encode_captions(language(), ["A cat"])[0]["video_prompt_embeds"]
    )
    with pytest.raises(ValueError, match="brings its own"):
        Source(TINY, text_encoder=gemma).load_text()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="offload"):
        Source(TINY, offload="some")
    with pytest.raises(ValueError, match="stays on its device"):
        Source(TINY, offload="model", text_encoder_in_8bit=True)


def test_frames_come_one_by_one_or_by_their_times(tmp_path):
    write_video(tmp_path / "clip.mp4", gradient_clip(25, 64, 64), 30.0)
    own = read_pixels(tmp_path / "clip.mp4", 17)
    assert (own.frames.shape, own.rate, own.varies, own.size) == ((17, 64, 64, 3), 30.0, False, (64, 64))
    slower = read_pixels(tmp_path / "clip.mp4", 99, 15.0)
    assert (len(slower.frames), slower.rate) == (13, 15.0)
    timed = write_timed(tmp_path / "varying.mkv", [0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
    varying = read_pixels(timed, 9)
    assert varying.varies
    assert len(varying.frames) == 6
    assert not read_pixels(timed, 9, 10.0).varies


def test_sound_is_cut_or_filled_up(tmp_path):
    write_video(tmp_path / "clip.mp4", gradient_clip(24, 64, 64), 24.0, tone(1.0), 24000)
    sound = read_sound(tmp_path / "clip.mp4", 0.5)
    assert (sound.waveform.shape, sound.sampling_rate, sound.missing_s) == ((1, 2, 12000), 24000, 0.0)
    longer = read_sound(tmp_path / "clip.mp4", 2.0)
    assert longer.waveform.shape == (1, 2, 48000)
    assert longer.missing_s == pytest.approx(1.0, abs=0.05)
    assert not longer.waveform[..., 30000:].any()
    write_video(tmp_path / "silent.mp4", gradient_clip(9, 64, 64), 24.0)
    assert read_sound(tmp_path / "silent.mp4", 0.5) is None

"""diffusers' transformer behind the adapter, against the golden vectors."""

import threading

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

from ltx2_diffusers.conditioning import VideoLatentPatchifier, VideoLatentShape, VideoLatentTools
from ltx2_diffusers.families.ltx_video.networks import LTXVideoCodec, LTXVideoNetwork
from tests.families.ltx_video.tiny import networks
from tests.golden_data import load_tensors

GOLDEN = load_tensors("ltx_video/transformer.safetensors")
SHAPE = VideoLatentShape(1, 8, 3, 2, 3)
SKIPS = sorted(key for key in GOLDEN if key.startswith("skip/"))


def coords(causal: bool, fps: float) -> torch.Tensor:
    return VideoLatentTools(VideoLatentPatchifier(), SHAPE, fps, causal_fix=causal).positions()


def forward(timestep, causal=True, rows=slice(1, 2), mode="attention_values", keep=None):
    text, mask = GOLDEN["encoder_hidden_states"][rows], GOLDEN["encoder_attention_mask"][rows]
    with torch.no_grad():
        return LTXVideoNetwork(networks()["transformer"], mode)(
            hidden_states=GOLDEN["hidden_states"].expand(len(text), -1, -1),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=timestep.expand(len(text), *timestep.shape[1:]),
            video_coords=coords(causal, 30.0).expand(len(text), -1, -1, -1),
            perturbation_keep_masks=[keep],
        )[0][0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fps", [25.0, 30.0])
def test_positions_follow_the_flag_of_the_checkpoint(causal, fps):
    expected = GOLDEN[f"coords/causal{int(causal)}_fps{fps}"]
    torch.testing.assert_close(coords(causal, fps)[..., 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_forward_is_the_originals(causal):
    torch.testing.assert_close(
        forward(torch.tensor([909.4]), causal), GOLDEN[f"t2v_causal{int(causal)}"], rtol=0, atol=2e-5
    )


def test_each_token_may_have_its_own_time():
    out = forward(1000 * GOLDEN["per_token_timestep"][..., None])
    torch.testing.assert_close(out, GOLDEN["per_token"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("key", SKIPS)
def test_a_mode_changes_only_the_perturbed_sample(key):
    _, mode, blocks = key.split("/")
    keep = torch.ones(4, 3, 3)
    for block in map(int, blocks.removeprefix("blocks").split("_")):
        keep[0, block, 2] = 0
    out = forward(torch.tensor([909.4]), rows=slice(None), mode=mode, keep=keep)
    torch.testing.assert_close(out, GOLDEN[key], rtol=0, atol=2e-5)


def test_passes_of_other_threads_stay_whole():
    keep, timestep, results = torch.zeros(4, 3, 1), torch.tensor([909.4]), []
    whole = forward(timestep)
    assert not torch.equal(forward(timestep, keep=keep), whole)
    network = networks()["transformer"].transformer_blocks[0]
    # While one thread is inside a perturbed pass, another one makes its own.
    handle = network.register_forward_pre_hook(lambda *_: _in_thread(lambda: results.append(forward(timestep))))
    try:
        forward(timestep, keep=keep)
    finally:
        handle.remove()
    assert torch.equal(results[0], whole)


def test_a_decoder_that_draws_noise_leaves_the_callers_alone():
    """That of 0.9.1, which draws from the global source alone."""
    torch.manual_seed(3)
    sizes = {"block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4), "layers_per_block": (1, 1, 1)}
    sizes |= {"decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, False), "latent_channels": 4}
    sizes |= {"decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (True, False, False)}
    sizes |= {"upsample_residual": (False, False), "upsample_factor": (1, 1), "patch_size": 2}
    sizes |= {"down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv", "conv")}
    codec = LTXVideoCodec(AutoencoderKLLTXVideo(**sizes))
    strengths = [value for name, value in codec.vae.decoder.named_parameters() if "per_channel_scale" in name]
    for strength in strengths:
        torch.nn.init.ones_(strength)
    assert strengths
    latents, state = torch.randn(1, 4, 2, 2, 2), torch.get_rng_state()
    with torch.no_grad():
        made = [codec.decode(latents, None)[0] for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), state)
        other = codec.vae.decode(latents, return_dict=False)[0]
    assert torch.equal(*made)
    assert not torch.equal(made[0], other)


_busy = threading.Event()


def _in_thread(work) -> None:
    if _busy.is_set():
        return
    _busy.set()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    _busy.clear()

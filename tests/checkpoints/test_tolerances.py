"""The table of tolerances: its arithmetic by hand, and planted errors of 1e-3 that every row and every model notices."""

import math

import pytest
import torch

from ltx2_diffusers.checkpoints.tolerances import TOLERANCES, Tolerance
from ltx2_diffusers.models import mel
from ltx2_diffusers.sampling import samplers, steppers
from ltx2_diffusers.schedulers.sigmas import ltx2_sigmas
from tests.checkpoints.golden_checks import GOLDEN_CHECKS
from tests.golden_data import PLANTED, assert_within, load_tensors, plant_error
from tests.sampling.test_samplers import ToyRun

# --- the arithmetic ---


@pytest.mark.parametrize(
    ("tolerance", "allowed"),
    [
        ({"absolute": 0.25}, [0.25, 0.25, 0.25]),
        ({"relative": 0.25}, [0.0, 0.5, 1.0]),
        ({"of_peak": 0.25}, [1.0, 1.0, 1.0]),
        ({"absolute": 0.25, "relative": 0.25, "of_peak": 0.25}, [1.25, 1.75, 2.25]),
    ],
)
def test_allowances_by_hand(tolerance, allowed):
    row, expected = Tolerance("by hand", **tolerance), torch.tensor([0.0, -2.0, 4.0])
    for index, value in enumerate(allowed):
        off = torch.zeros(3)
        off[index] = 0.125
        assert row.worst(expected + off, expected) == (0.125, value)
    assert row.worst(expected, expected)[0] == 0.0


def test_what_is_no_number_is_never_within():
    expected = torch.tensor([1.0, math.inf, 2.0])
    row = Tolerance("by hand", absolute=1.0, relative=1.0, of_peak=1.0)
    assert row.worst(expected, expected)[0] == 0.0
    for index, wrong in ((0, math.nan), (0, math.inf), (1, 3.0), (1, -math.inf), (1, math.nan)):
        actual = expected.clone()
        actual[index] = wrong
        difference, allowed = row.worst(actual, expected)
        assert difference == math.inf and allowed < 6


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match=r"shape \[2, 1\], got \[2\]"):
        Tolerance("by hand").worst(torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(AssertionError):
        assert_within(torch.zeros(2, dtype=torch.float64), torch.zeros(2), "exact")


# --- errors in the numbers ---

OUTPUTS_20 = "checkpoint/outputs/ltx-2-tiny-dev.safetensors"
OUTPUTS_23 = "checkpoint/outputs/ltx-2.3-tiny-dev.safetensors"
TRANSFORMER = "transformer/ltx23/cases/t2v.safetensors", "expected_video"
PRIMITIVES = "transformer/primitives.safetensors"
# Values that each row judges.
EXAMPLES = {
    "transformer": TRANSFORMER,
    "timestep sinusoid": (PRIMITIVES, "timestep_sinusoid"),
    "transformer with its own angles": TRANSFORMER,
    "rotary table": (PRIMITIVES, "rope.video.split.float64.cos"),
    "connectors": ("connectors/ltx23/cases/batch_left_padded.safetensors", "expected_audio_embeds"),
    "video VAE": ("video_vae/cases/decode_f1_2x2.safetensors", "video"),
    "mel filters and resampling": ("audio_vae/cases/mel_filterbank.safetensors", "filterbank"),
    "vocoder": ("vocoder/bwe/cases/blocks.safetensors", "resampler_output"),
    "vocoder with bandwidth extension": ("vocoder/bwe/cases/waveform_aligned.safetensors", "waveform_reference"),
    "duration head": ("ltx25/duration_head/cases.safetensors", "seconds_both"),
    "diffusion decoder": ("ltx25/diffusion_decoder/x0/decode_1step.safetensors", "sample"),
    "neighbourhood attention": ("ltx25/diffusion_decoder/primitives.safetensors", "na.3_5_3.out"),
    "latent upsampler": ("latent_upsampler/x2_rational/cases/a.safetensors", "upsampled"),
    "sampling": ("sampling/schedules.safetensors", "ltx2/default/steps40"),
    "schedule of more than 8000 tokens": ("sampling/schedules.safetensors", "ltx2/default/steps40"),
    "trajectory": ("sampling/guided_loop.safetensors", "init/video/latent"),
    "exact": TRANSFORMER,
    "miniature": (OUTPUTS_20, "expected.vae.encode.mean"),
    "checkpoint": (OUTPUTS_20, "expected.transformer.audio_sample"),
    "checkpoint, video decoder": (OUTPUTS_20.replace("dev", "dev_pipeline"), "expected.frames_every_4th_pixel"),
    "checkpoint, 2.3 vocoder": (OUTPUTS_23, "expected.vocoder.audio"),
    "pipeline": (OUTPUTS_20.replace("dev", "dev_pipeline"), "expected.video_latents"),
    "equal models": TRANSFORMER,
    "equal layers": TRANSFORMER,
    "equal pipelines": (OUTPUTS_20.replace("dev", "dev_pipeline"), "expected.frames_every_4th_pixel"),
    "fused LoRA, float32": (OUTPUTS_20, "expected.transformer.sample"),
}
# Judged in other units, below and with the rotary tables; values of 16 and 8 bits; and a sound that magnifies errors, with its
# pipeline.
ELSEWHERE = {
    "mel energies",
    "rotary angle of a float32 grid",
    "fused LoRA",
    "float16",
    "bfloat16",
    "float8 products",
    "pipeline, 2.3 sound",
}


def test_every_row_has_a_reason_and_an_example():
    assert EXAMPLES.keys() | ELSEWHERE == TOLERANCES.keys()
    assert all(row.why.endswith(".") for row in TOLERANCES.values())


@pytest.mark.parametrize("row", EXAMPLES)
def test_rows_notice_planted_errors(row):
    file, key = EXAMPLES[row]
    expected = load_tensors(file)[key]
    noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    assert_within(expected, expected, row)
    for actual in (expected * (1 + PLANTED), expected + PLANTED * expected.std() * noise):
        with pytest.raises(AssertionError, match="differs by"):
            assert_within(actual, expected, row)


# --- errors in the computation ---


# Of every model, matrices at its beginning, in its middle and at its end.
MATRICES = {
    "transformer 2.0, video": ("proj_in", "transformer_blocks.1.attn1.to_v", "proj_out"),
    "transformer 2.0, audio": ("audio_proj_in", "transformer_blocks.1.audio_ff.net.2", "audio_proj_out"),
    "transformer 2.3, video": (
        "time_embed.emb.timestep_embedder.linear_1",
        "transformer_blocks.0.audio_to_video_attn.to_out.0",
        "proj_out",
    ),
    "transformer 2.3, audio": ("audio_proj_in", "transformer_blocks.0.audio_attn2.to_v", "audio_proj_out"),
    "connectors 2.0": ("text_proj_in", "video_connector.transformer_blocks.1.attn1.to_q"),
    "connectors 2.3": ("audio_text_proj_in", "audio_connector.transformer_blocks.1.ff.net.2"),
    "video VAE, decode": ("decoder.conv_in.conv", "decoder.up_blocks.2.resnets.1.conv2.conv", "decoder.conv_out.conv"),
    "video VAE, encode": ("encoder.conv_in.conv", "encoder.mid_block.resnets.0.conv1.conv", "encoder.conv_out.conv"),
    "audio VAE, decode": (
        "decoder.mid.block_1.conv1.conv",
        "decoder.up.0.block.0.conv1.conv",
        "decoder.conv_out.conv",
    ),
    "audio VAE, encode": ("encoder.conv_in.conv", "encoder.down.0.block.0.conv2.conv", "encoder.conv_out.conv"),
    "vocoder 2.0": ("conv_in", "upsamplers.1", "conv_out"),
    "vocoder 2.3": ("vocoder.conv_in", "bwe_generator.resnets.1.convs1.0", "bwe_generator.conv_out"),
    "latent upsampler x2": ("initial_conv", "upsampler.conv", "final_conv"),
}


@pytest.mark.parametrize("check", GOLDEN_CHECKS, ids=lambda check: check.name)
@pytest.mark.quick_cases(5)
def test_an_error_in_one_matrix_is_noticed(check):
    check.check(check.model())
    for name in MATRICES[check.name]:
        model = check.model()
        plant_error(model.get_submodule(name).weight)
        with pytest.raises(AssertionError, match="differs by"):
            check.check(model)


@pytest.mark.parametrize("damage", ["one filter", "all filters", "window"])
def test_an_error_in_the_mel_front_end_is_noticed(damage, monkeypatch):
    golden = load_tensors("audio_vae/cases/mel_mono_16k.safetensors")
    filters, window = mel.mel_filterbank, torch.hann_window
    if damage == "window":
        monkeypatch.setattr(torch, "hann_window", lambda *args, **kw: window(*args, **kw) * (1 + PLANTED))
    else:
        bins = 30 if damage == "one filter" else slice(None)

        def scaled(*args, **kw):
            table = filters(*args, **kw)
            table[:, bins] *= 1 + PLANTED
            return table

        monkeypatch.setattr(mel, "mel_filterbank", scaled)
    with pytest.raises(AssertionError, match="mel energies"):
        assert_within(mel.log_mel_spectrogram(golden["waveform_16k"]).exp(), golden["mel"].exp(), "mel energies")


def test_an_error_in_the_sampling_is_noticed():
    schedules = load_tensors("sampling/schedules.safetensors")
    steps = load_tensors("sampling/steps_newest.safetensors")
    expected = schedules["ltx2/default/steps40"]
    assert_within(ltx2_sigmas(40), expected, "sampling")
    with pytest.raises(AssertionError, match="sampling"):
        assert_within(ltx2_sigmas(40, max_shift=2.05 * (1 + PLANTED)), expected, "sampling")
    levels = steps["sigmas"][:2].tolist()
    arguments = steps["sample"], steps["denoised"], *levels, steps["noise"]
    assert_within(
        steppers.euler_ancestral_step(*arguments, eta=0.5), steps["euler_ancestral/eta0.5/step0"], "sampling"
    )
    with pytest.raises(AssertionError, match="sampling"):
        off = steppers.euler_ancestral_step(*arguments, eta=0.5 * (1 + PLANTED))
        assert_within(off, steps["euler_ancestral/eta0.5/step0"], "sampling")


def test_an_error_in_the_denoiser_of_a_trajectory_is_noticed():
    table = load_tensors("sampling/trajectories.safetensors")
    key = next(key.split("/final")[0] for key in table if key.startswith("f32/") and "/euler/final" in key)
    off = {**table, "mu_video": table["mu_video"] * (1 + PLANTED)}
    for name, numbers in (("right", table), ("wrong", off)):
        run = ToyRun(numbers, root="f32/init")
        states = run.run(samplers.EulerSampler(), table[f"sigmas/{key.split('/')[1]}"])
        if name == "right":
            run.check(states, key)
        else:
            with pytest.raises(AssertionError, match="trajectory"):
                run.check(states, key)

"""Values of configurations: of the annotated type, finite, and sizes of a network."""

import math

import numpy as np
import pytest

from ltx2_diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2AVTransformer3DModel,
    LTX2LatentUpsamplerModel,
    LTX2Scheduler,
    LTX2TextConnectors,
    LTX2Vocoder,
    LTX2VocoderWithBWE,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (AutoencoderKLLTX2Video, "scaling_factor", NAN),
        (AutoencoderKLLTX2Video, "scaling_factor", 0.0),
        (AutoencoderKLLTX2Video, "resnet_norm_eps", INF),
        (AutoencoderKLLTX2Video, "latent_channels", 0),
        (AutoencoderKLLTX2Video, "block_out_channels", [256, "512"]),
        (AutoencoderKLLTX2Video, "upsample_factor", None),
        (AutoencoderKLLTX2Audio, "mel_hop_length", 0),
        (AutoencoderKLLTX2Audio, "sample_rate", 0),
        (AutoencoderKLLTX2Audio, "sample_rate", -16000),
        (AutoencoderKLLTX2Audio, "ch_mult", [1, 0, 4]),
        (AutoencoderKLLTX2Audio, "dropout", NAN),
        (LTX2AVTransformer3DModel, "norm_eps", NAN),
        (LTX2AVTransformer3DModel, "num_layers", -1),
        (LTX2AVTransformer3DModel, "num_layers", None),
        (LTX2AVTransformer3DModel, "num_layers", True),
        (LTX2AVTransformer3DModel, "num_layers", 1.5),
        (LTX2AVTransformer3DModel, "rope_theta", -10000.0),
        (LTX2AVTransformer3DModel, "rope_type", 1),
        (LTX2AVTransformer3DModel, "cross_attn_mod", "no"),
        (LTX2AVTransformer3DModel, "timestep_scale_multiplier", INF),
        (LTX2AVTransformer3DModel, "audio_hop_length", 0),
        (LTX2TextConnectors, "caption_channels", "3840"),
        (LTX2TextConnectors, "connector_rope_base_seq_len", 0),
        (LTX2Vocoder, "output_sampling_rate", 0),
        (LTX2Vocoder, "leaky_relu_negative_slope", NAN),
        (LTX2Vocoder, "upsample_factors", [6, -5]),
        (LTX2Vocoder, "resnet_dilations", [[1, 3, NAN]]),
        (LTX2VocoderWithBWE, "input_sampling_rate", 0),
        (LTX2VocoderWithBWE, "hop_length", 0),
        (LTX2LatentUpsamplerModel, "rational_spatial_scale", NAN),
        (LTX2LatentUpsamplerModel, "num_blocks_per_stage", -1),
        (LTX2Scheduler, "base_shift", NAN),
        (LTX2Scheduler, "max_shift", INF),
        (LTX2Scheduler, "max_shift", "2.05"),
        (LTX2Scheduler, "shift", 0.0),
        (LTX2Scheduler, "shift_terminal", 1.0),
        (LTX2Scheduler, "shift_terminal", -0.1),
        (LTX2Scheduler, "num_train_timesteps", 0),
        (LTX2Scheduler, "base_image_seq_len", 4096),
        (LTX2Scheduler, "shift_tokens", NAN),
        (LTX2Scheduler, "shift_tokens", [4096]),
        (LTX2Scheduler, "threshold_noise", 1.5),
        (LTX2Scheduler, "linear_steps", 0),
        (LTX2Scheduler, "beta_alpha", 0.0),
        (LTX2Scheduler, "use_dynamic_shifting", "yes"),
    ],
)
def test_values_that_build_nothing_are_refused_by_name(model, name, value):
    with pytest.raises(ValueError, match=name):
        model(**{name: value})


def test_values_that_json_and_numpy_write_differently_are_taken():
    model = LTX2LatentUpsamplerModel(
        in_channels=np.int64(4),
        mid_channels=32,
        num_blocks_per_stage=0,
        rational_spatial_scale=2,
        use_rational_resampler=1,
    )
    assert model.initial_conv.weight.shape[1] == 4
    assert LTX2Scheduler(base_shift=1, max_shift=np.float64(2.0), shift_terminal=None).config.base_shift == 1

"""Wrong arguments raise before any computation, and say what would be right."""

import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers.pipelines import ltx2 as upstream

import ltx2_diffusers
from ltx2_diffusers.guidance import GuidanceOptions, MultiModalGuiderParams
from tests.pipelines.tiny import CFG, EXPLICIT, PROMPT, load, ours, seeded

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT}
CHANNELS = 128
NAN = float("nan")
EMBEDS = torch.zeros(1, 16, 96)
MASK = torch.ones(1, 16)

WRONG = {
    # sizes
    "height": ({"height": 100}, r"`height` .* 100; use 96 or 128"),
    "width": ({"width": 40}, r"`width` .* 40; use 32 or 64"),
    "zero height": ({"height": 0}, r"`height` .* 0"),
    "negative width": ({"width": -64}, r"`width` .* -64"),
    "fractional height": ({"height": 64.0}, r"`height` .* 64\.0"),
    "undecodable": ({"height": 32, "output_type": "np"}, r"`height` is 32, .* 64 pixels a side"),
    "frames": ({"num_frames": 10}, r"`num_frames` .* 10; use 9 or 17"),
    "no frames": ({"num_frames": 0}, r"`num_frames` .* 0; use 1"),
    "frame rate": ({"frame_rate": 0.0}, r"`frame_rate` .* 0\.0"),
    "motion speed": ({"motion_speed": -1.0}, r"`motion_speed` .* -1\.0"),
    "duration": ({"max_seconds": 5.0}, r"`max_seconds` is given \(5\.0\), but the length of this call is given"),
    # prompts
    "no prompt": ({"prompt": None}, r"either `prompt` or `prompt_embeds`"),
    "two prompts": ({"prompt_embeds": EMBEDS, "prompt_attention_mask": MASK}, r"either `prompt` or `prompt_embeds`"),
    "empty list": ({"prompt": []}, r"`prompt` is an empty list"),
    "number": ({"prompt": 7}, r"`prompt` has to be a `str` or a list .* 7"),
    "list of numbers": ({"prompt": ["a", 7]}, r"`prompt` has to be"),
    "negative batch": ({"negative_prompt": ["a", "b"]}, r"`negative_prompt` has 2 entries for 1 prompts"),
    "empty negative list": ({"negative_prompt": []}, r"`negative_prompt` is an empty list"),
    "no mask": ({"prompt": None, "prompt_embeds": EMBEDS}, r"`prompt_embeds` need their `prompt_attention_mask`"),
    "mask shape": (
        {"prompt": None, "prompt_embeds": EMBEDS, "prompt_attention_mask": MASK[:, :8]},
        r"`prompt_attention_mask` has shape \(1, 8\), but `prompt_embeds` need \(1, 16\)",
    ),
    "integer embeddings": (
        {"prompt": None, "prompt_embeds": EMBEDS.long(), "prompt_attention_mask": MASK},
        r"`prompt_embeds` have to be floating-point",
    ),
    "embedding width": (
        {"prompt": None, "prompt_embeds": EMBEDS[..., :95], "prompt_attention_mask": MASK},
        r"`prompt_embeds` has 95 values .* take 96",
    ),
    "unequal embeddings": (
        {
            "prompt": None,
            "prompt_embeds": EMBEDS,
            "prompt_attention_mask": MASK,
            "negative_prompt_embeds": EMBEDS[:, :8],
            "negative_prompt_attention_mask": MASK[:, :8],
        },
        r"must have the same shape but are \(1, 16, 96\) and \(1, 8, 96\)",
    ),
    "two negatives": (
        {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS, "negative_prompt_attention_mask": MASK},
        r"either `negative_prompt` or `negative_prompt_embeds`",
    ),
    "text length": ({"max_sequence_length": 0}, r"`max_sequence_length` .* 0"),
    "no videos": ({"num_videos_per_prompt": 0}, r"`num_videos_per_prompt` .* 0"),
    # noise
    "generators": ({"generator": seeded(1, 2)}, r"2 generators for a batch of 1"),
    "latents shape": ({"latents": torch.zeros(1, CHANNELS, 2, 2, 2)}, r"`latents` has shape .*\(1, 128, 2, 2, 3\)"),
    "latents batch": ({"latents": torch.zeros(2, CHANNELS, 2, 2, 3)}, r"`latents` has shape \(2, 128, 2, 2, 3\)"),
    "latents rank": ({"latents": torch.zeros(2, 2)}, r"`latents` has shape \(2, 2\)"),
    "latents type": ({"latents": torch.zeros(1, CHANNELS, 2, 2, 3).long()}, r"`latents` .* floating-point .*int64"),
    "no tensor": ({"latents": [1.0]}, r"`latents` has to be a tensor but is \[1\.0\]"),
    "audio shape": ({"audio_latents": torch.zeros(1, 3, 9, 16)}, r"`audio_latents` has shape \(1, 3, 9, 16\)"),
    "packed audio": ({"audio_latents": torch.zeros(1, 9, 7)}, r"`audio_latents` has shape \(1, 9, 7\)"),
    "noise scale": ({"noise_scale": 1.5}, r"`noise_scale` .* 1\.5"),
    # sampling
    "steps": ({"num_inference_steps": 0}, r"`?num_inference_steps`? .* 0"),
    "fractional steps": ({"num_inference_steps": 2.5}, r"`?num_inference_steps`? .* 2\.5"),
    "sigmas and timesteps": ({"sigmas": [1.0], "timesteps": [1000]}, r"either `sigmas` or `timesteps`"),
    "no sigmas": ({"sigmas": []}, r"sigmas"),
    "rising sigmas": ({"sigmas": [0.2, 0.9]}, r"sigmas"),
    "large sigmas": ({"sigmas": [2.0, 1.0]}, r"sigmas"),
    "sampler": ({"sampler": "eulr"}, r"sampler .*euler.*'eulr'"),
    # guidance
    "blocks": ({"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [7]}, r"contains \[7\].* blocks 0 to 1"),
    "negative block": ({"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [-1]}, r"contains \[-1\]"),
    "no blocks": (
        {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": []},
        r"`spatio_temporal_guidance_blocks` is empty",
    ),
    "guidance word": ({"audio_guidance_scale": "strong"}, r"'strong'"),
    "guidance text": ({"guidance_scale": "3"}, r"'3'"),
    "negative scale": ({"audio_stg_scale": -2000.0}, r"`audio_stg_scale` has to be from -1000 to 1000 .* use -1000"),
    "rescale": ({"audio_guidance_rescale": 1.5}, r"`audio_guidance_rescale` has to be between 0 and 1"),
    "fractional block": ({"spatio_temporal_guidance_blocks": [0.5]}, r"`spatio_temporal_guidance_blocks` .* \[0\.5\]"),
    "text block": ({"spatio_temporal_guidance_blocks": ["0"]}, r"`spatio_temporal_guidance_blocks` .* \['0'\]"),
    "sampler without a name": ({"sampler": ""}, r"sampler must be one of .* ''"),
    "text sigmas": ({"sigmas": ["1"]}, r"`sigmas` has to be a list of finite numbers"),
    "sigmas below precision": ({"sigmas": [1.0, 1e-30]}, r"sigmas must be at least 1e-06"),
    "sigmas equal in float32": ({"sigmas": [0.5, 0.5 - 1e-12]}, r"sigmas must fall strictly"),
    "cross timestep": ({"use_cross_timestep": "no"}, r"`use_cross_timestep` has to be True or False but is 'no'"),
    "attention name": ({"attention_kwargs": {"scael": 1}}, r"`attention_kwargs` holds \['scael'\].* takes 'scale'"),
    "attention scale": ({"attention_kwargs": {"scale": NAN}}, r"`scale` of `attention_kwargs` .* nan"),
    "many frames a second": ({"frame_rate": 1e6}, r"`frame_rate` has to be at most 1000"),
    "long sound": ({"frame_rate": 0.01}, r"last 900 s, more than the 600 s .* `frame_rate` of at least 1,"),
    "slowest motion": ({"motion_speed": 1e-9}, r"`motion_speed` has to be from 0\.01 to 100 .* use 0\.01"),
    "huge size": ({"height": 2**20}, r"`height` has to be at most 16384 but is 1048576; use 16384"),
    "many steps": ({"num_inference_steps": 10**6}, r"`num_inference_steps` has to be at most 1000"),
    "many videos": ({"num_videos_per_prompt": 10**400}, r"`num_videos_per_prompt` .* 1329 bits"),
    "text positions": ({"max_sequence_length": 1000}, r"`max_sequence_length` .* multiple of 16, .* use 992 or 1008"),
    "many text positions": (
        {"max_sequence_length": 4096},
        r"`max_sequence_length` .* up to 1024 but is 4096; use 1024",
    ),
    "latents that are no numbers": (
        {"latents": torch.full((1, CHANNELS, 2, 2, 3), NAN)},
        r"`latents` holds .* finite",
    ),
    "latents without values": ({"latents": torch.zeros(1, CHANNELS, 2, 2, 3, device="meta")}, r"`latents` .* meta"),
    "embeddings that are no numbers": (
        {"prompt": None, "prompt_embeds": EMBEDS + NAN, "prompt_attention_mask": MASK},
        r"`prompt_embeds` holds .* not finite",
    ),
    "no embeddings": (
        {"prompt": None, "prompt_embeds": EMBEDS[:0], "prompt_attention_mask": MASK[:0]},
        r"`prompt_embeds` .* is empty",
    ),
    "negative mask": (
        {"prompt": None, "prompt_embeds": EMBEDS, "prompt_attention_mask": -MASK},
        r"`prompt_attention_mask` has to hold 1 for tokens and 0",
    ),
    "mask without embeddings": (
        {"prompt_attention_mask": MASK},
        r"`prompt_attention_mask` belongs to `prompt_embeds`",
    ),
    "answer length": ({"prompt_max_new_tokens": 8}, r"`prompt_max_new_tokens` is only read with"),
    "seed": ({"prompt_enhancement_seed": 2**64}, r"`prompt_enhancement_seed` .* 64 bits"),
    "generator": ({"generator": "cpu"}, r"`generator` has to be a torch.Generator .* 'cpu'"),
    "generator list": ({"generator": [None]}, r"`generator` .* \[None\]"),
    "callback": ({"callback_on_step_end": 5}, r"`callback_on_step_end` has to be a function but is 5"),
    "callback tensor": (
        {"callback_on_step_end_tensor_inputs": "latents"},
        r"`callback_on_step_end_tensor_inputs` .* list",
    ),
    "decoder noise": ({"decode_timestep": 2.0}, r"`decode_timestep` has to be between 0 and 1 but is 2\.0"),
    "surrogate": ({"prompt": "\ud800"}, r"`prompt` .* surrogate"),
    # output
    "output type": ({"output_type": "gif"}, r"`output_type` .* 'latent'.* 'gif'"),
    "callback tensors": ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"contains \['noise'\]"),
    "decode list": ({"decode_timestep": [0.1, 0.2]}, r"2 .*decode_timestep.* batch of 1"),
    "system prompt": ({"system_prompt": "Be brief."}, r"`system_prompt` .* `enable_prompt_enhancement=True`"),
    "enhanced embeddings": (
        {"prompt": None, "prompt_embeds": EMBEDS, "prompt_attention_mask": MASK, "enable_prompt_enhancement": True},
        r"`enable_prompt_enhancement` needs `prompt`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_raise_before_compute(name):
    arguments, message = WRONG[name]

    def computed(*_):
        raise AssertionError("a component ran")

    models = [part for part in ours().components.values() if isinstance(part, torch.nn.Module)]
    hooks = [model.register_forward_pre_hook(computed) for model in models]
    try:
        with pytest.raises(ValueError, match=message):
            ours()(**CALL | arguments)
    finally:
        for hook in hooks:
            hook.remove()


NUMBERS = ("height", "num_frames", "frame_rate", "motion_speed", "num_inference_steps", "guidance_scale", "stg_scale")
NUMBERS += ("modality_scale", "guidance_rescale", "noise_scale", "num_videos_per_prompt", "max_sequence_length")
NUMBERS += (
    "decode_timestep",
    "min_seconds",
    "audio_guidance_scale",
    "audio_guidance_rescale",
    "prompt_enhancement_seed",
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [NAN, float("inf"), "64", True, torch.zeros(2), {}], ids=str)
def test_what_is_no_finite_number_is_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ours()(**CALL | {name: value})


@pytest.mark.parametrize("name", ["cfg_scale", "stg_scale", "rescale_scale", "modality_scale"])
def test_scales_of_stages_are_finite_numbers(name):
    with pytest.raises(ValueError, match=f"`{name}` has to be a finite number but is nan"):
        MultiModalGuiderParams(**{name: NAN})


@pytest.mark.parametrize(
    "name", ["apg_eta", "apg_norm_threshold", "apg_momentum", "nag_scale", "nag_tau", "nag_alpha"]
)
@pytest.mark.parametrize("value", [NAN, float("inf"), "1", True])
def test_guidance_options_are_finite_numbers(name, value):
    with pytest.raises(ValueError, match=f"`{name}` has to be a finite number"):
        GuidanceOptions(**{name: value})


def test_numbers_of_other_libraries_mean_what_python_s_do():
    other = {"height": np.int64(64), "width": torch.tensor(96), "num_frames": np.int32(9), "frame_rate": Fraction(24)}
    other |= {"guidance_scale": Decimal(3), "num_videos_per_prompt": np.int64(1), "max_sequence_length": np.int64(64)}
    results = [ours()(**CALL | more, generator=seeded(0)) for more in ({}, other)]
    assert torch.equal(results[0].frames, results[1].frames) and torch.equal(results[0].audio, results[1].audio)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("x", "has to return a dict or None but returned 'x'"),
        ({"latents": None}, "returned None for `latents`"),
        ({"latents": torch.zeros(3)}, r".* for `latents`; return a floating-point tensor \(1, 12, 128\)"),
        ({"audio_latents": torch.zeros(1, 9, 32).long()}, r"returned a tensor of torch\.int64 .* for `audio_latents`"),
    ],
)
def test_what_a_callback_returns_is_checked_when_it_comes(returned, message):
    steps = []

    def callback(_pipeline, step, _timestep, _tensors):
        steps.append(step)
        return returned

    with pytest.raises(ValueError, match=f"`callback_on_step_end` {message}"):
        ours()(**CALL, callback_on_step_end=callback)
    assert steps == [0]


def test_replaced_latents_of_another_precision_are_taken():
    half = ours()(
        **CALL,
        generator=seeded(0),
        callback_on_step_end=lambda _p, _i, _t, tensors: {"latents": tensors["latents"].half()},
    )
    assert half.frames.dtype == ours()(**CALL).frames.dtype and half.frames.isfinite().all()


def test_a_callback_that_makes_latents_bad_is_found_in_the_next_step():
    with pytest.raises(ValueError, match=r"the video and the audio stopped being finite .* in step 2"):
        ours()(**CALL, callback_on_step_end=lambda _p, _i, _t, tensors: {"latents": tensors["latents"] * NAN})


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "uint8"])
@pytest.mark.parametrize(("part", "what"), [("vae", "video"), ("vocoder", "sound")])
def test_a_decoder_that_gives_no_numbers_is_refused(part, what, output_type):
    pipe = load()
    next(getattr(pipe, part).parameters() if part == "vocoder" else pipe.vae.decoder.parameters()).data.fill_(NAN)
    with pytest.raises(ValueError, match=f"the decoded {what} holds values that are not finite"):
        pipe(**CALL | {"output_type": output_type, "height": 64})


def test_weights_that_are_no_numbers_end_the_run_in_its_first_step():
    pipe = load()
    next(pipe.transformer.parameters()).data.fill_(NAN)
    with pytest.raises(ValueError, match=r"stopped being finite \(NaN or infinity\) in step 1 of the run"):
        pipe(**CALL)


def test_an_argument_that_does_not_exist():
    with pytest.raises(TypeError, match=r"guidence_scale.*; did you mean `guidance_scale`"):
        ours()(PROMPT, guidence_scale=3.0)


def test_an_argument_that_resembles_no_other():
    with pytest.raises(TypeError, match=r"'wobble'\. It takes prompt, negative_prompt, height"):
        ours()(PROMPT, wobble=3.0)


@pytest.mark.parametrize(
    "name",
    [
        "LTX2Pipeline",
        "LTX2ImageToVideoPipeline",
        "LTX2ConditionPipeline",
        "LTX2InContextPipeline",
        "LTX2LatentUpsamplePipeline",
        "LTX2HDRPipeline",
    ],
)
def test_arguments_without_names_mean_what_they_do_in_diffusers(name):
    theirs, here = (
        list(inspect.signature(getattr(of, name).__call__).parameters) for of in (upstream, ltx2_diffusers)
    )
    assert here[: len(theirs)] == theirs


@pytest.mark.parametrize(
    ("name", "first"),
    {
        "LTX2TwoStagePipeline": "prompt negative_prompt image conditions reference_conditions audio sampling_rate",
        "LTX2DistilledPipeline": "prompt image conditions reference_conditions audio sampling_rate",
        "LTX2KeyframeInterpolationPipeline": "images prompt negative_prompt frame_indices strengths image_crf",
        "LTX2AudioToVideoPipeline": "audio prompt negative_prompt sampling_rate audio_start_s",
        "LTX2VideoToAudioPipeline": "video prompt negative_prompt frame_rate height width",
        "LTX2TextToAudioPipeline": "prompt negative_prompt duration_s two_stage num_inference_steps",
        "LTX2RetakePipeline": "video start_s end_s prompt negative_prompt region regenerate_video",
        "LTX2ExtendPipeline": "prompt negative_prompt video audio sampling_rate latents audio_latents num_segments",
    }.items(),
)
def test_arguments_of_our_own_calls_keep_their_places(name, first):
    _, *places = inspect.signature(getattr(ltx2_diffusers, name).__call__).parameters
    assert places[: len(first.split())] == first.split()


def test_the_size_follows_given_latents_and_must_fit_them():
    latents = torch.zeros(1, CHANNELS, 3, 1, 2)
    output = ours()(**CALL | {"latents": latents, "height": None, "width": None, "num_frames": None})
    assert output.frames.shape == latents.shape
    with pytest.raises(ValueError, match=r"`latents` has shape \(1, 128, 3, 1, 2\)"):
        ours()(**CALL | {"latents": latents})

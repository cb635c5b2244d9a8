"""Wrong arguments raise before any computation, and say what would be right."""

import inspect

import pytest
import torch
from diffusers.pipelines import ltx2 as upstream

import ltx2_diffusers
from tests.pipelines.tiny import CFG, EXPLICIT, PROMPT, ours, seeded

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT}
CHANNELS = 128
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
    "duration": ({"max_seconds": 5.0}, r"`max_seconds` \(5\.0\).*num_frames"),
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

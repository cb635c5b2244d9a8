"""Behaviour of the transformer: streams, perturbations, masks, checkpointing, adapters, caches, compilation."""

import copy

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from peft import LoraConfig

from ltx2_diffusers.models.text_cache import TextCache
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from tests.golden_data import EQUAL_MODELS
from tests.models.transformer_tools import (
    AUDIO_TOKENS,
    LAYOUTS,
    TINY,
    VIDEO_TOKENS,
    max_difference,
    per_token,
    tiny_inputs,
    tiny_transformer,
)

LAYERS = TINY["num_layers"]


def keep_masks(batch_size: int = 1, **perturbed: list[int]) -> torch.Tensor:
    """A keep mask with the named kinds perturbed in the given blocks, for the last sample."""
    keep = torch.ones(4, LAYERS, batch_size)
    for kind, blocks in perturbed.items():
        keep[["video_self", "audio_self", "a2v", "v2a"].index(kind), blocks, -1] = 0
    return keep


# Streams


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_one_stream_alone_equals_that_stream_isolated(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model, 2)
    video, audio = model(**inputs, isolate_modalities=True)
    for absent in (None, inputs["audio_hidden_states"][:, :0]):
        alone = model(**{**inputs, "audio_hidden_states": absent})
        assert torch.equal(alone[0], video) and alone[1] is None
    alone = model(**{**inputs, "hidden_states": None, "timestep": None, "sigma": None})
    assert alone[0] is None and torch.equal(alone[1], audio)


@torch.no_grad()
def test_absent_streams_and_isolation_compute_nothing_for_the_other_stream():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    called = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(**{**inputs, "audio_hidden_states": None})
    assert not any("audio" in name for name in called)
    called.clear()
    model(**inputs, isolate_modalities=True)
    assert not any("av_cross" in name or "to_audio" in name or "to_video" in name for name in called)


@torch.no_grad()
def test_disabled_streams_are_seen_but_not_updated():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    both, disabled = model(**inputs), model(**inputs, audio_enabled=False)
    isolated = model(**inputs, isolate_modalities=True)
    assert max_difference(disabled[:1], both[:1]) > 1e-3
    assert max_difference(disabled[:1], isolated[:1]) > 1e-3


@torch.no_grad()
def test_a_batch_gives_what_its_samples_give():
    model = tiny_transformer("2.3")
    inputs = tiny_inputs(model, 2)
    together = model(**inputs)
    for index in range(2):
        single = {
            name: value[index : index + 1] if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        assert max_difference(model(**single), tuple(output[index : index + 1] for output in together)) <= EQUAL_MODELS


@torch.no_grad()
def test_the_output_has_names():
    model = tiny_transformer()
    inputs = {**tiny_inputs(model), "return_dict": True}
    output = model(**inputs)
    assert output.sample.shape == (1, VIDEO_TOKENS, 8) and output.audio_sample.shape == (1, AUDIO_TOKENS, 6)
    assert model(**{**inputs, "audio_hidden_states": None}).audio_sample is None


# Timesteps


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
@torch.no_grad()
def test_cross_timestep_modes_agree_where_all_noise_levels_are_equal(layout):
    model = tiny_transformer(layout)
    inputs = tiny_inputs(model)
    inputs["audio_timestep"] = inputs["audio_sigma"] = inputs["timestep"]
    own, other, gate = (model(**inputs, cross_timestep_mode=mode) for mode in ("own", "other", "gate"))
    assert max_difference(own, other) == max_difference(own, gate) == 0


@torch.no_grad()
def test_cross_timestep_modes_differ_for_images():
    model = tiny_transformer("2.3")
    inputs = tiny_inputs(model)
    inputs["timestep"] = per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))
    own, other, gate = (model(**inputs, cross_timestep_mode=mode) for mode in ("own", "other", "gate"))
    assert min(max_difference(own, other), max_difference(own, gate), max_difference(other, gate)) > 1e-4
    assert max_difference(model(**inputs), own) == 0
    assert max_difference(model(**inputs, use_cross_timestep=True), other) == 0


@torch.no_grad()
def test_equal_timesteps_per_token_cost_and_give_what_one_timestep_does():
    model = tiny_transformer()
    inputs = tiny_inputs(model, 2)
    rows = []
    model.time_embed.register_forward_hook(lambda _, arguments, __: rows.append(arguments[0].shape[0]))
    expected = model(**inputs)
    spread = {**inputs, "timestep": inputs["timestep"][:, None].expand(2, VIDEO_TOKENS)}
    assert max_difference(model(**spread), expected) == 0
    model(**{**inputs, "timestep": per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))})
    assert rows == [2, 2, 4]


# Perturbations


@torch.no_grad()
def test_skipping_every_branch_of_a_kind_equals_zeroing_its_output():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    for kind, attention in (
        ("video_self", "attn1"),
        ("audio_self", "audio_attn1"),
        ("a2v", "audio_to_video_attn"),
        ("v2a", "video_to_audio_attn"),
    ):
        outputs = model(**inputs, perturbation_keep_masks=keep_masks(**{kind: [1]}))
        zeroed = copy.deepcopy(model)
        layer = getattr(zeroed.transformer_blocks[1], attention).to_out[0]
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        assert max_difference(outputs, zeroed(**inputs)) <= EQUAL_MODELS
        assert max_difference(outputs, model(**inputs)) > 1e-3


@pytest.mark.parametrize("mode", ["skip", "passthrough"])
@torch.no_grad()
def test_samples_are_perturbed_one_by_one(mode):
    model = tiny_transformer("2.3")
    inputs = tiny_inputs(model, 2)
    plain = model(**inputs)
    kinds = {"video_self": [0, 2], "audio_self": [1], "a2v": [1], "v2a": [0]}
    mixed = model(**inputs, perturbation_keep_masks=keep_masks(2, **kinds), perturbation_mode=mode)
    everyone = model(**inputs, perturbation_keep_masks=keep_masks(1, **kinds), perturbation_mode=mode)
    for stream in range(2):
        torch.testing.assert_close(mixed[stream][0], plain[stream][0], atol=EQUAL_MODELS, rtol=0)
        torch.testing.assert_close(mixed[stream][1], everyone[stream][1], atol=EQUAL_MODELS, rtol=0)
        assert (mixed[stream][1] - plain[stream][1]).abs().max() > 1e-3


@torch.no_grad()
def test_stg_on_2_0_weights_drops_the_self_attention():
    model = tiny_transformer("2.0")
    inputs = tiny_inputs(model)
    outputs = model(**inputs, spatio_temporal_guidance_blocks=[1])
    assert max_difference(outputs, model(**inputs)) > 1e-3
    keep = keep_masks(video_self=[1], audio_self=[1])
    assert max_difference(outputs, model(**inputs, perturbation_keep_masks=keep)) == 0


@pytest.mark.parametrize("mode", ["skip", "passthrough"])
@torch.no_grad()
def test_perturbed_self_attention_needs_no_queries(mode):
    model = tiny_transformer("2.3")
    called = []
    model.transformer_blocks[1].attn1.to_q.register_forward_hook(lambda *_: called.append("query"))
    model.transformer_blocks[1].attn1.to_v.register_forward_hook(lambda *_: called.append("value"))
    model(**tiny_inputs(model), spatio_temporal_guidance_blocks=[1], perturbation_mode=mode)
    assert called == ([] if mode == "skip" else ["value"])


@torch.no_grad()
def test_isolation_equals_dropping_both_cross_modal_kinds():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    keep = keep_masks(a2v=[0, 1, 2], v2a=[0, 1, 2])
    isolated = model(**inputs, isolate_modalities=True)
    assert max_difference(model(**inputs, perturbation_keep_masks=keep), isolated) == 0


# Masks


@torch.no_grad()
def test_masked_text_does_not_matter():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    inputs.update(encoder_attention_mask=mask, audio_encoder_attention_mask=mask)
    expected = model(**inputs)
    for name in ("encoder_hidden_states", "audio_encoder_hidden_states"):
        inputs[name] = inputs[name].clone()
        inputs[name][:, 4:] = 7.0
    assert max_difference(model(**inputs), expected) == 0


@torch.no_grad()
def test_masks_that_mask_nothing_never_reach_the_attention():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    masks = []
    for name, module in model.named_modules():
        if name.endswith(("attn1", "attn2")):
            module.register_forward_pre_hook(
                lambda _, args, kwargs: masks.append(kwargs.get("attention_mask", args[2] if len(args) > 2 else None)),
                with_kwargs=True,
            )
    ones = torch.ones(1, 6)
    all_ones = {"encoder_attention_mask": ones, "video_self_attention_mask": torch.ones(1, VIDEO_TOKENS, VIDEO_TOKENS)}
    model(**inputs, **all_ones, audio_encoder_attention_mask=torch.zeros(1, 1, 6))
    assert len(masks) == 4 * LAYERS and all(mask is None for mask in masks)
    ones[0, 0] = 0
    model(**inputs, **all_ones)
    assert sum(mask is not None for mask in masks) == LAYERS


@torch.no_grad()
def test_fractional_strengths_multiply_attention_weights():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    strengths = torch.rand(1, VIDEO_TOKENS, VIDEO_TOKENS) * 0.9 + 0.1
    bias = []
    model.transformer_blocks[0].attn1.register_forward_pre_hook(
        lambda _, __, kwargs: bias.append(kwargs["attention_mask"]), with_kwargs=True
    )
    weak, none = (model(**inputs, video_self_attention_mask=mask) for mask in (strengths, (strengths > 0.3).float()))
    torch.testing.assert_close(bias[0].exp(), strengths[:, None])
    assert max_difference(weak[:1], none[:1]) > 1e-4
    # The common factor of a row cancels.
    even = model(**inputs, video_self_attention_mask=torch.full_like(strengths, 0.5))
    assert max_difference(even, model(**inputs)) <= EQUAL_MODELS


@torch.no_grad()
def test_keyframe_marks_count_only_where_the_model_knows_them():
    mark = (torch.arange(VIDEO_TOKENS) < 4).float()[None, :, None]
    for known in (False, True):
        model = tiny_transformer("2.3", use_keyframes_abs_pos_embedding=known)
        inputs = tiny_inputs(model)
        changed = max_difference(model(**inputs, video_keyframes_mask=mark), model(**inputs)) > 1e-3
        assert changed == known


# Shared work


@torch.no_grad()
def test_several_predictions_share_the_blocks_before_they_part():
    model = tiny_transformer("2.3")
    inputs = tiny_inputs(model, 2)
    masks = [None, keep_masks(video_self=[1]), keep_masks(2, video_self=[2]), keep_masks(2, video_self=[2])]
    expected = [model(**inputs, perturbation_keep_masks=mask) for mask in masks]
    calls = [0] * LAYERS
    for index, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
    outputs = model(**inputs, perturbation_keep_masks=masks)
    assert calls == [1, 2, 3]
    assert [max_difference(output, other) for output, other in zip(outputs, expected)] == [0] * 4
    (named,) = model(**{**inputs, "return_dict": True}, perturbation_keep_masks=[None])
    assert torch.equal(named.sample, expected[0][0])


@torch.no_grad()
def test_several_predictions_are_refused_with_a_cache_of_attention():
    model = tiny_transformer()
    model.enable_cache(PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(ValueError, match=r"one prediction per call.* disable_cache\(\)"):
        model(**tiny_inputs(model), perturbation_keep_masks=[None, keep_masks(a2v=[0])])


@pytest.mark.parametrize(
    "layout, overrides, projections",
    [
        ("2.0", {}, 1),
        ("2.3", {"use_prompt_adaln_single": False}, 1),
        # The text modulation of 2.3 depends on the noise level, so text is projected in every call.
        ("2.3", {}, 2),
    ],
)
@torch.no_grad()
def test_text_is_projected_once_per_prompt(layout, overrides, projections):
    model = tiny_transformer(layout, **overrides)
    steps = [tiny_inputs(model, seed=seed) for seed in (1, 2)]
    for name in ("encoder_hidden_states", "audio_encoder_hidden_states"):
        steps[1][name] = steps[0][name]
    steps[1]["timestep"] = steps[1]["sigma"] = torch.tensor([300.0])
    expected = [model(**step) for step in steps]
    calls = []
    for name in ("attn2.to_k", "attn2.to_v", "audio_attn2.to_k"):
        layer = model.get_submodule(f"transformer_blocks.1.{name}")
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    cache = TextCache()
    for step, output in zip(steps, expected):
        assert max_difference(model(**step, text_cache=cache), output) == 0
    assert len(calls) == 3 * projections


def test_a_text_cache_serves_one_prompt_and_no_training():
    model = tiny_transformer()
    inputs, cache = tiny_inputs(model), TextCache()
    model(**inputs, text_cache=cache)[0].sum().backward()
    assert cache.context("video") is None
    with torch.no_grad():
        model(**{**inputs, "audio_hidden_states": None}, text_cache=cache)
        assert cache.context("video") is not None and cache.context("audio") is None
        model(**inputs, text_cache=cache)
        # Offloading hooks copy what they are given.
        expected = model(**inputs)
        copied = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"].clone()}
        assert max_difference(model(**copied, text_cache=cache), expected) == 0
        other = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
        with pytest.raises(ValueError, match="text_cache holds another prompt"):
            model(**other, text_cache=cache)


# Training


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_checkpointing_gives_equal_gradients(layout):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_transformer(layout).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        inputs = tiny_inputs(model)
        inputs["timestep"] = per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))
        video, audio = model(**inputs)
        (video.square().mean() + audio.square().mean()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_adapters_are_added_scaled_and_switched_off():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    plain = model(**inputs)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    full, none, half = (model(**inputs, attention_kwargs={"scale": scale}) for scale in (1.0, 0.0, 0.5))
    assert max_difference(full, plain) > 1e-3 and max_difference(half, full) > 1e-4
    assert max_difference(none, plain) <= EQUAL_MODELS
    assert max_difference(model(**inputs), full) == 0
    model.disable_adapters()
    assert max_difference(model(**inputs), plain) == 0


# Machinery of the host library


@torch.no_grad()
def test_first_block_cache_reuses_both_streams():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    calls = []
    model.transformer_blocks[1].attn1.register_forward_hook(lambda *_: calls.append(1))
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with model.cache_context("test"):
        first, second = model(**inputs), model(**inputs)
    assert len(calls) == 1
    assert max_difference(first, expected) == 0
    assert max_difference(second, expected) <= EQUAL_MODELS
    model.disable_cache()
    assert max_difference(model(**inputs), expected) == 0


@torch.no_grad()
def test_pyramid_attention_broadcast_reuses_attention():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    calls = []
    model.transformer_blocks[1].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    model.enable_cache(config)
    with model.cache_context("test"):
        first, second = model(**inputs), model(**inputs)
    assert len(calls) == 1
    assert max_difference(first, second) <= EQUAL_MODELS


@torch.no_grad()
def test_fused_projections_and_attention_backends_change_no_numbers():
    model = tiny_transformer()
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    model.fuse_qkv_projections()
    assert max_difference(model(**inputs), expected) <= EQUAL_MODELS
    model.unfuse_qkv_projections()
    try:
        model.set_attention_backend("_native_math")
        backends = {processor._attention_backend.value for processor in model.attn_processors.values()}
        assert backends == {"_native_math"}
        assert max_difference(model(**inputs), expected) <= EQUAL_MODELS
    finally:
        model.set_attention_backend("native")
        model.set_attention_backend("auto")
    assert {processor._attention_backend for processor in model.attn_processors.values()} == {None}
    with pytest.raises(ValueError, match="must be one of"):
        model.set_attention_backend("fastest")


@torch.no_grad()
def test_layerwise_casting_runs():
    model = tiny_transformer().to(torch.bfloat16)
    inputs = {
        name: value.bfloat16() if name.endswith("hidden_states") else value
        for name, value in tiny_inputs(model).items()
    }
    expected = model(**inputs)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert model.transformer_blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert max_difference(model(**inputs), expected) < 1.0


@torch.no_grad()
def test_blocks_compile_whole():
    model = tiny_transformer("2.3", num_layers=1)
    inputs = tiny_inputs(model)
    inputs["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0, 0]])
    inputs["timestep"] = per_token(inputs["timestep"], VIDEO_TOKENS, (0, 1, 1))
    inputs["spatio_temporal_guidance_blocks"] = [0]
    expected = model(**inputs)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert max_difference(model(**inputs), expected) <= EQUAL_MODELS


def test_models_are_copied_with_empty_memories():
    model = tiny_transformer()
    with torch.no_grad():
        inputs = tiny_inputs(model)
        model(**inputs)
    assert len(model.rope._memo) == 1
    assert len(copy.deepcopy(model).rope._memo) == 0


# Full size and refused input

REAL_23 = {
    "rope_type": "split",
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}


@pytest.mark.parametrize(
    "config, tensors, billions",
    [
        ({"rope_type": "split"}, 3510, 18.876),
        (REAL_23, 4186, 18.989),
        ({**REAL_23, "ff_bias": False, "use_keyframes_abs_pos_embedding": True}, 4091, 18.988),
    ],
)
def test_full_size_has_the_published_tensors(config, tensors, billions):
    with torch.device("meta"):
        model = LTX2AVTransformer3DModel(**config)
    state = model.state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) / 1e9 == pytest.approx(billions, abs=1e-3)


@torch.no_grad()
def test_meta_tensors_run():
    model = tiny_transformer().to("meta")
    inputs = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in tiny_inputs(tiny_transformer()).items()
    }
    inputs["timestep"] = inputs["timestep"][:, None].expand(1, VIDEO_TOKENS)
    inputs["encoder_attention_mask"] = torch.ones(1, 6, device="meta")
    assert model(**inputs)[0].shape == (1, VIDEO_TOKENS, 8)


@pytest.mark.parametrize(
    "config, error, message",
    [
        ({"rope_type": "spiral"}, ValueError, "got 'spiral'"),
        ({"qk_norm": "layer_norm"}, NotImplementedError, "got 'layer_norm'"),
        ({"activation_fn": "geglu"}, ValueError, "got 'geglu'"),
        ({"cross_attention_dim": 40}, ValueError, "2 x 16 = 32 .* got 40"),
        ({"audio_cross_attention_dim": 24}, ValueError, "2 x 8 = 16, got 24"),
        (
            {"rope_type": "split", "audio_num_attention_heads": 4, "audio_attention_head_dim": 4},
            ValueError,
            "num_attention_heads=2 and audio_num_attention_heads=4",
        ),
    ],
)
def test_contradictory_configurations_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        LTX2AVTransformer3DModel(**{**TINY, **config})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_states": None, "audio_hidden_states": None}, "Neither hidden_states nor audio_hidden_states"),
        ({"timestep": None, "audio_timestep": torch.ones(1)}, "video tokens need a timestep"),
        ({"encoder_hidden_states": None}, "video tokens need text features; pass encoder_hidden_states"),
        ({"audio_encoder_hidden_states": None}, "audio tokens need text features; pass audio_encoder_hidden_states"),
        ({"timestep": torch.ones(1, 7)}, r"per token \(1 x 12\), got the shape \(1, 7\)"),
        ({"timestep": torch.ones(1, 12), "audio_timestep": None}, "audio takes the timestep of the video"),
        ({"sigma": None, "audio_sigma": None}, "sigma is needed for the prompt modulation"),
        ({"video_coords": None}, r"num_frames, height and width .* got \(None, None, None\)"),
        ({"audio_coords": None}, "audio_num_frames is needed"),
        ({"video_coords": torch.zeros(1, 3, 5, 2)}, "video stream has 12 tokens, but coordinates for 5"),
        ({"encoder_attention_mask": torch.ones(1, 5)}, r"\[B, 6\] .* got the shape \(1, 5\)"),
        ({"video_self_attention_mask": torch.ones(1, 12, 5)}, r"\[B, 12, 12\], got the shape \(1, 12, 5\)"),
        ({"spatio_temporal_guidance_blocks": [3]}, r"between 0 and 2, got \[3\]"),
        (
            {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.ones(3)},
            r"1 in all, got the shape \(3,\)",
        ),
        ({"perturbation_keep_masks": torch.ones(4, 2, 1)}, r"\(4, 3, 1\), got \(4, 2, 1\)"),
        ({"perturbation_mode": "blur"}, "perturbation_mode must be one of .* got 'blur'"),
        ({"cross_timestep_mode": "both"}, "cross_timestep_mode must be one of .* got 'both'"),
    ],
)
def test_wrong_input_is_refused(changes, message):
    model = tiny_transformer("2.3")
    with pytest.raises(ValueError, match=message):
        model(**{**tiny_inputs(model), **changes})

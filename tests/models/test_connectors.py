"""Text connectors: golden vectors, parity with diffusers, compact input, files and refused input."""

import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors as DiffusersConnectors
from peft import LoraConfig

from ltx2_diffusers.models.connectors import LTX2TextConnectors, normalize_over_channels, normalize_over_prompt
from tests.golden_data import GOLDEN_DIR, assert_within, golden_cases, load_json, load_metadata, load_tensors

CASES = [path.relative_to(GOLDEN_DIR) for path in golden_cases("connectors", "*/cases/*.safetensors")]
CASES_WITH_STEPS = [case for case in CASES if "video_connector_block0_input" in load_tensors(case)]
TINY = {
    "caption_channels": 16,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 2,
    "video_connector_attention_head_dim": 8,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 4,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 8,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 4,
    "connector_rope_base_seq_len": 32,
}
TINY_23 = {
    **TINY,
    "per_modality_projections": True,
    "video_hidden_dim": 32,
    "video_connector_attention_head_dim": 16,
    "audio_hidden_dim": 16,
    "proj_bias": True,
    "video_gated_attn": True,
    "audio_gated_attn": True,
    "rope_type": "split",
}
NO_REGISTERS = {
    **TINY,
    "video_connector_num_learnable_registers": None,
    "audio_connector_num_learnable_registers": None,
}
CONFIGS = {
    "2.0": {**TINY, "rope_type": "split"},
    "interleaved": {**TINY, "rope_double_precision": False},
    "2.3": TINY_23,
    "no_registers": NO_REGISTERS,
    "registers_for_video_only": {**TINY, "audio_connector_num_learnable_registers": None},
}
MASKS = {
    "left": torch.tensor([[0] * 5 + [1] * 3, [0] * 1 + [1] * 7]),
    "right": torch.tensor([[1] * 3 + [0] * 5, [1] * 7 + [0] * 1]),
    "none": torch.ones(2, 8, dtype=torch.int64),
}


def golden_model(name: str) -> LTX2TextConnectors:
    model = LTX2TextConnectors.from_config(load_json(f"connectors/{name}/config.json"))
    model.load_state_dict(load_tensors(f"connectors/{name}/diffusers.safetensors"))
    return model.eval()


def tiny_pair(name: str) -> tuple[LTX2TextConnectors, DiffusersConnectors]:
    torch.manual_seed(0)
    theirs = DiffusersConnectors(**CONFIGS[name]).eval()
    ours = LTX2TextConnectors(**CONFIGS[name]).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def hidden_states(config: dict, rows: int = 2, positions: int = 8) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, positions, config["caption_channels"], config["text_proj_in_factor"])


def assert_all_within(results, expected, row="equal models"):
    for result, reference in zip(results, expected, strict=True):
        assert_within(result, reference, row)


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parts[1]}-{path.stem}")
@torch.no_grad()
def test_golden_vectors(case):
    model, data = golden_model(case.parts[1]), load_tensors(case)
    states, mask = data["text_encoder_hidden_states"], data["attention_mask"]
    side = load_metadata(case)["padding_side"]
    expected = [data[f"expected_{name}"] for name in ("video_embeds", "audio_embeds", "attention_mask")]
    assert_all_within(model(states, mask, padding_side=side), expected, "connectors")
    assert_all_within(model(states.flatten(2), mask, padding_side=side), expected, "connectors")


@pytest.mark.parametrize("case", CASES_WITH_STEPS, ids=lambda path: f"{path.parts[1]}-{path.stem}")
@torch.no_grad()
def test_golden_intermediate_values(case):
    model, data = golden_model(case.parts[1]), load_tensors(case)
    seen = {}
    for name, module in model.named_children():
        if name.endswith("text_proj_in"):
            module.register_forward_hook(lambda _, given, output, name=name: seen.update({name: (given[0], output)}))
    block = model.video_connector.transformer_blocks[0]
    block.register_forward_pre_hook(lambda _, given: seen.update(block=given[0]))
    features = model.extract_features(data["text_encoder_hidden_states"], data["attention_mask"])
    model.video_connector(features[0], data["attention_mask"])
    assert len(seen) >= 2
    assert_within(seen.pop("block"), data["video_connector_block0_input"], "connectors")
    for name, (given, output) in seen.items():
        assert_within(given, data[f"{name}.input"], "connectors")
        assert_within(output, data[f"{name}.output"], "connectors")


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("side", sorted(MASKS))
@torch.no_grad()
def test_results_equal_those_of_diffusers(name, side):
    ours, theirs = tiny_pair(name)
    states, mask = hidden_states(CONFIGS[name]), MASKS[side]
    options = {"padding_side": "right" if side == "right" else "left", "scale_factor": 6}
    assert_all_within(ours(states, mask, **options), theirs(states, mask, **options))


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@torch.no_grad()
def test_tokens_alone_give_the_result_of_the_padded_input(name):
    ours, theirs = tiny_pair(name)
    states, mask = hidden_states(CONFIGS[name]), MASKS["left"]
    padded = [torch.nn.functional.pad(x, pad) for x, pad in ((states, (0, 0, 0, 0, 8, 0)), (mask, (8, 0)))]
    expected = theirs(*padded)
    assert_all_within(ours(states[:, 1:], mask[:, 1:], target_length=16), expected)
    # Garbage in the padding, and padding anywhere, change nothing.
    scattered = torch.cat([torch.full_like(states[:, :3], 1e4), states.flip(1)], dim=1)
    order = torch.tensor([10, 9, 8, 7, 6, 5, 4, 3, 0, 1, 2])
    mask_there = torch.cat([torch.zeros(2, 3, dtype=torch.int64), mask.flip(1)], dim=1)
    assert_all_within(ours(scattered[:, order], mask_there[:, order], target_length=16), expected)


@torch.no_grad()
def test_without_registers_compact_input_is_padded_on_the_named_side():
    ours, theirs = tiny_pair("no_registers")
    states = hidden_states(CONFIGS["no_registers"])
    for side in ("left", "right"):
        sides = (4, 0) if side == "left" else (0, 4)
        padded = torch.nn.functional.pad(states, (0, 0, 0, 0, *sides))
        mask = torch.nn.functional.pad(MASKS["none"], sides)
        result = ours(states, MASKS["none"], padding_side=side, target_length=12)
        assert_all_within(result, theirs(padded, mask, padding_side=side))


@torch.no_grad()
def test_only_columns_with_tokens_are_projected():
    ours, _ = tiny_pair("2.0")
    seen = []
    ours.text_proj_in.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    ours(hidden_states(TINY), MASKS["left"])
    assert seen == [7]


@torch.no_grad()
def test_registers_keep_attention_free_of_masks():
    ours, _ = tiny_pair("2.3")
    masks = []
    for connector in (ours.video_connector, ours.audio_connector):
        connector.transformer_blocks[0].register_forward_pre_hook(lambda _, given: masks.append(given[1]))
    ours(hidden_states(TINY_23), MASKS["left"])
    assert masks == [None, None]


@torch.no_grad()
def test_batch_equals_singles():
    ours, _ = tiny_pair("2.0")
    states, mask = hidden_states(TINY), MASKS["left"]
    singles = [ours(states[i : i + 1], mask[i : i + 1]) for i in range(2)]
    assert_all_within(ours(states, mask), [torch.cat(pair) for pair in zip(*singles)])


@torch.no_grad()
def test_a_prompt_without_tokens_becomes_registers():
    ours, _ = tiny_pair("2.3")
    states = hidden_states(TINY_23, rows=1)
    video, audio, _ = ours(states, torch.zeros(1, 8, dtype=torch.int64))
    assert video.isfinite().all() and audio.isfinite().all()


def test_normalisation_over_the_prompt_by_hand():
    states = torch.tensor([[9.0, -9.0], [1.0, 3.0], [5.0, 7.0]]).reshape(1, 3, 2, 1)
    mask = torch.tensor([[False, True, True]])
    expected = torch.tensor([[0.0, 0.0], [-4.0, -4.0 / 3], [4.0 / 3, 4.0]])
    torch.testing.assert_close(normalize_over_prompt(states, mask)[0], expected)


def test_normalisation_over_channels_by_hand():
    states = torch.tensor([[3.0, 4.0], [8.0, 6.0]]).reshape(1, 2, 2, 1)
    mask = torch.tensor([[True, False]])
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / 12.5**0.5
    torch.testing.assert_close(normalize_over_channels(states, mask)[0], expected)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@torch.no_grad()
def test_folders_of_diffusers_load_both_ways(tmp_path, name):
    _, theirs = tiny_pair(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = LTX2TextConnectors.from_pretrained(tmp_path / "theirs")
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    ours.save_pretrained(tmp_path / "ours")
    again = DiffusersConnectors.from_pretrained(tmp_path / "ours")
    states, mask = hidden_states(CONFIGS[name]), MASKS["left"]
    assert_all_within(ours(states, mask), theirs(states, mask))
    assert_all_within(again(states, mask), theirs(states, mask), "exact")


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        ours, theirs = LTX2TextConnectors(), DiffusersConnectors()
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }


def test_gradients_reach_everything_and_checkpointing_keeps_them():
    ours, _ = tiny_pair("2.3")
    states, mask = hidden_states(TINY_23), MASKS["left"]
    gradients = []
    for checkpointing in (False, True):
        ours.zero_grad()
        if checkpointing:
            ours.enable_gradient_checkpointing()
        video, audio, _ = ours(states, mask)
        (video.square().sum() + audio.sum()).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in ours.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=0)


@torch.no_grad()
def test_adapters_attach_to_the_attention_layers():
    ours, _ = tiny_pair("2.0")
    states, mask = hidden_states(TINY), MASKS["left"]
    before = ours(states, mask)
    ours.add_adapter(LoraConfig(r=2, target_modules=["to_q", "text_proj_in"], init_lora_weights=False))
    assert (ours(states, mask)[0] - before[0]).abs().max() > 1e-3
    ours.disable_adapters()
    assert_all_within(ours(states, mask), before)


@torch.no_grad()
def test_half_precision_stays_half_precision():
    ours, _ = tiny_pair("2.0")
    states, mask = hidden_states(TINY), MASKS["left"]
    expected = ours(states, mask)
    video, audio, _ = ours.to(torch.bfloat16)(states.bfloat16(), mask)
    assert video.dtype == audio.dtype == torch.bfloat16
    for embeds, exact in zip((video, audio), expected):
        torch.testing.assert_close(embeds.float(), exact, atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_encoder_hidden_states": torch.zeros(2, 8, 47)}, r"\[B, T, 48\], got \(2, 8, 47\)"),
        ({"text_encoder_hidden_states": torch.zeros(2, 8, 3, 16)}, r"\[B, T, 16, 3\]"),
        ({"attention_mask": torch.ones(2, 7)}, r"\(2, 8\) like the hidden states, got \(2, 7\)"),
        ({"padding_side": "top"}, "'left' or 'right', got 'top'"),
        ({"target_length": 10}, "multiple of the 4 learnable registers, got 10; use 8"),
        ({"target_length": 4}, "at least 7, got 4"),
    ],
)
def test_unusable_input_is_refused(change, message):
    ours, _ = tiny_pair("2.0")
    arguments = {"text_encoder_hidden_states": hidden_states(TINY), "attention_mask": MASKS["left"], **change}
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


def test_shorter_targets_are_refused_without_registers():
    ours, _ = tiny_pair("no_registers")
    with pytest.raises(ValueError, match="at least 8, got 4"):
        ours(hidden_states(TINY), MASKS["left"], target_length=4)
    with pytest.raises(ValueError, match="keeps its 8 positions"):
        ours.video_connector(torch.zeros(2, 8, 16), MASKS["left"], target_length=12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**TINY, "caption_channels": 24}, "caption_channels=24"),
        ({**TINY_23, "audio_hidden_dim": 24}, "audio_hidden_dim=24"),
        ({**TINY, "rope_type": "spiral"}, "rope_type"),
    ],
)
def test_contradictory_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        LTX2TextConnectors(**config)

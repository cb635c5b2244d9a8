"""Blocks that are recorded and replayed: what a graph is replayed for, and that nothing of one call is left in another.

On a CPU what was recorded is computed anew from the same memory, so that all but the launching of kernels is as on a card.
"""

import copy

import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from ltx2_diffusers import TextCache
from ltx2_diffusers.memory.streaming import stream_blocks
from ltx2_diffusers.models.block_graphs import Recording, graphs_of, record_blocks, stop_recording
from ltx2_diffusers.models.negative_text import NagWeights, NegativeText
from ltx2_diffusers.models.transformer_block import LTX2AVTransformerBlock
from tests.adapters.tiny import build, largest, lora, outputs
from tests.golden_data import EQUAL_PIPELINES
from tests.models.test_transformer import keep_masks
from tests.models.transformer_tools import max_difference, per_token, tiny_inputs, tiny_transformer
from tests.pipelines.tiny import ALL_GUIDANCE, EXPLICIT, PROMPT, load, ours, seeded
from tests.pipelines.tiny import max_difference as difference

MASKS = [None, keep_masks(video_self=[1], audio_self=[1]), keep_masks(a2v=range(3), v2a=range(3))]


class Computed:
    """Records by keeping the function, and replays by computing it into what it returned first."""

    device_type = "cpu"

    @torch.inference_mode(False)
    @torch.no_grad()
    def record(self, run, _device):
        made, again = run(), run()

        def replay():
            for kept, new in zip(made, run()):
                for old, tokens in zip(kept, new):
                    old.copy_(tokens)

        # Nothing is computed by recording; tokens that blocks hand on are those that they were given.
        for tokens in (one for pairs in zip(made, again) for one, other in zip(*pairs) if one is not other):
            tokens.fill_(torch.nan)
        return Recording(made, replay)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pair(layout="2.0", most=8, **overrides):
    """A transformer, and one whose blocks are recorded."""
    plain, recorded = (tiny_transformer(layout, **overrides) for _ in range(2))
    record_blocks(recorded, most, Computed())
    return plain, recorded


def counts(model):
    graphs = graphs_of(model)
    return graphs.recorded, graphs.replayed, graphs.kept


def steps(plain, recorded, calls, cache=True):
    """Whether both give the same at every step, and how graphs were counted after each."""
    caches, found = (TextCache(), TextCache()) if cache else (None, None), []
    for call in calls:
        expected, result = (m(**call, text_cache=text) for m, text in zip((plain, recorded), caches))
        several = isinstance(expected, list)
        for one, two in zip(result, expected) if several else [(result, expected)]:
            assert all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))
        found.append(counts(recorded)[:2])
    return found


def test_the_step_that_fills_the_text_is_not_recorded_and_later_ones_are_replayed():
    plain, recorded = pair()
    calls = [tiny_inputs(plain, seed=seed) for seed in (1, 2, 3, 4)]
    text = {name: calls[0][name] for name in ("encoder_hidden_states", "audio_encoder_hidden_states")}
    assert steps(plain, recorded, [call | text for call in calls]) == [(0, 0), (1, 1), (1, 2), (1, 3)]
    # Another prompt of the same length has the same graph.
    assert steps(plain, recorded, [calls[1]] * 3) == [(1, 3), (1, 4), (1, 5)]


def test_texts_that_depend_on_the_noise_level_are_read_anew():
    plain, recorded = pair("2.3")
    calls = [tiny_inputs(plain, seed=seed) for seed in (1, 2, 3)]
    assert steps(plain, recorded, calls, cache=False) == [(1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_every_set_of_passes_has_a_graph_and_shares_as_much(layout, monkeypatch):
    plain, recorded = pair(layout)
    inputs = tiny_inputs(plain)
    kinds = [{"perturbation_keep_masks": MASKS}, {}, {"audio_enabled": False}, {"perturbation_keep_masks": MASKS[:2]}]
    runs, forward = [], LTX2AVTransformerBlock.forward
    monkeypatch.setattr(LTX2AVTransformerBlock, "forward", lambda *given: runs.append(1) or forward(*given))
    text = TextCache()
    for _ in range(4):
        recorded(**inputs, perturbation_keep_masks=MASKS, text_cache=text)
    # Of three passes of three blocks one block is shared; recording runs them twice.
    assert len(runs) == (4 + 2) * 8
    monkeypatch.undo()
    _, recorded = pair(layout)
    filled = [inputs] if layout == "2.0" else []
    found = steps(plain, recorded, [*filled, *(inputs | kind for kind in kinds * 2)])
    assert found[-1] == (len(kinds), 2 * len(kinds))


def test_sizes_noise_levels_and_masks():
    plain, recorded = pair("2.3")
    inputs = tiny_inputs(plain)
    held = {"timestep": per_token(inputs["timestep"], inputs["hidden_states"].shape[1], (0, 1, 1))}
    longer = {"timestep": per_token(inputs["timestep"], inputs["hidden_states"].shape[1], (0, 0, 1))}
    masked = {"encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    calls = [{}, held, longer, masked, {"audio_hidden_states": None}]
    found = steps(plain, recorded, [inputs | call for call in calls], cache=False)
    assert [made for made, _ in found] == [1, 2, 3, 4, 5]
    assert steps(plain, recorded, [inputs | held, tiny_inputs(plain, 2)], cache=False) == [(5, 6), (6, 7)]
    # Another mask of the same size is read from the same memory.
    other = {"encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0, 0]])}
    assert steps(plain, recorded, [inputs | other], cache=False) == [(6, 8)]


def test_what_changes_in_place_is_copied_again():
    plain, recorded = pair("2.3")
    inputs = tiny_inputs(plain)
    steps(plain, recorded, [inputs], cache=False)
    inputs["encoder_hidden_states"].mul_(2)
    inputs["video_coords"].mul_(0.5)
    assert steps(plain, recorded, [inputs], cache=False) == [(1, 2)]


def test_tensors_made_in_inference_mode_are_copied_always():
    plain, recorded = pair("2.3")
    with torch.inference_mode():
        for seed in (1, 2):
            call = tiny_inputs(plain, seed=seed)
            assert max_difference(recorded(**call), plain(**call)) == 0.0
    call = tiny_inputs(plain, seed=3)
    assert max_difference(recorded(**call), plain(**call)) == 0.0
    assert counts(recorded) == (1, 3, 1)


def test_tokens_shared_among_processes_are_not_recorded():
    model = tiny_transformer("2.3")
    model.transformer_blocks[0].attn1.processor._parallel_config = object()
    with pytest.raises(ValueError, match="its tokens are shared among processes"):
        record_blocks(model, recorder=Computed())


def test_results_are_not_written_over():
    _, recorded = pair("2.3")
    first = recorded(**tiny_inputs(recorded, seed=1))
    before = [stream.clone() for stream in first]
    recorded(**tiny_inputs(recorded, seed=2))
    assert max_difference(first, before) == 0.0


def test_the_graph_that_was_not_used_for_longest_makes_room():
    plain, recorded = pair("2.3", most=2)
    inputs = [tiny_inputs(plain, size) for size in (1, 2, 3)]
    order = [0, 1, 0, 2, 0, 1]
    found = steps(plain, recorded, [inputs[index] for index in order], cache=False)
    assert [made for made, _ in found] == [1, 2, 2, 3, 3, 4]
    assert graphs_of(recorded).kept == 2
    # Memory that only given-up graphs read is given back.
    held = {id(buffer) for graph in graphs_of(recorded)._graphs.values() for buffer in graph.buffers}
    assert {id(buffer) for buffer in graphs_of(recorded)._buffers.values()} == held


def test_graphs_of_two_sizes_read_the_same_text_from_the_same_memory():
    plain, recorded = pair()
    first = tiny_inputs(plain)
    second = first | {name: first[name][:, :8] for name in ("hidden_states",)}
    second["video_coords"] = first["video_coords"][:, :, :8]
    steps(plain, recorded, [first, first, second])
    graphs = list(graphs_of(recorded)._graphs.values())
    texts = 2 * 2 * len(plain.transformer_blocks)
    pairs = list(zip(*(graph.buffers for graph in graphs)))
    assert len(graphs) == 2 and all(one is two for one, two in pairs[:texts])


def test_a_negative_prompt_in_the_attention():
    plain, recorded = pair()
    inputs = tiny_inputs(plain)
    other = tiny_inputs(plain, seed=9)
    texts = other["encoder_hidden_states"], other["audio_encoder_hidden_states"]
    for scale, made in ((3.0, 1), (5.0, 2)):
        memories = [(TextCache(), TextCache()) for _ in range(2)]
        for _ in range(3):
            results = [
                model(**inputs, text_cache=own, negative_text=NegativeText(*texts, NagWeights(scale), negative))
                for model, (own, negative) in zip((plain, recorded), memories)
            ]
            assert max_difference(*results) == 0.0
        # The strength is a number in the graph.
        assert graphs_of(recorded).recorded == made


def test_a_cache_between_steps_keeps_what_was_replayed():
    plain, recorded = pair("2.3")
    memories = []
    for model in (plain, recorded):
        model.enable_cache(
            MagCacheConfig(mag_ratios=[1.0], num_inference_steps=1, retention_ratio=0, max_skip_steps=1)
        )
        memories.append(model.new_step_cache(6))
    for seed in range(6):
        call = tiny_inputs(plain, seed=seed)
        results = [
            m(**call, perturbation_keep_masks=MASKS, step_cache=one) for m, one in zip((plain, recorded), memories)
        ]
        assert [max_difference(*both) for both in zip(*results)] == [0.0] * 3
        assert memories[1].skipped == [bool(seed % 2)] * 3
    assert counts(recorded)[:2] == (1, 3)


def test_weights_that_move_or_change_are_noticed(monkeypatch):
    # diffusers sets it for all models, and does not set it back.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    plain, recorded = pair("2.3")
    call = tiny_inputs(plain)
    changes = [
        lambda m: setattr(
            m.transformer_blocks[1].ff.net[2].weight, "data", m.transformer_blocks[1].ff.net[2].weight * 2
        ),
        lambda m: m.double().float(),
        lambda m: m.fuse_qkv_projections(),
        lambda m: m.set_attention_backend("_native_math"),
    ]
    for index, change in enumerate([lambda _: None, *changes]):
        for model in (plain, recorded):
            change(model)
        steps(plain, recorded, [call, call], cache=False)
        assert counts(recorded) == (index + 1, 2 * (index + 1), 1), index
    # Values that change where they are need no other graph.
    for model in (plain, recorded):
        model.transformer_blocks[0].scale_shift_table.mul_(2)
    steps(plain, recorded, [call], cache=False)
    assert counts(recorded)[0] == len(changes) + 1


def test_adapters_come_go_and_change():
    pipe, plain = build(), build()
    record_blocks(pipe.transformer, 8, Computed())
    layers = [f"transformer_blocks.{index}.attn1.to_q" for index in range(len(pipe.transformer.transformer_blocks))]
    first = {k: t for path in layers for k, t in lora(path, 0).items()}
    changes = [
        lambda _: None,
        lambda p: p.load_lora_weights(dict(first), adapter_name="a"),
        lambda p: p.set_adapters("a", 0.5),
        lambda p: p.disable_lora(),
        lambda p: p.enable_lora(),
        lambda p: p.fuse_lora(),
        lambda p: p.unload_lora_weights(),
    ]
    for change in changes:
        for one in (pipe, plain):
            change(one)
        made = graphs_of(pipe.transformer).recorded
        assert largest(outputs(pipe), outputs(plain)) == 0.0
        assert graphs_of(pipe.transformer).recorded > made


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("layout", "is_compiled", "replays"), [("2.0", False, 2 * 3), ("2.0", True, 2 * 3), ("2.3", False, 2 * 4)]
)
def test_whole_calls(layout, replays, is_compiled):
    """Two graphs, of the passes that read the prompt and of the one that does not; another size and layout take others."""
    call = {**EXPLICIT, **ALL_GUIDANCE, "num_inference_steps": 4, "prompt": PROMPT}
    pipe, plain = load(layout), ours(layout)
    record_blocks(pipe.transformer, 8, Computed())
    # Not traced, which takes long.
    with torch.compiler.set_stance("force_eager"):
        if is_compiled:
            pipe.compile("transformer", backend="eager")
        for seed, frames, made in ((1, 9, 2), (2, 9, 2), (1, 17, 4)):
            given = {**call, "num_frames": frames}
            expected, found = (one(**given, generator=seeded(seed)) for one in (plain, pipe))
            assert difference(found, expected) == 0.0
            assert found.info["passes"] == expected.info["passes"]
            assert graphs_of(pipe.transformer).recorded == made
    assert graphs_of(pipe.transformer).replayed == 3 * replays
    pipe.disable_cuda_graphs()
    assert graphs_of(pipe.transformer) is None


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (
            lambda model: model.transformer_blocks[0].attn1.register_forward_hook(lambda *_: None),
            "LTX2Attention has hooks",
        ),
        (
            lambda model: stream_blocks(model, "ram", "cpu", 2),
            "LTX2AVTransformerBlock has hooks, as of block streaming",
        ),
        (
            lambda model: model.enable_group_offload(
                torch.device("cpu"), torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
            ),
            "offloading, a cache of layers or casting has hooks on",
        ),
    ],
)
def test_what_moves_weights_or_watches_them(put, message, caplog):
    """It is refused before; put around recorded blocks, these run as they are written, and it is said once why."""
    plain, recorded = pair("2.3")
    call = tiny_inputs(plain)
    hooked = tiny_transformer("2.3")
    put(hooked)
    with pytest.raises(ValueError, match=rf"cannot be recorded as CUDA graphs: {message}"):
        record_blocks(hooked, recorder=Computed())
    assert graphs_of(hooked) is None
    put(recorded)
    with caplog.at_level("WARNING", "ltx2_diffusers"):
        assert steps(plain, recorded, [call, call], cache=False) == [(0, 0), (0, 0)]
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("blocks run as they are written, without CUDA graphs: ") and message in said


def test_gradients_pass_recorded_blocks_by():
    plain, recorded = pair("2.3")
    call = tiny_inputs(plain)
    with torch.enable_grad():
        assert max_difference(recorded(**call), plain(**call)) == 0.0
        assert recorded(**call)[0].requires_grad
    assert counts(recorded)[0] == 0
    stop_recording(recorded)
    assert graphs_of(recorded) is None and max_difference(recorded(**call), plain(**call)) == 0.0


def test_copies_record_their_own():
    plain, recorded = pair("2.3")
    call = tiny_inputs(plain)
    steps(plain, recorded, [call], cache=False)
    other = copy.deepcopy(recorded)
    for parameter in recorded.transformer_blocks.parameters():
        parameter.zero_()
    assert steps(plain, other, [call], cache=False) == [(1, 1)]


def test_a_processor_has_no_cuda_graphs_and_one_is_the_least():
    model = tiny_transformer()
    with pytest.raises(ValueError, match="computes on cpu; have all its weights on a card"):
        record_blocks(model)
    with pytest.raises(ValueError, match="`most_graphs` has to be a whole number of at least 1 but is 0; use 1"):
        record_blocks(model, 0, Computed())
    assert graphs_of(model) is None


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_cuda_graphs_give_the_same_bits_and_are_replayed(layout):
    plain = tiny_transformer(layout).to("cuda", torch.bfloat16)
    recorded = tiny_transformer(layout).to("cuda", torch.bfloat16)
    record_blocks(recorded)
    calls = []
    for seed in (1, 2, 3):
        call = tiny_inputs(plain.cpu(), seed=seed)
        calls.append(
            {
                name: value.to("cuda", torch.bfloat16 if value.ndim == 3 else value.dtype)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in call.items()
            }
        )
    plain.to("cuda")
    text = {name: calls[0][name] for name in ("encoder_hidden_states", "audio_encoder_hidden_states")}
    kinds = [{"perturbation_keep_masks": MASKS}, {}]
    steps(plain, recorded, [call | text | kind for call in calls for kind in kinds])
    assert counts(recorded) == (2, 5, 2) if layout == "2.0" else counts(recorded) == (2, 6, 2)
    # Graphs share memory, so that a replay of one must not spoil what another gives later.
    steps(plain, recorded, [calls[index] | text | kinds[index % 2] for index in (0, 1, 2, 0, 1)])


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
def test_whole_calls_on_a_card(is_compiled):
    """All passes are one batch of few tokens; with the sound beside the video, or with compiled blocks."""
    call = {**EXPLICIT, **ALL_GUIDANCE, "num_inference_steps": 4, "prompt": PROMPT}
    pipe, plain = load("2.0").to("cuda"), load("2.0").to("cuda")
    pipe.enable_cuda_graphs()
    if is_compiled:
        pipe.compile("transformer")
    else:
        pipe.enable_audio_stream()
    for seed in (1, 2):
        expected, found = (one(**call, generator=seeded(seed)) for one in (plain, pipe))
        assert difference(found, expected) <= (EQUAL_PIPELINES if is_compiled else 0.0)
    made = graphs_of(pipe.transformer).recorded
    assert made == 1 and graphs_of(pipe.transformer).replayed == 2 * 3
    with pytest.raises(ValueError, match=r"call disable_cuda_graphs\(\) first"):
        pipe.enable_model_cpu_offload()
    pipe.disable_cuda_graphs()
    assert difference(pipe(**call, generator=seeded(1)), plain(**call, generator=seeded(1))) <= EQUAL_PIPELINES

"""Compiled regions: equal results, how many graphs they take, and what may be around and within them.

The backend "eager" runs what was traced as it is, so that results are equal to the bit; graphs are those of any backend.
"""

import copy
import pickle

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig

from ltx2_diffusers import TextCache
from ltx2_diffusers.memory.streaming import stop_streaming, stream_blocks
from ltx2_diffusers.models.compiled import compile_model, region_of, uncompile_model
from ltx2_diffusers.models.negative_text import NagWeights, NegativeText
from ltx2_diffusers.models.video_vae_tiling_config import TilingConfig
from tests.golden_data import EQUAL_MODELS
from tests.models.transformer_tools import max_difference, per_token, tiny_inputs, tiny_transformer
from tests.pipelines.tiny import ours
from tests.quantization.files import load as float8
from tests.quantization.files import outputs as float8_outputs

CPU = torch.device("cpu")
PASSES = {
    "plain": {},
    "isolated": {"isolate_modalities": True},
    "perturbed": {"spatio_temporal_guidance_blocks": [1]},
    "video": {"audio_hidden_states": None, "audio_encoder_hidden_states": None, "audio_coords": None},
    "audio kept": {"audio_enabled": False},
}


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.fixture
def untraced():
    """Regions without the tracing, which takes long."""
    with torch.compiler.set_stance("force_eager"):
        yield


def resized(inputs, video, audio, text, batch=1):
    """The inputs with other numbers of tokens."""
    generator = torch.Generator().manual_seed(2)
    sizes = {
        "hidden_states": (batch, video, inputs["hidden_states"].shape[-1]),
        "audio_hidden_states": (batch, audio, inputs["audio_hidden_states"].shape[-1]),
        "encoder_hidden_states": (batch, text, inputs["encoder_hidden_states"].shape[-1]),
        "audio_encoder_hidden_states": (batch, text, inputs["audio_encoder_hidden_states"].shape[-1]),
        "video_coords": (batch, 3, video, 2),
        "audio_coords": (batch, 1, audio, 2),
    }
    new = {name: torch.rand(size, generator=generator) for name, size in sizes.items()}
    times = {
        name: inputs[name].flatten()[:1].expand(batch).clone() for name in inputs if name.endswith(("step", "sigma"))
    }
    return {**inputs, **new, **times}


def same(result, expected) -> bool:
    """Whether both streams are equal to the bit; an absent one is `None`."""
    return all(
        actual is wanted or torch.equal(actual, wanted) for actual, wanted in zip(result, expected, strict=True)
    )


def made(model, run):
    """What a call returns, and how many graphs it made."""
    before = region_of(model).graphs
    result = run()
    return result, region_of(model).graphs - before


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_every_pass_is_compiled_with_one_graph_for_all_blocks_like_it(layout):
    model = tiny_transformer(layout, num_layers=4)
    inputs = tiny_inputs(model)
    expected = {name: model(**{**inputs, **change}) for name, change in PASSES.items()}
    compile_model(model, backend="eager")
    counts = {}
    for name, change in PASSES.items():
        result, counts[name] = made(model, lambda change=change: model(**{**inputs, **change}))
        assert same(result, expected[name]), name
    assert counts == dict.fromkeys(PASSES, 1)
    # A plain block of the perturbed pass has the graph of the plain pass, and nothing is traced again.
    for name, change in PASSES.items():
        assert made(model, lambda change=change: model(**{**inputs, **change}))[1] == 0, name


@pytest.mark.slow
def test_other_sizes_take_the_same_graph():
    model = tiny_transformer("2.3", num_layers=2)
    inputs = tiny_inputs(model)
    # Equal numbers of tokens must not be taken for one number.
    sizes = [(6, 6, 6), (24, 6, 6), (20, 9, 8), (7, 5, 16)]
    calls = [resized(inputs, *size) for size in sizes]
    expected = [model(**call) for call in calls]
    compile_model(model, backend="eager")
    for index, (call, wanted) in enumerate(zip(calls, expected)):
        result, graphs = made(model, lambda call=call: model(**call))
        assert graphs == (1 if index == 0 else 0), sizes[index]
        assert max_difference(result, wanted) == 0.0
    # Several clips are another graph, which then takes any number of them.
    counts = [made(model, lambda n=n: model(**resized(inputs, 12, 6, 6, n)))[1] for n in (2, 3, 4)]
    assert counts[0] == 1 and counts[2] == 0 and sum(counts) <= 2


@pytest.mark.slow
def test_without_dynamic_sizes_each_has_its_graphs():
    model = tiny_transformer("2.0", num_layers=2)
    inputs = tiny_inputs(model)
    compile_model(model, dynamic=False, backend="eager")
    counts = [made(model, lambda n=n: model(**resized(inputs, n, 6, 6)))[1] for n in (12, 24, 12)]
    assert counts == [1, 1, 0]


@pytest.mark.slow
def test_texts_that_are_kept_take_a_graph_to_fill_and_one_to_read():
    model = tiny_transformer("2.0", num_layers=3)
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    compile_model(model, backend="eager")
    counts = []
    for _ in range(2):
        cache = TextCache()
        for _ in range(3):
            result, graphs = made(model, lambda cache=cache: model(**inputs, text_cache=cache))
            counts.append(graphs)
            assert max_difference(result, expected) == 0.0
    assert counts == [1, 1, 0, 0, 0, 0]


@pytest.mark.slow
def test_pictures_and_masks():
    model = tiny_transformer("2.3", num_layers=2)
    inputs = tiny_inputs(model)
    tokens = inputs["hidden_states"].shape[1]
    first = {"timestep": per_token(inputs["timestep"], tokens, (0, 1, 1))}
    other = {"timestep": inputs["timestep"][:, None].repeat(1, tokens).index_fill(1, torch.tensor([0]), 0.0)}
    mask = {"encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    expected = [model(**{**inputs, **change}) for change in (first, other, mask)]
    compile_model(model, backend="eager")
    counts = []
    for change, wanted in zip((first, other, mask), expected):
        result, graphs = made(model, lambda change=change: model(**{**inputs, **change}))
        counts.append(graphs)
        assert max_difference(result, wanted) == 0.0
    # The length of what is held is a number of the second graph; from then on of any.
    assert counts[0] == 1 and counts[1] <= 1 and counts[2] == 1


@pytest.mark.slow
def test_streamed_blocks_are_compiled():
    model = tiny_transformer("2.0", num_layers=3)
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    compile_model(model, backend="eager")
    assert made(model, lambda: model(**inputs))[1] == 1
    stream_blocks(model, "ram", "cpu", 2)
    result, graphs = made(model, lambda: model(**inputs))
    assert (max_difference(result, expected), graphs) == (0.0, 0)
    stop_streaming(model)
    assert made(model, lambda: model(**inputs))[1] == 0


@pytest.mark.slow
def test_groups_that_wait_in_host_memory_are_compiled():
    model = tiny_transformer("2.0", num_layers=3)
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    compile_model(model, backend="eager")
    model.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)
    result, graphs = made(model, lambda: model(**inputs))
    assert (max_difference(result, expected), graphs) == (0.0, 1)


EVERY_SECOND = MagCacheConfig(mag_ratios=[1.0] * 3, num_inference_steps=3, retention_ratio=0, max_skip_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("config", [FirstBlockCacheConfig(threshold=1e9), EVERY_SECOND])
def test_a_cache_of_blocks_runs_compiled_ones(config):
    model, plain = tiny_transformer("2.0", num_layers=3), tiny_transformer("2.0", num_layers=3)
    inputs = tiny_inputs(model)
    compile_model(model, backend="eager")
    for one in (model, plain):
        one.enable_cache(config)
    for step in range(3):
        with model.cache_context("x"), plain.cache_context("x"):
            result, graphs = made(model, lambda: model(**inputs))
            assert max_difference(result, plain(**inputs)) == 0.0
        # Later steps run the first block only, or none, or the blocks of the first step.
        assert graphs == (1 if step == 0 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_a_negative_prompt_in_the_attention_is_compiled(layout):
    model = tiny_transformer(layout, num_layers=2)
    inputs, other = tiny_inputs(model), tiny_inputs(model, seed=9)
    texts = other["encoder_hidden_states"], other["audio_encoder_hidden_states"]

    def run(caches):
        return model(**inputs, text_cache=caches[0], negative_text=NegativeText(*texts, NagWeights(3.0), caches[1]))

    expected = run((TextCache(), TextCache()))
    assert max_difference(expected, model(**inputs)) > 1e-3
    compile_model(model, backend="eager")
    counts = []
    for _ in range(2):
        caches = TextCache(), TextCache()
        for _ in range(2):
            result, graphs = made(model, lambda caches=caches: run(caches))
            assert max_difference(result, expected) == 0.0
            counts.append(graphs)
    # Both texts are filled in by one graph and read by another; of 2.3 nothing is kept.
    assert counts == ([1, 1, 0, 0] if layout == "2.0" else [1, 0, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "fp8_scaled_mm"])
def test_float8_layers_are_compiled(method):
    from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig

    options = {} if method is None else {"quantization_config": FP8ScaledMMConfig()}
    model = float8(**options)
    expected = float8_outputs(model)
    compile_model(model, backend="eager")
    result, graphs = made(model, lambda: float8_outputs(model))
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    # First and last blocks are in another data type than those between.
    assert graphs <= 2
    assert made(model, lambda: float8_outputs(model))[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("order", ["compiled first", "streamed first"])
def test_float8_layers_are_compiled_and_streamed(order):
    model = float8()
    expected = float8_outputs(model)
    steps = [lambda: compile_model(model, backend="eager"), lambda: stream_blocks(model, "ram", "cpu", 2)]
    for step in steps if order == "compiled first" else steps[::-1]:
        step()
    for most in (2, 0):
        result, graphs = made(model, lambda: float8_outputs(model))
        assert all(torch.equal(result[name], expected[name]) for name in expected)
        assert graphs <= most


def decodings(vae, device="cpu"):
    """Ways to decode a clip, by name."""
    latents = torch.randn(1, vae.config.latent_channels, 4, 4, 6, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    timestep = torch.tensor([0.05], device=device) if vae.config.timestep_conditioning else None
    tiles = TilingConfig.default()
    return {
        "whole": lambda: vae.decode(latents, timestep).sample,
        "streamed": lambda: torch.cat(list(vae.decode_streamed(latents, timestep)), dim=2),
        "tiles": lambda: torch.cat(list(vae.decode_in_tiles(latents, tiles, timestep)), dim=2),
        "shorter": lambda: vae.decode(latents[:, :, :2], timestep).sample,
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_decoding_takes_a_graph_for_each_width(layout):
    vae = copy.deepcopy(ours(layout).vae)
    expected = {name: decode() for name, decode in decodings(vae).items()}
    compile_model(vae, backend="eager")
    counts = {}
    for name, decode in decodings(vae).items():
        result, counts[name] = made(vae, decode)
        torch.testing.assert_close(result, expected[name], rtol=0, atol=EQUAL_MODELS)
    widths = {
        (part.conv.in_channels, part.conv.out_channels) for part in vae.decoder.modules() if hasattr(part, "border")
    }
    assert 0 < counts["whole"] <= 2 * len(widths)
    assert (counts["tiles"], counts["shorter"]) == (0, 0)
    assert counts["streamed"] <= counts["whole"]


@pytest.mark.slow
def test_the_vocoder_is_one_graph_for_all_lengths():
    vocoder = copy.deepcopy(ours("2.0").vocoder)
    mels = [torch.randn(1, 2, frames, vocoder.config.in_channels // 2) for frames in (20, 31, 17)]
    expected = [vocoder(mel) for mel in mels]
    compile_model(vocoder, backend="eager")
    counts = []
    for mel, wanted in zip(mels, expected):
        result, graphs = made(vocoder, lambda mel=mel: vocoder(mel))
        counts.append(graphs)
        torch.testing.assert_close(result, wanted, rtol=0, atol=EQUAL_MODELS)
    assert counts == [1, 0, 0]


def halved(value, device):
    """Tensors that are computed with in bfloat16 on a device; noise levels and positions stay in float32."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, torch.bfloat16 if value.ndim == 3 else value.dtype)


def assert_code_agrees(device):
    """Float32 within 1e-5 of the largest value; bfloat16 as near to float32 as plain code."""
    model = tiny_transformer("2.3", num_layers=2)
    inputs = {**tiny_inputs(model), "isolate_modalities": True}
    exact = model(**inputs)
    halves = {name: halved(value, device) for name, value in inputs.items()}
    plain = copy.deepcopy(model).to(device, torch.bfloat16)(**halves)
    compile_model(model.to(device))
    result = model(**{name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()})
    coarse = model.to(torch.bfloat16)(**halves)
    assert region_of(model).graphs == 2
    for name in range(2):
        largest = exact[name].abs().max()
        assert (result[name].cpu() - exact[name]).abs().max() <= 1e-5 * largest
        errors = [(one[name].cpu().float() - exact[name]).square().mean().sqrt() for one in (coarse, plain)]
        assert 0 < errors[0] <= 1.1 * errors[1]


@pytest.mark.slow
def test_code_of_inductor_agrees():
    assert_code_agrees("cpu")


@pytest.mark.gpu
def test_code_for_cuda_agrees(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert_code_agrees("cuda")
    vae = copy.deepcopy(ours("2.3").vae).to("cuda")
    expected = {name: decode() for name, decode in decodings(vae, "cuda").items()}
    compile_model(vae)
    for name, decode in decodings(vae, "cuda").items():
        torch.testing.assert_close(decode(), expected[name], rtol=0, atol=1e-4)
    vocoder = copy.deepcopy(ours("2.3").vocoder).to("cuda")
    mel = torch.randn(1, 2, 20, 64, device="cuda")
    wave = vocoder(mel)
    compile_model(vocoder)
    torch.testing.assert_close(vocoder(mel), wave, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("untraced")
def test_weights_take_no_gradients_while_they_are_compiled():
    model = tiny_transformer("2.0", num_layers=1)
    model.proj_in.weight.requires_grad_(False)
    compile_model(model, backend="eager")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    uncompile_model(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["proj_in.weight"]
    assert region_of(model) is None and "forward" not in model.transformer_blocks[0].__dict__


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_with_their_own_weights(twin):
    model = tiny_transformer("2.0", num_layers=2)
    inputs = tiny_inputs(model)
    compile_model(model, backend="eager")
    other = twin(model)
    for parameter in model.transformer_blocks.parameters():
        parameter.zero_()
    expected = tiny_transformer("2.0", num_layers=2)(**inputs)
    assert max_difference(other(**inputs), expected) == 0.0
    assert max_difference(model(**inputs), expected) > 0.1
    assert other.state_dict().keys() == model.state_dict().keys()


@pytest.mark.usefixtures("untraced")
def test_what_was_put_around_it_runs_the_plain_method_afterwards():
    model = tiny_transformer("2.0", num_layers=2)
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    compile_model(model, backend="eager")
    region = region_of(model)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    uncompile_model(model)
    assert not region.enabled
    with model.cache_context("x"):
        assert max_difference(model(**inputs), expected) == 0.0


def test_hooks_within_are_refused():
    model = tiny_transformer("2.0", num_layers=2)
    attentions = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    model.enable_cache(attentions)
    with pytest.raises(ValueError, match=r"has hooks of .* on its LTX2Attention; call compile\(\) before"):
        compile_model(model, backend="eager")
    model.disable_cache()
    compile_model(model, backend="eager")
    with pytest.raises(ValueError, match="PyramidAttentionBroadcastConfig puts hooks on layers within the blocks"):
        model.enable_cache(attentions)
    assert not model.is_cache_enabled
    with pytest.raises(ValueError, match="is compiled already"):
        compile_model(model, backend="eager")
    cast = tiny_transformer("2.0", num_layers=1)
    cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"leave out .* enable_layerwise_casting"):
        compile_model(cast, backend="eager")
    with pytest.raises(ValueError, match="Linear has no part that is compiled"):
        compile_model(torch.nn.Linear(2, 2))


def test_what_cannot_be_traced_says_what_to_do():
    model = tiny_transformer("2.0", num_layers=1)
    compile_model(model, backend="eager")
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"cannot be compiled as it is now: .*; call uncompile\(\)"):
        model(**tiny_inputs(model))

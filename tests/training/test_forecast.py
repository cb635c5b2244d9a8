"""The forecast: its formula for activations against what autograd keeps, parameters and storage against real models."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn

from ltx2_diffusers.adapters.keys import linear_shapes
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.training import forecast as module
from ltx2_diffusers.training.config_files import load_config, parse_config
from ltx2_diffusers.training.forecast import QUANTIZED, Forecast, Tokens, check_data, forecast
from ltx2_diffusers.training.trained.quantization import quantize_blocks
from tests.golden_data import load_json
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import config, stored_samples
from tests.training.running import settings as run_settings

SIZES = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "cross_attention_dim": 64,
    "audio_cross_attention_dim": 32,
    "caption_channels": 24,
    "rope_type": "split",
}
NEWER = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
RANK = 4
RECIPE = Path(__file__).parents[2] / "examples" / "training" / "lora_24gb.yaml"
# 768x448x89 at 24 frames per second, with sound.
CLIP = Tokens(14 * 24 * 12, 93)


def settings(mode: str = "lora", targets=None, checkpointing: bool = False, **lora):
    return parse_config(
        {
            "model": {"model_path": str(tiny_checkpoint("2.0")), "training_mode": mode},
            "lora": {"rank": RANK, "alpha": RANK, "target_modules": targets or ATTENTION, **lora},
            "training_strategy": {"with_audio": True},
            "data": {"preprocessed_data_root": "clips"},
            "optimization": {"enable_gradient_checkpointing": checkpointing, "batch_size": 1},
        }
    )


def model(num_layers: int, run, **changes) -> LTX2AVTransformer3DModel:
    """A transformer that trains as the settings say."""
    torch.manual_seed(0)
    found = LTX2AVTransformer3DModel(num_layers=num_layers, **SIZES, **changes)
    if run.model.training_mode == "lora":
        nn.Module.to(found.requires_grad_(False), torch.bfloat16)
        dora = run.lora.use_dora
        found.add_adapter(LoraConfig(r=RANK, target_modules=run.lora.target_modules, use_dora=dora))
        cast_training_params(found, torch.float32)
    for name, parameter in found.named_parameters():
        # On the CPU a norm with a weight that trains keeps its result too, which kernels of other devices do not.
        if "norm_q" in name or "norm_k" in name:
            parameter.requires_grad_(False)
    if run.optimization.enable_gradient_checkpointing:
        found.enable_gradient_checkpointing()
    return found.train()


def kept_bytes(network, tokens: Tokens) -> int:
    """Bytes that autograd keeps of a forward pass, without parameters."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    def stream(prefix: str, rows: int, axes: int):
        if not rows:
            return dict.fromkeys([f"{prefix}hidden_states", f"{prefix}encoder_hidden_states"])
        projects = network.config.use_prompt_embeddings
        width = network.config["caption_channels" if projects else f"{prefix}cross_attention_dim"]
        coords = torch.arange(rows)[:, None].float() + torch.tensor([0.0, 1.0])
        return {
            f"{prefix}hidden_states": torch.randn(1, rows, 128),
            f"{prefix}encoder_hidden_states": torch.randn(1, tokens.text, width).bfloat16(),
            f"{prefix}timestep": torch.full((1, 1), 500.0),
            f"{prefix}sigma": torch.full((1,), 500.0),
            f"{prefix or 'video_'}coords": coords.expand(1, axes, rows, 2),
        }

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        found = network(**stream("", tokens.video, 3), **stream("audio_", tokens.audio, 1), return_dict=False)
        # Named, so that the graph is alive when it is counted.
        loss = sum(velocity.float().square().mean() for velocity in found if velocity is not None)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def kept_per_block(run, tokens: Tokens, **changes) -> int:
    """Bytes that a further block keeps of so many tokens: weights that autocast copies do not count."""
    small, large = (model(layers, run, **changes) for layers in (3, 4))
    double = Tokens(*(2 * count for count in tokens))
    grown = [kept_bytes(large, size) - kept_bytes(small, size) for size in (tokens, double)]
    return grown[1] - grown[0]


TOKENS = Tokens(60, 28, 20)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("options", "tokens", "changes", "tolerance"),
    [
        ({}, TOKENS, {}, 0),
        ({}, TOKENS, NEWER, 0.02),
        ({"use_dora": True}, TOKENS, {}, 0),
        (
            {"targets": ["attn1.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "audio_ff.net.2"]},
            TOKENS,
            {},
            0.03,
        ),
        ({"targets": ["attn1.to_q", "attn2.to_k"]}, Tokens(60, 0, 20), {}, 0),
        ({"mode": "full"}, TOKENS, {}, 0.07),
        ({"mode": "full"}, TOKENS, NEWER, 0.07),
    ],
    ids=["lora", "lora on 2.3", "dora", "lora on feed-forward", "lora on video alone", "full", "full on 2.3"],
)
def test_a_block_keeps_what_the_formula_says(options, tokens, changes, tolerance):
    run = settings(**options)
    counted = kept_per_block(run, tokens, **changes)
    predicted = module.block_activation_bytes(run, LTX2AVTransformer3DModel(num_layers=1, **SIZES, **changes), tokens)
    assert predicted == pytest.approx(counted, rel=tolerance, abs=0)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_with_checkpointing_a_block_keeps_its_input_alone(mode):
    run = settings(mode, checkpointing=True)
    counted = kept_per_block(run, TOKENS)
    number = 2 if mode == "lora" else 4
    assert counted == number * (60 * 64 + 28 * 32)
    plain = LTX2AVTransformer3DModel(num_layers=5, **SIZES)
    one_block = module.block_activation_bytes(run, plain, TOKENS)
    assert module.activation_bytes(run, plain, TOKENS) == one_block + 5 * counted


def test_with_checkpointing_memory_does_not_grow_with_what_blocks_compute():
    """At 19B geometry, all but the inputs of blocks is one block's, whatever their number."""
    run = settings(checkpointing=True)
    per_block = 2 * (CLIP.video * 4096 + CLIP.audio * 2048)
    found = []
    for layers in (12, 48):
        with torch.device("meta"):
            found.append(module.activation_bytes(run, LTX2AVTransformer3DModel(num_layers=layers), CLIP))
    assert found[1] - found[0] == 36 * per_block
    assert found[1] < 3 * 2**30


@pytest.mark.parametrize("name", list(QUANTIZED))
def test_quantised_blocks_take_the_bytes_of_the_table(name):
    pytest.importorskip({"b": "bitsandbytes", "t": "torchao"}.get(name[0], "optimum.quanto"))
    real = nn.Module()
    real.transformer_blocks = nn.ModuleList([nn.Sequential(nn.Linear(512, 1024, bias=False))])
    nn.Module.to(real, torch.bfloat16)
    predicted = module._block_bytes(copy.deepcopy(real.transformer_blocks[0]), name)
    quantize_blocks(real, name, torch.device("cpu"), torch.device("cpu"))
    counted = sum(_bytes(tensor) for tensor in real.transformer_blocks[0].state_dict().values() if _is_tensor(tensor))
    assert counted == pytest.approx(predicted, rel=0.02)


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def _bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    """A checkpoint of 2.0 geometry without weights: its folder, its transformer and its connectors."""
    folder = tmp_path_factory.mktemp("large")
    for component in ("transformer", "connectors"):
        (folder / component).mkdir()
        (folder / component / "config.json").write_text("{}")
    run = load_config(RECIPE, [f"model.model_path={folder}"])
    return str(folder), *(module.meta_model(run, component) for component in ("transformer", "connectors"))


@pytest.fixture
def recipe(geometry):
    """The recipe for 24 GB with other values, its trained parameters and its memory."""

    def made(*overrides: str):
        run = load_config(RECIPE, [f"model.model_path={geometry[0]}", *overrides])
        memory = module.step_memory(run, *geometry[1:], CLIP)
        return run, module.trainable_parameters(run, *geometry[1:]), memory

    return made


def gib(size: float) -> float:
    return round(size / 2**30, 1)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("av", 213_909_504), ("video", 100_663_296), ("ic_lora", 163_577_856), ("cross_modal", 62_914_560)],
)
def test_parameters_of_adapters_are_those_of_peft(preset, expected, recipe):
    assert str(expected) in json.dumps(load_json("training/lora_format.json")["target_module_matches"])
    assert recipe(f"lora.target_modules={preset}")[1] == expected


def test_dora_trains_a_magnitude_per_output(recipe, geometry):
    outputs = [
        out
        for path, (out, _) in linear_shapes(geometry[1]).items()
        if path.endswith(("to_k", "to_q", "to_v", "to_out.0"))
    ]
    assert recipe("lora.use_dora=true")[1] - recipe()[1] == sum(outputs)


def test_connectors_are_adapted_too(recipe, geometry):
    layers = {path: sizes for path, sizes in linear_shapes(geometry[2]).items() if "text_proj_in" not in path}
    assert recipe("lora.target_modules=connectors")[1] == 32 * sum(sum(sizes) for sizes in layers.values())


def test_layers_of_a_stream_that_does_not_run_get_no_adapter(recipe):
    assert recipe("training_strategy.with_audio=false")[1] == 100_663_296


def test_the_recipe_for_24_gb_says_what_the_forecast_says(recipe):
    memory, text = recipe()[2], RECIPE.read_text()
    assert (gib(memory.peak), round(memory.host_weights / 2**30)) == (11.2, 34)
    assert "need 11.2 GiB" in text and "(34 GiB)" in text
    whole = "acceleration.block_streaming=0"
    for words, *overrides in (
        ("needs 17.2 GiB and no copies", whole, "acceleration.quantization=bnb-nf4"),
        ("needs 25.6 GiB, which does not fit", whole, "acceleration.quantization=int8-quanto"),
    ):
        assert f"{gib(recipe(*overrides)[2].peak)} GiB" in words and words in text
    with_both = recipe("acceleration.block_streaming=32", "acceleration.quantization=int8-quanto")[2]
    assert gib(with_both.peak) < 22 and "with block_streaming=32 it does" in text
    assert gib(recipe(whole)[2].peak) > 40


def test_parts_of_memory_add_up(recipe):
    _, trainable, memory = recipe("acceleration.block_streaming=0")
    assert memory.weights == 2 * (18_876_174_592 + 2 * 354_470_400)
    # The projection of the text.
    assert memory.host_weights == 2 * 722_534_400
    assert (memory.adapters, memory.gradients, memory.moments) == (trainable * 6, trainable * 4, trainable * 8)
    assert memory.peak == sum(memory[:5])
    assert recipe("optimization.optimizer_type=adamw8bit")[2].moments < 0.26 * memory.moments
    assert recipe("optimization.ema_decay=0.99")[2].moments == trainable * 12


def test_full_training_is_float32(recipe):
    _, trainable, memory = recipe("model.training_mode=full", "acceleration.block_streaming=0")
    assert trainable == 18_876_174_592
    assert (memory.adapters, memory.gradients, memory.moments) == (0, trainable * 4, trainable * 8)


@pytest.mark.quick_cases(0)
def test_operations_are_those_of_the_matrices(recipe, geometry):
    """Twice the weights and tokens forward, as much for gradients of inputs, and forward again with checkpointing."""
    checkpointed, plain = (
        module.step_operations(recipe(f"optimization.enable_gradient_checkpointing={value}")[0], geometry[1], CLIP)
        for value in ("true", "false")
    )
    block = {
        path.removeprefix("transformer_blocks.0."): out * into
        for path, (out, into) in linear_shapes(geometry[1]).items()
        if path.startswith("transformer_blocks.0.")
    }
    matrices = 48 * sum(2 * module._rows(path, CLIP) * weights for path, weights in block.items())
    forward = matrices + 48 * 4 * 4096 * CLIP.video * (CLIP.video + CLIP.text)
    assert 2 * forward < plain < 2.3 * forward
    assert forward < checkpointed - plain < 1.1 * forward


def test_a_step_of_several_batches_takes_as_many_operations():
    one = forecast(settings(), TOKENS)
    several = settings()
    several.optimization.batch_size, several.optimization.gradient_accumulation_steps = 2, 3
    found = forecast(several, TOKENS)
    assert found.operations == 6 * one.operations
    assert found.memory.activations == 2 * one.memory.activations


def test_the_original_layout_is_forecast_from_its_header(tmp_path):
    from ltx2_diffusers.checkpoints.convert import convert_to_original

    file = tmp_path / "tiny.safetensors"
    convert_to_original(tiny_checkpoint("2.0"), file)
    run = settings()
    run.model.model_path = str(file)
    assert forecast(run, TOKENS) == forecast(settings(), TOKENS)


def test_a_folder_without_a_transformer_is_named(tmp_path):
    run = settings()
    run.model.model_path = str(tmp_path)
    with pytest.raises(ValueError, match=r"has no transformer/config\.json; give a pipeline's folder"):
        forecast(run, TOKENS)


# --- data ---


def test_data_are_counted(tmp_path):
    found = check_data(config(stored_samples(tmp_path, 5), tmp_path, optimization={"batch_size": 2}))
    assert (found.samples, found.dropped, found.steps_per_epoch) == (5, 0, 3.0)
    assert found.largest == Tokens(4, 8)
    assert list(found.sizes) == ["audio_latents 8, latents 2x1x2 at 24 fps (12 tokens)"]


def with_strategy(data: Path, **strategy):
    return parse_config({**run_settings(data, data), "training_strategy": strategy})


def test_references_count_as_tokens(tmp_path):
    assert check_data(with_strategy(stored_samples(tmp_path), name="reference_audio")).largest == Tokens(4, 16)
    assert check_data(with_strategy(tmp_path, name="text_to_audio")).largest == Tokens(0, 8)


def test_several_processes_share_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    run = config(stored_samples(tmp_path, 8), tmp_path, optimization={"gradient_accumulation_steps": 2})
    assert check_data(run).steps_per_epoch == 1.0


def test_samples_that_lack_a_file_are_counted(tmp_path):
    stored_samples(tmp_path, 5)
    (tmp_path / ".precomputed" / "conditions" / "clip_3.safetensors").unlink()
    with pytest.warns(UserWarning, match="1 of 5 samples"):
        found = check_data(config(tmp_path, tmp_path))
    assert (found.samples, found.dropped) == (4, 1)
    assert "4 samples, 1 left out that lack a file" in forecast_text(config(tmp_path, tmp_path))


@pytest.mark.filterwarnings("ignore:1 of 5 samples")
def forecast_text(run) -> str:
    return forecast(run).text()


def test_a_folder_that_the_strategy_needs_is_named_with_the_command(tmp_path):
    run = with_strategy(stored_samples(tmp_path), name="inpainting", mask_dir="mask")
    with pytest.raises(
        ValueError, match=r"data.preprocessed_data_root: there is no folder '.*/mask'; run `ltx2 data process`"
    ):
        forecast(run)
    shutil.rmtree(tmp_path / ".precomputed" / "video_masks")
    with pytest.raises(ValueError, match=r"run `ltx2 data process` on a dataset with a column 'video_mask' so that"):
        forecast(with_strategy(tmp_path, name="inpainting"))


def test_caption_dropout_needs_the_empty_caption(tmp_path):
    run = config(stored_samples(tmp_path), tmp_path, training_strategy={"caption_dropout_p": 0.1})
    assert check_data(run).samples == 5
    (tmp_path / ".precomputed" / "empty_prompt.safetensors").unlink()
    with pytest.raises(ValueError, match=r"data\.preprocessed_data_root: there is no .*empty_prompt"):
        check_data(run)


def test_fewer_samples_than_a_batch_are_refused(tmp_path):
    run = config(stored_samples(tmp_path, 3), tmp_path, optimization={"batch_size": 4})
    with pytest.raises(ValueError, match="3 samples, fewer than batch_size 4"):
        check_data(run)


def test_latents_of_another_model_are_refused(tmp_path, monkeypatch):
    run = config(stored_samples(tmp_path), tmp_path)
    known = module.model_config

    def other(*arguments):
        return {**known(*arguments), **({"audio_in_channels": 64} if arguments[1] == "transformer" else {})}

    monkeypatch.setattr(module, "model_config", other)
    with pytest.raises(ValueError, match="audio_latents of sample 'clip_0' are 32 wide, but the model reads 64"):
        forecast(run)


def test_captions_of_another_model_are_refused(tmp_path):
    run = config(stored_samples(tmp_path), tmp_path)
    for file in (tmp_path / ".precomputed" / "conditions").iterdir():
        write_sample(file, {"video_prompt_embeds": torch.zeros(3, 16)}, {})
    with pytest.raises(ValueError, match="conditions of sample 'clip_0' are 16 wide, but the model reads 32"):
        forecast(run)


# --- text ---


def test_the_text_says_what_fits_and_that_times_are_estimates(recipe):
    run, trainable, memory = recipe("acceleration.block_streaming=0")
    found = Forecast(18_876_174_592, trainable, CLIP, 1, run.optimization.steps, memory, 400e12)
    lines = found.text("rtx4090").split("\n")
    assert "  which does not fit the 24 GiB of rtx4090" in lines
    assert lines[0] == "transformer: 18,876,174,592 parameters, of which 213,909,504 train (1.13%)"
    assert lines[1] == "largest batch: 1 x 4125 tokens (video 4032, audio 93, text 1024)"
    assert "an estimate from below" in lines[-1]
    assert "  which fits the 80 GiB of h100" in found.text("h100")
    assert "time: 4.00 s a step and 2.2 h in all at 100 T/s" in found.text(None, 100.0)
    assert "time:" not in found.text()
    assert "  and 1.35 GiB of weights in host memory" in lines
    assert "  and 34.43 GiB of weights in host memory" in replace(found, memory=recipe()[2]).text()


def test_a_speed_has_to_be_above_zero():
    with pytest.raises(ValueError, match="device_tflops has to be above 0 but is -1"):
        forecast(settings(), TOKENS).text(device_tflops=-1.0)

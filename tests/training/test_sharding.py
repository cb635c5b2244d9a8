"""Processes that share the weights through FSDP, with gloo on the CPU, and the launch files of Accelerate."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

import ltx2_diffusers
from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.training.trained.network import TrainingNetwork
from ltx2_diffusers.training.trained.sharding import check_sharding
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import config, stored_samples
from tests.training.test_processes import losses, started

LAUNCH_FILES = Path(__file__).parents[2] / "examples" / "accelerate"
SHARDED = LAUNCH_FILES / "fsdp.yaml"


def launched(path):
    """The environment that `accelerate launch` makes of a file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return prepare_multi_gpu_env(_validate_launch_command(arguments)[0])


# --- launch files ---


@pytest.mark.parametrize("name", ["ddp", "ddp_compile", "fsdp", "fsdp_compile"])
def test_accelerate_reads_the_launch_files(name):
    path = LAUNCH_FILES / f"{name}.yaml"
    said = load_config_from_file(str(path))
    assert said.distributed_type == (DistributedType.FSDP if "fsdp" in name else DistributedType.MULTI_GPU)
    assert (said.num_processes, said.mixed_precision) == (4, "bf16")
    environment = launched(path)
    assert environment["ACCELERATE_DYNAMO_BACKEND"] == ("INDUCTOR" if "compile" in name else "NO")
    assert (environment.get("ACCELERATE_USE_FSDP"), environment.get("FSDP_VERSION")) == (
        ("true", "2") if "fsdp" in name else (None, None)
    )
    assert f"examples/accelerate/{name}.yaml" in path.read_text()


def test_the_class_that_is_wrapped_is_that_of_the_blocks():
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), text_encoder=None, tokenizer=None)
    named = launched(SHARDED)["FSDP_TRANSFORMER_CLS_TO_WRAP"]
    assert {type(block).__name__ for block in pipe.transformer.transformer_blocks} == {named}
    assert TrainingNetwork._no_split_modules == (named,)
    assert ltx2_diffusers.LTX2AVTransformer3DModel._no_split_modules == (named,)


# --- what is refused ---


@pytest.mark.parametrize(
    ("sections", "version", "message"),
    [
        ({}, 1, "fsdp_version: 2"),
        ({"optimization": {"ema_decay": 0.9}}, 2, "ema_decay"),
        ({"optimization": {"optimizer_type": "adamw8bit"}}, 2, "adamw8bit.*use 'adamw'"),
        ({"acceleration": {"quantization": "bnb-nf4"}}, 2, "acceleration.quantization does not go with FSDP"),
        ({"acceleration": {"block_streaming": 1}}, 2, "acceleration.block_streaming does not go with FSDP"),
    ],
)
def test_what_does_not_go_with_shared_weights_is_refused(tmp_path, sections, version, message):
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=version == 2)
    if "block_streaming" in sections.get("acceleration", {}):
        sections = {**sections, "optimization": {"enable_gradient_checkpointing": True}}
    settings = config(tmp_path, tmp_path, **sections)
    with pytest.raises(ValueError, match=message):
        check_sharding(settings, accelerator)
    check_sharding(settings, SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))


# --- runs ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_samples(tmp_path_factory.mktemp("data"), count=6)


def trained(data, output, processes=1, **sections):
    """A run, in two processes with shared weights, and its losses."""
    assert started(data, output, processes, launched(SHARDED) if processes > 1 else None, **sections).wait(400) == 0
    return losses(output)


def weights_of(output, step, name):
    return load_file(output / "checkpoints" / f"checkpoint-{step}" / name)


MODES = {
    "lora": ({"optimization": {"learning_rate": 0.001}}, "pytorch_lora_weights.safetensors"),
    "full": (
        {"model": {"training_mode": "full"}, "optimization": {"learning_rate": 1e-4}},
        "transformer/diffusion_pytorch_model.safetensors",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_that_share_the_weights_are_one_and_go_on_exactly(data, tmp_path, mode):
    sections, name = MODES[mode]
    steps = {**sections["optimization"], "steps": 4, "gradient_accumulation_steps": 2}
    kept = {"interval": 2, "keep_last_n": 0}
    sections = {**sections, "acceleration": {"mixed_precision_mode": "no"}}
    one = trained(data, tmp_path / "one", **{**sections, "optimization": {**steps, "batch_size": 2}})
    sections |= {"optimization": steps}
    two = trained(data, tmp_path / "two", 2, checkpoints=kept, **sections)
    assert two == pytest.approx(one, rel=1e-5)
    weights = weights_of(tmp_path / "two", 4, name)
    for key, value in weights_of(tmp_path / "one", 4, name).items():
        torch.testing.assert_close(weights.pop(key), value, rtol=1e-3, atol=1e-4)
    assert not weights

    start = tmp_path / "two" / "checkpoints" / "checkpoint-2"
    rest = trained(data, tmp_path / "rest", 2, checkpoints={**kept, "resume": str(start)}, **sections)
    assert rest == two[2:]
    for file in (name, "training_state/trained.safetensors"):
        whole, again = weights_of(tmp_path / "two", 4, file), weights_of(tmp_path / "rest", 4, file)
        assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)
    # The frozen base is not written.
    saved = weights_of(tmp_path / "two", 4, "training_state/trained.safetensors")
    assert mode == "full" or all("lora_" in key for key in saved)
    assert not list(start.rglob("pytorch_model_fsdp*"))

    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), text_encoder=None, tokenizer=None)
    if mode == "lora":
        pipe.load_lora_weights(start.with_name("checkpoint-4"))
    else:
        loaded = type(pipe.transformer).from_pretrained(start.with_name("checkpoint-4") / "transformer")
        assert loaded.state_dict().keys() == pipe.transformer.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_processes_that_share_the_weights_make_samples(data, tmp_path, mode):
    """In bfloat16, with checkpointing; three prompts for two processes, before and after training."""
    sections = {
        **MODES[mode][0],
        "acceleration": {"mixed_precision_mode": "bf16"},
        "optimization": {"steps": 2, "enable_gradient_checkpointing": True, "learning_rate": 1e-4},
        "validation": {
            "interval": 2,
            "prompts": ["a cat", "a dog", "a horse"],
            "video_dims": [64, 64, 9],
            "inference_steps": 2,
        },
    }
    two = trained(data, tmp_path / "two", 2, **sections)
    optimization = {**sections["optimization"], "batch_size": 2}
    one = trained(data, tmp_path / "one", **{**sections, "optimization": optimization})
    assert two == pytest.approx(one, rel=5e-3)
    files = [sorted(path.name for path in (tmp_path / name / "samples").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 6
    if mode == "lora":
        # Nothing is learnt yet, and the base is the same.
        for file in files[0][:3]:
            assert (tmp_path / "two" / "samples" / file).read_bytes() == (
                tmp_path / "one" / "samples" / file
            ).read_bytes()

"""GGUF files of a transformer load as in diffusers, packed or as real weights; damaged ones are named."""

import random
import subprocess
import sys

import pytest
import torch
from diffusers import GGUFQuantizationConfig, LTX2VideoTransformer3DModel

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2Pipeline
from ltx2_diffusers.checkpoints import keys
from tests.models.transformer_tools import tiny_inputs
from tests.tiny_checkpoints import tiny_checkpoint

from .tiny import V20

TINY = tiny_checkpoint("2.0")
WITH_CONFIG = {"config": str(TINY), "subfolder": "transformer"}


def gguf_package():
    return pytest.importorskip("gguf", reason="the optional package gguf reads and writes GGUF files")


def kinds(gguf, name: str):
    return {"block": gguf.GGMLQuantizationType.Q8_0, "bf16": gguf.GGMLQuantizationType.BF16}.get(name)


def write(path, kind: str, prefix: str = "", tables: bool = True):
    """The miniature transformer as GGUF: matrices (and tables) of that kind, the rest as they are."""
    gguf = gguf_package()
    state = LTX2AVTransformer3DModel.from_pretrained(TINY / "transformer").state_dict()
    names, writer = keys.rename("transformer", list(state), to="original"), gguf.GGUFWriter(path, "ltxv")
    for key, tensor in state.items():
        values, quantised = tensor.float().numpy(), kinds(gguf, kind)
        is_packed = values.ndim == 2 and values.shape[1] % 32 == 0 and (tables or key.endswith(".weight"))
        if quantised is not None and is_packed:
            packed = gguf.quants.quantize(values, quantised)
            writer.add_tensor(prefix + names[key], packed, raw_dtype=quantised)
        else:
            is_half = kind == "half" and values.ndim == 2
            writer.add_tensor(prefix + names[key], values.astype("float16") if is_half else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["block", "half", "bf16", "float"])
def test_packed_weights_compute_as_in_diffusers(tmp_path, kind):
    # diffusers cannot run with packed tables, which are no linear layers.
    path = str(write(tmp_path / "x.gguf", kind, tables=False))
    settings = {"quantization_config": GGUFQuantizationConfig(compute_dtype=torch.float32), **WITH_CONFIG}
    theirs, ours = (
        cls.from_single_file(path, dtype=torch.float32, **settings)
        for cls in (LTX2VideoTransformer3DModel, LTX2AVTransformer3DModel)
    )
    layer, other = ours.transformer_blocks[0].attn1.to_q, theirs.transformer_blocks[0].attn1.to_q
    assert type(layer) is type(other)
    assert torch.equal(torch.Tensor(layer.weight), torch.Tensor(other.weight))
    assert not ours.training
    inputs = tiny_inputs(ours)
    with torch.no_grad():
        for mine, reference in zip(ours(**inputs), theirs(**inputs)):
            assert torch.allclose(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["block", "half", "bf16", "float"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.quick_cases(3)
def test_without_a_quantization_config_the_weights_are_real(tmp_path, kind, prefix):
    path = write(tmp_path / "x.gguf", kind, prefix)
    model = LTX2AVTransformer3DModel.from_single_file(path, **WITH_CONFIG)
    original = LTX2AVTransformer3DModel.from_pretrained(TINY / "transformer").state_dict()
    bounds = {"block": 0.01, "half": 1e-3, "bf16": 0.01, "float": 0}
    for name, tensor in model.state_dict().items():
        assert (tensor.float() - original[name].float()).abs().max() <= bounds[kind] * original[name].abs().max()
    as_half = LTX2AVTransformer3DModel.from_single_file(path, dtype=torch.bfloat16, **WITH_CONFIG)
    assert {parameter.dtype for parameter in as_half.parameters()} == {torch.bfloat16}


def test_a_pipeline_runs_with_packed_weights(tmp_path):
    path = write(tmp_path / "x.gguf", "block")
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    model = LTX2AVTransformer3DModel.from_single_file(path, quantization_config=config, **WITH_CONFIG)
    assert {model.transformer_blocks[0].attn2.to_q.bias.dtype, model.scale_shift_table.dtype} == {torch.float32}
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "np"}
    frames = []
    for transformer in (model, LTX2AVTransformer3DModel.from_pretrained(TINY / "transformer")):
        pipe = LTX2Pipeline.from_pretrained(TINY, transformer=transformer)
        pipe.set_progress_bar_config(disable=True)
        frames.append(pipe("a lighthouse", **call, generator=torch.Generator().manual_seed(0)).frames)
    assert 0 < abs(frames[0] - frames[1]).max() < 0.1


def test_a_damaged_file_is_named(tmp_path):
    path, source = write(tmp_path / "x.gguf", "block"), random.Random(0)
    content = path.read_bytes()
    for number in range(30):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: source.randrange(4, len(content))]
        else:
            damaged[source.randrange(4, 4000)] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        try:
            LTX2AVTransformer3DModel.from_single_file(path, **WITH_CONFIG)
        except ValueError as error:
            assert "x.gguf" in str(error)


def test_quantization_config_belongs_to_gguf_files():
    with pytest.raises(ValueError, match="belongs to GGUF files"):
        LTX2AVTransformer3DModel.from_single_file(V20, quantization_config=GGUFQuantizationConfig())
    with pytest.raises(ValueError, match="`ltx2 convert`"):
        LTX2AVTransformer3DModel.from_single_file(V20, quantization_config={"load_in_4bit": True})


@pytest.mark.slow
def test_without_the_package_it_is_named(tmp_path):
    """In a process of its own: diffusers looks for the package once."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    program = (
        "import diffusers.utils.import_utils as utils; utils._gguf_available = False\n"
        "from ltx2_diffusers import LTX2AVTransformer3DModel\n"
        f"try: LTX2AVTransformer3DModel.from_single_file({str(tmp_path / 'x.gguf')!r})\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "x.gguf" in result.stdout
    assert "pip install gguf" in result.stdout

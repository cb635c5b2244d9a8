"""LoRA files of LTX-Video: all layouts, the names that others leave as they are among them, and none of them half."""

import pytest
import torch

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.families.ltx_video.pipeline import LTXVideoPipeline

# V4: modules whose names differ between the layouts, and one whose name is the same.
NAMES = {
    "patchify_proj": "proj_in",
    "adaln_single.linear": "time_embed.linear",
    "adaln_single.emb.timestep_embedder.linear_1": "time_embed.emb.timestep_embedder.linear_1",
    "caption_projection.linear_2": "caption_projection.linear_2",
    "transformer_blocks.1.attn2.to_k": "transformer_blocks.1.attn2.to_k",
    "transformer_blocks.2.ff.net.0.proj": "transformer_blocks.2.ff.net.0.proj",
}
LAYOUTS = {
    "original": ("diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight", True),
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", False),
    "kohya": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight", True),
}


@pytest.fixture
def pipe():
    return LTXVideoPipeline.from_pretrained(packaged_checkpoint("ltx-video-tiny"), dtype=torch.float32)


def factors(transformer, layout):
    """A LoRA of rank 2 in a layout, and its delta of each module's weight."""
    generator, (down, up, is_original) = torch.Generator().manual_seed(0), LAYOUTS[layout]
    file, deltas = {}, {}
    for original, own in NAMES.items():
        layer = transformer.get_submodule(own)
        a, b = (torch.randn(shape, generator=generator) for shape in ((2, layer.in_features), (layer.out_features, 2)))
        name = original if is_original else own
        file |= {down.format(name): a, up.format(name): b}
        deltas[own] = b @ a
    return file, deltas


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_changes_every_module_that_it_names(pipe, layout):
    file, deltas = factors(pipe.transformer, layout)
    before = {name: pipe.transformer.get_submodule(name).weight.clone() for name in deltas}
    pipe.load_lora_weights(file, adapter_name="style")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for name, delta in deltas.items():
        torch.testing.assert_close(
            pipe.transformer.get_submodule(name).weight, before[name] + delta, rtol=0, atol=1e-5
        )


def test_an_adapter_changes_the_clip_and_goes_without_a_trace(pipe):
    pipe.set_progress_bar_config(disable=True)

    def call():
        size = {"height": 64, "width": 64, "num_frames": 9, "multi_scale": False, "num_inference_steps": 2}
        return pipe(prompt="a dog", output_type="latent", generator=torch.Generator().manual_seed(0), **size).frames

    plain = call()
    pipe.load_lora_weights(factors(pipe.transformer, "original")[0], adapter_name="style")
    assert not torch.equal(call(), plain)
    pipe.set_adapters(["style"], [0.0])
    torch.testing.assert_close(call(), plain)
    pipe.unload_lora_weights()
    assert torch.equal(call(), plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: {f"unet.{name}": tensor for name, tensor in file.items()}, "none of the 12 tensors"),
        (lambda file: {n.replace("patchify_proj", "patchify"): t for n, t in file.items()}, "2 of 12 LoRA tensors"),
        (lambda file: {n: t[:, :1] if "to_k.lora_A" in n else t for n, t in file.items()}, r"attn2\.to_k"),
    ],
    ids=["nothing matches", "something does not", "another size"],
)
def test_what_does_not_fit_as_a_whole_is_refused_and_changes_nothing(pipe, change, message):
    file, _ = factors(pipe.transformer, "original")
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(change(file), adapter_name="style")
    assert pipe.get_list_adapters() == {}

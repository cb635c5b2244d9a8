"""The tiny networks of the golden vectors in diffusers' classes."""

import json
from functools import cache

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

from tests.golden_data import load_json, load_tensors

FOLDER = "ltx_video/checkpoints"


@cache
def networks() -> dict[str, torch.nn.Module]:
    """Transformer, video autoencoder and latent upsampler by component, float32."""
    table, tensors = load_json(f"{FOLDER}/key_table.json"), load_tensors(f"{FOLDER}/v095/model.safetensors")
    made: dict[str, torch.nn.Module] = {}
    for name, kind, keys in (
        ("transformer", LTXVideoTransformer3DModel, table["transformer"]),
        ("vae", AutoencoderKLLTXVideo, table["vae v095"]),
    ):
        model = kind.from_config(load_json(f"{FOLDER}/v095/{name}_config.json"))
        weights = {new: tensors[old] for old, new in keys.items() if new is not None and old in tensors}
        model.load_state_dict(weights, strict=True)
        made[name] = model
    upsampler = LTXLatentUpsamplerModel.from_config(load_json(f"{FOLDER}/upscaler/config.json"))
    upsampler.load_state_dict(load_tensors(f"{FOLDER}/upscaler/model.safetensors"), strict=True)
    return {name: model.float().eval() for name, model in {**made, "latent_upsampler": upsampler}.items()}


def settings(text: str) -> dict[str, object]:
    """Settings of a pass as they are noted beside a run, lists as tuples."""

    def frozen(value: object) -> object:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in json.loads(text).items()}

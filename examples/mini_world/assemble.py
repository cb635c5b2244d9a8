"""The trained networks as one pipeline folder in diffusers' layout, in bfloat16.

Run as `python -m examples.mini_world.assemble --out FOLDER --to CHECKPOINT`.
"""

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save
from transformers import Gemma3ForConditionalGeneration

from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2VideoTransformer3DModel
from ltx2_diffusers.atomic import replaced_folder
from ltx2_diffusers.checkpoints.folder import write_model_index, write_scheduler

from . import networks
from .clips import Parts
from .components import DTYPE, change_json, write_model, write_text_models

MAX_BYTES = 24_000_000
"""Of everything; it is part of every installation."""


def write_adapter(source: Path, target: Path) -> None:
    """Copy an adapter in the data type of the checkpoint, with what its file says about it."""
    state = {name: tensor.to(DTYPE) for name, tensor in load_file(source).items()}
    with safe_open(source, "pt") as file:
        target.write_bytes(save(state, file.metadata()))


def assemble(out: Path, checkpoint: Path) -> None:
    """Write the folder of the checkpoint, whole or not at all, in place of an older one."""
    parts, trained = Parts.load(out), out / "networks"
    models = {
        "transformer": LTX2VideoTransformer3DModel.from_pretrained(trained / "transformer"),
        "connectors": LTX2TextConnectors.from_pretrained(trained / "connectors"),
        "vae": parts.vae,
        "audio_vae": parts.audio_vae,
        "vocoder": parts.vocoder,
    }
    upsampler = LTX2LatentUpsamplerModel.from_pretrained(out / "networks_upsampler" / "latent_upsampler")
    text_encoder = Gemma3ForConditionalGeneration.from_pretrained(trained / "text_encoder")
    with replaced_folder(checkpoint) as temporary:
        folder = Path(temporary)
        pairs = {name: write_model(folder, name, model) for name, model in models.items()}
        pairs |= write_text_models(folder, text_encoder, networks.tokenizer())
        write_model(folder, "latent_upsampler", upsampler)
        write_scheduler(folder / "scheduler", distilled=False)
        change_json(
            folder / "scheduler" / "scheduler_config.json", base_shift=networks.SHIFT, max_shift=networks.SHIFT
        )
        write_model_index(folder, pairs)
        for adapter in sorted(out.glob("*_lora.safetensors")):
            write_adapter(adapter, folder / adapter.name)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    print(f"{checkpoint}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"the checkpoint has {size} bytes, more than {MAX_BYTES}; make the networks smaller")


def main() -> None:
    """Assemble as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--to", type=Path, required=True, help="folder of the checkpoint")
    given = parser.parse_args()
    assemble(given.out, given.to)


if __name__ == "__main__":
    main()

"""Golden files that are stored in part: what follows from the part, or stands in another file, is put back when it is needed."""

import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint

GOLDEN_DIR = Path(os.environ.get("LTX2_GOLDEN_DIR", Path(__file__).parent / "golden"))
# What holds the whole files until the process ends.
_WHOLE = tempfile.TemporaryDirectory()
Tensors = dict[str, torch.Tensor]


def golden_file(path: Path | str) -> Path:
    """A file of the golden folder, by its path there, whole."""
    stored = GOLDEN_DIR / path
    part = stored.with_suffix(".part.safetensors")
    return stored if stored.is_file() or not part.is_file() else _whole(stored.relative_to(GOLDEN_DIR).as_posix())


@cache
def _whole(name: str) -> Path:
    part, path = (GOLDEN_DIR / name).with_suffix(".part.safetensors"), Path(_WHOLE.name, name)
    path.parent.mkdir(parents=True)
    with safe_open(part, framework="pt") as file:
        metadata = file.metadata()
    save_file(_MADE_WHOLE[name](load_file(part)), path, metadata)
    return path


def _with_inverse_transform(tensors: Tensors) -> Tensors:
    """The basis of the inverse Fourier transform is the other one over the length of a window."""
    name = "vocoder.mel_stft.stft_fn.{}_basis"
    basis = tensors[name.format("forward")]
    return {**tensors, name.format("inverse"): basis / basis.shape[-1]}


def _with_shared_weights(tensors: Tensors) -> Tensors:
    """What is not in float8 is as in the checkpoint that the file was made of; the rest of that checkpoint is left out."""
    shared = load_file(GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors")
    names = [name for name in shared if name.startswith("model.diffusion_model.") and "_connector." not in name]
    return {**{name: shared[name] for name in names}, **tensors}


def _with_zeros(tensors: Tensors) -> Tensors:
    """A filter lets through few frequencies."""
    filters = torch.zeros(*tensors.pop("shape").tolist())
    filters[tuple(tensors.pop("places").long())] = tensors.pop("values")
    return {**tensors, "filterbank": filters}


def _of_tiny(*components: str) -> Callable[[Tensors], Tensors]:
    """Components of the packaged tiny checkpoint of LTX-Video, under the names of its original file."""

    def whole(tensors: Tensors) -> Tensors:
        table = json.loads((GOLDEN_DIR / "ltx_video" / "checkpoints" / "key_table.json").read_text())
        folder, found = packaged_checkpoint("ltx-video-tiny"), {}
        for component in components:
            own = load_file(folder / component / "diffusion_pytorch_model.safetensors")
            names = table.get({"vae": "vae v095"}.get(component, component), dict(zip(own, own)))
            found |= {old: own[new] for old, new in names.items() if new is not None}
        return {**found, **tensors}

    return whole


_MADE_WHOLE: dict[str, Callable[[Tensors], Tensors]] = {
    "audio_vae/cases/mel_filterbank.safetensors": _with_zeros,
    "checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors": _with_shared_weights,
    "ltx_video/checkpoints/upscaler/model.safetensors": _of_tiny("latent_upsampler"),
    "ltx_video/checkpoints/v095/model.safetensors": _of_tiny("transformer", "vae"),
    "vocoder/bwe/original.safetensors": _with_inverse_transform,
}

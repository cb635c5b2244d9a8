"""The golden files, whole: `tests/golden` stores most of them packed, and some in part.

What follows from a part, or stands in another file, is put back. `python -m tests.golden_parts` packs files that were added.
"""

import hashlib
import json
import lzma
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from tests.kept import kept_folder

STORED = Path(__file__).parent / "golden"
PACKED, PART = ".xz", ".part.safetensors"
# Smaller ones stay as they are, for readers.
SMALLEST = 20_000
Tensors = dict[str, torch.Tensor]


def golden_file(path: Path | str) -> Path:
    """A file of the golden folder, by its path there."""
    return GOLDEN_DIR / path


def pack(content: bytes, is_text: bool) -> bytes:
    """A text, or a safetensors file of whose numbers the first bytes lie together, then the second ones, and so on."""
    start = len(content) if is_text else 8 + int.from_bytes(content[:8], "little")
    head = start.to_bytes(8, "little") + content[:start]
    packed = (lzma.compress(bytes([n]) + head + _planes(content[start:], n)) for n in ((1,) if is_text else (1, 2, 4)))
    return min(packed, key=len)


def unpack(packed: bytes) -> bytes:
    """What [`pack`] packed."""
    content = lzma.decompress(packed)
    width, start = content[0], 9 + int.from_bytes(content[1:9], "little")
    return content[9:start] + _numbers(content[start:], width)


def _planes(content: bytes, width: int) -> bytes:
    whole = len(content) // width * width
    return np.frombuffer(content[:whole], np.uint8).reshape(-1, width).T.tobytes() + content[whole:]


def _numbers(content: bytes, width: int) -> bytes:
    whole = len(content) // width * width
    return np.frombuffer(content[:whole], np.uint8).reshape(width, -1).T.tobytes() + content[whole:]


def _build(folder: Path) -> None:
    """Copy everything that is stored, and make it whole."""
    shutil.copytree(STORED, folder)
    for path in folder.rglob(f"*{PACKED}"):
        path.with_suffix("").write_bytes(unpack(path.read_bytes()))
        path.unlink()
    for part in folder.rglob(f"*{PART}"):
        path = part.with_name(part.name.removesuffix(PART) + ".safetensors")
        with safe_open(part, framework="pt") as file:
            metadata = file.metadata()
        save_file(_MADE_WHOLE[path.relative_to(folder).as_posix()](load_file(part), folder), path, metadata)
        part.unlink()


def _key() -> str:
    state = hashlib.sha256(Path(__file__).read_bytes())
    for root in (STORED, packaged_checkpoint("ltx-video-tiny")):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            state.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return state.hexdigest()[:16]


def _with_transforms(tensors: Tensors, _: Path) -> Tensors:
    """The basis of the Fourier transform of a window, and that of the inverse one."""
    name, size = "vocoder.mel_stft.stft_fn.{}_basis", 256
    basis = _windowed_waves(size, size // 2 + 1)
    return {**tensors, name.format("forward"): basis, name.format("inverse"): basis / size}


def _windowed_waves(size: int, count: int) -> torch.Tensor:
    """Cosines and negative sines of so many frequencies under a Hann window, `[2 * count, 1, size]`."""
    steps = torch.arange(max(size, count), dtype=torch.float64)
    angles = 2 * torch.pi * steps[:count, None] * steps[:size] / size
    window = torch.hann_window(size, dtype=torch.float64)
    return torch.cat([angles.cos() * window, -angles.sin() * window])[:, None].float()


def _of_original(tensors: Tensors, folder: Path) -> Tensors:
    """A diffusion decoder's weights, but for those that its original multiplies by gates when it runs."""
    original = load_file(folder / "ltx25" / "diffusion_decoder" / "x0" / "original.safetensors")
    return {**_names_of_diffusers(original), **tensors}


def _names_of_diffusers(original: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in original.items():
        if ".gate_" in name or "coarse_" in name:
            continue
        for old, new in _NAMES_OF_DIFFUSERS.items():
            name = name.replace(old, new)
        parts = tensor.chunk(3) if ".qkv." in name else [tensor]
        found |= {name.replace(".qkv.", f".to_{one}."): part.clone() for one, part in zip("qkv", parts)}
    return found


_NAMES_OF_DIFFUSERS = {
    ".t_embedder.mlp.0.": ".t_embedder.timestep_embedder.linear_1.",
    ".t_embedder.mlp.2.": ".t_embedder.timestep_embedder.linear_2.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
    ".attn.proj.": ".attn.to_out.0.",
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}


def _with_shared_weights(tensors: Tensors, folder: Path) -> Tensors:
    """What is not in float8 is as in the checkpoint that the file was made of; the rest of that checkpoint is left out."""
    shared = load_file(folder / "checkpoint" / "ltx-2-tiny-dev.safetensors")
    names = [name for name in shared if name.startswith("model.diffusion_model.") and "_connector." not in name]
    return {**{name: shared[name] for name in names}, **tensors}


def _with_zeros(tensors: Tensors, _: Path) -> Tensors:
    """A filter lets through few frequencies."""
    filters = torch.zeros(*tensors.pop("shape").tolist())
    filters[tuple(tensors.pop("places").long())] = tensors.pop("values")
    return {**tensors, "filterbank": filters}


def _of_tiny(*components: str) -> Callable[[Tensors, Path], Tensors]:
    """Components of the packaged tiny checkpoint of LTX-Video, under the names of its original file."""

    def whole(tensors: Tensors, stored: Path) -> Tensors:
        table = json.loads((stored / "ltx_video" / "checkpoints" / "key_table.json").read_text())
        folder, found = packaged_checkpoint("ltx-video-tiny"), {}
        for component in components:
            own = load_file(folder / component / "diffusion_pytorch_model.safetensors")
            names = table.get({"vae": "vae v095"}.get(component, component), dict(zip(own, own)))
            found |= {old: own[new] for old, new in names.items() if new is not None}
        return {**found, **tensors}

    return whole


def _drawn(seed: int) -> Callable[[Tensors, Path], Tensors]:
    """Convolutions as torch begins them, of which the part has their places in the order of drawing, and their shapes."""

    def whole(tensors: Tensors, _: Path) -> Tensors:
        generator, expected = torch.Generator().manual_seed(seed), tensors.pop("sha256").tolist()
        places = {name: tensor.tolist() for name, tensor in tensors.items() if tensor.dtype == torch.int16}
        for name, (_place, *shape) in sorted(places.items(), key=lambda item: item[1]):
            bias, inputs = name.removesuffix("weight") + "bias", math.prod(shape[1:])
            # The bounds of a weight and of its bias are the same but for how they are rounded.
            tensors[name] = _between(math.sqrt(3) * (math.sqrt(1 / 3) / math.sqrt(inputs)), shape, generator)
            tensors[bias] = _between(1 / math.sqrt(inputs), shape[:1], generator)
        state = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
        if list(state.digest()) != expected:
            raise RuntimeError(
                f"torch {torch.__version__} draws other numbers from the seed {seed} than were recorded"
            )
        return tensors

    return whole


def _between(bound: float, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """What `uniform_(-bound, bound)` gives, rounded once as by fused multiplication and addition, which not all processors have."""
    high = torch.tensor(bound)
    return (torch.rand(shape, generator=generator).double() * (2 * high).double() - high.double()).float()


_MADE_WHOLE: dict[str, Callable[[Tensors, Path], Tensors]] = {
    "audio_vae/cases/mel_filterbank.safetensors": _with_zeros,
    "checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors": _with_shared_weights,
    "latent_upsampler/x2_rational/original.safetensors": _drawn(40),
    "ltx_video/checkpoints/upscaler/model.safetensors": _of_tiny("latent_upsampler"),
    "ltx_video/checkpoints/v095/model.safetensors": _of_tiny("transformer", "vae"),
    "ltx25/diffusion_decoder/x0/diffusers.safetensors": _of_original,
    "video_vae/ltx23/original.safetensors": _drawn(2323),
    "video_vae/original.safetensors": _drawn(1234),
    "vocoder/bwe/original.safetensors": _with_transforms,
}
_NAMED = os.environ.get("LTX2_GOLDEN_DIR")
GOLDEN_DIR = Path(_NAMED) if _NAMED else kept_folder("golden", _key(), _build)


if __name__ == "__main__":
    for path in sorted(path for path in STORED.rglob("*") if path.suffix in (".safetensors", ".json")):
        if path.stat().st_size > SMALLEST:
            path.with_name(path.name + PACKED).write_bytes(pack(path.read_bytes(), path.suffix == ".json"))
            path.unlink()

"""What a result depends on and is told by: inputs as a whole, checkpoints by samples, clips by what they decode to,
versions of libraries, and the machine.
"""

import hashlib
import importlib.metadata
import platform
import warnings
from pathlib import Path
from typing import Any

from ..checkpoints.packaged import checkpoint_path

# Files up to this size are read whole; of longer ones evenly spaced blocks are, which any retraining changes.
_WHOLE_BYTES = 8 * 2**20
_BLOCKS, _BLOCK_BYTES = 64, 2**16
VERSIONED = ("ltx2-diffusers", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "av")


def file_sha256(path: Path) -> str:
    """Name of a file's content, or of all files in a folder."""
    if path.is_dir():
        return folder_fingerprint(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_identity(name: str) -> dict[str, str]:
    """What tells a checkpoint from others: `sha256` of samples, or the `revision` of a Hub repository.

    Args:
        name: A folder, a file, a Hub id or the name of a packaged checkpoint. Empty for what is not on this machine.
    """
    path = checkpoint_path(name)
    if path.exists():
        return {"sha256": folder_fingerprint(path) if path.is_dir() else _sampled(path).hexdigest()}
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return {"revision": Path(snapshot_download(name, local_files_only=True)).name}
    except (HFValidationError, LocalEntryNotFoundError):
        return {}


def folder_fingerprint(folder: Path) -> str:
    """Name of what a folder of a pipeline or of a model holds, wherever it lies.

    The index or configuration in it and the files of its sub-folders count; other files beside them, such as the
    original single files of published repositories, do not.
    """
    files = [*folder.glob("*.json"), *folder.glob("*/**/*")]
    if not (folder / "model_index.json").is_file():
        files += folder.glob("*.safetensors")
    digest = hashlib.sha256()
    for file in sorted(files):
        relative = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()} {_sampled(file).hexdigest()}\n".encode())
    return digest.hexdigest()


def content_identity(path: Path) -> dict[str, Any]:
    """What a written clip decodes to: sizes, and a name for all frames and for all samples."""
    from ..media.reading import iterate_video, probe, read_audio

    info, content = probe(path), {}
    if info.num_frames:
        digest, count = hashlib.sha256(), 0
        with warnings.catch_warnings():
            # That light of high dynamic range is mapped to bytes is nobody's concern here.
            warnings.simplefilter("ignore")
            for frame in iterate_video(path):
                digest.update(frame.data)
                count += 1
        size = {"frames": count, "width": info.width, "height": info.height, "frame_rate": str(info.frame_rate)}
        content["video"] = {**size, "sha256": digest.hexdigest()}
    if (sound := read_audio(path)) is not None:
        waveform, rate = sound
        name = hashlib.sha256(waveform.contiguous().numpy().data).hexdigest()
        content["audio"] = {"samples": waveform.shape[-1], "sampling_rate": rate, "sha256": name}
    return content


def versions() -> dict[str, str]:
    """Installed versions of this package and of those that compute."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def device_name(device: str) -> str:
    """A device as people know it."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if torch.device(device).type == "cuda" else device


def environment(device: str) -> dict[str, Any]:
    """Versions and machine; where they are equal, equal calls give equal results."""
    import torch

    return {
        **versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        # The order in which a sum is taken depends on the number of threads.
        "threads": torch.get_num_threads(),
    }


def _sampled(path: Path) -> Any:
    """Digest of the size of a file and of its content, or of blocks of it that are spread evenly."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for index in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * index // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest

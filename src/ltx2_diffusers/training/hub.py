"""Publishing what a training run made: weights, settings, samples and a model card in one upload."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from ..adapters.convert import convert_lora
from ..adapters.file import LORA_WEIGHT_NAME
from ..atomic import temporary_folder
from ..media.reading import probe, read_video
from ..publishing import Push, link_or_copy, publish_folder
from .model_card import CONFIG_NAME, CardSample, run_card

if TYPE_CHECKING:
    from .config import TrainingConfig
    from .validation import ValidationSample

ORIGINAL_NAME = "lora_weights_original.safetensors"
"""The adapter in the layout of the original files, if the run did not write it itself."""
MAX_GIF_RATE = 15.0
"""Most frames per second of an animated picture."""
_MAX_GIF_SIDE = 512
_PARTS = ("transformer", "connectors")


def push_training(
    config: "TrainingConfig",
    result_folder: Path,
    samples: Sequence["ValidationSample"],
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    trigger: str | None = None,
) -> str:
    """Upload the result of a training run, and return the address of the repository.

    Args:
        config: The run's settings.
        result_folder: Holds the final weights, an adapter or the folder `transformer`, and `training_config.yaml`.
        samples: The last validation samples.
        repo_id: Repository, `owner/name`; made if it does not exist.
        token: Token that may write, default the stored one.
        private: Whether a new repository is private, default the owner's setting.
        commit_message: Default "Upload with ltx2-diffusers".
        revision: Branch to upload to, made if it does not exist. Default "main".
        trigger: What a prompt says to make use of the weights, default what the dataset was processed with.

    Raises:
        ValueError: If no repository can have this name, or the folder lacks the weights or the settings.
        OSError: If the Hub cannot be reached or refuses; the message names the repository, and nothing local is lost.
    """
    push = Push(repo_id, token, private, commit_message, revision=revision)
    files = _weights(result_folder, config.model.training_mode == "lora")
    if not (result_folder / CONFIG_NAME).is_file():
        raise ValueError(f"{str(result_folder)!r} holds no {CONFIG_NAME}, so it is no result of a training run")
    with temporary_folder(result_folder) as gathered:
        for file in (*files, Path(CONFIG_NAME)):
            link_or_copy(result_folder / file, gathered / file)
        lora = gathered / LORA_WEIGHT_NAME
        if lora.is_file() and len(list(gathered.glob("*.safetensors"))) == 1:
            convert_lora(lora, gathered / ORIGINAL_NAME, "original")
        shown = [_sample(sample, index, gathered) for index, sample in enumerate(samples)]
        return publish_folder(
            gathered, push, partial(run_card, config, folder=result_folder, samples=shown, trigger=trigger)
        )


def _weights(folder: Path, is_lora: bool) -> list[Path]:
    """Files of the final weights, relative to the folder."""
    if is_lora:
        found = [folder / LORA_WEIGHT_NAME, *sorted(folder.glob("lora_weights_step_*.safetensors"))[-1:]]
        needed = found[0].is_file()
    else:
        found = [file for part in _PARTS for file in sorted((folder / part).glob("*")) if file.is_file()]
        needed = (folder / "transformer").is_dir()
    if not needed:
        what = LORA_WEIGHT_NAME if is_lora else "folder 'transformer'"
        raise ValueError(f"{str(folder)!r} holds no {what}, so there are no weights to push; save them first")
    return [file.relative_to(folder) for file in found]


def _sample(sample: "ValidationSample", index: int, folder: Path) -> CardSample:
    """Put a sample into the folder, a video as animated picture, too."""
    if not sample.path.is_file():
        raise ValueError(f"the sample {str(sample.path)!r} is gone; leave it out, or make it again")
    file = f"samples/sample_{index}{sample.path.suffix}"
    link_or_copy(sample.path, folder / file)
    picture = {".png": file, ".mp4": f"samples/sample_{index}.gif"}.get(sample.path.suffix)
    if sample.path.suffix == ".mp4":
        write_gif(sample.path, folder / str(picture))
    return CardSample(sample.prompt, file, picture)


def write_gif(video: Path, target: Path) -> None:
    """Write a video as an endless animated picture of at most `MAX_GIF_RATE` frames per second, 512 pixels a side at most."""
    own = float(probe(video).frame_rate or MAX_GIF_RATE)
    rate = min(own, MAX_GIF_RATE)
    images = [PIL.Image.fromarray(frame.numpy()) for frame in read_video(video, frame_rate=rate)]
    for image in images:
        image.thumbnail((_MAX_GIF_SIDE, _MAX_GIF_SIDE))
    # Times are counted in hundredths of a second.
    duration = math.ceil(100 / rate) * 10
    images[0].save(target, save_all=True, append_images=images[1:], duration=duration, loop=0)

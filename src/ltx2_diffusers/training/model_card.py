"""The model card of what a training run made: base model, settings, samples, and a script that uses it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import ModelCard

from ..adapters.card import on_base, reference_rows, reference_settings, with_lora
from ..adapters.file import LORA_WEIGHT_NAME, LoraMetadata, load_lora
from ..checkpoints.json_files import read_object
from ..checkpoints.packaged import checkpoint_path
from ..data.dataset import precomputed_folder
from ..publishing import CALLS, CLIP_TAGS, LORA_TAGS, PROMPT, Call, Card, Origin, Script, origin, quoted, table
from ..publishing.scripts import trigger_section, with_trigger

if TYPE_CHECKING:
    from .config import TrainingConfig

CONFIG_NAME = "training_config.yaml"
COLUMNS = 4
"""Most samples in a row."""


class CardSample(NamedTuple):
    """A sample that a card shows.

    Args:
        prompt: Its prompt.
        file: The sample as it was made (`.mp4`, `.png` or `.wav`), relative to the card.
        picture: What the card shows of it (`.gif` or `.png`), `None` for a sound.
    """

    prompt: str
    file: str
    picture: str | None


_RETAKE = CALLS["LTX2RetakePipeline"]
# What every strategy that is not listed trains, a user's own among them, is used like text to video.
_CALLS = {
    "image_to_video": CALLS["LTX2ImageToVideoPipeline"]._replace(task="text-to-video"),
    "video_to_video": CALLS["LTX2InContextPipeline"],
    "audio_to_video": CALLS["LTX2AudioToVideoPipeline"]._replace(arguments=('audio="sound.wav"', "two_stage=False")),
    "video_to_audio": CALLS["LTX2VideoToAudioPipeline"],
    "text_to_audio": CALLS["LTX2TextToAudioPipeline"],
    "retake": _RETAKE,
    "inpainting": _RETAKE._replace(
        arguments=('video="clip.mp4"', "start_s=0.0", "end_s=1.0", 'region=Image.open("mask.png")'),
        tags=(*_RETAKE.tags, "inpainting"),
    ),
    "extension": CALLS["LTX2ExtendPipeline"],
    "reference_audio": Call(
        "LTX2ConditionPipeline",
        ('conditions=LTX2AudioReferenceCondition("reference.wav")',),
        ("audio-to-video",),
        imports=("LTX2AudioReferenceCondition",),
    ),
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        repo_id: The repository, or a folder that holds the same files.
        origin: What was trained.
        is_lora: Whether the result is an adapter; otherwise a whole transformer.
        strategy: Name of the training strategy.
        settings: Rows of the table of settings, by name.
        call: Arguments of size and steps that the samples were made with, by the names of the pipelines' arguments.
        samples: Samples, in the order in which they are shown.
        trigger: What a prompt says to make use of it; `None` for nothing.
        lora: What the file of an adapter says about itself.
    """

    repo_id: str
    origin: Origin
    is_lora: bool
    strategy: str
    settings: Mapping[str, str | int | float]
    call: Mapping[str, int | float]
    samples: Sequence[CardSample] = ()
    trigger: str | None = None
    lora: LoraMetadata | None = None

    @property
    def use(self) -> Call:
        """How it is used."""
        return _CALLS.get(self.strategy, CALLS["LTX2Pipeline"])

    @property
    def prompt(self) -> str:
        """A prompt to try it with."""
        return with_trigger(self.samples[0].prompt if self.samples else PROMPT, self.trigger)


def card_facts(
    config: "TrainingConfig",
    repo_id: str,
    samples: Sequence[CardSample] = (),
    trigger: str | None = None,
    lora: LoraMetadata | None = None,
) -> CardFacts:
    """What the settings of a training run say about its result."""
    settings, validation = config.optimization, config.validation
    rows: dict[str, str | int | float] = {
        "Training": "LoRA"
        if config.lora is not None and config.model.training_mode == "lora"
        else "whole transformer",
        "Strategy": config.training_strategy.name,
    }
    if config.model.training_mode == "lora" and config.lora is not None:
        targets = config.lora.target_modules
        rows |= {"Rank": config.lora.rank, "Alpha": config.lora.alpha}
        rows["Target modules"] = targets if isinstance(targets, str) else ", ".join(targets)
    rows |= {
        "Steps": settings.steps,
        "Learning rate": settings.learning_rate,
        "Batch size": settings.batch_size,
        "Gradient accumulation": settings.gradient_accumulation_steps,
        "Optimiser": settings.optimizer_type,
        "Learning rate schedule": settings.scheduler_type,
        "Mixed precision": config.acceleration.mixed_precision_mode or "no",
        "Quantisation": config.acceleration.quantization or "none",
        "Seed": config.seed,
    }
    width, height, num_frames = validation.video_dims
    call = {"width": width, "height": height, "num_frames": num_frames, "frame_rate": validation.frame_rate}
    call["num_inference_steps"] = validation.inference_steps
    rows |= {} if lora is None else dict(reference_rows(lora))
    base = origin(checkpoint_path(str(config.model.model_path)))
    is_lora = config.model.training_mode == "lora"
    return CardFacts(repo_id, base, is_lora, config.training_strategy.name, rows, call, samples, trigger, lora)


def local_sample(file: Path, prompt: str, folder: Path) -> CardSample:
    """A sample where it lies, as a card in `folder` shows it."""
    name = Path(os.path.relpath(file, folder)).as_posix()
    return CardSample(prompt, name, name if file.suffix == ".png" else None)


def recorded_trigger(data_root: Path) -> str | None:
    """The word that stands before all captions of a processed dataset; `None` if there is none, or no record of it."""
    # Needed once, and slow to import.
    from ..data.processing import SETTINGS_FILE

    settings = precomputed_folder(data_root) / SETTINGS_FILE
    return read_object(settings).get("lora_trigger") if settings.is_file() else None


def run_card(
    config: "TrainingConfig", name: str, folder: Path, samples: Sequence[CardSample] = (), trigger: str | None = None
) -> Card:
    """The card of what a run made.

    Args:
        config: Its settings.
        name: The repository, or the folder that the card lies in.
        folder: Where the weights are.
        samples: What the card shows.
        trigger: What a prompt says to make use of the weights, default what the dataset was processed with.
    """
    file = folder / LORA_WEIGHT_NAME
    lora = load_lora(file).metadata if config.model.training_mode == "lora" and file.is_file() else None
    trigger = recorded_trigger(config.data.preprocessed_data_root) if trigger is None else trigger
    return training_card(card_facts(config, name, samples, trigger, lora))


def model_card(facts: CardFacts) -> ModelCard:
    """The card, with metadata and text."""
    return training_card(facts).model_card


def training_card(facts: CardFacts) -> Card:
    """The card as what is saved and uploaded with it."""
    kind = "LoRA" if facts.is_lora else "fine-tuned transformer"
    said = f"A {kind} for {facts.origin.shown}, trained with ltx2-diffusers."
    settings = f"## Training\n\n{table(['Setting', 'Value'], facts.settings.items())}"
    whole = f"All settings: [{CONFIG_NAME}]({CONFIG_NAME})."
    prompts = "\n".join(f"- {sample.prompt}" for sample in facts.samples)
    examples = f"## Example prompts\n\n{prompts}" if prompts else ""
    return Card(
        Path(facts.repo_id).name,
        [
            said,
            trigger_section(facts.trigger),
            _grid(facts.samples),
            _script(facts).section,
            settings,
            whole,
            examples,
        ],
        facts.origin,
        [*(LORA_TAGS if facts.is_lora else ()), *CLIP_TAGS, "diffusers-training", *facts.use.tags],
        "adapter" if facts.is_lora else "finetune",
        facts.use.task,
        facts.trigger,
        [{"text": sample.prompt, "output": {"url": sample.picture or sample.file}} for sample in facts.samples],
    )


def _grid(samples: Sequence[CardSample]) -> str:
    """A table of samples with their prompts, and links to the files with their sound."""
    if not samples:
        return ""
    columns = min(len(samples), COLUMNS)
    cells = [_shown(sample) for sample in samples]
    cells += [" "] * (-len(cells) % columns)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return f"## Samples\n\n{table([' '] * columns, rows)}"


def _shown(sample: CardSample) -> str:
    prompt = f"<details><summary>prompt</summary>{escape(sample.prompt)}</details>"
    kind = Path(sample.file).suffix[1:]
    link = f'<a href="{sample.file}">{kind}</a>' if sample.file != sample.picture else ""
    picture = "" if sample.picture is None else f'<img src="{sample.picture}" alt="sample" />'
    return " ".join(part for part in (picture, link, prompt) if part)


def _script(facts: CardFacts) -> Script:
    """The script that loads the weights and makes a clip, or a sound."""
    script = on_base(facts.use.pipeline, facts.origin)
    script = replace(script, call=facts.use, size=facts.call, prompt=facts.prompt)
    if facts.is_lora:
        settings = None if facts.lora is None else reference_settings(facts.lora)
        return with_lora(replace(script, settings=settings), facts.repo_id)
    return replace(
        script,
        imports=["LTX2VideoTransformer3DModel"],
        before=[
            "transformer = LTX2VideoTransformer3DModel.from_pretrained(",
            f'    {quoted(facts.repo_id)}, subfolder="transformer"{", dtype=torch.bfloat16" * script.half}',
            ")",
        ],
        loaded=["transformer=transformer"],
    )

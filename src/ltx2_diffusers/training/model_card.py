"""The model card of what a training run made: base model, settings, samples, and a script that uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import ModelCard

from ..adapters.mixin import LORA_TAGS
from ..checkpoints.packaged import PACKAGED
from ..publishing import Card, card_text, hub_id, usage

if TYPE_CHECKING:
    from .config import TrainingConfig

CONFIG_NAME = "training_config.yaml"
COLUMNS = 4
"""Most samples in a row."""
# Beginnings of the names of original files, and where their models lie on the Hub in the layout that pipelines load.
_PUBLISHED = {"ltx-2-19b": "Lightricks/LTX-2", "ltx-2.3-22b": "diffusers/LTX-2.3-Diffusers"}
_PICTURES = (".gif", ".png")


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


class Recipe(NamedTuple):
    """How a card shows what a strategy trains.

    Args:
        pipeline: Class of the pipeline.
        arguments: Its arguments beside the prompt, as they are written.
        tags: Tags of its tasks.
        task: The Hub's name of the task.
        sized: Whether the call takes width, height and number of frames.
        imports: Further names that the arguments need.
    """

    pipeline: str = "LTX2Pipeline"
    arguments: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    task: str = "text-to-video"
    sized: bool = True
    imports: tuple[str, ...] = ()


_REFERENCE = 'reference_conditions=LTX2ReferenceCondition("reference.mp4")'
_VOICE = 'conditions=LTX2AudioReferenceCondition("reference.wav")'
# What every strategy that is not listed trains, a user's own among them, is used like text to video.
_RECIPES = {
    "image_to_video": Recipe("LTX2ImageToVideoPipeline", ('image="first_frame.png"',), ("image-to-video",)),
    "video_to_video": Recipe(
        "LTX2InContextPipeline",
        (_REFERENCE,),
        ("in-context", "ic-lora", "video-to-video"),
        "video-to-video",
        imports=("LTX2ReferenceCondition",),
    ),
    "audio_to_video": Recipe(
        "LTX2AudioToVideoPipeline", ('audio="sound.wav"', "two_stage=False"), ("audio-to-video",)
    ),
    "video_to_audio": Recipe(
        "LTX2VideoToAudioPipeline", ('video="clip.mp4"',), ("video-to-audio",), "text-to-audio", sized=False
    ),
    "text_to_audio": Recipe(
        "LTX2TextToAudioPipeline", ("duration_s=5.0",), ("text-to-audio",), "text-to-audio", sized=False
    ),
    "retake": Recipe(
        "LTX2RetakePipeline",
        ('video="clip.mp4"', "start_s=0.5", "end_s=1.0"),
        ("video-to-video",),
        "video-to-video",
        sized=False,
    ),
    "inpainting": Recipe(
        "LTX2RetakePipeline",
        ('video="clip.mp4"', "start_s=0.0", "end_s=1.0", 'region=Image.open("mask.png")'),
        ("video-to-video", "inpainting"),
        "video-to-video",
        sized=False,
    ),
    "extension": Recipe(
        "LTX2ExtendPipeline", ('video="clip.mp4"',), ("video-to-video",), "video-to-video", sized=False
    ),
    "reference_audio": Recipe(
        "LTX2ConditionPipeline", (_VOICE,), ("audio-to-video",), imports=("LTX2AudioReferenceCondition",)
    ),
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        repo_id: The repository, or a folder that holds the same files.
        base_model: What was trained: a Hub id, a folder, or the name of a packaged checkpoint.
        is_lora: Whether the result is an adapter; otherwise a whole transformer.
        strategy: Name of the training strategy.
        settings: Rows of the table of settings, by name.
        call: Arguments of size and steps that the samples were made with, by the names of the pipelines' arguments.
        samples: Samples, in the order in which they are shown.
        trigger: What a prompt says to make use of it; `None` for nothing.
    """

    repo_id: str
    base_model: str
    is_lora: bool
    strategy: str
    settings: Mapping[str, str | int | float]
    call: Mapping[str, int | float]
    samples: Sequence[CardSample] = ()
    trigger: str | None = None

    @property
    def recipe(self) -> Recipe:
        """How it is used."""
        return _RECIPES.get(self.strategy, Recipe())

    @property
    def prompt(self) -> str:
        """A prompt to try it with."""
        prompt = self.samples[0].prompt if self.samples else "A lighthouse on a cliff at dusk, waves below."
        return f"{self.trigger} {prompt}" if self.trigger and self.trigger not in prompt else prompt


def card_facts(
    config: "TrainingConfig", repo_id: str, samples: Sequence[CardSample] = (), trigger: str | None = None
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
    base = published_base(config.model.model_path)
    is_lora = config.model.training_mode == "lora"
    return CardFacts(repo_id, base, is_lora, config.training_strategy.name, rows, call, samples, trigger)


def published_base(model_path: str) -> str:
    """What a card calls the base model: a Hub id where one is known, else the name of the file or folder without its place."""
    if hub_id(model_path) is not None or model_path in PACKAGED:
        return model_path
    name = Path(model_path).name
    return next((known for begin, known in _PUBLISHED.items() if name.startswith(begin)), name)


def model_card(facts: CardFacts) -> ModelCard:
    """The card, with metadata and text; `card.save(path)` writes it."""
    return training_card(facts).new()


def training_card(facts: CardFacts) -> Card:
    """The card as what is uploaded with it."""
    widget = [{"text": sample.prompt, "output": {"url": sample.picture or sample.file}} for sample in facts.samples]
    tags = [*(LORA_TAGS if facts.is_lora else ()), "diffusers-training", *facts.recipe.tags]
    base = hub_id(facts.base_model)
    return Card(_text(facts), tags, base, facts.trigger, widget, facts.recipe.task)


def _text(facts: CardFacts) -> str:
    kind = "LoRA" if facts.is_lora else "fine-tuned transformer"
    base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    said = (
        f"A {kind} for {base if hub_id(facts.base_model) else f'`{facts.base_model}`'}, trained with ltx2-diffusers."
    )
    trigger = f"Say `{facts.trigger}` in the prompt." if facts.trigger else ""
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.settings.items()]
    table = "\n".join(["## Training", "", "| Setting | Value |", "|---|---|", *rows])
    whole = f"All settings: [{CONFIG_NAME}]({CONFIG_NAME})."
    prompts = "\n".join(f"- {sample.prompt}" for sample in facts.samples)
    examples = f"## Example prompts\n\n{prompts}" if prompts else ""
    title = Path(facts.repo_id).name
    return card_text(title, said, trigger, _grid(facts.samples), usage(_script(facts)), table, whole, examples)


def _cell(value: str | int | float) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _grid(samples: Sequence[CardSample]) -> str:
    """A table of samples with their prompts, and links to the files with their sound."""
    if not samples:
        return ""
    columns = min(len(samples), COLUMNS)
    cells = [_shown(sample) for sample in samples]
    cells += [" "] * (-len(cells) % columns)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    head = ["|" + " |" * columns, "|" + "---|" * columns]
    return "\n".join(["## Samples", "", *head, *(f"| {' | '.join(row)} |" for row in rows)])


def _shown(sample: CardSample) -> str:
    prompt = f"<details><summary>prompt</summary>{_cell(escape(sample.prompt))}</details>"
    kind = Path(sample.file).suffix[1:]
    link = f'<a href="{sample.file}">{kind}</a>' if sample.file != sample.picture else ""
    picture = "" if sample.picture is None else f'<img src="{sample.picture}" alt="sample" />'
    return " ".join(part for part in (picture, link, prompt) if part)


def _script(facts: CardFacts) -> list[str]:
    """Statements that load the weights and make a clip, or a sound."""
    recipe, packaged = facts.recipe, facts.base_model in PACKAGED
    names = [recipe.pipeline, *recipe.imports, *(["packaged_checkpoint"] if packaged else [])]
    names += [] if facts.is_lora else ["LTX2VideoTransformer3DModel"]
    base = f'packaged_checkpoint("{facts.base_model}")' if packaged else f'"{facts.base_model}"'
    statements = ["import torch", *(["from PIL import Image"] if "Image.open" in "".join(recipe.arguments) else [])]
    statements += [f"from ltx2_diffusers import {', '.join(sorted(names))}", ""]
    given = ""
    if not facts.is_lora:
        statements.append("transformer = LTX2VideoTransformer3DModel.from_pretrained(")
        statements += [f'    "{facts.repo_id}", subfolder="transformer", dtype=torch.bfloat16', ")"]
        given = "transformer=transformer, "
    statements.append(f"pipe = {recipe.pipeline}.from_pretrained({base}, {given}dtype=torch.bfloat16)")
    statements += ["if torch.cuda.is_available():", "    pipe.enable_model_cpu_offload()"]
    statements += [f'pipe.load_lora_weights("{facts.repo_id}")'] if facts.is_lora else []
    sizes = {} if recipe.sized else {"width": 0, "height": 0, "num_frames": 0, "frame_rate": 0}
    call = [f"{name}={value!r}" for name, value in facts.call.items() if name not in sizes]
    arguments = [f"prompt={facts.prompt!r}", *recipe.arguments, *call]
    suffix = "wav" if recipe.pipeline == "LTX2TextToAudioPipeline" else "mp4"
    return [
        *statements,
        "output = pipe(",
        *(f"    {one}," for one in arguments),
        ")",
        f'output.save("sample.{suffix}")',
    ]

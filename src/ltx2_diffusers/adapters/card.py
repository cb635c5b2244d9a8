"""The model card of a LoRA: what its file says about it, and how it is loaded here and in diffusers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_writable, replaced_folder
from ..checkpoints.card import sized_script, with_settings
from ..checkpoints.folder import is_distilled
from ..checkpoints.packaged import PACKAGED
from ..guidance.presets import preset
from ..publishing.card import CLIP_TAGS, Card, Origin, put_card, table
from ..publishing.scripts import LORA_TAGS, Script, quoted, trigger_section, usage, with_trigger
from .file import LoraFile, LoraMetadata, load_lora, write_lora

# Of a folder with more files than these, only so many are read for the table of its other LoRAs.
_MOST_OTHERS = 15
_BLOCK = re.compile(r"(.*_blocks)\.\d+\.(.*)")
# The layouts that diffusers reads.
_THEIRS = ("diffusers", "original")
_INDICES = ("model_index.json", "config.json")
_BASE_UNKNOWN = "base-model"


@dataclass(frozen=True)
class LoraFacts:
    """What a card says of a LoRA.

    Args:
        weight_name: Its file.
        lora: What the file holds.
        layout: One of `LORA_FORMATS`.
        origin: What it was trained on.
        trigger: What a prompt says to make use of it.
        others: Other LoRAs in the folder, by the names of their files.
        left_out: How many more files there are.
    """

    weight_name: str
    lora: LoraFile
    layout: str
    origin: Origin = field(default_factory=Origin)
    trigger: str | None = None
    others: tuple[tuple[str, LoraFile], ...] = ()
    left_out: int = 0


def lora_facts(file: Path, folder: Path, layout: str, origin: Origin, trigger: str | None) -> LoraFacts:
    """The facts of a LoRA that was just written.

    Args:
        file: Where it is now.
        folder: Where it is going to be, among others.
        layout, origin, trigger: As in [`LoraFacts`].
    """
    names = sorted(path.name for path in folder.glob("*.safetensors") if path.name != file.name)
    others = tuple(_loras(folder / name for name in names[:_MOST_OTHERS]))
    return LoraFacts(file.name, load_lora(file), layout, origin, trigger, others, len(names[_MOST_OTHERS:]))


def _loras(files: Iterable[Path]) -> Iterable[tuple[str, LoraFile]]:
    """Those files that are LoRAs."""
    for file in files:
        try:
            yield file.name, load_lora(file)
        except (ValueError, OSError):
            continue


def write_with_card(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    header: Mapping[str, str] | None,
    layout: str,
    origin: Origin,
    trigger: str | None,
) -> None:
    """Write a LoRA file and the card of its folder in one step, as [`write_lora`] and [`lora_facts`] take them.

    The folder of a pipeline or a model is described by its own card and gets none.
    """
    folder = path.parent
    check_writable(path)
    with replaced_folder(folder) as temporary:
        file = Path(temporary, path.name)
        write_lora(file, tensors, header)
        if not any((folder / name).is_file() for name in _INDICES):
            put_card(temporary, folder, lambda n: lora_card(lora_facts(file, folder, layout, origin, trigger), n))


def lora_card(facts: LoraFacts, name: str) -> Card:
    """The card of a folder or repository `name` that holds LoRAs."""
    unknown = f"LTX-2; `{_BASE_UNKNOWN}` stands for the model that it was trained on"
    known = facts.origin.shown if facts.origin.name else unknown
    script = _script(facts, name)
    use = script.section
    if facts.layout not in _THEIRS:
        use = f"{usage(script.ours)}\n\ndiffusers does not read this layout."
    sections = [f"A LoRA for {known}.", trigger_section(facts.trigger), use, _settings(facts), _others(facts)]
    tags = (*LORA_TAGS, *CLIP_TAGS, *script.call.tags)
    task = script.call.task
    return Card(name.split("/")[-1], sections, facts.origin, tags, "adapter", task, facts.trigger)


def with_lora(script: Script, name: str, weight_name: str | None = None) -> Script:
    """A script that loads a LoRA from a folder or repository."""
    file = f", weight_name={quoted(weight_name)}" if weight_name else ""
    return replace(script, after=[f"pipe.load_lora_weights({quoted(name)}{file})"])


def on_base(pipeline: str, origin: Origin) -> Script:
    """A script that loads a pipeline of what weights were trained on."""
    base = origin.name or _BASE_UNKNOWN
    is_packaged = base in PACKAGED
    source = f"packaged_checkpoint({quoted(base)})" if is_packaged else quoted(base)
    return replace(sized_script(pipeline, source, base), packaged=is_packaged)


def _script(facts: LoraFacts, name: str) -> Script:
    metadata = facts.lora.metadata
    if is_distilled(facts.weight_name):
        script = replace(on_base("LTX2DistilledPipeline", facts.origin), extra=["two_stage=False"])
        script = with_settings(script, preset("2.0", "distilled"), num_layers=0)
    else:
        pipeline = "LTX2InContextPipeline" if _has_reference(metadata) else "LTX2Pipeline"
        script = replace(on_base(pipeline, facts.origin), settings=reference_settings(metadata))
    script = replace(script, prompt=with_trigger(script.prompt, facts.trigger))
    return with_lora(script, name, facts.weight_name)


def reference_rows(metadata: LoraMetadata) -> list[tuple[str, str]]:
    """What an IC-LoRA says about its references; nothing for another LoRA."""
    if not _has_reference(metadata):
        return []
    side, rate = metadata.reference_downscale_factor, metadata.reference_temporal_scale_factor
    rows = [("Size of the reference", f"1/{side} of the clip's sides" if side > 1 else "that of the clip")]
    return rows + ([("Frame rate of the reference", f"1/{rate} of the clip's")] if rate > 1 else [])


def reference_settings(metadata: LoraMetadata) -> dict[str, int] | None:
    """What diffusers' call has to be told about references, which this package reads in the file."""
    factor = metadata.reference_downscale_factor
    return {"reference_downscale_factor": factor} if factor > 1 else None


def _has_reference(metadata: LoraMetadata) -> bool:
    return any("reference_" in name and text != "None" for name, text in metadata.header.items())


def _settings(facts: LoraFacts) -> str:
    lora = facts.lora
    modules = {f"{component}.{path}": None for component in lora.components for path in lora.modules(component)}
    layers = dict.fromkeys(_BLOCK.sub(r"\2", name) for name in modules)
    rows = [
        ("File", facts.weight_name),
        ("Layout", facts.layout),
        *_numbers(lora),
        ("Modules", len(modules)),
        ("Layers", ", ".join(f"`{layer}`" for layer in layers)),
    ]
    return f"## Settings\n\n{table(['Setting', 'Value'], rows)}"


def _numbers(lora: LoraFile) -> list[tuple[str, Any]]:
    alphas = [alpha for component in lora.components for alpha in lora.network_alphas(component).values()]
    ends = " to ".join(f"{alpha:g}" for alpha in sorted({min(alphas), max(alphas)}))
    return [("Rank", lora.metadata.rank), ("Alpha", ends), *reference_rows(lora.metadata)]


def _others(facts: LoraFacts) -> str:
    """The other files of the folder."""
    if not facts.others:
        return ""
    rows = [
        (name, ", ".join(f"{what.lower()} {value}" for what, value in _numbers(lora))) for name, lora in facts.others
    ]
    more = f"\n\nAnd {facts.left_out} more files." if facts.left_out else ""
    return f"## Other LoRAs in this folder\n\n{table(['File', 'Settings'], rows)}{more}"

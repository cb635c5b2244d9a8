"""Loading of LTX-Video: folders of diffusers, original files, and the settings that a checkpoint has."""

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

from ... import publishing
from ...checkpoints.class_names import ltx_video_class
from ...checkpoints.config_ltx_video import vae_layout
from ...checkpoints.hub_files import local_file
from ...checkpoints.json_files import read_object
from ...checkpoints.original import OriginalCheckpoint
from ...checkpoints.packaged import checkpoint_path
from ...checkpoints.pipeline_file import HUB_OPTIONS
from ...checkpoints.single_file import load_component
from ...pipelines.generation import LTX2GenerationPipeline
from ...prompts import TextEncoder
from ...publishing.scripts import fenced
from .presets import LTXVideoPreset, ScheduleSettings, choose_preset, ltx_video_preset, of_depth, read_settings
from .text import T5TextEncoder

# What an original file says beside its weights, kept in the configuration of its transformer: it goes with it from pipeline
# to pipeline and into saved folders. diffusers leaves names with an underscore alone.
FACTS = "_ltx_video"
Config = Mapping[str, Any]
_SCHEDULE = {field.name for field in fields(ScheduleSettings)}
# Components that may be given by the name of a file or folder.
_PARTS = {"latent_upsampler": "latent_upsampler", "stage_2_transformer": "transformer"}


def file_facts(checkpoint: OriginalCheckpoint, name: str) -> dict[str, Any]:
    """What a file of LTX-Video says beside its weights; empty for one without metadata.

    Args:
        checkpoint: The file.
        name: What it is called, which tells the version where nothing else does.
    """
    config = checkpoint.metadata_config
    facts: dict[str, Any] = {"name": name}
    if "transformer" in config:
        facts["causal_temporal_positioning"] = bool(config["transformer"].get("causal_temporal_positioning", False))
    if "scheduler" in config:
        section = {name: value for name, value in config["scheduler"].items() if name in _SCHEDULE}
        section["sampler"] = section.get("sampler") or "Uniform"
        facts["schedule"] = asdict(ScheduleSettings(**section))
    if config.get("allowed_inference_steps"):
        facts["allowed_inference_steps"] = list(config["allowed_inference_steps"])
    return facts


def settings_at(path: Path) -> LTXVideoPreset | None:
    """The settings of a checkpoint that is not loaded, `None` for a part of one.

    Args:
        path: A folder in diffusers' layout, or an original file.
    """
    if path.is_dir():
        files = {n: path / n / "config.json" for n in ("transformer", "vae")}
        files["scheduler"] = path / "scheduler" / "scheduler_config.json"
        configs: dict[str, Any] = {name: read_object(file) for name, file in files.items() if file.is_file()}
        name, preset = str(path), read_object(path / "model_index.json").get("preset")
    else:
        checkpoint, name, preset = OriginalCheckpoint(path, mmap=True), path.name, None
        held = [part for part in ("transformer", "vae") if part in checkpoint.components()]
        configs = {part: checkpoint.config(part, "ltx_video") for part in held}
        configs.get("transformer", {})[FACTS] = file_facts(checkpoint, name)
    if not {"transformer", "vae"} <= configs.keys():
        return None
    return settled_preset(configs["transformer"], configs["vae"], configs.get("scheduler"), preset, name)


def settled_preset(
    transformer: Config, vae: Config, scheduler: Config | None = None, preset: str | None = None, name: str = ""
) -> LTXVideoPreset:
    """The settings of a checkpoint: those of a preset, with what its file says of itself.

    Args:
        transformer, vae, scheduler: Configurations of its components.
        preset: Name of the preset. Default chosen by the components, see [`choose_preset`].
        name: Where the checkpoint was loaded from.
    """
    facts = dict(transformer.get(FACTS) or {})
    name = facts.pop("name", name)
    if preset is not None:
        found = of_depth(ltx_video_preset(preset), transformer["num_layers"])
    else:
        told: dict[str, Any] = {"is_distilled": bool(facts.get("allowed_inference_steps")) or None, "name": name}
        told["is_stochastic"] = bool(scheduler and scheduler.get("stochastic_sampling"))
        found = choose_preset(vae_layout(vae), transformer["num_layers"], **told)
    return replace(found, **read_settings(facts))


def new_scheduler(schedule: ScheduleSettings) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler of a schedule, as folders in its layout have it."""
    if schedule.shifting != "SD3":
        return FlowMatchEulerDiscreteScheduler()
    anchors = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    terminal = schedule.target_shift_terminal
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal, **anchors)


def load_part(component: str, place: str | os.PathLike, dtype: torch.dtype | None = None) -> Any:
    """A component of LTX-Video from an original file or from its folder.

    Args:
        component: `"transformer"`, `"vae"` or `"latent_upsampler"`.
        place: The file or folder, or a Hub link to a file.
        dtype: Data type of its weights, default as stored.
    """
    cls, folder = ltx_video_class(component), Path(checkpoint_path(os.fspath(place)))
    if folder.is_dir():
        inner = folder / component
        return cls.from_pretrained(inner if inner.is_dir() else folder, **({} if dtype is None else {"dtype": dtype}))
    file = local_file(place)
    model = load_component(cls, file, dtype=dtype)
    if component == "transformer":
        model.register_to_config(**{FACTS: file_facts(OriginalCheckpoint(file), Path(place).name)})
    return model


class LTXVideoLoading(LTX2GenerationPipeline):
    """How a pipeline of LTX-Video is loaded, and what it takes from its checkpoint."""

    family = "ltx_video"
    _settings = ("preset",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline from a folder of LTX-Video in diffusers' layout or from the Hub.

        Takes the arguments of diffusers' method, of any of its LTX-Video pipelines' folders. `latent_upsampler` and
        `stage_2_transformer` may also be names of folders or of original files. `preset` names the settings of the
        checkpoint; by default they follow from its networks, what it says of itself, and its name.

        Raises:
            ValueError: As `from_pretrained` of [`LTX2Pipeline`] does.
        """
        return super().from_pretrained(pretrained_model_name_or_path, **cls._opened(kwargs))

    @classmethod
    def from_single_file(  # type: ignore[override]  # its models are published in one file each
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        *,
        text_encoder: Any,
        tokenizer: Any = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline from an original file of LTX-Video, which holds the transformer and the video autoencoder.

        Args:
            pretrained_model_link_or_path: The safetensors file, or a Hub link to it.
            text_encoder: The T5 encoder, or a folder or Hub id that holds it (and, unless given, its tokenizer). `None` for a
                pipeline that is given precomputed states.
            tokenizer: The tokenizer of the text encoder.
            torch_dtype: Data type of all components, default that of the file.
            kwargs: Components to use in place of the file's, `latent_upsampler` and `stage_2_transformer` also as names of
                files or folders, `preset`, `text_encoder_residency`, and options of
                [`~ltx2_diffusers.checkpoints.pipeline_file.load_pipeline_components`].

        Raises:
            ValueError: If the file is of another family, holds float8 weights, or says what diffusers' networks do not do.
        """
        if kwargs.get("block_streaming") is not None:
            raise ValueError(
                "`block_streaming` is for transformers of LTX-2; leave it out, and use enable_group_offload() of the transformer"
            )
        path, of_hub = pretrained_model_link_or_path, {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        file = local_file(path, **of_hub)
        facts = file_facts(OriginalCheckpoint(file), Path(path).name)
        schedule = ScheduleSettings(**facts.get("schedule", {}))
        options = {"scheduler": new_scheduler(schedule), **cls._opened({"torch_dtype": torch_dtype, **kwargs})}
        pipeline = super().from_single_file(file, text_encoder=text_encoder, tokenizer=tokenizer, **options)
        if "transformer" not in kwargs:
            pipeline.transformer.register_to_config(**{FACTS: facts})
        return pipeline

    @classmethod
    def _opened(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a loader with the components that are given by name."""
        takes = inspect.signature(cls.__init__).parameters
        dtype = kwargs.get("dtype") if kwargs.get("dtype") is not None else kwargs.get("torch_dtype")
        named = {n: kwargs[n] for n in _PARTS if n in takes and isinstance(kwargs.get(n), (str, os.PathLike))}
        shared = dtype if isinstance(dtype, torch.dtype) else None
        return kwargs | {name: load_part(_PARTS[name], place, shared) for name, place in named.items()}

    @property
    def settings(self) -> LTXVideoPreset:
        """Settings of the checkpoint."""
        self.require("transformer", "vae")
        scheduler = self.scheduler.config if self.has("scheduler") else None
        said = (self.config.get("preset"), self.config.get("_name_or_path") or "")
        return settled_preset(self.transformer.config, self.vae.config, scheduler, *said)

    def _card(self, name: str) -> publishing.Card:
        """The card of a folder or repository that holds this pipeline."""
        preset, made = self.settings, publishing.origin(self.config.get("_name_or_path"))
        loading = f'pipe = LTXVideoPipeline.from_pretrained("{name}")'
        call = f'pipe("{publishing.PROMPT}", save_path="clip.mp4")'
        script = fenced(["from ltx2_diffusers import LTXVideoPipeline", "", loading, call])
        said = f"A pipeline of LTX-Video {preset.version}, {preset.size} {preset.kind}; its calls take the settings `{preset.name}`."
        return publishing.Card(name.split("/")[-1], [said, script], made)

    def to_json_string(self) -> str:
        """The index of a saved folder, which names the pipeline of diffusers whose positions are those of the checkpoint."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = "LTXConditionPipeline" if self.settings.causal_temporal_positioning else "LTXPipeline"
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _text_encoder(self, device: torch.device | None = None) -> TextEncoder:
        width = self.transformer.config.caption_channels if self.has("transformer") else None
        model: Any = self._language_model
        return T5TextEncoder(self.tokenizer, model, None, device or self._execution_device, text_width=width)  # type: ignore[arg-type]

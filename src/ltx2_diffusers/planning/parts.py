"""What a checkpoint is made of, as far as memory goes: models without values, and how their weights are stored."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.class_names import COMPONENT_OF, PIPELINE_COMPONENTS, class_name_for, to_ours
from ..checkpoints.configs import to_diffusers
from ..checkpoints.folder import is_distilled, text_encoder_folder
from ..checkpoints.json_files import read_config, read_object
from ..checkpoints.original import OriginalCheckpoint
from ..checkpoints.packaged import checkpoint_path, meant_instead
from ..checkpoints.pipeline_folder import INDEX
from ..checkpoints.reference_configs import reference_config
from ..checkpoints.safetensors_io import read_folder
from ..checkpoints.versions import model_kind, model_version
from ..guidance.presets import Preset, preset
from ..quantization.configs import NAMES, FP8Method

PUBLISHED = {"ltx-2-19b": "2.0", "ltx-2.3-22b": "2.3"}
"""Names of published models that can be planned for without their files, and their versions."""
DIFFUSION = "diffusion_decoder"
_READING, _DECODING = ("text_encoder", "connectors", "duration_head"), ("vae", "audio_vae", "vocoder")
COMPONENTS = (*_READING, "transformer", "latent_upsampler", *_DECODING, DIFFUSION)
"""Components that hold weights, in the order of a call."""
ELSEWHERE = {"upsampler": "latent_upsampler", DIFFUSION: DIFFUSION}
"""Arguments that name a file or folder beside the checkpoint, and the component in it."""
GEMMA_3_12B = {
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 896,
    },
}
"""Sizes of the language model that the published checkpoints read prompts with."""
_TEXT_CLASS = "Gemma3ForConditionalGeneration"


@dataclass(frozen=True)
class ModelParts:
    """The components of a checkpoint, of which nothing is loaded.

    Args:
        name: What it is called.
        configs: Configuration of each component; a mapping that names its class as `_class_name`.
        preset: Its reference settings.
        dtype: Type of the weights that are not stored in fewer bits.
        stored: Bytes of each component in files.
        storage: How the transformer is stored, `"fp8_cast"` or `"fp8_scaled_mm"`; default as real numbers.
        float8: Names of the layers of the transformer that are stored so.
        has_second: Whether the second stage has a transformer of its own.
    """

    name: str
    configs: Mapping[str, Mapping[str, Any]]
    preset: Preset
    dtype: torch.dtype
    stored: Mapping[str, int] = field(default_factory=dict)
    storage: str | None = None
    float8: frozenset[str] = frozenset()
    has_second: bool = False

    @cached_property
    def components(self) -> list[str]:
        """Names of the components, in the order of a call."""
        return [name for name in COMPONENTS if name in self.configs]

    def depth(self, component: str) -> int:
        """Blocks of a transformer or language model."""
        config = self.configs[component]
        if component == "text_encoder":
            return int(config.get("text_config", config)["num_hidden_layers"])
        return int(config.get("num_layers", 48))

    def model(self, component: str, num_blocks: int | None = None) -> nn.Module:
        """A component on the meta device, in evaluation mode.

        Args:
            component: Its name.
            num_blocks: Blocks of a transformer or language model, or of each stage of a diffusion decoder, that is made shorter;
                default all.
        """
        config = dict(self.configs[component])
        name = config.pop("_class_name")
        if num_blocks is not None and component == "text_encoder":
            of_text = {key: value for key, value in config["text_config"].items() if key != "layer_types"}
            config["text_config"] = {**of_text, "num_hidden_layers": num_blocks}
        elif num_blocks is not None and component == DIFFUSION:
            config["decoder_stage_depths"] = [num_blocks] * len(config["decoder_stage_depths"])
        elif num_blocks is not None:
            config["num_layers"] = num_blocks
        with torch.device("meta"):
            model = _text_model(name, config) if component == "text_encoder" else own_class(name).from_config(config)
        # diffusers' own method warns of what does not matter to models without values.
        return nn.Module.to(model, self.dtype).eval().requires_grad_(False)


def own_class(name: str) -> Any:
    """The class of a component of this package."""
    import ltx2_diffusers

    return getattr(ltx2_diffusers, name)


def _text_model(name: str, config: Mapping[str, Any]) -> Any:
    import transformers

    cls = getattr(transformers, name)
    return cls._from_config(cls.config_class(**config), attn_implementation="sdpa")


def parts_of(
    checkpoint: str | os.PathLike,
    text_encoder: str | os.PathLike | None = None,
    upsampler: str | os.PathLike | None = None,
    dtype: torch.dtype = torch.bfloat16,
    diffusion_decoder: str | os.PathLike | None = None,
) -> ModelParts:
    """What a checkpoint is made of, from configurations and headers of files alone.

    Args:
        checkpoint: A folder in diffusers' layout, an original safetensors file, a packaged name, or a name of `PUBLISHED`.
        text_encoder: Folder of the language model of an original file; default the sizes of Gemma 3 12B.
        upsampler: File or folder of the upsampler, if the checkpoint has none; default that of a published model.
        dtype: Type that floating-point weights are loaded as.
        diffusion_decoder: File or folder of the decoder of LTX-2.5, if the checkpoint has none.

    Raises:
        ValueError: If there is no such checkpoint, or it holds no whole model.
    """
    others = {"upsampler": upsampler, DIFFUSION: diffusion_decoder}
    if str(checkpoint) in PUBLISHED:
        for argument, given in {"text_encoder": text_encoder, **others}.items():
            if given is not None:
                raise ValueError(
                    f"`{argument}` is {str(given)!r}, but {checkpoint} is a name that stands for published files alone; plan "
                    "with files, or leave it out"
                )
        return _published(str(checkpoint), dtype)
    path = checkpoint_path(os.fspath(checkpoint))
    if not path.exists():
        raise ValueError(
            f"there is no file or folder {str(checkpoint)!r} (a Hub repository has to be downloaded first); published "
            f"models can be planned for by the names {', '.join(PUBLISHED)}; {meant_instead(str(checkpoint))}"
        )
    if path.is_dir() and text_encoder is not None:
        raise ValueError(
            f"`text_encoder` is {str(text_encoder)!r}, but belongs to original files; {checkpoint} brings its own, so leave it out"
        )
    parts = _of_folder(path, str(checkpoint), dtype) if path.is_dir() else _of_file(path, text_encoder, dtype)
    for argument, place in others.items():
        if place is not None:
            parts = _with_another(parts, argument, Path(place))
    return parts


def _published(name: str, dtype: torch.dtype) -> ModelParts:
    metadata = reference_config(PUBLISHED[name])
    configs = {name: _named(name, to_diffusers(name, metadata)) for name in PIPELINE_COMPONENTS}
    # The defaults of an upsampler's constructor are the published sizes.
    configs["latent_upsampler"] = _named("latent_upsampler", {})
    configs["text_encoder"] = {"_class_name": _TEXT_CLASS, **GEMMA_3_12B}
    return ModelParts(name, configs, preset(PUBLISHED[name]), dtype)


def _named(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "_class_name": class_name_for(component, config)}


def _of_folder(path: Path, name: str, dtype: torch.dtype) -> ModelParts:
    index = path / INDEX
    if not index.is_file():
        raise ValueError(f"{str(path)!r} has no {INDEX}; give the folder of a whole pipeline")
    listed = {key: entry for key, entry in read_object(index).items() if isinstance(entry, list) and entry[0]}
    configs, stored, entries = {}, {}, {}
    for component in COMPONENTS:
        file = path / component / "config.json"
        if not file.is_file():
            continue
        config = read_config(file)
        known = listed.get(component, (None, config.get("_class_name") or _TEXT_CLASS))
        configs[component] = {**config, "_class_name": to_ours(*known)[1] if known[0] else known[1]}
        stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
        entries[component] = read_folder(path / component, stem)
        stored[component] = _num_bytes(entries[component])
    _check_whole(configs, name)
    storage = _storage(configs, name)
    float8 = frozenset() if storage is None else _float8_layers(entries["transformer"])
    scheduler = path / "scheduler" / "scheduler_config.json"
    kind = model_kind(read_object(scheduler) if scheduler.is_file() else {})
    configs = {component: _ours(config) for component, config in configs.items()}
    found = preset(model_version(configs["transformer"]), kind)
    return ModelParts(name, configs, found, dtype, stored, storage, float8, "stage_2_transformer" in listed)


def _storage(configs: dict[str, dict[str, Any]], name: str) -> str | None:
    """How the transformer of a folder is quantised; its configuration is taken from those that models are built from."""
    storage = None
    for component, config in configs.items():
        method = (config.pop("quantization_config", None) or {}).get("quant_method")
        if method is not None and (component != "transformer" or method not in NAMES):
            raise ValueError(
                f"the {component} of {name} is quantised as {method!r}, whose memory no plan counts; plan with a checkpoint that "
                f"is not, or whose transformer is {' or '.join(NAMES)}"
            )
        storage = storage or method
    return storage


def _ours(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that names our class."""
    name = config["_class_name"]
    ours = class_name_for(COMPONENT_OF[name], config) if name in COMPONENT_OF else name
    return {**config, "_class_name": ours}


def _num_bytes(entries: Mapping[str, Any]) -> int:
    return sum(entry.num_bytes for entry in entries.values())


def _of_file(path: Path, text_encoder: str | os.PathLike | None, dtype: torch.dtype) -> ModelParts:
    checkpoint = OriginalCheckpoint(path)
    names = [name for name in COMPONENTS if name in checkpoint.components()]
    configs = {name: _named(name, checkpoint.config(name)) for name in names}
    entries = {name: checkpoint.component(name, keep_quantized=True) for name in names}
    stored = {name: _num_bytes(part) for name, part in entries.items()}
    configs["text_encoder"] = {"_class_name": _TEXT_CLASS, **GEMMA_3_12B}
    if text_encoder is not None:
        folder = text_encoder_folder(Path(text_encoder))
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"`text_encoder` is {str(text_encoder)!r}, which is no folder of a language model (of a Hub repository, "
                "download it first)"
            )
        config = read_config(folder / "config.json")
        configs["text_encoder"] = {**config, "_class_name": (config.get("architectures") or [_TEXT_CLASS])[0]}
        stored["text_encoder"] = _num_bytes(read_folder(folder, "model"))
    _check_whole(configs, str(path))
    kind = "distilled" if is_distilled(path) else "dev"
    found = preset(model_version(configs["transformer"]), kind)
    scaled = frozenset(
        name for name in _float8_layers(entries["transformer"]) if f"{name}.weight_scale" in entries["transformer"]
    )
    return ModelParts(str(path), configs, found, dtype, stored, FP8Method.SCALED_MM.value if scaled else None, scaled)


def _float8_layers(entries: Mapping[str, Any]) -> frozenset[str]:
    """Layers whose weights are stored in eight bits."""
    weights = {name: entry for name, entry in entries.items() if name.endswith(".weight")}
    return frozenset(name.removesuffix(".weight") for name, entry in weights.items() if entry.dtype.itemsize == 1)


def _with_another(parts: ModelParts, argument: str, path: Path) -> ModelParts:
    """The parts with the component of an argument, from a file or folder of its own."""
    component, path = ELSEWHERE[argument], component_folder(path, argument)
    if path.is_dir():
        config, size = read_config(path / "config.json"), _num_bytes(read_folder(path))
    else:
        file = OriginalCheckpoint(path)
        config, size = file.config(component), _num_bytes(file.component(component))
    configs = {**parts.configs, component: _named(component, config)}
    return replace(parts, configs=configs, stored={**parts.stored, component: size})


def component_folder(path: Path, argument: str) -> Path:
    """Where the component is that one of `ELSEWHERE` names: a file, its folder, or that of a pipeline.

    Raises:
        ValueError: If a folder holds none.
    """
    component = ELSEWHERE[argument]
    if path.is_file():
        return path
    for place in (path, path / component):
        config = place / "config.json"
        if config.is_file() and COMPONENT_OF.get(read_config(config).get("_class_name", ""), component) == component:
            return place
    raise ValueError(
        f"`{argument}` is {str(path)!r}, which is no folder of a {component}, nor that of a pipeline with one; give its file or "
        "folder"
    )


def _check_whole(configs: Mapping[str, Any], name: str) -> None:
    missing = [one for one in ("text_encoder", *PIPELINE_COMPONENTS) if one not in configs]
    if missing:
        raise ValueError(f"{name} holds no {', '.join(missing)}; give a checkpoint of a whole model")


def tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and saved buffers of a model, each once."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def num_bytes(model: nn.Module) -> int:
    """Bytes of the weights of a model."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model))

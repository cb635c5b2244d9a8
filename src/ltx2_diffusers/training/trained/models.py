"""What a training run trains: a pipeline's transformer, and its text connectors if they are targets, made ready.

A base is loaded, frozen, and quantised if asked for; then adapters are put on it, whose parameters are float32. In full mode
the transformer itself trains, in float32.
"""

import hashlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn

from ...adapters.file import LORA_WEIGHT_NAME, LoraFile, load_lora
from ...checkpoints.original import OriginalCheckpoint
from ...checkpoints.packaged import checkpoint_path
from ...checkpoints.pipeline_file import load_text_encoder
from ...checkpoints.versions import model_version
from ...conditioning.streams import Streams
from ...models.connectors import LTX2TextConnectors
from ...models.transformer import LTX2AVTransformer3DModel
from .block_streaming import BlockStreaming
from .quantization import STREAMABLE, check_quantization, quantize_blocks
from .targets import matching_modules, resolve, unused_modules

if TYPE_CHECKING:
    from ...pipelines.recipes.text_to_video import LTX2Pipeline
    from ..config import TrainingConfig

logger = logging.get_logger(__name__)

_STEP = re.compile(r"step_(\d+)")
ADAPTER = "default"
"""Name of the adapter that is trained."""
_BOTH = Streams(True, True)
_DECODERS = ("vae", "audio_vae", "vocoder")
_TEXT = ("text_encoder", "tokenizer")
# Both draw the first factor and leave the base as it is; what changes the base gives files that other bases misread.
_INITIALISATIONS = (True, "gaussian")
# A DoRA computes with the weights of its layer, which PEFT can read of these; a bias it can put on all but torchao's.
_DORA_ON = (None, "torchao-int8", "torchao-fp8", "bnb-nf4")
_BIAS_NOT_ON = ("torchao-int8", "torchao-fp8")


@dataclass
class TrainedModels:
    """A pipeline whose models are ready for training.

    Args:
        pipeline: All components that were loaded; what is not needed is `None`. Decoders and text encoder are on the CPU.
        transformer: The transformer.
        connectors: The text connectors.
        trained: What trains, by component.
        generation: Of the model: "2.0", "2.3", ...
        streaming: What brings the blocks of the transformer to the device, or `None`. The transformer must not be moved then.
    """

    pipeline: "LTX2Pipeline"
    transformer: LTX2AVTransformer3DModel
    connectors: LTX2TextConnectors
    trained: dict[str, Any] = field(default_factory=dict)
    generation: str = "2.0"
    streaming: BlockStreaming | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Those that train, in float32, in the order of components and modules."""
        return [p for model in self.trained.values() for p in model.parameters() if p.requires_grad]

    def learns_from(self, runs: Streams[bool]) -> bool:
        """Whether anything that trains runs in a step with these streams."""
        paths = [name for model in self.trained.values() for name, p in model.named_parameters() if p.requires_grad]
        return len(unused_modules(paths, runs)) < len(paths)

    def base_identity(self) -> str:
        """What tells the base from others of its kind: a digest of the weights that read the tokens of the video."""
        weights = self.transformer.proj_in.weight.detach().to("cpu", torch.float32)
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]


def load_models(
    config: "TrainingConfig", device: torch.device, needs_decoders: bool, runs: Streams[bool] = _BOTH
) -> TrainedModels:
    """Load what a run trains and what it needs beside it, ready for the first step.

    Args:
        config: The configuration of the run. Seed before: adapters begin at random.
        device: Where transformer and connectors go, but for the projections of the text, which only samples run.
        needs_decoders: Whether samples are made: VAEs, vocoder and text encoder are loaded, too.
        runs: Streams that the strategy gives to the transformer, default both; layers that never run get no adapter.

    Raises:
        ValueError: Before anything is loaded, if settings contradict each other or a library is missing; and if a target is no
            layer of the model, or the weights to start from do not fit.
    """
    check_settings(config, device)
    full = config.model.training_mode == "full"
    pipeline = _load_pipeline(config, needs_decoders)
    models = TrainedModels(pipeline, pipeline.transformer, pipeline.connectors)
    models.generation = model_version(models.transformer.config)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    host, streams = torch.device("cpu"), config.acceleration.block_streaming
    if config.acceleration.quantization is not None:
        quantize_blocks(models.transformer, config.acceleration.quantization, device, host if streams else device)
    if full:
        models.transformer.requires_grad_(True)
        models.trained = {"transformer": models.transformer}
    else:
        _add_adapters(models, config, runs)
        if config.model.load_checkpoint is not None:
            load_adapter(models, start_file(config.model.load_checkpoint))
    _settle(models, config, device)
    return models


def check_settings(config: "TrainingConfig", device: torch.device) -> None:
    """Raise `ValueError` for settings that contradict each other, or that this machine cannot do; nothing is loaded."""
    acceleration, full = config.acceleration, config.model.training_mode == "full"
    quantization, streams = acceleration.quantization, acceleration.block_streaming
    if acceleration.mixed_precision_mode == "fp16" and device.type == "cpu":
        # Accelerate would compute in float32 and say nothing.
        raise ValueError("`acceleration.mixed_precision_mode: fp16` needs a GPU; use 'bf16' or 'no'")
    if quantization is not None:
        check_quantization(quantization, device)
    if full and (quantization is not None or streams):
        name = "quantization" if quantization is not None else "block_streaming"
        raise ValueError(f"`acceleration.{name}` is for a frozen base; with `model.training_mode: full` leave it out")
    if streams and not config.optimization.enable_gradient_checkpointing:
        raise ValueError("`acceleration.block_streaming` needs `optimization.enable_gradient_checkpointing: true`")
    if streams and acceleration.compile:
        raise ValueError("`acceleration.block_streaming` and `acceleration.compile` exclude each other; leave one out")
    if streams and quantization is not None and quantization not in STREAMABLE:
        raise ValueError(
            f"weights in {quantization} cannot be streamed; use {', '.join(STREAMABLE)}, or leave out "
            "`acceleration.block_streaming`"
        )
    if not full:
        _check_lora(config.lora, quantization)


def _check_lora(lora: Any, quantization: str | None) -> None:
    if lora is None:
        raise ValueError("`model.training_mode: lora` needs a section `lora`")
    resolve(lora.target_modules)
    if lora.init_lora_weights not in _INITIALISATIONS:
        raise ValueError(
            f"`lora.init_lora_weights` is {lora.init_lora_weights!r}, but has to be true or 'gaussian': others change the "
            "base, and their files would be wrong on it"
        )
    if lora.use_dora and lora.lora_bias:
        raise ValueError("`lora.use_dora` and `lora.lora_bias` exclude each other; leave one out")
    if lora.use_dora and quantization not in _DORA_ON:
        raise ValueError(f"`lora.use_dora` does not work on a base in {quantization}; use 'torchao-int8'")
    if lora.lora_bias and quantization in _BIAS_NOT_ON:
        raise ValueError(f"`lora.lora_bias` does not work on a base in {quantization}; use 'int8-quanto'")


def start_file(path: str | os.PathLike) -> Path:
    """The weights that `model.load_checkpoint` means: a file, or what a folder holds.

    In a folder that is `pytorch_lora_weights.safetensors`, a transformer in diffusers' layout, or else the file of the latest
    step, by the number behind `step_` in the name of a safetensors file, in any folder below.

    Raises:
        ValueError: If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if (path / LORA_WEIGHT_NAME).is_file():
        return path / LORA_WEIGHT_NAME
    for folder in (path, path / "transformer"):
        if (folder / "config.json").is_file():
            return folder
    found = find_checkpoint(path)
    if found is None:
        raise ValueError(
            f"{str(path)!r} holds no weights to start from: neither {LORA_WEIGHT_NAME}, nor a transformer, nor a file named "
            "*step_*.safetensors; name the file"
        )
    return found


def find_checkpoint(place: str | Path) -> Path | None:
    """The newest file of weights in a folder, by the number after `step_` in its name; `None` if there is none.

    Args:
        place: A folder, which is searched with all below it, or a `.safetensors` file, which is returned.

    Raises:
        ValueError: If it is neither.
    """
    place = Path(place)
    if place.is_file() and place.suffix == ".safetensors":
        return place
    if not place.is_dir():
        raise ValueError(f"{str(place)!r} is neither a folder nor a .safetensors file")
    files = sorted(place.rglob("*step_*.safetensors"))
    return max(files, key=_step_of, default=None)


def _step_of(file: Path) -> int:
    match = _STEP.search(file.name)
    return -1 if match is None else int(match[1])


# --- loading ---


def _load_pipeline(config: "TrainingConfig", needs_decoders: bool) -> "LTX2Pipeline":
    """The pipeline with the components that the run needs, on the CPU."""
    from ...pipelines.recipes.text_to_video import LTX2Pipeline

    source, full = config.model, config.model.training_mode == "full"
    dtype = torch.float32 if full else torch.bfloat16
    given: dict[str, Any] = {} if needs_decoders else dict.fromkeys((*_DECODERS, *_TEXT))
    if needs_decoders:
        given |= _own_decoders(source, dtype)
    path = checkpoint_path(source.model_path)
    if not path.exists():
        hub = {"revision": source.revision, "variant": source.variant}
        path = Path(LTX2Pipeline.download(source.model_path, **hub, **given))
    if needs_decoders:
        given |= _own_text(config, path, torch.bfloat16)
    if full and source.load_checkpoint is not None:
        given["transformer"] = _started_transformer(start_file(source.load_checkpoint), path)
    if path.is_file():
        return LTX2Pipeline.from_single_file(path, dtype=dtype, **given)
    return LTX2Pipeline.from_pretrained(path, dtype=dtype, variant=source.variant, **given)


def _own_text(config: "TrainingConfig", path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Text encoder and tokenizer, unless the checkpoint's own are loaded as they are."""
    source, in_8bit = config.model.text_encoder_path, config.acceleration.load_text_encoder_in_8bit
    if source is None and path.is_file():
        raise ValueError(
            f"{str(path)!r} holds no text encoder, which samples need; name a Gemma folder or Hub id as "
            "`model.text_encoder_path`"
        )
    if source is None and not in_8bit:
        return {}
    options: dict[str, Any] = {}
    if in_8bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    folder = path if source is None else checkpoint_path(source)
    return dict(zip(_TEXT, load_text_encoder(folder if folder.exists() else source, None, dtype, **options)))


def _own_decoders(source: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The VAEs that lie in files of their own."""
    import ltx2_diffusers

    classes = {"vae": ltx2_diffusers.AutoencoderKLLTX2Video, "audio_vae": ltx2_diffusers.AutoencoderKLLTX2Audio}
    paths = {"vae": source.video_vae_path, "audio_vae": source.audio_vae_path}
    return {name: _load(classes[name], path, dtype) for name, path in paths.items() if path is not None}


def _load(model_class: Any, path: Path, dtype: torch.dtype, **options: Any) -> Any:
    if path.is_dir():
        return model_class.from_pretrained(path, dtype=dtype)
    return model_class.from_single_file(path, dtype=dtype, **options)


def _started_transformer(weights: Path, base: Path) -> LTX2AVTransformer3DModel:
    """The transformer of a full checkpoint, whose file has no configuration, with that of the base."""
    if base.is_file():
        config = OriginalCheckpoint(base, mmap=True).config("transformer")
    else:
        config = LTX2AVTransformer3DModel.load_config(base, subfolder="transformer")
    transformer: LTX2AVTransformer3DModel = _load(LTX2AVTransformer3DModel, weights, torch.float32, config=config)
    if different := [name for name in config if not name.startswith("_") and transformer.config[name] != config[name]]:
        raise ValueError(f"{str(weights)!r} is of another model than {str(base)!r}: `{different[0]}` differs")
    return transformer


# --- adapters ---


def _add_adapters(models: TrainedModels, config: "TrainingConfig", runs: Streams[bool]) -> None:
    """Put the adapter on the layers that are named and run."""
    lora: Any = config.lora
    targets = resolve(lora.target_modules)
    for component, names in (("transformer", targets.transformer), ("connectors", targets.connectors)):
        if not names:
            continue
        model = getattr(models, component)
        paths = matching_modules(model, names)
        unused = set(unused_modules(paths, runs))
        if unused:
            logger.warning(
                f"{len(unused)} of {len(paths)} targets in the {component} never run in this strategy and get no adapter, such "
                f"as {min(unused)}"
            )
        if len(unused) < len(paths):
            with warnings.catch_warnings():
                # Nothing here is merged into quantised weights.
                warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
                model.add_adapter(_peft_config(lora, [path for path in paths if path not in unused]), ADAPTER)
            cast_training_params(model, torch.float32)
            models.trained[component] = model
    if not models.trained:
        raise ValueError("none of the layers in `lora.target_modules` runs in this strategy; use 'av'")


def _peft_config(lora: Any, paths: list[str]) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=paths,
        init_lora_weights=lora.init_lora_weights,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        lora_bias=lora.lora_bias,
    )


def lora_arguments(
    models: TrainedModels, states: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> dict[str, Any]:
    """Arguments of [`~ltx2_diffusers.LTX2Pipeline.save_lora_weights`] that hold the trained adapter.

    Settings are those that every version of PEFT understands; the scale of a rank-stabilised LoRA becomes an alpha.

    Args:
        models: The models.
        states: State dicts by component to take the factors from, of averaged or gathered weights. Default the models' own.
    """
    arguments: dict[str, Any] = {}
    for component, model in models.trained.items():
        state = None if states is None else dict(states[component])
        arguments[f"{component}_lora_layers"] = get_peft_model_state_dict(model, state, adapter_name=ADAPTER)
        arguments[f"{component}_lora_adapter_metadata"] = _portable(model.peft_config[ADAPTER])
    return arguments


def _portable(config: LoraConfig) -> dict[str, Any]:
    alpha: float = config.lora_alpha
    if config.use_rslora:
        alpha *= math.sqrt(config.r)
    variants = {name: True for name in ("use_dora", "lora_bias") if getattr(config, name)}
    return {
        "peft_type": "LORA",
        "r": config.r,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules or ()),
        "bias": "none",
        "rank_pattern": {},
        "alpha_pattern": {},
        **variants,
    }


@torch.no_grad()
def load_adapter(models: TrainedModels, source: str | os.PathLike) -> None:
    """Begin with the adapter of a LoRA file in any layout, with equal effect: where its alpha is another, factors change.

    Args:
        models: Models with an adapter that trains.
        source: The file, or a folder with `pytorch_lora_weights.safetensors`.

    Raises:
        ValueError: If the file is no LoRA, or changes layers that this adapter is not on, or is of another rank or kind.
    """
    lora = load_lora(source, {"transformer": models.transformer, "connectors": models.connectors})
    layers = {component: _adapted_layers(models, component) for component in lora.components}
    for component in lora.components:
        _check_adapter(lora, component, layers[component])
    for component, own in layers.items():
        state, alphas = lora.state_dict(component), lora.network_alphas(component)
        for path, layer in own.items():
            if path in alphas:
                _fill(layer, path, state, alphas[path])
        if untouched := [path for path in own if path not in alphas]:
            logger.warning(
                f"{lora.metadata.name} has no factors for {len(untouched)} targets in the {component}, which begin anew, such "
                f"as {untouched[0]}"
            )


def _adapted_layers(models: TrainedModels, component: str) -> dict[str, LoraLayer]:
    if component not in models.trained:
        return {}
    return {path: layer for path, layer in models.trained[component].named_modules() if isinstance(layer, LoraLayer)}


def _check_adapter(lora: LoraFile, component: str, layers: Mapping[str, LoraLayer]) -> None:
    """Raise `ValueError` for a file whose effect this adapter cannot have."""
    name = lora.metadata.name
    if foreign := [path for path in lora.modules(component) if path not in layers]:
        raise ValueError(
            f"{name} changes {len(foreign)} layers of the {component} that `lora.target_modules` does not name or that this "
            f"strategy does not run, such as {foreign[0]}; add them"
        )
    for path in lora.modules(component):
        factors, layer = lora.layers[component, path], layers[path]
        if factors.rank != layer.r[ADAPTER]:
            raise ValueError(f"{name} has rank {factors.rank} at {path}; use `lora.rank: {factors.rank}`")
        kinds = {"use_dora": factors.magnitude is not None, "lora_bias": factors.bias is not None}
        own = {"use_dora": layer.use_dora[ADAPTER], "lora_bias": layer.lora_bias[ADAPTER]}
        if different := [kind for kind in kinds if kinds[kind] != own[kind]]:
            wanted = str(kinds[different[0]]).lower()
            raise ValueError(f"{name} is of another kind of LoRA at {path}; use `lora.{different[0]}: {wanted}`")


def _fill(layer: Any, path: str, state: Mapping[str, torch.Tensor], alpha: float) -> None:
    """Give a layer's adapter the factors of a file."""
    share = alpha / layer.r[ADAPTER] / layer.scaling[ADAPTER]
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    down.weight.copy_(state[f"{path}.lora_A.weight"])
    up.weight.copy_(state[f"{path}.lora_B.weight"].float() * share)
    if up.bias is not None:
        up.bias.copy_(state[f"{path}.lora_B.bias"].float() * share)
    if layer.use_dora[ADAPTER]:
        layer.lora_magnitude_vector[ADAPTER].weight.copy_(state[f"{path}.lora_magnitude_vector"])


# --- the rest ---


@contextmanager
def without_projections(connectors: LTX2TextConnectors) -> Iterator[None]:
    """Take the projections of the text out of the connectors for a while.

    Training reads what they made, so that their 0.7 G parameters (2.0) need not be where the others are, nor be spread over
    processes or sent between them.
    """
    parts = connectors._modules
    kept = dict(parts)
    for name in kept:
        if name.endswith("text_proj_in"):
            del parts[name]
    try:
        yield
    finally:
        # In their order, which is that of state dicts.
        parts.clear()
        parts.update(kept)


def _settle(models: TrainedModels, config: "TrainingConfig", device: torch.device) -> None:
    """Switch on what saves memory and time, and move to the device what runs in every step."""
    if config.optimization.enable_gradient_checkpointing:
        trained: dict[str, Any] = {"transformer": models.transformer, **models.trained}
        for model in trained.values():
            model.enable_gradient_checkpointing()
    with without_projections(models.connectors):
        nn.Module.to(models.connectors, device)
    if config.acceleration.block_streaming:
        models.streaming = BlockStreaming(models.transformer, device, config.acceleration.block_streaming)
    else:
        nn.Module.to(models.transformer, device)
    if config.acceleration.compile:
        models.transformer.compile_repeated_blocks()

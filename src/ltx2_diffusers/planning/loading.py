"""Pipelines that are loaded as a plan of memory says."""

import inspect
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload_with_hook
from diffusers.utils.torch_utils import get_device

from ..checkpoints.class_names import class_name_for, model_pair
from ..checkpoints.folder import text_encoder_folder
from ..checkpoints.json_files import read_config
from ..checkpoints.language_model import load_language_model
from ..checkpoints.origin import origin_at, remember
from ..checkpoints.original import OriginalCheckpoint
from ..checkpoints.packaged import checkpoint_path
from ..checkpoints.pipeline_file import load_tokenizer
from ..memory.loading import load_streamed, load_streamed_language_model
from ..memory.streaming import present_device, stream_blocks, streamer_of
from ..quantization.configs import as_config
from ..sampling.denoiser import PassLayout
from .parts import DIFFUSION, ELSEWHERE, component_folder, own_class
from .plan import MemoryPlan
from .policy import DENOISER
from .stages import set_decoding, set_diffusion_decoding


def load_planned(cls: Any, plan: MemoryPlan, device: torch.device | str | None = None, **given: Any) -> Any:
    """A pipeline of a class that is loaded as a plan says; see `LTX2GenerationPipeline.from_plan`."""
    source = _checked_source(cls, plan)
    own = _own_config(plan, given)
    place, dtype = present_device(get_device() if device is None else device), getattr(torch, plan.dtype)
    takes = set(inspect.signature(cls.__init__).parameters)
    if unknown := sorted(given.keys() - takes):
        raise ValueError(
            f"{cls.__name__} has no component {', '.join(unknown)}, and all else is in the plan; leave it out"
        )
    # What only passes through host memory comes first, while nothing waits there.
    names = sorted(plan.parts, key=lambda name: plan.parts[name].placement.where != "resident")
    loaded = {
        name: _placed(_loaded(plan, source, name, place, dtype, own), name, plan, place)
        for name in names
        if name in takes and name not in given
    }
    components = {**loaded, **given}
    if DIFFUSION in takes and plan.clip.decoder == "vae":
        # The plan has no room for what does not run.
        components.setdefault(DIFFUSION, None)
    if source.is_dir():
        pipeline = cls.from_pretrained(source, dtype=dtype, **components)
    else:
        if "tokenizer" not in components and plan.text_encoder is not None:
            components["tokenizer"] = load_tokenizer(plan.text_encoder)
        components.setdefault("text_encoder", None)
        pipeline = cls.from_single_file(source, dtype=dtype, **components)
    _let_wait(pipeline, plan, set(loaded), place)
    set_decoding(pipeline.vae, plan.decoding)
    if plan.clip.decoder == "diffusion":
        set_diffusion_decoding(pipeline.diffusion_decoder, plan.decoding)
    pipeline.pass_layout = PassLayout(plan.batched_guidance, plan.keeps_text)
    pipeline.memory_plan = plan
    return pipeline


def _own_config(plan: MemoryPlan, given: dict[str, Any]) -> Any:
    """How the transformer is quantised, with the settings of a `quantization_config` that is taken from what is given."""
    config = as_config(given.pop("quantization_config", None) or plan.quantize)
    method = getattr(config, "quant_method", None)
    if method != plan.quantize:
        raise ValueError(
            f"`quantization_config` is of {method}, but the plan stores the transformer "
            f"{plan.quantize or 'as it is'}; plan with `quantize`"
        )
    return config


def _checked_source(cls: Any, plan: MemoryPlan) -> Path:
    """Where the weights are, after a check that they can be loaded as the plan says."""
    if not isinstance(plan, MemoryPlan):
        raise ValueError(
            f"`plan` is of the type {type(plan).__name__}, but has to be a MemoryPlan; make one with plan_memory(), or read "
            "one with MemoryPlan.load()"
        )
    if plan.clip.two_stage and "latent_upsampler" not in inspect.signature(cls.__init__).parameters:
        raise ValueError(
            f"the plan is for two stages, which {cls.__name__} does not run; use LTX2TwoStagePipeline.from_plan"
        )
    source = checkpoint_path(plan.checkpoint)
    if not source.exists():
        raise ValueError(
            f"the plan is for {plan.checkpoint!r}, where there are no weights to load; plan with the folder or the file of a "
            "checkpoint"
        )
    for kind in ("text_encoder", *ELSEWHERE):
        place = getattr(plan, kind)
        if place is not None and not checkpoint_path(place).exists():
            raise ValueError(f"the plan takes the {kind} from {place!r}, where nothing is any more; plan anew")
    if source.is_file() and plan.text_encoder is None:
        raise ValueError(
            f"{plan.checkpoint!r} holds no text encoder; plan with `text_encoder`, the folder of a Gemma model"
        )
    return source


def _loaded(plan: MemoryPlan, source: Path, name: str, device: torch.device, dtype: torch.dtype, own: Any) -> Any:
    """A component with its weights in host memory, or streamed from its file."""
    placement = plan.parts[name].placement
    from_disk: dict[str, Any] | None = (
        {"device": device, "num_on_device": placement.num_on_device} if placement.source == "disk" else None
    )
    if name == "text_encoder":
        folder = text_encoder_folder(source if plan.text_encoder is None else checkpoint_path(plan.text_encoder))
        if from_disk is not None:
            return load_streamed_language_model(folder, dtype=dtype, **from_disk)
        model = load_language_model(folder, dtype)
        remember(model, origin_at(folder))
        return model.eval()
    place, inside = source, name
    for argument, component in ELSEWHERE.items():
        if component == name and (given := getattr(plan, argument)) is not None:
            place, inside = component_folder(Path(given), argument), ""
    is_folder = place.is_dir()
    if is_folder and not (place / inside / "config.json").is_file():
        raise ValueError(f"{str(place)!r} has no {inside}; it has changed since the plan was made")
    cls = _class_of(name, place / inside / "config.json" if is_folder else place)
    subfolder: dict[str, Any] = {"subfolder": inside} if is_folder and inside else {}
    if from_disk is not None:
        return load_streamed(cls, place, dtype=dtype, **subfolder, **from_disk)
    quantized = {"quantization_config": own} if name == DENOISER and own is not None else {}
    load = cls.from_pretrained if is_folder else cls.from_single_file
    return load(place, dtype=dtype, **subfolder, **quantized)


def _class_of(name: str, place: Path) -> Any:
    """Our class of a component of a folder's configuration, or of an original file."""
    config = read_config(place) if place.name == "config.json" else OriginalCheckpoint(place).config(name)
    pair = model_pair(config.get("_class_name"))
    return own_class(class_name_for(name, config) if pair is None else pair[1])


def _placed(model: Any, name: str, plan: MemoryPlan, device: torch.device) -> Any:
    """The component where it stays; what waits in host memory is there already."""
    placement = plan.parts[name].placement
    if placement.where == "resident":
        model.to(device)
    elif placement.where == "streamed" and streamer_of(model) is None:
        stream_blocks(model, "ram", device, placement.num_on_device)
    return model


def _let_wait(pipeline: Any, plan: MemoryPlan, loaded: set[str], device: torch.device) -> None:
    """Have components wait in host memory until they run."""
    released = [name for name in loaded if plan.parts[name].placement.where == "released"]
    hooks = {name: cpu_offload_with_hook(getattr(pipeline, name), device)[1] for name in released}
    pipeline._waiting = tuple(hooks.values())
    if "text_encoder" in hooks and pipeline.has("connectors"):
        reading = hooks["text_encoder"]

        def release(*_: Any) -> None:
            # Not after the streaming was ended, which takes the hooks away.
            if getattr(reading.model, "_hf_hook", None) is reading.hook:
                reading.offload()

        # Both read the text, one after the other.
        pipeline.connectors.register_forward_pre_hook(release)

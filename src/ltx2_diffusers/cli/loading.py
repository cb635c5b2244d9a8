"""Loading a pipeline as the command line describes it."""

import re
import sys
from math import inf
from pathlib import Path
from typing import Any

from ..checkpoints.packaged import PACKAGED, checkpoint_path, meant_instead
from .values import Options, flag

DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = ("fp8-cast", "fp8-scaled-mm")
CHECKPOINT = "ltx2-mini"
_SINGLE_FILES = (".safetensors", ".sft")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check_device(device: str) -> None:
    """Raise `ValueError` if this machine has no such device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device} cannot be used: {str(error).splitlines()[0]}; this machine has "
            f"{', '.join(dict.fromkeys(('cpu', best_device())))}"
        ) from None


def best_device() -> str:
    """The accelerator of this machine, if it has one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_checkpoint(name: str) -> None:
    """Raise `ValueError` unless `--checkpoint` is a packaged name, an existing file or folder, or an id of the Hub.

    Nothing is loaded or fetched.
    """
    path = Path(name)
    if name in PACKAGED:
        return
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"--checkpoint {name!r} is no folder of a pipeline: it has no model_index.json")
    elif path.is_file():
        if path.suffix not in _SINGLE_FILES:
            raise ValueError(
                f"--checkpoint {name!r} is a {path.suffix or 'nameless'} file; give a folder in diffusers' layout or a "
                "whole model in a .safetensors file"
            )
    elif path.suffix in _SINGLE_FILES or not _HUB_ID.fullmatch(name) or Path(path.parts[0]).is_dir():
        kind = "file" if path.suffix in _SINGLE_FILES else "folder"
        raise ValueError(f"--checkpoint {name!r}: there is no such {kind}; {meant_instead(name)}")


def float8_config(method: str | None, calibration: Path | str | None) -> Any:
    """The configuration that `--quantize` and `--calibration` ask for; `None` without the first."""
    if calibration is not None and method != QUANTIZATIONS[1]:
        raise ValueError(
            f"--calibration holds scales of inputs, which --quantize {QUANTIZATIONS[1]} alone has; leave it out"
        )
    if method is None:
        return None
    from ..quantization.configs import FP8ScaledMMConfig, as_config

    return as_config(method) if calibration is None else FP8ScaledMMConfig(calibration)


def load_pipeline(options: Options, pipeline_class: Any) -> Any:
    """The pipeline with the reference scheduler and its LoRAs, on its device.

    Args:
        options: The options of the command line, defaults filled in.
        pipeline_class: Class of the pipeline.

    Raises:
        ValueError: If the checkpoint cannot do what the options ask for.
    """
    from diffusers.utils import logging

    logging.disable_progress_bar()
    _check_family(options, pipeline_class)
    _check_offload(options)
    _check_step_cache(options)
    pipeline = _placed(_adapted(options, pipeline_class), options)
    if options.get("compile"):
        pipeline.compile()
    return pipeline


def _adapted(options: Options, pipeline_class: Any) -> Any:
    """The pipeline with its adapters, where its weights were read to."""
    from ..schedulers.scheduling_ltx2 import LTX2Scheduler

    pipeline = _from_checkpoint(options, pipeline_class)
    if not _is_ltx_video(pipeline_class):
        if not isinstance(pipeline.scheduler, LTX2Scheduler):
            pipeline.scheduler = LTX2Scheduler.from_config(pipeline.scheduler.config)
        _check_kind(pipeline, options)
    if "auto_length" in options and not pipeline.has("duration_head"):
        raise ValueError(
            f"--auto-length needs a duration head, which {options['checkpoint']} has not; use --num-frames 121"
        )
    _load_loras(pipeline, options)
    if options.get("tiling"):
        pipeline.vae.enable_tiling()
        if pipeline.has("diffusion_decoder"):
            pipeline.diffusion_decoder.enable_tiling(safe=True)
    if "step_cache" in options:
        _cache_steps(pipeline, options["step_cache"])
    if "prompt_cache" in options:
        pipeline.enable_prompt_cache(options["prompt_cache"])
    return pipeline


def _is_ltx_video(pipeline_class: Any) -> bool:
    return getattr(pipeline_class, "family", None) == "ltx_video"


def _check_family(options: Options, pipeline_class: Any) -> None:
    """The checkpoint must be of the pipeline's family, and LTX-Video's networks, which are diffusers' own, are not streamed."""
    from ..checkpoints.versions import check_ltx2

    if not _is_ltx_video(pipeline_class):
        check_ltx2(options["checkpoint"], "`ltx2 generate` runs it; here name one of LTX-2 with --checkpoint")
        return
    if "vram" in options or options.get("offload") in ("blocks", "disk"):
        given = "--vram" if "vram" in options else f"--offload {options['offload']}"
        raise ValueError(f"{given} is for checkpoints of LTX-2; with LTX-Video use --offload model")
    if "parallel" in options:
        raise ValueError("--parallel is for checkpoints of LTX-2; leave it out")


def _placed(pipeline: Any, options: Options) -> Any:
    """The pipeline where it runs."""
    if "vram" in options:
        return pipeline
    if options["offload"] in ("none", "disk"):
        return pipeline.to(options["device"])
    if options["offload"] == "blocks":
        pipeline.enable_block_streaming(device=options["device"])
        return pipeline
    getattr(pipeline, f"enable_{options['offload']}_cpu_offload")(device=options["device"])
    return pipeline


def _cache_steps(pipeline: Any, threshold: float) -> None:
    """Let the transformers of all stages reuse what their blocks added in earlier steps."""
    from diffusers import FirstBlockCacheConfig

    for name in ("transformer", "stage_2_transformer"):
        if (transformer := pipeline.components.get(name)) is not None:
            transformer.enable_cache(FirstBlockCacheConfig(threshold))


def _check_step_cache(options: Options) -> None:
    """A threshold is known to be wrong before anything is loaded."""
    threshold = options.get("step_cache", 0.1)
    if not 0 < threshold < inf:
        raise ValueError(f"--step-cache has to be more than 0 and finite but is {threshold}; use 0.1, or leave it out")


def _check_offload(options: Options) -> None:
    """What cannot be done with weights that lie elsewhere, before any are loaded."""
    for name, what in (("quantize", "rounds"), ("fuse_lora", "changes")):
        if options.get("offload") == "disk" and name in options:
            raise ValueError(
                f"{flag(name)} {what} weights, and --offload disk takes them from their files as they are; use --offload blocks"
            )
    if options.get("offload") == "sequential" and options.get("compile"):
        raise ValueError("--offload sequential puts hooks on layers that --compile would trace; use --offload blocks")
    if options.get("offload") == "sequential" and options["device"] == "cpu":
        raise ValueError("--offload sequential keeps weights off a graphics card, and --device is cpu; leave it out")


def _from_checkpoint(options: Options, pipeline_class: Any) -> Any:
    import torch

    checkpoint, dtype = options["checkpoint"], getattr(torch, options["dtype"])
    check_checkpoint(checkpoint)
    components: dict[str, Any] = {}
    if options.get("offload") == "disk":
        components["block_streaming"] = "disk"
    if options.get("release_text_encoder"):
        components["text_encoder_residency"] = "on_demand"
    if (config := float8_config(options.get("quantize"), options.get("calibration"))) is not None:
        components["quantization_config"] = config
    if "vram" in options:
        return _as_planned(options, pipeline_class, components)
    components |= _given_models(options, dtype, pipeline_class)
    if Path(checkpoint).suffix in _SINGLE_FILES:
        if "text_encoder" not in options:
            raise ValueError(
                f"{checkpoint} holds no text encoder; name the folder or Hub id of one with --text-encoder"
            )
        components["text_encoder"] = options["text_encoder"]
        return pipeline_class.from_single_file(checkpoint, dtype=dtype, **components)
    if "text_encoder" in options:
        raise ValueError(f"--text-encoder belongs to original files; {checkpoint} brings its own, so leave it out")
    if options.get("no_text_encoder"):
        components |= {"text_encoder": None, "tokenizer": None}
    # A name that is no path is one of the Hub.
    folder = checkpoint_path(checkpoint) if checkpoint in PACKAGED else checkpoint
    return pipeline_class.from_pretrained(folder, dtype=dtype, **components)


def _as_planned(options: Options, pipeline_class: Any, components: dict[str, Any]) -> Any:
    """The pipeline within the memory of `--vram`, with the options that say where else components come from."""
    import torch

    from ..pipelines.planned import plan_memory
    from .fitting.plan import device_gib, host_gib
    from .fitting.wishes import wish

    checkpoint, device = options["checkpoint"], options["device"]
    if not (checkpoint in PACKAGED or Path(checkpoint).exists()):
        raise ValueError(f"--vram plans for files of this machine; fetch {checkpoint!r} first, and name its folder")
    if options.get("no_text_encoder"):
        components |= {"text_encoder": None, "tokenizer": None}
    plan = plan_memory(
        checkpoint,
        device_gib(options["vram"], device),
        host_gib(options.get("ram", "auto")),
        **wish(options),
        quantize=options.get("quantize"),
        allow_lossy="allow_lossy" in options,
        device="cuda" if device.startswith("cuda") else "cpu",
        dtype=getattr(torch, options["dtype"]),
        text_encoder=options.get("text_encoder"),
        upsampler=options.get("upsampler"),
        diffusion_decoder=options.get("diffusion_decoder"),
    )
    print(plan, file=sys.stderr)
    return pipeline_class.from_plan(plan, device, **components)


def _given_models(options: Options, dtype: Any, pipeline_class: Any) -> dict[str, Any]:
    """The components whose file or folder an option names."""
    from ..checkpoints.class_names import class_name_for
    from ..planning.parts import ELSEWHERE, component_folder, own_class

    given = {component: name for name, component in ELSEWHERE.items() if name in options}
    if _is_ltx_video(pipeline_class):
        return {component: options[name] for component, name in given.items()}
    models = {}
    for component, name in given.items():
        cls, place = own_class(class_name_for(component, {})), component_folder(options[name], name)
        models[component] = (cls.from_pretrained if place.is_dir() else cls.from_single_file)(place, dtype=dtype)
    return models


def _check_kind(pipeline: Any, options: Options) -> None:
    """A dev checkpoint needs its distilled LoRA for few steps without guidance; miniatures have nothing to lose."""
    from ..checkpoints.versions import model_kind

    refines = "two_stage" in options or "distilled" in options
    settled = "distilled_lora" in options or "refine_with_same_weights" in options
    if not refines or settled or options["checkpoint"] in PACKAGED or model_kind(pipeline.scheduler.config) != "dev":
        return
    if pipeline.components.get("stage_2_transformer") is not None and "distilled" not in options:
        return
    other = "use a distilled checkpoint" if "distilled" in options else "pass --refine-with-same-weights"
    raise ValueError(
        f"{options['checkpoint']} is a dev checkpoint, which needs its distilled LoRA here: name it with --distilled-lora, "
        f"or {other}"
    )


def _load_loras(pipeline: Any, options: Options) -> None:
    """Load LoRAs and make them active, or part of the weights; beside them one of the refining stage, and those of calls."""
    from ..adapters.active import DISTILLED_ADAPTER

    # Those of a storyboard have names, by which its shots call them.
    loras = {(lora[2:] or [f"lora_{index}"])[0]: lora[:2] for index, lora in enumerate(options.get("lora", []))}
    for name, (file, _) in loras.items():
        pipeline.load_lora_weights(str(file), adapter_name=name)
    pipeline.set_adapters(list(loras), [weight for _, weight in loras.values()])
    if "fuse_lora" in options:
        pipeline.fuse_lora(keep_originals=False)
        pipeline.unload_lora_weights()
        loras = {}
    called = dict(options.get("adapters", {}))
    if "distilled_lora" in options:
        called[DISTILLED_ADAPTER] = options["distilled_lora"]
    for name, (file, _) in called.items():
        pipeline.load_lora_weights(str(file), adapter_name=name)
    if "distilled" in options and "distilled_lora" in options:
        loras[DISTILLED_ADAPTER] = options["distilled_lora"]
    if called:
        pipeline.set_adapters(list(loras), [weight for _, weight in loras.values()])

"""`ltx2 info`: what a checkpoint holds."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Names of weights, as diffusers and as transformers write them.
_STEMS = ("diffusion_pytorch_model", "model")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "info",
        help="show components, versions and sizes of a checkpoint",
        description="Show components, versions and sizes of a checkpoint without loading it.",
    )
    parser.add_argument(
        "checkpoint",
        help="folder in diffusers layout, original .safetensors file or a folder of them, or a packaged name",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from ..checkpoints.packaged import checkpoint_path, meant_instead
    from ..checkpoints.several_files import holds_originals

    path = checkpoint_path(options.checkpoint)
    if not path.exists():
        raise ValueError(
            f"there is no file or folder {options.checkpoint!r} (a Hub repository has to be downloaded first); "
            f"{meant_instead(options.checkpoint)}"
        )
    from ..checkpoints.versions import checkpoint_family

    is_original = path.is_file() or holds_originals(path)
    version, kind, parts = describe_file(path) if is_original else describe_folder(path)
    layout, family = "original" if is_original else "diffusers", checkpoint_family(path)
    settings: Any = None
    if family == "ltx_video":
        from ..families.ltx_video.loading import settings_at

        settings = settings_at(path)
    if settings is not None:
        version, kind = settings.version, f"{settings.size} {settings.kind}"
    if options.json:
        summary = {"family": family, "layout": layout, "version": version, "kind": kind, "components": parts}
        print(json.dumps(summary | ({"preset": asdict(settings)} if settings is not None else {}), indent=2))
        return 0
    if settings is None:
        print(f"{options.checkpoint}: {layout} layout, LTX-{version} {kind}")
    else:
        times = "causal" if settings.causal_temporal_positioning else "not causal"
        print(
            f"{options.checkpoint}: {layout} layout, LTX-Video {version} {kind}, settings {settings.name}, positions {times}"
        )
    print(f"{'component':<18}{'class':<38}{'tensors':>9}{'parameters':>13}{'size':>11}  dtypes")
    for name, part in parts.items():
        numbers = f"{part['tensors']:>9}{_short(part['parameters']):>13}{_short(part['bytes'], 'B'):>11}"
        print(f"{name:<18}{part['class']:<38}{numbers if part['tensors'] else '':<33}  {', '.join(part['dtypes'])}")
    return 0


def describe_file(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Version, kind and components of an original file."""
    from ..checkpoints.class_names import LTX_VIDEO_CLASSES, class_name_for
    from ..checkpoints.folder import is_distilled
    from ..checkpoints.several_files import opened_components
    from ..checkpoints.versions import model_version

    opened = opened_components(path)
    main, parts = next(opened[name] for name in ("transformer", *opened) if name in opened), {}
    is_older = main.family == "ltx_video"
    for name, one in opened.items():
        own = LTX_VIDEO_CLASSES.get(name) if is_older else class_name_for(name, one.config(name))
        parts[name] = _part(str(own), one.component(name, keep_quantized=True))
    if is_older:
        return "unknown", "unknown", parts
    version = model_version(main.config("transformer")) if "transformer" in opened else "unknown"
    return (main.metadata.get("model_version", version), "distilled" if is_distilled(main.name) else "dev", parts)


def describe_folder(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Version, kind and components of a folder in diffusers layout."""
    from ..checkpoints.json_files import read_object
    from ..checkpoints.safetensors_io import read_folder
    from ..checkpoints.versions import model_kind, model_version

    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{path} has no model_index.json; give the folder of a whole pipeline")
    parts = {}
    for name, entry in read_object(index).items():
        if not isinstance(entry, list) or len(entry) != 2 or not entry[0]:
            continue
        stem = next((stem for stem in _STEMS if any((path / name).glob(f"{stem}*.safetensors"))), None)
        parts[name] = _part(entry[1], read_folder(path / name, stem) if stem else {})
    for file in sorted(path.glob("*/config.json")):
        # Of no pipeline's index, but published beside it: upsamplers, a diffusion decoder, another transformer.
        name, class_name = file.parent.name, read_object(file).get("_class_name")
        if name not in parts and class_name is not None and any(file.parent.glob(f"{_STEMS[0]}*.safetensors")):
            parts[name] = _part(class_name, read_folder(file.parent))
    transformer, scheduler = path / "transformer" / "config.json", path / "scheduler" / "scheduler_config.json"
    version = model_version(read_object(transformer)) if transformer.is_file() else "unknown"
    return version, model_kind(read_object(scheduler) if scheduler.is_file() else {}), parts


def _part(class_name: str, entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": class_name,
        "tensors": len(entries),
        "parameters": sum(entry.num_bytes // entry.dtype.itemsize for entry in entries.values()),
        "bytes": sum(entry.num_bytes for entry in entries.values()),
        "dtypes": sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()}),
    }


def _short(number: int, unit: str = "") -> str:
    for factor, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.2f} {prefix}{unit}"
    return f"{number} {unit}".strip()

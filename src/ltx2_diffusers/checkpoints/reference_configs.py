"""The published models' metadata, for files that carry none.

`resources/configs/ltx-*.json` hold the `config` metadata of LTX-2.0 (19B) and LTX-2.3 (22B) with their real values.
"""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from .safetensors_io import Entry

VERSIONS = ("2.0", "2.3", "2.5")
# What sets LTX-2.5's transformer apart from 2.3's.
_CHANGES_OF_2_5 = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
# How language-model states become text features tells the connectors' version.
_PROJECTIONS = {"text_proj_in": "2.0", "video_text_proj_in": "2.3"}


def reference_config(version: str) -> dict[str, Any]:
    """The metadata `config` of the published model of `version` ("2.0", "2.3" or "2.5")."""
    if version not in VERSIONS:
        raise ValueError(f"there is no reference config of version {version!r}; known are {', '.join(VERSIONS)}")
    stored = "2.3" if version == "2.5" else version
    folder = resources.files("ltx2_diffusers") / "resources" / "configs"
    config = json.loads((folder / f"ltx-{stored}.json").read_text(encoding="utf-8"))
    if version == "2.5":
        config["transformer"] |= _CHANGES_OF_2_5
    return config


def guess_version(component: str, entries: Mapping[str, Entry]) -> str | None:
    """The model version that a component's tensor names (diffusers layout) speak for; None if they fit none."""
    roots = {name.split(".")[0] for name in entries}
    if component == "transformer":
        if "prompt_adaln" in roots:
            return "2.3" if "transformer_blocks.0.ff.net.0.proj.bias" in entries else "2.5"
        return "2.0" if "caption_projection" in roots else None
    if component == "connectors":
        return next((version for root, version in _PROJECTIONS.items() if root in roots), None)
    if component == "vae":
        # 2.3 has one upsampling stage more.
        return "2.3" if any(name.startswith("decoder.up_blocks.3.") for name in entries) else "2.0"
    if component == "vocoder":
        return "2.3" if "bwe_generator" in roots else "2.0"
    return "2.0"

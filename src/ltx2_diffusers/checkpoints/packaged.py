"""The small checkpoints that come with the package: real structure, no network."""

import difflib
from importlib import resources
from pathlib import Path

# Name -> folder under resources/checkpoints.
_FOLDERS = {"ltx2-mini": "ltx2-mini", "ltx-video-tiny": "ltx-video-tiny"}
PACKAGED = tuple(_FOLDERS)
PACKAGED_SIZE = {"width": 128, "height": 128, "num_frames": 25}
"""Size of the clips that packaged checkpoints were trained on; their upsamplers double the sides."""


def checkpoint_path(name: str) -> Path:
    """The folder of a packaged checkpoint, or the path of that name."""
    return packaged_checkpoint(name) if name in PACKAGED else Path(name)


def meant_instead(name: str) -> str:
    """Which packaged checkpoint somebody meant by a name that is none, for messages."""
    near = difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.5)
    return f"did you mean the packaged {near[0]!r}?" if near else f"packaged are {', '.join(PACKAGED)}"


def packaged_checkpoint(name: str) -> Path:
    """Return the folder of a packaged miniature checkpoint, in diffusers' layout.

    Args:
        name: `"ltx2-mini"`, which has the structure of LTX-2.0 and was trained on a miniature world of coloured shapes.
            Its sub-folder `latent_upsampler` holds the spatial upsampler. `"ltx-video-tiny"` has the structure of LTX-Video 0.9.8
            in its distilled 2B size, with random weights: its clips show nothing.

    Raises:
        ValueError: If no checkpoint has that name.
    """
    if name not in _FOLDERS:
        nearest = difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown packaged checkpoint {name!r}; did you mean {nearest!r}? There are {', '.join(PACKAGED)}"
        )
    return Path(str(resources.files("ltx2_diffusers") / "resources" / "checkpoints" / _FOLDERS[name]))

"""The hook that gives every model `from_single_file` for original LTX-2 checkpoints."""

import os
from typing import Any

import torch


class OriginalCheckpointMixin:
    """Adds `from_single_file`, which reads a component out of an original LTX-2 checkpoint file."""

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs: Any
    ) -> Any:
        """Load this component from an original Lightricks safetensors file, a Hub link to one, or a state dict.

        Only the keys of this component are read. The configuration comes from the file's metadata unless `config`
        is given. See [`ltx2_diffusers.checkpoints.single_file.load_component`] for all keyword arguments.
        """
        # Checkpoint handling stands above the models; it is reached only when a file is loaded.
        from ..checkpoints.single_file import load_component

        return load_component(cls, pretrained_model_link_or_path_or_dict, **kwargs)

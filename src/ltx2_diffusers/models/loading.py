"""What every model adds to diffusers' classes when it is loaded: configurations and files are checked first."""

import os
import warnings
from pathlib import Path
from typing import Any, Self

import torch

from .config_values import check_sizes, check_types
from .saving import finish_saves


class CheckedConfigMixin:
    """Makes a diffusers class refuse configurations of wrong types and with numbers that are not finite."""

    def register_to_config(self, **kwargs: Any) -> None:
        """Record the arguments of the constructor, which diffusers hands over before it runs."""
        check_types(type(self).__init__, **kwargs)
        super().register_to_config(**kwargs)  # type: ignore[misc]  # of the class behind this one


class CheckpointMixin(CheckedConfigMixin):
    """Loading of models from folders and from original files. Goes before the class of diffusers."""

    _not_quantized: tuple[str, ...] = ()
    """Names of layers that other libraries leave as they are, unless their configuration names some itself."""

    def register_to_config(self, **kwargs: Any) -> None:
        """Record the arguments of the constructor, which are sizes of a network."""
        super().register_to_config(**kwargs)
        check_sizes(**{name: value for name, value in kwargs.items() if not name.startswith("_")})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        """Load from a folder in diffusers' layout or from the Hub.

        Takes the arguments of diffusers' method; `quantization_config` may also be `"fp8_cast"` or `"fp8_scaled_mm"`, and
        those of other libraries leave what decides how exact a step is, unless they name layers themselves. The
        configuration in a folder has to build exactly the tensors that its weights are, by name and shape; this is
        compared before the model is built.
        """
        # Checkpoint handling stands above the models; it is reached only when something is loaded.
        from ..checkpoints.fit import check_folder
        from ..checkpoints.origin import origin_at, remember
        from ..quantization.calibration import calibrate_layers
        from ..quantization.configs import as_config, register, with_exceptions

        origin = None
        register()
        if (config := as_config(kwargs.get("quantization_config"))) is not None:
            kwargs["quantization_config"] = with_exceptions(config, cls._not_quantized)
        if pretrained_model_name_or_path is not None:
            finish_saves(pretrained_model_name_or_path, kwargs.get("subfolder"))
            check_folder(cls, pretrained_model_name_or_path, **kwargs)
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            origin = origin_at(folder, kwargs.get("variant"))
        with warnings.catch_warnings():
            # A model that was saved quantised stays so; another method was refused before.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]  # as above
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if (path := getattr(config, "calibration_amax_path", None)) is not None:
            used = getattr(model, "hf_quantizer", None)
            if used is not None and used.quantization_config is not config:
                calibrate_layers(model, path)
        remember(model, origin)
        return loaded

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs: Any
    ) -> Any:
        """Load this component from an original Lightricks safetensors file, a GGUF file, a Hub link, or a state dict.

        Only the keys of this component are read. The configuration comes from the file's metadata unless `config`
        is given. See [`ltx2_diffusers.checkpoints.single_file.load_component`] for all keyword arguments.
        """
        from ..checkpoints.single_file import load_component

        return load_component(cls, pretrained_model_link_or_path_or_dict, **kwargs)

    def enable_layerwise_casting(self, *args: Any, **kwargs: Any) -> None:
        """Store layers in another data type than they compute in. Takes the arguments of diffusers' method.

        Raises:
            ValueError: If the model is quantised, so that its layers are stored otherwise already.
        """
        if (method := getattr(self, "quantization_method", None)) is not None:
            raise ValueError(
                f"the model is quantised ({str(getattr(method, 'value', method))!r}), which layerwise casting would undo or spoil; "
                "load it without quantization_config, or leave out the casting"
            )
        super().enable_layerwise_casting(*args, **kwargs)  # type: ignore[misc]  # as above

"""What every model adds to diffusers' classes when it is saved: whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import publishing
from ..atomic import finish_save, replaced_folder


def finish_saves(folder: str | os.PathLike, subfolder: str | None = None) -> None:
    """Go on with interrupted saves of a folder and of a folder in it.

    Raises:
        OSError: If there is a half save with which one cannot go on.
    """
    for part in {"", subfolder or ""}:
        finish_save(Path(folder, part))


class AtomicSaveMixin:
    """Makes `save_pretrained` of a diffusers class write to a temporary folder first. Goes before that class."""

    # diffusers declares a plain dict; in truth every argument of the constructor is an attribute of it.
    config: Any
    # The two bases of a model disagree on it: a string in one, `None` in the other.
    config_name: Any
    _saved_with_card = False
    """Whether a folder gets a model card when it is saved, and not only when it is published."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save to a folder; an interrupted or failed save leaves nothing under the final name.

        Takes the arguments of diffusers' method. With `push_to_hub=True` the folder is uploaded once it is complete, with a
        model card, and stays if that fails.
        """
        said = {name: kwargs.pop(name) for name in publishing.OPTIONS if name in kwargs}
        push = None
        if kwargs.pop("push_to_hub", False):
            push = publishing.Push(**{"repo_id": Path(save_directory).name, **said})
        with replaced_folder(save_directory) as temporary:
            _check_names(self)
            super().save_pretrained(temporary, *args, **kwargs)  # type: ignore[misc]  # of the class behind this one
            if self._saved_with_card:
                publishing.put_card(temporary, save_directory, self._card)
        if push is not None:
            publishing.publish_folder(save_directory, push, self._card)

    def _card(self, name: str) -> publishing.Card:
        """The card of a folder or repository that holds this model."""
        origin = publishing.origin(self.config.get("_name_or_path"))
        return publishing.component_card(name, {"": type(self).__name__}, origin)

    def save_config(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the configuration alone, whole or not at all. Takes the arguments of diffusers' method."""
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with replaced_folder(save_directory) as temporary:
            super().save_config(temporary, *args, **kwargs)  # type: ignore[misc]  # of the class behind this one

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration, after going on with a save that was interrupted. Takes the arguments of diffusers' method.

        Raises:
            OSError: If the folder holds a half save with which one cannot go on.
        """
        finish_saves(pretrained_model_name_or_path, kwargs.get("subfolder"))
        return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]  # likewise


def _check_names(saved: Any) -> None:
    """Raise `ValueError` for a model with modules that `torch.compile` wraps: their weights have other names."""
    modules = saved.named_modules() if isinstance(saved, torch.nn.Module) else ()
    wrapped = next((name for name, _ in modules if name.endswith("._orig_mod")), None)
    if wrapped is not None:
        raise ValueError(
            f"{wrapped.removesuffix('._orig_mod')!r} is compiled on its own, so its weights would be saved under names that "
            "nothing loads; put the plain modules back, or compile with compile_repeated_blocks() or compile(), which keep "
            "the names"
        )


class AtomicModelSaveMixin(AtomicSaveMixin):
    """The same for models. A saved pipeline passes on only those options that it finds in this signature."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights and configuration; an interrupted or failed save leaves nothing under the final name.

        Args:
            save_directory: Folder to save to, created if missing.
            is_main_process: Whether this process writes the configuration.
            save_function: Not used, as in diffusers.
            safe_serialization: Whether to write safetensors files rather than pickles.
            variant: Inserted into the names of the weight files, for example `"fp16"`.
            max_shard_size: Largest size of a weight file, in bytes or as in `"5GB"`.
            push_to_hub: Whether to upload the folder afterwards.
            use_flashpack: Whether to write a FlashPack file.
            kwargs: Options of the upload, for example `repo_id`.
        """
        super().save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            save_function=save_function,
            safe_serialization=safe_serialization,
            variant=variant,
            max_shard_size=max_shard_size,
            push_to_hub=push_to_hub,
            use_flashpack=use_flashpack,
            **kwargs,
        )


class AtomicAdapterSaveMixin(AtomicModelSaveMixin):
    """The same for models that take LoRA adapters."""

    def save_lora_adapter(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save an adapter, whole or not at all. Takes the arguments of diffusers' method."""
        with replaced_folder(save_directory) as temporary:
            super().save_lora_adapter(temporary, *args, **kwargs)  # type: ignore[misc]  # of a class behind this one

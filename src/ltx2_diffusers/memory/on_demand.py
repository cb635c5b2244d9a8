"""A language model that is in memory only while texts are read."""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from ..checkpoints.fingerprint import model_fingerprint
from ..checkpoints.language_model import language_model_class, load_language_model
from ..checkpoints.origin import origin_at, remember
from .loading import load_streamed_language_model, mapped_language_model, put_lazily
from .streaming import stream_blocks, streamer_of


class OnDemandModel:
    """A language model that is loaded when it is needed, and released afterwards.

    Args:
        folder: Its folder on this machine, in the layout of transformers.
        dtype: Data type of its weights, default as stored.
        variant: Which of several weights, default those without one.
        streamed: `"ram"` or `"disk"` to have its layers come to the device one by one, default whole.
        num_on_device: Most of these layers on the device, default 2.

    Raises:
        ValueError: If there are no weights in the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        streamed: str | None = None,
        num_on_device: int = 2,
    ) -> None:
        origin = origin_at(folder, variant)
        if origin is None:
            raise ValueError(
                f"{os.fspath(folder)!r} has no safetensors files of a text encoder; give a folder that has"
            )
        self.folder, self.dtype, self.variant = os.path.abspath(folder), dtype, variant
        self.streamed, self.num_on_device = streamed, num_on_device
        self.kind: type[PreTrainedModel] = language_model_class(folder)
        self.config: Any = AutoConfig.from_pretrained(self.folder)
        self._origin = origin
        self._fingerprint: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._lock, self._users = threading.RLock(), 0
        self._model: Any = None

    @property
    def num_layers(self) -> int:
        """How many layers it has."""
        return self.config.get_text_config().num_hidden_layers

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep the model, once it is loaded, until the block ends; with the last of several blocks it is released."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._model is not None:
                    device = self._model.device
                    streamer = streamer_of(self._model)
                    if streamer is not None:
                        streamer.close()
                        device = streamer.device
                    self._model = None
                    _give_back(device)

    def model(self, device: torch.device) -> PreTrainedModel:
        """The model on a device, loaded now if it is not there.

        Raises:
            ValueError: If its files have changed or vanished.
            RuntimeError: If there is no session that would release it.
        """
        with self._lock:
            if not self._users:
                raise RuntimeError("a model on demand is used within its session()")
            if self._model is None:
                self._origin.check()
                self._model = self._loaded(device)
            return self._model

    def kept(self, device: torch.device) -> PreTrainedModel:
        """The model, which is not released any more."""
        with self._lock:
            model, self._model = self.model(device), None
            return model

    def _loaded(self, device: torch.device) -> Any:
        where: dict[str, Any] = {"device": device, "num_on_device": self.num_on_device}
        if self.streamed == "disk":
            return load_streamed_language_model(self.folder, dtype=self.dtype, variant=self.variant, **where)
        options = {} if self.variant is None else {"variant": self.variant}
        model: Any = load_language_model(self.folder, self.dtype, **options)
        remember(model, self._origin)
        if self.streamed == "ram":
            stream_blocks(model, "ram", **where)
        return model.to(device)

    def fingerprint(self) -> str:
        """What [`~ltx2_diffusers.checkpoints.fingerprint.model_fingerprint`] says of the model, read from its files."""
        self._origin.check()
        if self._fingerprint is None:
            model, entries, _ = mapped_language_model(self.folder, self.dtype, self.variant)
            put_lazily(model, entries)
            self._fingerprint = model_fingerprint(model)
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: where the model is, and not the model."""
        left_out = ("_lock", "_users", "_model")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was copied or pickled."""
        self.__dict__.update(state)
        self._forget()


def _give_back(device: torch.device) -> None:
    """Return memory that nobody holds any more; a language model is part of cycles, which end only here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def session(model: Any) -> AbstractContextManager[Any]:
    """Have a model that is on demand stay from its first use until the block ends."""
    return model.session() if isinstance(model, OnDemandModel) else nullcontext()


def loaded(model: Any, device: torch.device) -> Any:
    """The model itself, also of one that is on demand."""
    return model.model(device) if isinstance(model, OnDemandModel) else model


def kind_of(model: Any) -> type:
    """The class of a model, without loading it."""
    return model.kind if isinstance(model, OnDemandModel) else type(model)


def fingerprint_of(model: Any) -> str:
    """The fingerprint of a model, without loading it."""
    return model.fingerprint() if isinstance(model, OnDemandModel) else model_fingerprint(model)

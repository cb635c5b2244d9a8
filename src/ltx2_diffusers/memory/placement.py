"""Loading components to where they are going to lie: streamed from their files, or read when they are needed."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ..checkpoints import pipeline_folder
from ..checkpoints.class_names import PACKAGE, to_ours
from ..checkpoints.folder import text_encoder_folder
from ..checkpoints.packaged import checkpoint_path
from ..checkpoints.pipeline_file import load_tokenizer
from ..checkpoints.several_files import Files, component_files
from ..checks import check_choice
from .loading import load_streamed, load_streamed_language_model
from .on_demand import OnDemandModel

RESIDENCIES = ("resident", "on_demand")
_TRANSFORMERS = ("transformer", "stage_2_transformer")
_TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True)
class Placement:
    """What a loader is told about places.

    Args:
        streamed: Whether blocks of the transformers and of the text encoder stay in their files.
        on_demand: Whether the text encoder is loaded when it is needed, and released afterwards.
    """

    streamed: bool = False
    on_demand: bool = False

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any], takes: Collection[str]) -> Self:
        """Take the arguments out of those of a loader, and check them.

        Args:
            kwargs: Arguments of the loader.
            takes: Components that the pipeline takes.
        """
        streaming, residency = kwargs.pop("block_streaming", None), kwargs.pop("text_encoder_residency", "resident")
        check_choice("block_streaming", streaming, (None, "disk"))
        check_choice("text_encoder_residency", residency, RESIDENCIES)
        if streaming is not None and kwargs.get("quantization_config") is not None:
            raise ValueError(
                "`quantization_config` rounds weights while they are read into memory, which `block_streaming` leaves out; leave "
                "out one of them, or save the quantised pipeline with save_pretrained() and stream from that folder"
            )
        if residency == "on_demand":
            if _TEXT_ENCODER not in takes:
                raise ValueError(
                    "`text_encoder_residency` is 'on_demand', but this pipeline has no text encoder; leave it out"
                )
            if not isinstance(kwargs.get(_TEXT_ENCODER, ""), (str, os.PathLike)):
                raise ValueError(
                    "`text_encoder_residency` is 'on_demand', but `text_encoder` is given; leave one of them out, or call "
                    "enable_text_encoder_release() of the pipeline"
                )
        return cls(streaming is not None, residency == "on_demand")

    @property
    def wanted(self) -> bool:
        """Whether anything is said."""
        return self.streamed or self.on_demand

    @property
    def arguments(self) -> dict[str, Any]:
        """As they were given."""
        return {
            "block_streaming": "disk" if self.streamed else None,
            "text_encoder_residency": "on_demand" if self.on_demand else "resident",
        }

    def from_folder(self, folder: Path, kwargs: Mapping[str, Any], takes: set[str]) -> dict[str, Any]:
        """Components of a pipeline's folder that are not loaded in the usual way."""
        pairs = {n: p for n, p in pipeline_folder.component_pairs(folder, takes).items() if n not in kwargs}
        variant, given = kwargs.get("variant"), {}
        names = (*_TRANSFORMERS, _TEXT_ENCODER) if self.streamed else (_TEXT_ENCODER,)
        for name in [name for name in names if name in pairs and (folder / name).is_dir()]:
            pipeline_folder.check_component(folder / name, pairs[name], variant)
            dtype = _dtype_of(name, kwargs)
            if name != _TEXT_ENCODER:
                library, kind = to_ours(*pairs[name])
                if library != PACKAGE:
                    raise ValueError(
                        f"`{name}` is a {kind}, whose blocks cannot be streamed; leave out `block_streaming`"
                    )
                given[name] = load_streamed(_own(kind), folder / name, dtype=dtype, variant=variant)
            else:
                given[name] = self.text_encoder(folder / name, dtype, variant)
        return given

    def from_file(self, path: Files, text_encoder: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The text encoder, and components that are not loaded in the usual way, of an original file.

        Args:
            path: The file, or several.
            text_encoder: What is given as text encoder.
            options: Other arguments of the loader.
        """
        own: dict[str, Any] = {}
        if not self.wanted:
            return text_encoder, own
        dtype = _dtype_of("", options)
        if self.streamed and "transformer" not in options:
            # Without one, loading the others says so.
            for file in component_files(path).get("transformer", ()):
                own["transformer"] = load_streamed(_own("LTX2AVTransformer3DModel"), file, dtype=dtype)
        if isinstance(text_encoder, (str, os.PathLike)):
            folder = _text_encoder_folder(text_encoder)
            if options.get("tokenizer") is None:
                own["tokenizer"] = load_tokenizer(text_encoder)
            text_encoder = self.text_encoder(folder, dtype)
        return text_encoder, own

    def text_encoder(self, folder: Path, dtype: torch.dtype | None, variant: str | None = None) -> Any:
        """The text encoder of a folder, on demand or streamed."""
        if self.on_demand:
            return OnDemandModel(folder, dtype, variant, "disk" if self.streamed else None)
        return load_streamed_language_model(folder, dtype=dtype, variant=variant)


def _text_encoder_folder(place: str | os.PathLike) -> Path:
    """The folder with the weights of a text encoder: itself, or one in it.

    Raises:
        ValueError: If it is not on this machine.
    """
    folder = Path(checkpoint_path(os.fspath(place)))
    if not folder.is_dir():
        raise ValueError(
            f"`text_encoder` {os.fspath(place)!r} is no folder on this machine, from which it could be read on demand; fetch it first, "
            "with huggingface_hub.snapshot_download()"
        )
    return text_encoder_folder(folder)


def _dtype_of(name: str, kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The data type that `from_pretrained` is asked for, of a component."""
    dtype = kwargs.get("dtype") if kwargs.get("dtype") is not None else kwargs.get("torch_dtype")
    return dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype


def _own(name: str) -> Any:
    import ltx2_diffusers

    return getattr(ltx2_diffusers, name)

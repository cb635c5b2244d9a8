"""What all pipelines share: components, loading and saving in both worlds, and the state of a running call."""

import inspect
import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from huggingface_hub import snapshot_download

from ..checkpoints.class_names import PACKAGE, model_pair, portable_pipeline, to_ours, to_portable
from ..checks import check_loaded
from ..models import saving, video_vae


def extends(base: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a constructor `__init__(self, *, own=None, **components)` the components of its base class beside its own.

    diffusers reads from the signature what a pipeline is made of. Own components stand where the optional ones begin.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        first, *others = inspect.signature(init).parameters.values()
        own = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in others if p.kind is p.KEYWORD_ONLY]
        shared = list(inspect.signature(base).parameters.values())
        required = [parameter for parameter in shared if parameter.default is parameter.empty]
        signature = inspect.Signature([first, *required, *own, *shared[len(required) :]])

        @wraps(init)
        def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
            components = signature.bind(self, *args, **kwargs).arguments
            init(**components)

        constructor.__dict__["__signature__"] = signature
        # diffusers reads the types of components from here.
        constructor.__annotations__ = {p.name: p.annotation for p in own + shared if p.annotation is not p.empty}
        return constructor

    return decorate


class LTX2PipelineBase(saving.AtomicSaveMixin, DiffusionPipeline):
    """Loading, saving and run-time state of every LTX-2 pipeline.

    Folders saved by diffusers load into this package's classes. What is saved here names diffusers' classes wherever
    diffusers has them, so that it loads there too.
    """

    # diffusers declares `None`.
    model_cpu_offload_seq: Any = "prompt_enhancer->text_encoder->connectors->transformer->vae->audio_vae->vocoder"
    _optional_components = ["processor", "prompt_enhancer"]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ["latents", "audio_latents", "prompt_embeds", "negative_prompt_embeds", "denoised"]  # noqa: RUF012

    vae: video_vae.AutoencoderKLLTX2Video
    _num_timesteps: int
    _current_timestep: torch.Tensor | None
    _attention_kwargs: dict[str, Any] | None
    _interrupt: bool

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline from a folder in diffusers' layout or from the Hub.

        Takes the arguments of diffusers' method; components given by name replace those of the folder.

        Raises:
            ValueError: If a folder lacks a component that its `model_index.json` lists and that is not given.
        """
        index = Path(pretrained_model_name_or_path, "model_index.json")
        contents = json.loads(index.read_text()) if index.is_file() else {}
        listed = [name for name, value in contents.items() if isinstance(value, list) and value[0]]
        missing = [name for name in listed if name not in kwargs and not (index.parent / name).is_dir()]
        if missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no folder for the components {missing}, which its "
                "model_index.json lists; complete the checkpoint, or pass them by name (None to do without)"
            )
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if "_weights" in contents:
            # What is said of the weights is passed on when they are saved again.
            pipeline.register_to_config(_weights=contents["_weights"])
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Download a pipeline from the Hub, with the components of this class that the repository's index leaves out.

        Takes the arguments of diffusers' method, and returns the folder.
        """
        folder = Path(super().download(pretrained_model_name, **kwargs))
        index = json.loads((folder / "model_index.json").read_text())
        unlisted = inspect.signature(cls.__init__).parameters.keys() - index.keys() - kwargs.keys() - {"self"}
        if unlisted:
            access = {name: kwargs[name] for name in ("cache_dir", "token", "local_files_only") if kwargs.get(name)}
            patterns = [f"{name}/*" for name in sorted(unlisted)]
            # The folder is named by its commit, which keeps a moving branch from mixing two versions.
            snapshot_download(pretrained_model_name, revision=folder.name, allow_patterns=patterns, **access)
        return str(folder)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Build this pipeline on the components of another one, sharing its prompt cache.

        Takes the arguments of diffusers' method. Without `dtype`, components keep their data types; diffusers would cast
        them, and with them the other pipeline, to float32.
        """
        parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
        given = {name: value for name, value in pipeline.components.items() if name in parameters} | kwargs
        required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        if not isinstance(pipeline, LTX2PipelineBase) or not required <= given.keys() <= parameters.keys():
            new = super().from_pipe(pipeline, **kwargs)
        else:
            new = cls(**given)
            new.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        if getattr(pipeline, "_prompt_cache", None) is not None:
            new._prompt_cache = pipeline._prompt_cache
        return new

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Read `model_index.json`, recognising what it does not say.

        A scheduler that was saved under its portable name is ours again, and components that this class takes load
        from their sub-folders even if the index leaves them out, as it does the upsamplers of published repositories.
        """
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        folder = Path(pretrained_model_name_or_path)
        for name in ("scheduler", "audio_scheduler"):
            file = folder / name / "scheduler_config.json"
            if name in index and file.is_file() and "shift_tokens" in json.loads(file.read_text()):
                index[name] = [PACKAGE, "LTX2Scheduler"]
        for name in inspect.signature(cls.__init__).parameters.keys() - index.keys():
            file = folder / name / "config.json"
            pair = model_pair(json.loads(file.read_text()).get("_class_name")) if file.is_file() else None
            if pair is not None:
                index[name] = list(pair)
        return config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Resolve component entries of `model_index.json` to this package's classes."""
        # The optional duration head has no class here; an empty entry for it is not worth a warning.
        config_dict = {k: v for k, v in config_dict.items() if k != "duration_head" or (v and v[0] is not None)}
        init_dict, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        components = {
            name: to_ours(*value) for name, value in init_dict.items() if isinstance(value, (list, tuple)) and value[0]
        }
        return {**init_dict, **components}, unused, hidden

    def register_to_config(self, **kwargs: Any) -> None:
        """Record components under the names that diffusers knows."""
        portable = {
            name: to_portable(*value) if isinstance(value, (list, tuple)) and value and value[0] else value
            for name, value in kwargs.items()
        }
        super().register_to_config(**portable)

    def to_json_string(self) -> str:
        """The index of a saved folder, which names a pipeline that diffusers has, so that the folder loads there."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = portable_pipeline(index["_class_name"])
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _register(self, **components: Any) -> None:
        """Register components and derive sizes from them; a missing component leaves the published value."""
        self.register_modules(**components)
        vae, audio_vae, transformer, tokenizer = map(components.get, ("vae", "audio_vae", "transformer", "tokenizer"))
        self.vae_spatial_compression_ratio = getattr(vae, "spatial_compression_ratio", 32)
        self.vae_temporal_compression_ratio = getattr(vae, "temporal_compression_ratio", 8)
        self.audio_vae_mel_compression_ratio = getattr(audio_vae, "mel_compression_ratio", 4)
        self.audio_vae_temporal_compression_ratio = getattr(audio_vae, "temporal_compression_ratio", 4)
        self.transformer_spatial_patch_size = transformer.config.patch_size if transformer is not None else 1
        self.transformer_temporal_patch_size = transformer.config.patch_size_t if transformer is not None else 1
        self.audio_sampling_rate = audio_vae.config.sample_rate if audio_vae is not None else 16000
        self.audio_hop_length = audio_vae.config.mel_hop_length if audio_vae is not None else 160
        self.tokenizer_max_length = tokenizer.model_max_length if tokenizer is not None else 1024
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_spatial_compression_ratio)

    def has(self, name: str) -> bool:
        """Whether a component is loaded."""
        return getattr(self, name, None) is not None

    def require(self, *names: str) -> None:
        """Raise `ValueError` if a component that a call needs was not loaded."""
        check_loaded([name for name in names if not self.has(name)])

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running or last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Noise level of the running step times 1000, `None` outside a call."""
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Extra arguments of the transformer's attention, such as the LoRA `scale`."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Set to `True` (by a callback, say) to skip the remaining steps."""
        return self._interrupt

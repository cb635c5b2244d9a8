"""What all pipelines share: components, loading and saving in both worlds, and the state of a running call."""

import copy
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from .. import publishing
from ..checkpoints import origin, pipeline_folder
from ..checkpoints.card import PipelineFacts, pipeline_card
from ..checkpoints.class_names import FAMILIES, PACKAGE, model_pair, portable_pipeline, to_ours, to_portable
from ..checkpoints.versions import check_family, checkpoint_family
from ..checks import check_loaded
from ..memory.placement import OnDemandModel, Placement
from ..models import saving, video_vae
from ..quantization.configs import TRANSFORMERS, as_pipeline_config, register
from .compilation import CompilationMixin
from .output import Decoded, LTX2PipelineOutput

_DOWNLOAD = ("cache_dir", "token", "local_files_only", "force_download", "revision", "variant", "use_safetensors")
# Whose forward hooks stay on a text encoder after its first run, and cannot be pickled.
_CAPTURING = "transformers.utils.output_capturing"


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


class LTX2PipelineBase(saving.AtomicSaveMixin, CompilationMixin):
    """Loading, saving and run-time state of every LTX-2 pipeline.

    Folders saved by diffusers load into this package's classes. What is saved here names diffusers' classes wherever
    diffusers has them, so that it loads there too.
    """

    # diffusers declares `None`.
    model_cpu_offload_seq: Any = "prompt_enhancer->text_encoder->connectors->duration_head->transformer->vae->audio_vae->vocoder->diffusion_decoder"
    _optional_components = ["processor", "prompt_enhancer", "duration_head", "diffusion_decoder"]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ["latents", "audio_latents", "prompt_embeds", "negative_prompt_embeds", "denoised"]  # noqa: RUF012

    vae: video_vae.AutoencoderKLLTX2Video
    output_class: type[LTX2PipelineOutput] = LTX2PipelineOutput
    """What a call returns."""
    family = FAMILIES[0]
    """Whose checkpoints it takes."""
    # Arguments of the constructor that are no components.
    _settings: tuple[str, ...] = ()
    _saved_with_card = True
    _num_timesteps: int
    _current_timestep: torch.Tensor | None
    _attention_kwargs: dict[str, Any] | None
    _interrupt: bool
    _text_encoder_on_demand: OnDemandModel | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline from a folder in diffusers' layout or from the Hub.

        Takes the arguments of diffusers' method; components given by name replace those of the folder. `quantization_config`
        may also be `"fp8_cast"`, `"fp8_scaled_mm"` or the configuration of a model, which then holds for the transformers.
        `block_streaming="disk"` leaves the blocks of the transformers and of the text encoder in their safetensors files, from
        which they come when they run, here and after `to()`; they cannot be quantised on the way. `text_encoder_residency="on_demand"` loads the text encoder only
        while it reads prompts; default `"resident"`.

        Raises:
            ValueError: If there is no such folder and the Hub can have no such repository, if a folder lacks a component
                that its `model_index.json` lists and that is not given, if files are damaged, or if a configuration
                builds another model than the weights are.
        """
        folder = Path(pretrained_model_name_or_path)
        takes = inspect.signature(cls.__init__).parameters.keys() - set(cls._settings)
        placement = Placement.taken_from(kwargs, takes)
        saving.finish_saves(folder)
        is_folder = folder.is_dir()
        register()
        if (asked := kwargs.get("quantization_config")) is not None:
            names = [name for name in TRANSFORMERS if name in takes and name not in kwargs]
            listed = [name for name in names if not is_folder or (folder / name).is_dir()]
            kwargs["quantization_config"] = as_pipeline_config(asked, listed)
        if not is_folder:
            pipeline_folder.check_repository_id(os.fspath(pretrained_model_name_or_path))
            if placement.wanted:
                hub = {name: kwargs[name] for name in _DOWNLOAD if name in kwargs}
                return cls.from_pretrained(cls.download(os.fspath(folder), **hub), **kwargs, **placement.arguments)
        if not is_folder or kwargs.get("dduf_file"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if not (folder / pipeline_folder.INDEX).is_file():
            raise ValueError(f"{str(folder)!r} is no folder of a pipeline: it has no {pipeline_folder.INDEX}")
        if "transformer" not in kwargs:
            check_family(repr(str(folder)), checkpoint_family(folder), cls.family, "from_pretrained")
        required = set(cls._get_signature_keys(cls)[0]) - set(cls._optional_components)
        pipeline_folder.check_pipeline_folder(folder, kwargs, takes, required)
        own = placement.from_folder(folder, kwargs, takes) if placement.wanted else {}
        kwargs |= {name: component for name, component in own.items() if not isinstance(component, OnDemandModel)}
        kwargs |= {name: None for name, component in own.items() if isinstance(component, OnDemandModel)}
        with pipeline_folder.named_errors(folder):
            pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        read = {name: component for name, component in pipeline.components.items() if name not in kwargs}
        pipeline_folder.check_language_models(read, folder)
        for name, component in read.items():
            if isinstance(component, PreTrainedModel):
                origin.remember(component, origin.origin_at(folder / name, kwargs.get("variant")))
        pipeline._text_encoder_on_demand = next((c for c in own.values() if isinstance(c, OnDemandModel)), None)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Download a pipeline from the Hub, with the components of this class that the repository's index leaves out.

        Takes the arguments of diffusers' method, and returns the folder.
        """
        folder = Path(super().download(pretrained_model_name, **kwargs))
        index = pipeline_folder.read_object(folder / pipeline_folder.INDEX)
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
        given = {name: value for name, value in pipeline.components.items() if name in parameters}
        if "transformer" not in kwargs:
            found = getattr(pipeline, "family", cls.family)
            check_family(f"the transformer of {type(pipeline).__name__}", found, cls.family, "from_pipe")
            given |= {name: pipeline.config.get(name) for name in cls._settings}
        given |= kwargs
        required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
        if not isinstance(pipeline, LTX2PipelineBase) or not required <= given.keys() <= parameters.keys():
            new = super().from_pipe(pipeline, **kwargs)
        else:
            new = cls(**given)
            new.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        if getattr(pipeline, "_prompt_cache", None) is not None:
            new._prompt_cache = pipeline._prompt_cache
        if "text_encoder" in parameters and "text_encoder" not in kwargs:
            new._text_encoder_on_demand = getattr(pipeline, "_text_encoder_on_demand", None)
        if "text_encoder" in parameters:
            new.begins_with_bos = getattr(pipeline, "begins_with_bos", None)
        new._waiting = getattr(pipeline, "_waiting", ())
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
            if name in index and file.is_file() and "shift_tokens" in pipeline_folder.read_config(file):
                index[name] = [PACKAGE, "LTX2Scheduler"]
        for name in inspect.signature(cls.__init__).parameters.keys() - index.keys():
            file = folder / name / "config.json"
            pair = model_pair(pipeline_folder.read_config(file).get("_class_name")) if file.is_file() else None
            if pair is not None:
                index[name] = list(pair)
        return config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Resolve component entries of `model_index.json` to this package's classes."""
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

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Upload the pipeline to the Hub, with a model card, and return the address of its repository.

        Args:
            repo_id: Name of the repository, `owner/name` or a name in one's own space; made if it does not exist.
            commit_message: Default "Upload with ltx2-diffusers".
            private: Whether a new repository is private, default the owner's setting.
            token: Token that may write, default the stored one.
            create_pr: Whether to propose the change instead of making it. Default `False`.
            safe_serialization: Whether to upload safetensors files rather than pickles. Default `True`.
            variant: Inserted into the names of the weight files, for example `"fp16"`.
            subfolder: Folder in the repository, which gets no card. Default its root.

        Raises:
            ValueError: If no repository can have this name, or the pipeline cannot be saved.
            OSError: If the Hub cannot be reached or refuses; the message names the repository.
        """
        push = publishing.Push(repo_id, token, private, commit_message, create_pr, subfolder=subfolder)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return publishing.publish_folder(folder, push, self._card)

    def _card(self, name: str) -> publishing.Card:
        """The card of a folder or repository that holds this pipeline."""
        return pipeline_card(self._card_facts(), name)

    def _card_facts(self) -> PipelineFacts:
        """What the card says."""
        # A class of somebody's own is shown as the one that it is made from.
        names = [kind.__name__ for kind in type(self).__mro__ if kind.__name__ in publishing.CALLS]
        known = names[0] if names else "LTX2Pipeline"
        return PipelineFacts(known, publishing.origin(self.config.get("_name_or_path")))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: everything, without hooks that a text encoder gets when it first runs."""
        return {
            name: _without_hooks(value) if isinstance(value, torch.nn.Module) and _hooked(value) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what was pickled or copied, in this process or in another one."""
        self.__dict__.update(state)
        # What the language models of a class can show of their states is noted in a process when one is constructed,
        # which does not happen here. Under the name of its class: a module as key would stay for ever where the registry
        # is a plain dictionary.
        noted = getattr(sys.modules.get(_CAPTURING), "_CAN_RECORD_REGISTRY", {})
        for component in self.components.values():
            for part in component.modules() if isinstance(component, PreTrainedModel) else ():
                if isinstance(part, PreTrainedModel):
                    dict.__setitem__(noted, str(part.__class__), part._can_record_outputs)

    def __copy__(self) -> Self:
        """A second pipeline on the very same components."""
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        return twin

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

    def shown(self, video: torch.Tensor, output_type: str) -> Decoded:
        """Pixels `[B, 3, F, H, W]` in [-1, 1], as a decoder returns them, in the wished type."""
        return self.video_processor.postprocess_video(video, output_type=output_type)

    @property
    def codec(self) -> Any:
        """The video autoencoder with the methods of this package's."""
        return self.vae

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


def _hooked(model: torch.nn.Module) -> dict[torch.nn.Module, list[int]]:
    """The modules that capture their outputs, and the keys of the hooks that do it."""
    found = {
        module: [key for key, hook in module._forward_hooks.items() if getattr(hook, "__module__", "") == _CAPTURING]
        for module in model.modules()
    }
    return {module: keys for module, keys in found.items() if keys}


def _without_hooks(model: torch.nn.Module) -> torch.nn.Module:
    """The model with the same tensors, as it was before its first run."""
    tensors = {id(tensor): tensor for group in (model.parameters(), model.buffers()) for tensor in group}
    twin = copy.deepcopy(model, tensors)
    for module, keys in _hooked(twin).items():
        for key in keys:
            del module._forward_hooks[key]
    for module in twin.modules():
        # Without this mark, transformers puts the hooks back when they are needed.
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return twin

"""Modular pipelines: components from every LTX-2 repository, for blocks to compute with."""

import os
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.ltx2 import utils as constants
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec

from .. import checks, declared, prompts
from ..adapters.mixin import LTX2LoraMixin
from ..checkpoints.class_names import to_ours, to_portable
from ..checkpoints.versions import check_ltx2
from ..guidance.presets import DEFAULT_IMAGE_CRF, LTX2_5_IMAGE_CRF
from ..models.duration_head import frames_within
from ..models.latent_statistics import denormalized, normalized
from ..pipelines.engine import OUTPUT_TYPES, check_said, check_unread, shortened
from ..pipelines.generation import LTX2GenerationPipeline
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from . import blocks as known
from .declarations import DECLARED, Foreseen, Leaf, machinery, parts_of
from .text import SIZES, arguments_of

# What a call can do without, or is refused for lack of with a message of its own.
_OPTIONAL = {"prompt_enhancer", "processor", "duration_head"}
# What users give to several blocks; those of an input that a block of somebody else makes find it wrong when they run.
_GIVEN = {"height", "width", "num_frames", "prompt", "image", "conditions", "reference_conditions", "batch_size"}
_DECODERS = {"vae", "diffusion_decoder", "vocoder"}
# Its methods work on any object with components of these names.
_Shared: Any = LTX2GenerationPipeline


def _published(place: str, otherwise: Any, doc: str, *others: str) -> property:
    """A value of a component, or a published one while it is not loaded; see `resources/modular/blocks.yaml`."""
    first, path = place.split(".", 1)

    def value(pipeline: Any) -> Any:
        for name in (first, *others):
            if pipeline.has(name):
                return attrgetter(path)(getattr(pipeline, name))
        return torch.tensor(getattr(constants, otherwise)) if isinstance(otherwise, str) else otherwise

    return property(value, doc=doc)


# mypy: disable-error-code="assignment, misc, override"
class LTX2ModularPipeline(LTX2LoraMixin, ModularPipeline):
    """Runs blocks with the components of an LTX-2 checkpoint.

    `from_pretrained` reads a `modular_model_index.json`, or the `model_index.json` of any LTX-2 pipeline; `load_components`
    loads. What a call takes is what its blocks read, see `pipe.doc`; guidance is in the components `guider` and
    `audio_guider`. A call returns the state of its blocks, or what `output` names: `output="videos"`, or a list.

    Args:
        blocks: What is run, default the blocks that the repository names, else [`LTX2AutoBlocks`].
        pretrained_model_name_or_path: Folder or Hub id that components are loaded from. Default none.
        components_manager, collection: As in diffusers.
        workflow: Name of a workflow of the blocks, whose blocks alone are kept. Default all.
        modular_config_dict, config_dict: As in diffusers.
        kwargs: How the Hub is read: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        ValueError: From a call, before any computation: if an input has no reader or is out of range, or a component is
            missing that the blocks to run compute with.
    """

    default_blocks_name: Any = "LTX2AutoBlocks"
    kind: str | None = None
    has, require = _Shared.has, _Shared.require
    preset, sizes = _Shared.preset, _Shared.sizes
    encode_video, encode_audio = _Shared.encode_video, _Shared.encode_audio
    codec, shown = _Shared.codec, _Shared.shown
    __getstate__, __setstate__ = _Shared.__getstate__, _Shared.__setstate__
    marks_keyframes = True

    def __init__(
        self,
        blocks: Any = None,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
        modular_config_dict: dict[str, Any] | None = None,
        config_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if pretrained_model_name_or_path is not None and modular_config_dict is None and config_dict is None:
            modular_config_dict, config_dict = self._load_pipeline_config(pretrained_model_name_or_path, **kwargs)
            kwargs = {}
        if blocks is None:
            named = getattr(known, (modular_config_dict or {}).get("_blocks_class_name") or "", None)
            blocks = (named if getattr(named, "block_classes", None) else getattr(known, self.default_blocks_name))()
        where = (pretrained_model_name_or_path, components_manager, collection, workflow)
        super().__init__(blocks, *where, modular_config_dict, config_dict, **kwargs)
        # What has no weights is there from the start, whether the repository has it or the blocks say it.
        kinds = {name: self._component_specs[name].type_hint for name in self.pretrained_component_names}
        self.load_components([name for name, kind in kinds.items() if issubclass(kind or object, BaseGuidance)])

    @classmethod
    def _load_pipeline_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[Any, None]:
        """The modular index of a repository, made of the index of a pipeline if there is only that."""
        check_ltx2(pretrained_model_name_or_path, "load it with LTXVideoPipeline.from_pretrained")
        try:
            return cls.load_config(pretrained_model_name_or_path, **kwargs), None
        except OSError:
            index = LTX2GenerationPipeline.load_config(pretrained_model_name_or_path, **kwargs)
        root, entries = os.fspath(pretrained_model_name_or_path), {}
        for name, pair in index.items():
            if isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] is not None:
                where = {"pretrained_model_name_or_path": root, "subfolder": name, "type_hint": pair}
                entries[name] = [*pair, where]
        return entries, None

    @staticmethod
    def _dict_to_component_spec(name: str, spec_dict: dict[str, Any]) -> Any:
        """What an entry says of a component, of this package's class where it has one."""
        pair = spec_dict["type_hint"]
        # Without a library there is nothing of this name in the repository.
        own = {"pretrained_model_name_or_path": None} if pair[0] is None else {"type_hint": to_ours(*pair)}
        return ModularPipeline._dict_to_component_spec(name, spec_dict | own)

    def register_to_config(self, **kwargs: Any) -> None:
        """Record components under the names that diffusers knows."""
        super().register_to_config(**{name: _portable(value) for name, value in kwargs.items()})

    def load_components(self, names: Any = None, workflow: str | None = None, **kwargs: Any) -> None:
        """Load components, default all that the repository has.

        Args:
            names: Name of a component, or a list of names.
            workflow: Name of a workflow whose components are loaded instead.
            kwargs: Arguments of their `from_pretrained`, such as `dtype`, each for all components or by their name.
        """
        super().load_components(names, workflow, **kwargs)
        scheduler = getattr(self, "scheduler", None)
        if scheduler is not None and not isinstance(scheduler, LTX2Scheduler) and "shift_tokens" in scheduler.config:
            # Saved under its portable name.
            own: Any = LTX2Scheduler.from_config(dict(scheduler.config))
            own._diffusers_load_id = getattr(scheduler, "_diffusers_load_id", "null")
            self.register_components(scheduler=own)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the loaded components, guiders among them, and the index, for this class and for diffusers'.

        Args:
            save_directory: The folder.
            args, kwargs: Those of diffusers' method.
        """
        for name in self.config_component_names:
            if isinstance(guider := getattr(self, name), BaseGuidance):
                # The index has no settings: each guider gets a folder, as what is loaded.
                self._component_specs[name] = spec = ComponentSpec(name, type(guider))
                self.register_to_config(**{name: (None, None, self._component_spec_to_dict(spec))})
        super().save_pretrained(os.fspath(save_directory), *args, **{"overwrite_modular_index": True, **kwargs})

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of the progress bars of all loops, such as `disable=True`."""
        for block in parts_of(self._blocks):
            if isinstance(block, machinery.LoopSequentialPipelineBlocks):
                block.set_progress_bar_config(**kwargs)

    def __call__(self, state: Any = None, output: Any = None, **kwargs: Any) -> Any:
        """Run the blocks.

        Args:
            state: State of an earlier call to go on from; it stays as it is.
            output: Name of what is returned, or a list for a dict. Default the whole state.
            kwargs: What the blocks read.
        """
        values = {**self.default_call_parameters, **({} if state is None else state.values), **kwargs}
        # What is read by its type has no name.
        values.pop(None, None)
        self._check(values, kwargs)
        output = declared.as_declared("output", output, str | list[str] | None)
        made = {*values, *(one.name for one in (*self._blocks.outputs, *self._blocks.inputs))} - {None}
        for name in [output] if isinstance(output, str) else output or ():
            if name not in made:
                meant = (*get_close_matches(name, made, 1), *sorted(made))
                raise ValueError(f"`output` names {name!r}, which no block makes; use {meant[0]!r}")
        return super().__call__(state, output, **kwargs)

    def _check(self, values: dict[str, Any], named: dict[str, Any]) -> None:
        """Find what can be found to be wrong with a call before it begins; what is named becomes of its declared type."""
        readable = [name for one in self._blocks.inputs for name in (one.name, one.kwargs_type) if name is not None]
        for name in named.keys() - readable:
            meant = get_close_matches(name, readable, 1)
            hint = f"did you mean `{meant[0]}`?" if meant else f"they read {', '.join(map(str, readable))}"
            if name.endswith("_scale"):
                hint = "guidance is set by pipe.update_components(guider=pipe.guider.new(...))"
            raise ValueError(f"`{name}` is given, but no block reads it; {hint}")
        given = arguments_of({name: values[name] for name in values.keys() & readable})
        declared.settle(given)
        read = {name: getattr(given, name) for name in named.keys() & vars(given).keys() if named[name] is not None}
        read |= {name: declared.as_declared(name, named[name], int | None) for name in named.keys() & SIZES}
        named |= read
        values |= read
        given.check()
        checks.check_attention_kwargs(given.attention_kwargs)
        if given.prompt is not None:
            prompts.check_prompts(given.request(())[0])
        if "output_type" in readable:
            checks.check_choice("output_type", values["output_type"], OUTPUT_TYPES)
        foreseen = self._foreseen(values, named)
        if values.get("num_frames") is not None:
            check_said("`num_frames` too", arguments_of(named), "min_seconds", "max_seconds")
        elif foreseen.get("num_frames") is not None:
            bounds = (values["min_seconds"], values["max_seconds"])
            shortest = frames_within(bounds[0], values["frame_rate"], self.sizes.temporal_ratio, *bounds)
            with shortened(shortest):
                self._foreseen(values | {"num_frames": shortest}, named)

    def _foreseen(self, values: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
        """Have the blocks that will run look for what is wrong; what is known of all values after them."""
        running: Any = self._blocks
        if isinstance(running, (machinery.SequentialPipelineBlocks, machinery.ConditionalPipelineBlocks)):
            running = running.get_execution_blocks(**{name: one for name, one in values.items() if one is not None})
        if running is None:
            return values
        leaves = [one for one in parts_of(running) if not one.sub_blocks]
        instead = [name for name in ("conditions", "reference_conditions") if values.get(name) is not None]
        is_used = any(one.name == "image_latents" for leaf in leaves for one in leaf.inputs)
        if instead and not is_used and named.get("image") is not None:
            # It would be encoded all the same.
            check_unread(f"`{instead[0]}` take its place", {"image": named["image"]})
        spared = _OPTIONAL | (_DECODERS if values.get("output_type") == "latent" else set())
        self.require(*(spec.name for spec in running.expected_components if spec.name not in spared))
        known, hidden = dict(values), set[str]()
        for block in leaves:
            read = {one.name: one for one in block.inputs if one.name is not None}
            for name, one in read.items():
                if one.required and one.default is None and name not in hidden and known.get(name) is None:
                    reader = type(block).__name__
                    raise ValueError(f"`{name}` is not given, but {reader} reads it, and no earlier block makes it")
            made: dict[str, Any] = dict.fromkeys(block.intermediate_output_names)
            if isinstance(block, Leaf) and not hidden & read.keys() & _GIVEN:
                made |= block.check(self, Foreseen(**known)) or {}
            hidden = (hidden - made.keys()) | {name for name, value in made.items() if value is None}
            known |= made
        return known

    @property
    def image_crf(self) -> int:
        """H.264 quality of the round trip that pictures take by default, which follows the text encoder's generation."""
        if self.has("transformer") and self.has("scheduler"):
            return self.preset.image_crf
        kind = self.text_encoder.config.model_type if self.has("text_encoder") else ""
        return LTX2_5_IMAGE_CRF if kind.startswith("gemma4") else DEFAULT_IMAGE_CRF

    def normalized_video(self, latents: torch.Tensor, plan: Any) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of un-normalised ones, or of packed and normalised ones."""
        latents = latents.to(self._execution_device, torch.float32)
        if latents.ndim != 5:
            return plan.tools.video.patchifier.unpatchify(latents, plan.video)
        return normalized(latents, self, self.vae_scaling_factor)

    def denormalized_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Un-normalised latents `[B, C, F, h, w]` of normalised ones."""
        return denormalized(latents, self, self.vae_scaling_factor)

    @property
    def chat_model(self) -> prompts.ChatModel:
        """The language model that writes prompts: the dedicated enhancer if there is one, else the text encoder."""
        if self.has("prompt_enhancer"):
            return prompts.ChatModel(*self._loaded("prompt_enhancer"), prompts.DEDICATED_ENHANCER)
        return prompts.ChatModel(*self._loaded("text_encoder"), prompts.OWN_ENCODER)

    def _text_encoder(self) -> prompts.TextEncoder:
        text_encoder, tokenizer, _ = self._loaded("text_encoder")
        connectors: Any = getattr(self, "connectors", None)
        return prompts.TextEncoder(tokenizer, text_encoder, connectors, self._execution_device)

    def _loaded(self, language_model: str) -> tuple[Any, Any, Any]:
        """A language model, the tokenizer and the processor, `None` for what there is not."""
        return getattr(self, language_model, None), getattr(self, "tokenizer", None), getattr(self, "processor", None)


for _name, _said in DECLARED["published"].items():
    setattr(LTX2ModularPipeline, _name, _published(*_said))


def _portable(value: Any) -> Any:
    """An entry of the index under the names that diffusers knows."""
    if not (isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[2], dict)):
        return value
    *pair, where = value
    pairs = [to_portable(*names) if names[0] is not None else names for names in (pair, where["type_hint"])]
    return (*pairs[0], {**where, "type_hint": tuple(pairs[1])})


class LTX25ModularPipeline(LTX2ModularPipeline):
    """The same for LTX-2.5: its default blocks decode with the diffusion decoder.

    Args:
        blocks: What is run, default the blocks that the repository names, else [`LTX25AutoBlocks`].
        pretrained_model_name_or_path, components_manager, collection, workflow, modular_config_dict, config_dict, kwargs: See
            [`LTX2ModularPipeline`].
    """

    default_blocks_name: Any = "LTX25AutoBlocks"


PIPELINES = {"ltx2": LTX2ModularPipeline, "ltx2.5": LTX25ModularPipeline}

"""What blocks read, write and need, and the kinds of blocks that all others are; the declarations stand in a file of data."""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="arg-type, assignment, misc, override"

import inspect
from copy import deepcopy
from functools import wraps
from importlib import import_module, resources
from typing import Any, ClassVar

import PIL.Image
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines import modular_pipeline as machinery
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ..schedulers.levels import FlowMatchEulerDiscreteScheduler
from ..yaml_files import read_mapping

FIELDS = "denoiser_input_fields"
DECLARED = read_mapping(str(resources.files("ltx2_diffusers") / "resources" / "modular" / "blocks.yaml"))
# The types that the file names.
_KINDS = {
    **{kind.__name__: kind for kind in (bool, int, float, str, list, dict)},
    "texts": str | list[str],
    "levels": list[float],
    "level_or_levels": float | list[float],
    "image": PIL.Image.Image,
    "tensor": torch.Tensor,
    "generators": torch.Generator | list[torch.Generator],
    "dtype": torch.dtype,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}


def reads(entry: str) -> InputParam:
    """The declaration of an input.

    Args:
        entry: Its name; with what sets it apart from others of the name behind a colon, and `!` behind what is required.
    """
    key = entry.removesuffix("!")
    kind, default, description = DECLARED["inputs"].get(key, ("tensor", None, "Read by the guiders."))
    if kind == "dtype" and default is not None:
        default = getattr(torch, default)
    name, group = (None, FIELDS) if key == FIELDS else (key.partition(":")[0], None)
    return InputParam(name, _KINDS[kind], default, entry.endswith("!"), description, group)


def _writes(name: str) -> OutputParam:
    kind, _, description = DECLARED["inputs"][name]
    return OutputParam(name, _KINDS[kind], description, FIELDS if name in DECLARED["to_the_transformer"] else None)


def _needs(entry: str) -> ComponentSpec:
    library, class_name, *config = DECLARED["components"][entry]
    built = {"config": FrozenDict(config[0]), "default_creation_method": "from_config"} if config else {}
    return ComponentSpec(entry.partition(":")[0], getattr(import_module(library), class_name), **built)


class _Ours:
    """What blocks of every kind share: they make this package's pipelines."""

    model_name: Any = "ltx2"
    known: ClassVar[dict[str, Any]] = {}
    """This package's blocks by the names of their classes."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith(__package__):
            _Ours.known[cls.__name__] = cls
            said = dict(DECLARED["blocks"].get(cls.__name__, {}))
            if parts := said.pop("parts", None):
                said |= {"block_names": [*parts], "block_classes": [cls.known[name] for name in parts.values()]}
            for name, value in said.items():
                setattr(cls, name, value)

    @property
    def description(self) -> str:
        """What the block does."""
        return inspect.getdoc(type(self)) or ""

    @wraps(machinery.ModularPipelineBlocks.init_pipeline)
    def init_pipeline(self, *args: Any, **kwargs: Any) -> Any:
        from .pipeline import PIPELINES

        return PIPELINES[self.model_name](deepcopy(self), *args, **kwargs)


class Foreseen(machinery.BlockState):
    """What is known before anything is computed, as attributes; what is not, or is not given, is `None`."""

    def __getattr__(self, name: str) -> None:
        return None


class Leaf(_Ours, machinery.ModularPipelineBlocks):
    """A block that computes something."""

    # Names with blanks between them.
    reads: ClassVar[str] = ""
    writes: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    asked_by: ClassVar[Any] = None
    """The block around it that decides whether it runs, for one of which the inputs of a workflow do not say that."""

    run: Any
    """What it computes: `run(components, b)`, of the pipeline and of what the block reads and writes, as attributes."""

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads."""
        return [reads(name) for name in self.reads.split()]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """What it writes."""
        return [_writes(name) for name in self.writes.split()]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """What it computes with."""
        return [_needs(name) for name in self.needs.split()]

    def opened(self, components: Any, b: Any) -> Any:  # noqa: ARG002 (most blocks find nothing)
        """What it works on, of what it reads, checked.

        Args:
            components: The pipeline.
            b: What it reads, as attributes; before anything is computed what is known of all values, `None` for others.
        """
        return None

    def check(self, components: Any, b: Any) -> dict[str, Any] | None:
        """Find what is wrong with a call before anything is computed; what is known of what will be written, by name."""
        self.opened(components, b)
        return None

    @torch.no_grad()
    def __call__(self, components: Any, state: machinery.PipelineState) -> tuple[Any, machinery.PipelineState]:
        if not hasattr(components, "sizes"):
            raise ValueError(
                f"{type(self).__name__} does not run in {type(components)}; use LTX2ModularPipeline(blocks, repository)"
            )
        b: Any = self.get_block_state(state)
        self.run(components, b)
        self.set_block_state(state, b)
        return components, state


def parts_of(block: Any) -> list[Any]:
    """A block and all those in it, in the order in which they run."""
    return [block, *(part for inner in (block.sub_blocks or {}).values() for part in parts_of(inner))]


class LoopLeaf(Leaf):
    """A block that computes something in every step; its state is that of the loop around it.

    Its `run` takes the index of the step and its noise level times 1000, too.
    """

    def __call__(self, components: Any, block_state: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        self.run(components, block_state, i, t)
        return components, block_state


class Sequential(_Ours, machinery.SequentialPipelineBlocks):
    """Blocks that run one after another."""

    def get_execution_blocks(self, **kwargs: Any) -> "Sequential":
        """The blocks that run for these inputs."""
        blocks = super().get_execution_blocks(**kwargs).sub_blocks
        chosen: Any = Sequential.from_blocks_dict(
            {name: getattr(block, "asked_by", None) or block for name, block in blocks.items()}
        )
        chosen.model_name = self.model_name
        return chosen


class Conditional(_Ours, machinery.ConditionalPipelineBlocks):
    """Blocks of which the inputs choose one."""


class Auto(_Ours, machinery.AutoPipelineBlocks):
    """Blocks of which the first runs whose input is given."""


class Loop(_Ours, machinery.LoopSequentialPipelineBlocks):
    """Blocks that run in every step."""

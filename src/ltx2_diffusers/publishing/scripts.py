"""The scripts that a card shows: how weights are loaded and used here, and in diffusers where it can."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import diffusers.pipelines.ltx2 as diffusers_ltx2

from ..yaml_files import read_mapping
from .card import Card, Origin

LORA_TAGS = ("lora", "template:sd-lora")
"""Tags by which the Hub knows a LoRA."""
PROMPT = "A lighthouse on a cliff at dusk, waves below."
_SIZES = ("width", "height", "num_frames", "frame_rate")


class Theirs(NamedTuple):
    """How diffusers' pipeline of the same name is called.

    Args:
        arguments: Its arguments beside the prompt, as they are written.
        imports: Statements that they need.
        unpacked: What it returns.
        writes: The statement that writes `video`, where that is not what writes other clips.
    """

    arguments: Sequence[str] = ()
    imports: Sequence[str] = ()
    unpacked: str = "video, audio"
    writes: str | None = None


class Call(NamedTuple):
    """How a card shows a pipeline.

    Args:
        pipeline: Its class.
        arguments: Its arguments beside the prompt, as they are written.
        tags: Tags of its tasks, beside those of all clips.
        task: The Hub's name of the task.
        sized: Whether the call takes width, height, number of frames and frame rate.
        imports: Further names that the arguments need.
        theirs: How diffusers' pipeline does the same; `None` where it has none.
    """

    pipeline: str = "LTX2Pipeline"
    arguments: Sequence[str] = ()
    tags: Sequence[str] = ()
    task: str = "text-to-video"
    sized: bool = True
    imports: Sequence[str] = ()
    theirs: Theirs | None = None


CALLS = {
    name: Call(name, **{**said, "theirs": Theirs(**said["theirs"]) if "theirs" in said else None})
    for name, said in read_mapping(Path(__file__).parents[1] / "resources" / "calls.yaml").items()
}
"""By the name of the pipeline's class."""
_UPSAMPLING = "LTX2LatentUpsamplePipeline"


@dataclass(frozen=True)
class Script:
    """Statements that load weights and make a clip, or a sound.

    Args:
        call: The pipeline and its arguments.
        source: The expression that names what the pipeline is loaded from.
        size: Arguments of size and steps.
        prompt: What is asked for.
        extra: Further arguments of our call, as they are written.
        settings: What diffusers' call has to be told to run as ours does by default.
        loaded: Arguments of `from_pretrained`, as they are written.
        before: Statements before the pipeline is made.
        after: Statements once it is made.
        theirs_after: Further ones of diffusers' script.
        imports: Names of this package that all these need; of them diffusers' script takes only those of `before`.
        packaged: Whether `source` calls `packaged_checkpoint`.
        half: Whether the pipeline is loaded in bfloat16 rather than float32.
    """

    call: Call
    source: str
    size: Mapping[str, Any]
    prompt: str = PROMPT
    extra: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    loaded: Sequence[str] = ()
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    theirs_after: Sequence[str] = ()
    imports: Sequence[str] = ()
    packaged: bool = False
    half: bool = True

    @property
    def ours(self) -> list[str]:
        """The script for this package."""
        call = self.call
        names = sorted({call.pipeline, *call.imports, *self.imports, *(["packaged_checkpoint"] * self.packaged)})
        pictures = ["from PIL import Image"] if "Image.open" in "".join(call.arguments) else []
        return [
            *["import torch", *pictures, f"from ltx2_diffusers import {', '.join(names)}", ""],
            *self._loading(),
            *_called("output = pipe(", [*self._prompt, *call.arguments, *self.extra, *self._size(call.sized)]),
            f'output.save("sample.{"wav" if call.pipeline == "LTX2TextToAudioPipeline" else "mp4"}")',
        ]

    @property
    def theirs(self) -> list[str]:
        """The script for diffusers: the same, or text to video where it lacks the pipeline."""
        call = self.call if self.call.theirs is not None else CALLS["LTX2Pipeline"]
        theirs = call.theirs or Theirs()
        said, rate = self.settings or {}, self.size.get("frame_rate", 24.0)
        told = [
            *["video[0]", f"fps={rate:g}", "audio=audio[0].float().cpu()"],
            *["audio_sample_rate=pipe.vocoder.config.output_sampling_rate", 'output_path="sample.mp4"'],
        ]
        written = _called("encode_video(", told) if theirs.writes is None else [theirs.writes]
        text = "".join([*theirs.arguments, *written])
        utilities = [name for name in ("encode_video", "load_image") if f"{name}(" in text]
        plain = [line for line in theirs.imports if line.startswith("import ")]
        names = ", ".join(sorted([call.pipeline, *self.imports]))
        taken = inspect.signature(getattr(diffusers, call.pipeline).__call__).parameters.keys() - self.size.keys()
        settings = [f"{name}={value!r}" for name, value in said.items() if name in taken]
        arguments = [*self._prompt, *theirs.arguments, *self._size(True), *settings, "return_dict=False"]
        return [
            *[*plain, "import torch", f"from diffusers import {names}"],
            *(line for line in theirs.imports if line not in plain),
            *([f"from diffusers.utils import {', '.join(utilities)}"] if utilities else []),
            *(["from ltx2_diffusers import packaged_checkpoint"] if self.packaged else []),
            *["", *self._loading(call), *self.theirs_after],
            *_called(f"{theirs.unpacked} = pipe(", arguments),
            *written,
        ]

    @property
    def section(self) -> str:
        """Both scripts, as a section of a card."""
        name, version = self.call.pipeline, diffusers.__version__
        said = f"With diffusers {version}:"
        if self.call.theirs is None:
            said = f"diffusers {version} has no `{name}`; there the same weights make text to video:"
        return f"{usage(self.ours)}\n\n{said}\n\n{fenced(self.theirs)}"

    @property
    def _prompt(self) -> list[str]:
        return [] if self.call.pipeline == _UPSAMPLING else [f"prompt={quoted(self.prompt)}"]

    def _size(self, sized: bool) -> list[str]:
        left_out: tuple[str, ...] = () if sized else _SIZES
        if self.call.pipeline == _UPSAMPLING:
            left_out = ("num_frames", "frame_rate")
        return [f"{name}={value!r}" for name, value in self.size.items() if name not in left_out]

    def _loading(self, call: Call | None = None) -> list[str]:
        arguments = ", ".join([self.source, *self.loaded, *(["dtype=torch.bfloat16"] if self.half else [])])
        made = [f"pipe = {(call or self.call).pipeline}.from_pretrained({arguments})"]
        moved = ["if torch.cuda.is_available():", "    pipe.enable_model_cpu_offload()"]
        return [*self.before, *made, *moved, *self.after]


def _called(begin: str, arguments: Sequence[str]) -> list[str]:
    return [begin, *(f"    {one}," for one in arguments), ")"]


def fenced(statements: Sequence[str]) -> str:
    """Statements as Markdown shows them."""
    return "\n".join(["```python", *statements, "```"])


def usage(statements: Sequence[str]) -> str:
    """A section of a card with a script that uses the weights."""
    return f"## Use\n\n{fenced(statements)}"


def quoted(text: str) -> str:
    """A name as a literal of Python, whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def with_trigger(prompt: str, trigger: str | None) -> str:
    """A prompt that says the word which calls for the weights, if there is one."""
    return f"{trigger} {prompt}" if trigger and trigger not in prompt else prompt


def trigger_section(trigger: str | None) -> str:
    """A section of a card that tells the word; empty without one."""
    return f"Say `{trigger}` in the prompt." if trigger else ""


def component_card(name: str, classes: Mapping[str, str], origin: Origin) -> Card:
    """The card of parts of a pipeline.

    Args:
        name: Folder or repository that holds them.
        classes: The class of each by its sub-folder, `""` for the folder itself.
        origin: What the weights come from.
    """
    here, there = [f"from ltx2_diffusers import {', '.join(sorted(set(classes.values())))}", ""], []
    for subfolder, kind in classes.items():
        place = "".join([quoted(name), f', subfolder="{subfolder}"' if subfolder else ""])
        loading = f"{subfolder or 'model'} = {kind}.from_pretrained({place})"
        here.append(loading)
        kind = "LTX2VideoTransformer3DModel" if kind == "LTX2AVTransformer3DModel" else kind
        module = next((m for m in (diffusers, diffusers_ltx2) if hasattr(m, kind)), None)
        if module is not None:
            there += [f"from {module.__name__} import {kind}", "", loading.replace(" LTX2AV", " LTX2Video")]
    parts = ", ".join(f"`{kind}`" for kind in classes.values())
    said = f"{'Parts' if len(classes) > 1 else 'A part'} of an LTX-2 pipeline: {parts}." + (
        f" Made from {origin.shown}." if origin.base_model else ""
    )
    theirs = f"With diffusers {diffusers.__version__}:\n\n{fenced(there)}" if there else ""
    return Card(name.split("/")[-1], [said, usage(here), theirs], origin, pipeline_tag=None)

"""How far the arguments of a call travel through the package, counted on real calls of the packaged miniature.

Run `python -m benchmarks.travel [--before]`. It prints what `results/travel_before.json` holds beside what it counts, and
writes `results/travel.json`; `--before` writes the former. `PYTHONPATH` says which state of the package is counted.

- A function *holds* a value if one of its arguments is the value or contains it: in a list, tuple, set or dictionary, or
  in a field of a dataclass, at most `DEPTH` levels down. Models and pipelines are not searched. Texts are told by their
  content, all else by identity. `self` and what `*` and `**` gather count only where the table says "any argument"; these
  add the methods of conditions and what wraps a call.
- A *stay* begins when a function that holds the value is entered; the same function several times in a row is one stay.
- A *move* is a stay in another file than that of the stay before, a *return* a move to a file that was seen earlier.

Of a call as a whole, every function counts that is entered. Only code in the folder of the package is looked at.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
import wave
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

import ltx2_diffusers
from ltx2_diffusers import LTX2ExtendPipeline, LTX2Pipeline, LTX2TwoStagePipeline, packaged_checkpoint

from .common import print_table, write_results

PACKAGE = Path(ltx2_diffusers.__file__).parent
BEFORE = Path(__file__).parent / "results" / "travel_before.json"
DEPTH = 6
SHOWN = ("stays", "files", "moves", "returns")
# Most stays and files.
LIMITS = {
    "text to video: prompt": {"stays": 10, "files": 6},
    "two stages: prompt": {"stays": 10, "files": 6},
    "two stages: image": {"files": 7},
}
PROMPT = "A red fox walks through deep snow while the wind howls."
RATE = 24000
SIZE = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 64}
TWO_STAGES = SIZE | {"height": 128, "width": 128, "stage_2_adapters": {}, "stage_2_sigmas": [0.9, 0.4]}


def holds(value: Any, wanted: Any, depth: int = DEPTH) -> bool:
    """Whether a value is the wanted one or contains it."""
    if value is wanted or (isinstance(value, str) and isinstance(wanted, str) and value == wanted):
        return True
    if not depth or isinstance(value, (torch.nn.Module, DiffusionPipeline, type)):
        return False
    if is_dataclass(value):
        value = [getattr(value, field.name, None) for field in fields(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple, set, frozenset)) and any(holds(part, wanted, depth - 1) for part in value)


def arguments(frame: FrameType) -> tuple[list[Any], list[Any]]:
    """Arguments of a function that was just entered: those with names of their own, and the others."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    gathered = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    found = [(name, frame.f_locals.get(name)) for name in code.co_varnames[: count + gathered]]
    named = [value for name, value in found[:count] if name != "self"]
    return named, [value for name, value in found if name == "self"] + [value for _, value in found[count:]]


def travels(call: Callable[[], Any], wanted: Mapping[str, Any], folder: Path) -> dict[str, list[CodeType]]:
    """The functions of a folder as they are entered during a call: all ("whole"), and those that hold each value."""
    ways: dict[str, list[CodeType]] = {"whole": []}
    ways |= {name + kind: [] for name in wanted for kind in ("", ", any argument")}

    def on_event(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(f"{folder}{os.sep}"):
            return
        ways["whole"].append(frame.f_code)
        named, others = arguments(frame)
        for name, value in wanted.items():
            if is_named := holds(named, value, DEPTH + 1):
                ways[name].append(frame.f_code)
            if is_named or holds(others, value, DEPTH + 1):
                ways[f"{name}, any argument"].append(frame.f_code)

    sys.setprofile(on_event)
    try:
        call()
    finally:
        sys.setprofile(None)
    return ways


def counts(entered: Sequence[CodeType]) -> dict[str, int]:
    """Stays, distinct functions and files, moves and returns of a way through functions."""
    stays = [code for code, _ in groupby(entered)]
    files = [file for file, _ in groupby(code.co_filename for code in stays)]
    distinct, moves = len(set(files)), max(len(files) - 1, 0)
    # A move leads to a file that is new or one that was seen; the first file is reached by none.
    returns = len(files) - distinct
    return {"stays": len(stays), "functions": len(set(stays)), "files": distinct, "moves": moves, "returns": returns}


def run() -> dict[str, Any]:
    """Counts of every value in every call and of the calls as wholes, and how often given files are opened."""
    logging.disable_progress_bar()
    kinds = (LTX2Pipeline, LTX2TwoStagePipeline, LTX2ExtendPipeline)
    text, staged, extend = pipes = [kind.from_pretrained(packaged_checkpoint("ltx2-mini")) for kind in kinds]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    common = {"prompt": PROMPT, "generator": generator}
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    audio = torch.sin(torch.arange(RATE) / 9).expand(2, -1).contiguous()
    latents = torch.randn(1, text.transformer.config.in_channels, 2, 2, 2, generator=generator)
    # Call -> pipeline, what is followed, and the other arguments.
    calls: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
        "text to video": (text, common, SIZE),
        "given latents": (text, {"latents": latents}, {**common, **SIZE}),
        "two stages": (staged, {**common, "image": image, "audio": audio}, {**TWO_STAGES, "sampling_rate": RATE}),
        "two segments": (extend, common, {**SIZE, "num_frames": 17, "overlap_frames": 9, "num_segments": 2}),
    }
    found = {}
    for label, (pipe, followed, others) in calls.items():
        ways = travels(lambda: pipe(**followed, **others), followed, PACKAGE)  # noqa: B023 (called at once)
        whole = [(code, Path(code.co_filename).relative_to(PACKAGE).parts[0]) for code in ways.pop("whole")]
        found |= {f"{label}: {name}": counts(way) for name, way in ways.items()}
        found[f"{label}: whole call in pipelines/"] = counts([code for code, room in whole if room == "pipelines"])
        found[f"{label}: whole call but for models/"] = counts([code for code, room in whole if room != "models"])
    return {"counts": found, "files": opened(staged)}


def opened(staged: LTX2TwoStagePipeline) -> dict[str, int]:
    """How often a call in two stages opens a picture file and a sound file, and runs their encoders."""
    runs: list[torch.nn.Module] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        picture, sound = os.path.join(folder, "picture.png"), os.path.join(folder, "sound.wav")
        PIL.Image.new("RGB", (96, 64), "red").save(picture)
        with wave.open(sound, "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(bytes(2 * RATE))
        for model in (staged.vae, staged.audio_vae):
            stack.callback(model.encoder.register_forward_pre_hook(lambda encoder, _: runs.append(encoder)).remove)
        doors = [stack.enter_context(patch.object(library, "open", wraps=library.open)) for library in (PIL.Image, av)]
        staged(PROMPT, image=picture, audio=sound, **TWO_STAGES)
    # FFmpeg is given the names of files as those of files, whatever they look like.
    names = [str(call.args[0]).removeprefix("file:") for door in doors for call in door.call_args_list]
    return {
        "times the picture is opened": names.count(picture),
        "times the sound is opened": names.count(sound),
        "times the picture is encoded": runs.count(staged.vae.encoder),
        "times the sound is encoded": runs.count(staged.audio_vae.encoder),
    }


def rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table of two measurements."""
    table = []
    for label, found in {**after["counts"], **after["files"]}.items():
        then = before["counts"].get(label, before["files"].get(label))
        limits = LIMITS.get(label, {})
        row = {" / ".join(SHOWN): label, "before": shown(then), "after": shown(found)}
        row["at most"] = ", ".join(f"{most} {name}" for name, most in limits.items())
        kept = all(found[name] <= most for name, most in limits.items())
        row["kept"] = ("yes" if kept else "NO") if limits else ""
        table.append(row)
    return table


def shown(found: Mapping[str, int] | int | None) -> str:
    """Counts on one line."""
    return " / ".join(str(found[name]) for name in SHOWN) if isinstance(found, Mapping) else str(found)


def main() -> int:
    """Count, print and write the results; exit status 1 if a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", action="store_true", help="write the state to compare with")
    is_before = parser.parse_args().before
    found = run()
    write_results("travel_before" if is_before else "travel", found)
    table = rows(found if is_before else json.loads(BEFORE.read_text()), found)
    print_table(table)
    return int(any(row["kept"] == "NO" for row in table))


if __name__ == "__main__":
    sys.exit(main())

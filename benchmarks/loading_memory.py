"""Host memory of loading: the most that is held while a model is loaded, over what its weights are in the end.

Every way of loading runs in a process of its own, on weights of the structure of LTX-2 with random values. Counted is anonymous
memory, which the system cannot take back: pages that map a file are none. `python -m benchmarks.loading_memory`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .common import print_table, write_results

# Of bfloat16 weights of the transformer; those of the text encoder are a third of it.
MEGABYTES, QUICK_MEGABYTES = 600, 240
BOUND = 1.05
_DTYPES = {"as stored": torch.bfloat16, "cast": torch.float32}
# Of small tensors that are read and cast, the allocator keeps holes; those of the published models are returned to the system.
_UNCOUNTED = ("transformer, original file, read", "cast")
_HEADS, _LAYER_PARAMETERS = 8, 19_500_000


class PeakMemory:
    """The most anonymous memory of this process while its block runs, in bytes above that at its beginning.

    Args:
        interval_s: Time between two looks, in seconds. Default 0.002.
    """

    def __init__(self, interval_s: float = 0.002) -> None:
        self.interval_s, self.bytes = interval_s, 0

    def __enter__(self) -> "PeakMemory":
        self._start, self._done = anonymous_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        self.bytes = max(self.bytes, anonymous_memory() - self._start)

    def _watch(self) -> None:
        while not self._done.wait(self.interval_s):
            self._look()

    def __exit__(self, *_error: Any) -> None:
        self._look()
        self._done.set()
        self._thread.join()


def anonymous_memory() -> int:
    """Bytes of this process that are no pages of files.

    Raises:
        OSError: If the system is no Linux.
    """
    with open("/proc/self/status") as status:
        lines = [line for line in status if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024


def build(folder: Path, megabytes: int) -> None:
    """Write a pipeline in all forms: `whole`, `sharded`, both with a transformer of this size, and `file.safetensors`."""
    from ltx2_diffusers import LTX2AVTransformer3DModel
    from ltx2_diffusers.checkpoints.convert import convert_to_original
    from tests.tiny_checkpoints import tiny_checkpoint

    config = LTX2AVTransformer3DModel.load_config(tiny_checkpoint("2.0"), subfolder="transformer")
    wide = {"num_attention_heads": _HEADS, "attention_head_dim": 128, "cross_attention_dim": 128 * _HEADS}
    wide |= {"audio_num_attention_heads": _HEADS, "audio_cross_attention_dim": 8 * _HEADS}
    layers = max(1, round(megabytes * 1e6 / 2 / _LAYER_PARAMETERS))
    transformer = LTX2AVTransformer3DModel.from_config({**config, **wide, "num_layers": layers}).to(torch.bfloat16)
    for name, shards in (("whole", "100GB"), ("sharded", f"{megabytes // 4}MB")):
        shutil.copytree(tiny_checkpoint("2.0"), folder / name, symlinks=False)
        shutil.rmtree(folder / name / "transformer")
        transformer.save_pretrained(folder / name / "transformer", max_shard_size=shards)
    convert_to_original(folder / "whole", folder / "file.safetensors")
    del transformer
    _build_text_encoder(folder / "whole" / "text_encoder", megabytes // 3)


def _build_text_encoder(folder: Path, megabytes: int) -> None:
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.head_dim = 1024, 4096, 64
    text.num_hidden_layers = max(1, round(megabytes * 1e6 / 2 / 14e6))
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    model = Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    shutil.rmtree(folder)
    model.save_pretrained(folder)


def cases(folder: Path) -> dict[str, Callable[[torch.dtype], Any]]:
    """What is loaded, by name, as a function of the data type."""
    from ltx2_diffusers import LTX2AVTransformer3DModel as Transformer
    from ltx2_diffusers import LTX2Pipeline
    from ltx2_diffusers.checkpoints.language_model import load_language_model

    whole, file = folder / "whole", folder / "file.safetensors"
    text = {"text_encoder": whole}
    return {
        "transformer, folder": lambda dtype: Transformer.from_pretrained(whole, subfolder="transformer", dtype=dtype),
        "transformer, shards": lambda dtype: Transformer.from_pretrained(
            folder / "sharded", subfolder="transformer", dtype=dtype
        ),
        "transformer, original file": lambda dtype: Transformer.from_single_file(file, dtype=dtype),
        "transformer, original file, read": lambda dtype: Transformer.from_single_file(
            file, dtype=dtype, disable_mmap=True
        ),
        "text encoder, folder": lambda dtype: load_language_model(whole / "text_encoder", dtype),
        "pipeline, folder": lambda dtype: LTX2Pipeline.from_pretrained(whole, dtype=dtype),
        "pipeline, original file": lambda dtype: LTX2Pipeline.from_single_file(file, dtype=dtype, **text),
        "pipeline, folder, blocks on disk": lambda dtype: LTX2Pipeline.from_pretrained(
            whole, dtype=dtype, block_streaming="disk", text_encoder_residency="on_demand"
        ),
    }


def measure_here(folder: Path, case: str, dtype: torch.dtype) -> dict[str, float]:
    """Load once in this process; sizes in bytes."""
    from ltx2_diffusers.memory.lazy import LazyWeight

    load = cases(folder)[case]
    # Libraries that loading imports are no weights.
    load_small(dtype)
    with PeakMemory() as peak:
        loaded = load(dtype)
    parts = loaded.components.values() if hasattr(loaded, "components") else [loaded]
    tensors = [
        t for part in parts if isinstance(part, torch.nn.Module) for t in part.state_dict(keep_vars=True).values()
    ]
    held = {id(t): t.numel() * t.element_size() for t in tensors if not isinstance(t, LazyWeight)}
    kept = {id(t): t.numel() * t.element_size() for t in tensors if isinstance(t, LazyWeight)}
    return {"peak": peak.bytes, "weights": sum(held.values()), "in files": sum(kept.values())}


def load_small(dtype: torch.dtype) -> None:
    """Go once through all code of loading."""
    from ltx2_diffusers import LTX2Pipeline
    from tests.tiny_checkpoints import tiny_checkpoint

    LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), dtype=dtype)
    LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), dtype=dtype, block_streaming="disk")


def measure(folder: Path, case: str, kind: str) -> dict[str, Any]:
    """Load once in a new process.

    Args:
        folder: What [`build`] wrote.
        case: A name of [`cases`].
        kind: `"as stored"` or `"cast"`.

    Returns:
        Bytes of `peak` anonymous memory, of the `weights` in memory and of those left `in files`, and the `ratio` of the peak
        to the weights.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.loading_memory",
        "--folder",
        os.fspath(folder),
        "--case",
        case,
        "--kind",
        kind,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1]
    )
    sizes = json.loads(done.stdout.splitlines()[-1])
    return {"case": case, "weights are": kind, **sizes, "ratio": sizes["peak"] / sizes["weights"]}


def measure_all(megabytes: int = QUICK_MEGABYTES) -> list[dict[str, Any]]:
    """All cases, each with weights as stored and cast.

    Args:
        megabytes: Size of the transformer. Default 240.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder, megabytes)
        return [
            measure(folder, case, kind) for case in cases(folder) for kind in _DTYPES if (case, kind) != _UNCOUNTED
        ]


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller weights")
    for name in ("folder", "case", "kind"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure_here(Path(options.folder), options.case, _DTYPES[options.kind])))
        return
    rows = measure_all(QUICK_MEGABYTES if options.quick else MEGABYTES)
    sizes = ("peak", "weights", "in files")
    print_table([{**row, **{name: round(row[name] / 1e6) for name in sizes}} for row in rows])
    print(write_results("loading_memory", {"bound": BOUND, "unit": "bytes", "cases": rows}))


if __name__ == "__main__":
    main()

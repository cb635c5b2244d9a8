"""One step of a LoRA against forward passes of the same batch, and how long a step waits for its data.

Run `python -m benchmarks.training_step [--quick]`. Widths are those of the transformer's benchmark. With `--device cuda` a
truncated model of the published width (8 of 48 blocks, random weights) runs there, on bfloat16 weights, on streamed ones and
on quantised ones, and the peak of the memory is taken. A case that fails is written down with the reason.
"""

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from benchmarks.common import interleaved, print_table, write_results
from benchmarks.transformer_forward import CONFIG, FULL_GRIDS, GRIDS
from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2TextConnectors
from ltx2_diffusers.conditioning import Streams
from ltx2_diffusers.data.dataset import DummyDataset, PrecomputedDataset, SampleWidths
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.pipelines.plan import ModelSizes
from ltx2_diffusers.training.batches import BatchOrder, kinds_of, make_loader
from ltx2_diffusers.training.config import TextToVideoConfig
from ltx2_diffusers.training.objective.losses import step_losses
from ltx2_diffusers.training.objective.noise_levels import LogitNormalLevels, RowDraws
from ltx2_diffusers.training.objective.strategies import strategy_of
from ltx2_diffusers.training.trained.block_streaming import BlockStreaming
from ltx2_diffusers.training.trained.models import without_projections
from ltx2_diffusers.training.trained.network import TrainingNetwork
from ltx2_diffusers.training.trained.quantization import check_quantization, quantize_blocks
from ltx2_diffusers.training.trained.targets import matching_modules, resolve

FOLDERS = ("latents", "conditions", "audio_latents")
# The text connectors of the benchmark's transformer.
CONNECTORS = {
    "caption_channels": 256,
    "text_proj_in_factor": 2,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 64,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 64,
    "rope_type": "split",
}
FRAME_RATE = 24.0
RANK = 32


def add_lora(transformer: LTX2AVTransformer3DModel) -> None:
    """Freeze a transformer and put a float32 LoRA on all its attention."""
    transformer.requires_grad_(False)
    names = matching_modules(transformer, resolve("av").transformer)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    cast_training_params(transformer, torch.float32)


class Step:
    """A LoRA, a batch, and what is done with both.

    Args:
        transformer: Frozen, on its device; a LoRA is put on it if it has none.
        connectors: Frozen, on the same device.
        item: A sample.
        text_positions: Positions of the texts.
    """

    def __init__(
        self, transformer: LTX2AVTransformer3DModel, connectors: LTX2TextConnectors, item: dict, text_positions: int
    ) -> None:
        from ltx2_diffusers.data.dataset import collate

        connectors.requires_grad_(False)
        if not hasattr(transformer, "peft_config"):
            add_lora(transformer)
        self.network = TrainingNetwork(transformer, connectors, text_positions=text_positions).train()
        self.device = next(connectors.video_connector.parameters()).device
        self.batch = {
            key: {n: v.to(self.device) if isinstance(v, torch.Tensor) else v for n, v in part.items()}
            for key, part in collate([item]).items()
            if key != "idx"
        }
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        section = TextToVideoConfig(with_audio=True)
        self.strategy, self.number = strategy_of(section), 0
        self.sizes = ModelSizes(32, 8, 128, 1, False, 8, 16, 16000, 160, 4)

    def loss(self) -> torch.Tensor:
        """The loss of the batch at noise levels of its own."""
        self.number += 1
        draws = RowDraws(0, self.number, [0], self.device)
        streams = self.strategy.prepare(self.batch, LogitNormalLevels(), draws, self.sizes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            predicted = Streams(*self.network(self.batch["conditions"], streams))
        return step_losses(predicted, streams, Streams(1.0, 1.0)).total

    def forward(self) -> None:
        """A forward pass alone."""
        with torch.no_grad():
            self.loss()

    def train(self) -> None:
        """A step of the optimiser."""
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def sample(tokens: int, widths: SampleWidths, prompt_tokens: int) -> dict:
    """A random sample of as many video tokens."""
    frames, height, width = (GRIDS | FULL_GRIDS)[tokens]
    folders = dict(zip(FOLDERS, FOLDERS))
    pixels = (width * 32, height * 32, (frames - 1) * 8 + 1)
    return DummyDataset(folders, *pixels, FRAME_RATE, length=1, prompt_tokens=prompt_tokens, widths=widths)[0]


def measure_cpu(tokens: int, checkpointing: bool, repeats: int) -> dict[str, Any]:
    """A step and a forward pass in turn."""
    torch.manual_seed(0)
    transformer, connectors = LTX2AVTransformer3DModel(**CONFIG), LTX2TextConnectors(**CONNECTORS)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    step = Step(transformer, connectors, sample(tokens, SampleWidths(video_text=256), 64), 256)
    times = interleaved({"forward": step.forward, "step": step.train}, repeats=repeats, warmup=2)
    pairs = [slow / fast for slow, fast in zip(times["step"], times["forward"])]
    return {
        "video tokens": tokens,
        "gradient checkpointing": checkpointing,
        "forward s": statistics.median(times["forward"]),
        "step s": statistics.median(times["step"]),
        "forwards per step": statistics.median(times["step"]) / statistics.median(times["forward"]),
        "forwards per step, paired": statistics.median(pairs),
    }


def measure_waiting(workers: int, steps: int) -> dict[str, Any]:
    """How much of the time a run of steps waits for samples, which are read from files.

    As on a GPU, a step leaves the processor to the readers: it takes as long as a measured one, asleep.
    """
    torch.manual_seed(0)
    transformer, connectors = LTX2AVTransformer3DModel(**CONFIG), LTX2TextConnectors(**CONNECTORS)
    item = sample(1152, SampleWidths(video_text=256), 64)
    step = Step(transformer, connectors, item, 256)
    seconds = statistics.median(interleaved({"step": step.train}, repeats=3)["step"])
    with tempfile.TemporaryDirectory() as folder:
        for number in range(16):
            for name in FOLDERS:
                values = item[name].items()
                tensors = {key: value for key, value in values if isinstance(value, torch.Tensor)}
                numbers = {key: value for key, value in values if not isinstance(value, torch.Tensor)}
                write_sample(Path(folder) / name / f"{number}.safetensors", tensors, numbers)
        dataset = PrecomputedDataset(folder, dict(zip(FOLDERS, FOLDERS)))
        order = BatchOrder(kinds_of(dataset), 2, 0)
        batches = iter(make_loader(dataset, order, 0, (0, 2), workers, False))
        next(batches)
        waited = []
        for _ in range(steps):
            time.sleep(seconds)
            start = time.perf_counter()
            next(batches)
            waited.append(time.perf_counter() - start)
    return {
        "workers": workers,
        "step s": seconds,
        "wait s, median": statistics.median(waited),
        "wait s, longest": max(waited),
        "share of the step": statistics.median(waited) / seconds,
    }


class Case(NamedTuple):
    """A base on the device: how it is quantised, and how many of its blocks are there at a time, 0 for all."""

    quantization: str | None = None
    blocks_on_device: int = 0


CASES = [
    Case(),
    Case(blocks_on_device=2),
    *map(Case, ("int8-quanto", "bnb-int8", "bnb-nf4", "torchao-int8", "torchao-fp8")),
]
PUBLISHED_BLOCKS = 48
GIB = 2**30


class Sizes(NamedTuple):
    """What runs on the device: configurations of both models, video tokens, widths of a sample, text positions."""

    transformer: dict[str, Any]
    connectors: dict[str, Any]
    tokens: int = 6144
    widths: SampleWidths = SampleWidths()
    text_positions: int = 1024


def filled(model: torch.nn.Module, device: torch.device) -> None:
    """Give a model without values random ones in bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {
        name: torch.empty(value.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights, assign=True)


def measure_device(case: Case, device: torch.device, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """A step with gradient checkpointing on the device: time and peak memory, or why there is none."""
    row: dict[str, Any] = {
        "base": case.quantization or "bfloat16",
        "blocks": sizes.transformer["num_layers"],
        "blocks on the device": case.blocks_on_device or "all",
    }
    try:
        return {**row, **_measured(case, device, sizes, repeats)}
    except Exception as error:
        # Out of memory, or a kernel or library that is missing: the other cases go on.
        return {**row, "not run": f"{type(error).__name__}: {error}".splitlines()[0]}
    finally:
        # What an error held is free only now.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measured(case: Case, device: torch.device, sizes: Sizes, repeats: int) -> dict[str, Any]:
    if case.quantization is not None:
        check_quantization(case.quantization, device)
    is_cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if is_cuda else 0
    with torch.device("meta"):
        transformer = LTX2AVTransformer3DModel(**sizes.transformer)
        connectors = LTX2TextConnectors(**sizes.connectors)
    filled(transformer, device)
    with without_projections(connectors):
        # What never runs stays without values.
        filled(connectors, device)
    transformer.enable_gradient_checkpointing()
    transformer.requires_grad_(False)
    if case.quantization is not None:
        quantize_blocks(transformer, case.quantization, device, device)
    block = sum(p.numel() * 2 for p in transformer.transformer_blocks[0].parameters())
    weights = torch.cuda.memory_allocated() - before if is_cuda else 0
    add_lora(transformer)
    if case.blocks_on_device:
        BlockStreaming(transformer, device, case.blocks_on_device)
    item = sample(sizes.tokens, sizes.widths, 128)
    step = Step(transformer, connectors, item, sizes.text_positions)
    if is_cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = interleaved({"forward": step.forward, "step": step.train}, repeats=repeats, warmup=2)
    found = {
        "video tokens": sizes.tokens,
        "forward s": statistics.median(times["forward"]),
        "step s": statistics.median(times["step"]),
        "forwards per step": statistics.median(times["step"]) / statistics.median(times["forward"]),
    }
    if not is_cuda:
        return found
    peak = torch.cuda.max_memory_allocated()
    return (
        found
        | {"weights before the LoRA GiB": weights / GIB, "peak GiB": peak / GIB}
        | of_all_blocks(case, step, item, block, peak)
    )


def of_all_blocks(case: Case, step: Step, item: dict, block: int, peak: int) -> dict[str, float]:
    """The peak that the published number of blocks would have, by what one more block adds.

    That is its weights, where they stay on the device; of its LoRA the weights, the copy that autocast makes, gradients and
    two moments, 4 + 2 + 4 + 8 bytes for each parameter; and its input in bfloat16, which checkpointing keeps.
    """
    transformer = step.network.front.transformer
    num_blocks, config = len(transformer.transformer_blocks), transformer.config
    lora = 18 * sum(p.numel() for p in step.parameters) / num_blocks
    video = item["latents"]["latents"][0].numel()
    audio = item["audio_latents"]["latents"].shape[1]
    widths = [config[f"{name}num_attention_heads"] * config[f"{name}attention_head_dim"] for name in ("", "audio_")]
    inputs = 2 * (video * widths[0] + audio * widths[1])
    if case.quantization is not None:
        own = sum(_bytes(p) for p in transformer.transformer_blocks[0].parameters() if not p.requires_grad)
    else:
        own = block
    added = (0 if case.blocks_on_device else own) + lora + inputs
    return {
        "a block's weights GiB": own / GIB,
        "a block's LoRA GiB": lora / GIB,
        "a block's input GiB": inputs / GIB,
        f"peak GiB of {PUBLISHED_BLOCKS} blocks, computed": (peak + (PUBLISHED_BLOCKS - num_blocks) * added) / GIB,
    }


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, which may be a quantised one that is made of several."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def run_device(device: torch.device, layers: int, repeats: int) -> None:
    """Measure all cases, and write down after each what there is."""
    sizes = Sizes({"num_layers": layers, "rope_type": "split"}, {"rope_type": "split"})
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows.append(measure_device(case, device, sizes, repeats))
        print(rows[-1], flush=True)
        path = write_results(f"training_step_{device.type}", {"rank": RANK, "repeats": repeats, "cases": rows})
    print("written to", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which runs the published width")
    parser.add_argument("--layers", type=int, default=8, help="blocks of the published width; default 8")
    options = parser.parse_args()
    repeats = 5 if options.quick else 15
    if options.device != "cpu":
        run_device(torch.device(options.device), options.layers, repeats)
        return
    rows = [measure_cpu(tokens, checkpointing, repeats) for tokens in GRIDS for checkpointing in (False, True)]
    print_table(rows)
    waiting = [measure_waiting(workers, 20) for workers in (0, 2)]
    print_table(waiting)
    payload = {"config": CONFIG, "rank": RANK, "repeats": repeats, "cases": rows, "data": waiting}
    print("written to", write_results("training_step", payload))


if __name__ == "__main__":
    main()

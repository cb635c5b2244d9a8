"""One step of a LoRA against forward passes of the same batch, and how long a step waits for its data.

Run `python -m benchmarks.training_step [--quick]`. Widths are those of the transformer's benchmark. With `--device cuda` a
truncated model of the published width (8 of 48 blocks, random weights) runs there, on bfloat16 and on quantised weights, and
the peak of the memory is taken; a library that is missing there is named.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from benchmarks.common import interleaved, print_table, write_results
from benchmarks.transformer_forward import CONFIG, FULL_GRIDS, GRIDS, make_full_models
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


class Step:
    """A LoRA, a batch, and what is done with both.

    Args:
        transformer: Frozen, on its device.
        connectors: Frozen, on the same device.
        item: A sample.
        text_positions: Positions of the texts.
    """

    def __init__(
        self, transformer: LTX2AVTransformer3DModel, connectors: LTX2TextConnectors, item: dict, text_positions: int
    ) -> None:
        from ltx2_diffusers.data.dataset import collate

        transformer.requires_grad_(False)
        connectors.requires_grad_(False)
        names = matching_modules(transformer, resolve("av").transformer)
        transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
        cast_training_params(transformer, torch.float32)
        self.network = TrainingNetwork(transformer, connectors, text_positions=text_positions).train()
        self.device = connectors.device
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


def measure_gpu(quantization: str | None, device: str, layers: int, repeats: int) -> dict[str, Any]:
    """A step at the published width with gradient checkpointing: time and peak memory."""
    place = torch.device(device)
    row: dict[str, Any] = {"base": quantization or "bfloat16", "blocks": layers}
    if quantization is not None:
        try:
            check_quantization(quantization, place)
        except (ValueError, ImportError) as error:
            return {**row, "not run": str(error)}
    torch.cuda.empty_cache()
    transformer = make_full_models(device, layers)["ours"]
    if quantization is not None:
        transformer.requires_grad_(False)
        quantize_blocks(transformer, quantization, place, place)
    transformer.enable_gradient_checkpointing()
    connectors = LTX2TextConnectors(rope_type="split").to(place, torch.bfloat16)
    step = Step(transformer, connectors, sample(6144, SampleWidths(), 128), 1024)
    torch.cuda.reset_peak_memory_stats()
    times = interleaved({"forward": step.forward, "step": step.train}, repeats=repeats, warmup=2)
    return {
        **row,
        "video tokens": 6144,
        "forward s": statistics.median(times["forward"]),
        "step s": statistics.median(times["step"]),
        "forwards per step": statistics.median(times["step"]) / statistics.median(times["forward"]),
        "weights GiB": sum(p.numel() * p.element_size() for p in transformer.parameters()) / 2**30,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which runs the published width")
    parser.add_argument("--layers", type=int, default=8, help="blocks of the published width; default 8")
    options = parser.parse_args()
    repeats = 5 if options.quick else 15
    if options.device != "cpu":
        bases = (None, "int8-quanto", "bnb-int8", "bnb-nf4", "torchao-int8", "torchao-fp8")
        rows = [measure_gpu(base, options.device, options.layers, repeats) for base in bases]
        for row in rows:
            print(row)
        print("written to", write_results("training_step_cuda", {"rank": RANK, "cases": rows}))
        return
    rows = [measure_cpu(tokens, checkpointing, repeats) for tokens in GRIDS for checkpointing in (False, True)]
    print_table(rows)
    waiting = [measure_waiting(workers, 20) for workers in (0, 2)]
    print_table(waiting)
    payload = {"config": CONFIG, "rank": RANK, "repeats": repeats, "cases": rows, "data": waiting}
    print("written to", write_results("training_step", payload))


if __name__ == "__main__":
    main()

"""What a training run will need, before anything of it is loaded: memory, time, and whether the data are there.

Everything is counted on the meta device, where modules have shapes and no values. Sizes are in bytes, rates in operations
per second; an operation is an addition or a multiplication.

Shapes: D width of a stream's tokens, I inner width of an attention, H its heads, r rank of an adapter, L blocks.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..adapters.keys import linear_shapes
from ..checkpoints.packaged import checkpoint_path
from ..conditioning import Streams
from ..devices import GPUS
from .config import TrainingConfig

TEXT_POSITIONS = 1024
"""Positions of the contexts that both streams attend to."""
_FLOAT32, _HALF = 4, 2
# Moments of AdamW: two in float32; in 8 bits two bytes, and a float32 scale of each per 256 values.
_MOMENTS = {"adamw": 2 * _FLOAT32, "adamw8bit": 2 * (1 + _FLOAT32 / 256)}


class Storage(NamedTuple):
    """How a quantised linear layer is stored: bytes per weight, bytes per output channel."""

    per_weight: float
    per_row: float


QUANTIZED = {
    "int8-quanto": Storage(1, 2),
    # Groups of 128 weights share a scale and a shift.
    "int4-quanto": Storage(1 / 2 + 4 / 128, 0),
    "int2-quanto": Storage(1 / 4 + 4 / 128, 0),
    "fp8-quanto": Storage(1, 2),
    "fp8uz-quanto": Storage(1, 2),
    "bnb-int8": Storage(1, 4),
    # Blocks of 64 weights share a scale of 8 bits, and 256 of those scales one of 32.
    "bnb-nf4": Storage(1 / 2 + 1 / 64 + 4 / (64 * 256), 0),
    "torchao-int8": Storage(1, 2),
    "torchao-fp8": Storage(1, 4),
}
"""Bytes of the linear layers of blocks by `acceleration.quantization`."""


class Tokens(NamedTuple):
    """Tokens of one sample: `video` and `audio` with their references, 0 for an absent stream; positions of `text`."""

    video: int
    audio: int
    text: int = TEXT_POSITIONS

    @property
    def total(self) -> int:
        """Tokens of both streams."""
        return self.video + self.audio


@dataclass(frozen=True)
class DataFacts:
    """What training will read.

    Args:
        samples: Complete samples.
        dropped: Samples that lack a file.
        sizes: Numbers of samples by what they hold, in words.
        dataset: The samples.
        largest: Tokens of the largest sample.
        steps_per_epoch: Steps of the optimiser in which every sample is read once, over all processes.
    """

    samples: int
    dropped: int
    sizes: Mapping[str, int]
    dataset: Any
    largest: Tokens
    steps_per_epoch: float


class Memory(NamedTuple):
    """What lies on a device while a step runs, in bytes.

    Args:
        weights: Weights of transformer and connectors on the device, without the projections of the text.
        adapters: Weights of the adapter.
        gradients: Gradients.
        moments: States of the optimiser, and moving averages of the weights.
        activations: What the forward pass keeps for the backward pass at most.
        host_weights: Weights that wait in host memory.
    """

    weights: float
    adapters: float
    gradients: float
    moments: float
    activations: float
    host_weights: float

    @property
    def peak(self) -> float:
        """Most memory of the device at a time; libraries and fragments between tensors need 1 to 2 GiB more."""
        return self.weights + self.adapters + self.gradients + self.moments + self.activations


@dataclass(frozen=True)
class Forecast:
    """What a run needs on each device.

    Args:
        parameters: Parameters of the transformer.
        trainable: Parameters that train.
        tokens: Tokens of the largest sample.
        batch_size: Samples of a forward pass.
        steps: Steps of the optimiser.
        memory: Memory.
        operations: Operations of a step.
        data: The data; `None` if they were not looked at.
    """

    parameters: int
    trainable: int
    tokens: Tokens
    batch_size: int
    steps: int
    memory: Memory
    operations: float
    data: DataFacts | None = None

    def text(self, gpu: str | None = None, device_tflops: float | None = None) -> str:
        """The forecast as lines.

        Args:
            gpu: A name of `GPUS` to compare with.
            device_tflops: Operations per second of another device, in units of 1e12.

        Raises:
            ValueError: If the speed is not above 0.
        """
        if device_tflops is not None and not device_tflops > 0:
            raise ValueError(f"device_tflops has to be above 0 but is {device_tflops}; use that of {', '.join(GPUS)}")
        lines = [*self._data_lines(), *self._memory_lines()]
        if gpu is not None:
            size = GPUS[gpu].memory_gib
            fits = "fits" if self.memory.peak / 2**30 < size else "does not fit"
            lines.append(f"  which {fits} the {size:g} GiB of {gpu}")
        lines.append(f"step: {self.operations / 1e12:.4g} T operations")
        speed = device_tflops or (GPUS[gpu].tflops if gpu is not None else None)
        if speed is not None:
            seconds = self.operations / (speed * 1e12)
            lines.append(
                f"time: {seconds:.2f} s a step and {seconds * self.steps / 3600:.1f} h in all at {speed:g} T/s, an estimate "
                "from below: no device keeps up its stated speed"
            )
        return "\n".join(lines)

    def _data_lines(self) -> list[str]:
        if self.data is None:
            return []
        data = self.data
        dropped = f", {data.dropped} left out that lack a file" if data.dropped else ""
        sizes = [f"  {count} x {size}" for size, count in data.sizes.items()]
        return [f"data: {data.samples} samples{dropped}; {data.steps_per_epoch:g} steps an epoch", *sizes]

    def _memory_lines(self) -> list[str]:
        share, memory = 100 * self.trainable / self.parameters, self.memory
        kept = {"weights": memory.weights, "adapter": memory.adapters, "gradients": memory.gradients}
        kept |= {"optimiser": memory.moments, "activations": memory.activations}
        host = [f"  and {_shown(memory.host_weights)} of weights in host memory"] if memory.host_weights else []
        return [
            f"transformer: {self.parameters:,} parameters, of which {self.trainable:,} train ({share:.2f}%)",
            f"largest batch: {self.batch_size} x {self.tokens.total} tokens "
            f"(video {self.tokens.video}, audio {self.tokens.audio}, text {self.tokens.text})",
            "memory of a device, an estimate:",
            *(f"  {name:<12}{_shown(size):>12}" for name, size in kept.items()),
            f"  {'together':<12}{_shown(memory.peak):>12}, and 1 to 2 GiB for libraries and fragments",
            *host,
        ]


def _shown(size: float) -> str:
    """Bytes for people: GiB, or MiB where it is little."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def forecast(config: TrainingConfig, tokens: Tokens | None = None) -> Forecast:
    """What a run of these settings needs on each device. No weights are read.

    Args:
        config: The settings.
        tokens: Tokens of a sample. Default: those of the largest sample of the data, which are checked.

    Raises:
        ValueError: If data are missing, a target is no layer of the model, or the checkpoint does not say what it is.
    """
    from .batches import check_widths

    data = check_data(config) if tokens is None else None
    if data is not None:
        tokens = data.largest._replace(text=config.data.max_sequence_length)
    assert tokens is not None
    transformer, connectors = (meta_model(config, component) for component in ("transformer", "connectors"))
    if data is not None:
        check_widths(data.dataset, SimpleNamespace(transformer=transformer, connectors=connectors))
    return Forecast(
        _size(transformer),
        trainable_parameters(config, transformer, connectors),
        tokens,
        config.optimization.batch_size,
        config.optimization.steps,
        step_memory(config, transformer, connectors, tokens),
        step_operations(config, transformer, tokens),
        data,
    )


def trainable_parameters(config: TrainingConfig, transformer: Any, connectors: Any) -> int:
    """Parameters that train: of the adapters, or all of the transformer in full mode."""
    if config.model.training_mode == "full":
        return _size(transformer)
    models = {"transformer": transformer, "connectors": connectors}
    return sum(_adapter_size(config, adapted_layers(config, model, name)) for name, model in models.items())


def step_memory(config: TrainingConfig, transformer: Any, connectors: Any, tokens: Tokens) -> Memory:
    """Memory of a step, for models without values."""
    is_full = config.model.training_mode == "full"
    trainable = trainable_parameters(config, transformer, connectors)
    weights, host = _weights(config, transformer, is_full)
    averages = _FLOAT32 if config.optimization.ema_decay is not None else 0
    number = _FLOAT32 if is_full else _HALF
    # Only samples run the projections of the text.
    waiting = sum(_size(part) for name, part in connectors.named_children() if name.endswith("text_proj_in"))
    return Memory(
        weights + number * (_size(connectors) - waiting),
        # Autocast keeps a copy in half precision for as long as the forward pass runs.
        0.0 if is_full else float(trainable * (_FLOAT32 + _HALF * _autocasts(config))),
        float(_FLOAT32 * trainable),
        trainable * (_MOMENTS[config.optimization.optimizer_type] + averages),
        activation_bytes(config, transformer, tokens),
        host + number * waiting,
    )


def check_data(config: TrainingConfig) -> DataFacts:
    """Look whether the data of a run are there and complete; of safetensors files only headers are read.

    Raises:
        ValueError: If a folder is missing, no sample is complete, or all are fewer than a batch; it names the folder and the command that makes it.
    """
    from ..data.dataset import PrecomputedDataset, check_not_smaller
    from .batches import BatchOrder, kinds_of
    from .objective.strategies import strategy_of

    strategy = strategy_of(config.training_strategy)
    try:
        dataset = PrecomputedDataset(
            config.data.preprocessed_data_root, strategy.data_sources(), strategy.optional_sources()
        )
        if config.training_strategy.caption_dropout_p > 0:
            dataset.empty_prompt()
    except FileNotFoundError as error:
        raise ValueError(f"data.preprocessed_data_root: {error}") from None
    kinds = kinds_of(dataset)
    section = config.optimization
    # Set by the launcher of Accelerate and torchrun.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check_not_smaller(dataset, section.batch_size * processes)
    order = BatchOrder(kinds, section.batch_size * processes, config.seed)
    found = Counter(kinds)
    tokens = {kind: _tokens_of(json.loads(kind)) for kind in found}
    return DataFacts(
        samples=len(kinds),
        dropped=len(dataset.dropped),
        sizes={_size_words(json.loads(kind)): count for kind, count in found.most_common()},
        dataset=dataset,
        largest=max(tokens.values(), key=lambda one: (one.total, one.video)),
        steps_per_epoch=len(order) / section.gradient_accumulation_steps,
    )


def _latent_shapes(kind: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of the latents by folder: `[C, F, h, w]` of video, `[C, L, M]` of sound."""
    return {folder: part["latents"] for folder, part in kind.items() if "latents" in part}


def _tokens_of(kind: Mapping[str, Any]) -> Tokens:
    shapes = _latent_shapes(kind).values()
    video = sum(shape[1] * shape[2] * shape[3] for shape in shapes if len(shape) == 4)
    return Tokens(video, sum(shape[1] for shape in shapes if len(shape) == 3))


def _size_words(kind: Mapping[str, Any]) -> str:
    parts = []
    for folder, shape in _latent_shapes(kind).items():
        rate = kind[folder].get("fps")
        size = "x".join(map(str, shape[1:])) if len(shape) == 4 else str(shape[1])
        parts.append(f"{folder} {size}" + (f" at {rate:g} fps" if rate is not None else ""))
    return f"{', '.join(parts)} ({_tokens_of(kind).total} tokens)"


def model_config(config: TrainingConfig, component: str) -> dict[str, Any]:
    """The configuration of a component of the checkpoint: from its folder, its file's header or the Hub.

    Raises:
        ValueError: If the checkpoint has none.
    """
    from ..checkpoints.json_files import read_config
    from ..checkpoints.original import OriginalCheckpoint

    path = checkpoint_path(config.model.model_path)
    if path.is_file():
        return OriginalCheckpoint(path).config(component)
    if path.is_dir():
        file = path / component / "config.json"
        if not file.is_file():
            raise ValueError(
                f"model.model_path: {str(path)!r} has no {component}/config.json; give a pipeline's folder"
            )
        return read_config(file)
    from huggingface_hub import hf_hub_download

    name, revision = config.model.model_path, config.model.revision
    return read_config(Path(hf_hub_download(name, f"{component}/config.json", revision=revision)))


def meta_model(config: TrainingConfig, component: str, **changes: Any) -> Any:
    """The transformer or the connectors of the checkpoint, without values; `changes` replace settings of the model."""
    from ..models.connectors import LTX2TextConnectors
    from ..models.transformer import LTX2AVTransformer3DModel

    cls: Any = LTX2AVTransformer3DModel if component == "transformer" else LTX2TextConnectors
    with torch.device("meta"):
        return cls.from_config({**model_config(config, component), **changes})


def adapted_layers(config: TrainingConfig, model: nn.Module, component: str) -> dict[str, tuple[int, int]]:
    """Paths and sizes (out, in) of the layers of a component that get an adapter: those of streams that run."""
    from .objective.strategies import strategy_of
    from .trained.targets import matching_modules, resolve, unused_modules

    if config.lora is None or config.model.training_mode == "full":
        return {}
    paths = matching_modules(model, getattr(resolve(config.lora.target_modules), component))
    unused = set(unused_modules(paths, strategy_of(config.training_strategy).runs))
    shapes = linear_shapes(model)
    return {path: shapes[path] for path in paths if path not in unused}


def _adapter_size(config: TrainingConfig, layers: Mapping[str, tuple[int, int]]) -> int:
    """Parameters of the adapters of layers: rank (in + out) each, and what DoRA and biases add."""
    if config.lora is None:
        return 0
    extra = config.lora.use_dora + config.lora.lora_bias
    return sum(config.lora.rank * (into + out) + extra * out for out, into in layers.values())


def _weights(config: TrainingConfig, transformer: Any, is_full: bool) -> tuple[float, float]:
    """Bytes of the transformer's own weights on the device and in host memory."""
    if is_full:
        # Autocast keeps a copy in half precision of every weight for as long as the forward pass runs.
        copies = _HALF if _autocasts(config) else 0
        return float(sum(p.numel() for p in transformer.parameters()) * (_FLOAT32 + copies)), 0.0
    blocks = list(transformer.transformer_blocks)
    block = _block_bytes(blocks[0], config.acceleration.quantization)
    around = _HALF * (_size(transformer) - sum(map(_size, blocks)))
    streamed = config.acceleration.block_streaming
    on_device = min(streamed, len(blocks)) if streamed else len(blocks)
    return around + block * on_device, block * (len(blocks) - max(on_device - 2, 0)) if streamed else 0.0


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _block_bytes(block: nn.Module, quantization: str | None) -> float:
    """Bytes of one frozen block."""
    plain = float(_HALF * _size(block))
    if quantization is None:
        return plain
    storage = QUANTIZED[quantization]
    return plain + sum(
        out * into * (storage.per_weight - _HALF) + out * storage.per_row
        for out, into in linear_shapes(block).values()
    )


def _autocasts(config: TrainingConfig) -> bool:
    return config.acceleration.mixed_precision_mode not in (None, "no")


def activation_bytes(config: TrainingConfig, transformer: Any, tokens: Tokens) -> float:
    """What the forward pass of a batch keeps for the backward pass at most.

    Without checkpointing that is L times [`block_activation_bytes`]. With it, every block keeps its input, which is D
    numbers per token, and one block at a time keeps all.
    """
    config_of = transformer.config
    num_blocks = config_of["num_layers"]
    sizes = block_activation_bytes(config, transformer, tokens)
    batch = config.optimization.batch_size
    if not config.optimization.enable_gradient_checkpointing:
        return batch * num_blocks * sizes
    widths = _widths(config_of)
    number = _FLOAT32 if config.model.training_mode == "full" else _HALF
    inputs = number * (tokens.video * widths.video + tokens.audio * widths.audio)
    return batch * (num_blocks * inputs + sizes)


def _widths(config: Any) -> Streams[int]:
    video = config["num_attention_heads"] * config["attention_head_dim"]
    return Streams(video, config["audio_num_attention_heads"] * config["audio_attention_head_dim"])


class _Attention(NamedTuple):
    """Rows of queries and of keys, inner width and heads of an attention."""

    queries: int
    keys: int
    inner: int
    heads: int


def block_activation_bytes(config: TrainingConfig, transformer: Any, tokens: Tokens) -> float:
    """What one block keeps for its backward pass, for one sample.

    With numbers of h bytes (2 under autocast) and norms of n bytes (4 under autocast, which runs them in float32):

    - an RMS norm keeps its input and a scale: `n D + 4` for each token, four times per stream, or three for a stream
      alone; within an attention `n I + 4` for each query and each key;
    - attention keeps queries, keys, values and result: `h 2 I` for each query and each key, and `4 H` for each query;
    - GELU keeps its input: `h 4 D` for each token;
    - an adapted layer keeps its input and what its first factor made of it: `h (in + r)` for each of its rows; with DoRA
      two results, `h 2 out`; with dropout a mask, `in`;
    - in full mode every linear layer keeps its input, `h in`; and modulation what it scales, in float32, and what it gates:
      `(4 + h) D` for each token of self-attention, feed-forward and the attention between the streams.

    The sum over a token of video in the 2.0 geometry with adapters of rank 32 on all attention is 0.31 MB.
    """
    widths, half, norm = _widths(transformer.config), *_number_sizes(config)
    total = 0.0
    is_full = config.model.training_mode == "full"
    streams = [(rows, width) for rows, width in zip((tokens.video, tokens.audio), widths) if rows]
    for rows, width in streams:
        branches = 4 if len(streams) > 1 else 3
        total += rows * (branches * (norm * width + 4) + half * 4 * width)
        if is_full:
            total += rows * (_FLOAT32 + half) * width * (branches - 1)
    for one in _attentions(transformer.config, tokens):
        total += (one.queries + one.keys) * (norm * one.inner + 4 + half * 2 * one.inner)
        total += one.queries * _FLOAT32 * one.heads
    return total + _adapted_bytes(config, transformer, tokens, half)


def _number_sizes(config: TrainingConfig) -> tuple[int, int]:
    """Bytes of a number in general, and of one that a norm keeps."""
    if _autocasts(config):
        return _HALF, _FLOAT32
    return (_FLOAT32, _FLOAT32) if config.model.training_mode == "full" else (_HALF, _HALF)


def _attentions(config: Any, tokens: Tokens) -> Iterator[_Attention]:
    """The attentions of a block whose streams are there."""
    widths = _widths(config)
    heads = Streams(config["num_attention_heads"], config["audio_num_attention_heads"])
    for rows, width, count in zip((tokens.video, tokens.audio), widths, heads):
        if rows:
            yield _Attention(rows, rows, width, count)
            yield _Attention(rows, tokens.text, width, count)
    if tokens.video and tokens.audio:
        yield _Attention(tokens.video, tokens.audio, widths.audio, heads.audio)
        yield _Attention(tokens.audio, tokens.video, widths.audio, heads.audio)


def _adapted_bytes(config: TrainingConfig, transformer: Any, tokens: Tokens, half: int) -> float:
    """What trained linear layers of one block keep."""
    prefix = "transformer_blocks.0."
    is_full = config.model.training_mode == "full"
    layers = linear_shapes(transformer) if is_full else adapted_layers(config, transformer, "transformer")
    # Without autocast, adapters work in their own precision, float32.
    number = half if is_full or _autocasts(config) else _FLOAT32
    rank = 0 if is_full or config.lora is None else config.lora.rank
    total = 0.0
    for path, (out, into) in layers.items():
        if not path.startswith(prefix):
            continue
        rows = _rows(path.removeprefix(prefix), tokens)
        total += rows * number * (into + rank)
        if config.lora is not None and not is_full:
            total += rows * (2 * number * out * config.lora.use_dora + into * (config.lora.dropout > 0))
    return total


def _rows(path: str, tokens: Tokens) -> int:
    """Rows that a linear layer of a block is given, 0 if it does not run."""
    module, _, layer = path.partition(".")
    is_context = layer.startswith(("to_k", "to_v"))
    if "_to_" in module:
        if not (tokens.video and tokens.audio):
            return 0
        return tokens.video if module.startswith("audio_to_video") != is_context else tokens.audio
    own = tokens.audio if module.startswith("audio_") else tokens.video
    return tokens.text if own and is_context and module.endswith("attn2") else own


def step_operations(config: TrainingConfig, transformer: Any, tokens: Tokens) -> float:
    """Operations of a step on one device: forward, backward, and forward again with checkpointing, for all its batches.

    They are counted by running models of one and of two blocks without values; all blocks are alike.
    """
    counts = [_counted(config, num_layers, tokens) for num_layers in (1, 2)]
    section = config.optimization
    per_sample = counts[0] + (transformer.config["num_layers"] - 1) * (counts[1] - counts[0])
    return float(per_sample * section.batch_size * section.gradient_accumulation_steps)


def _counted(config: TrainingConfig, num_layers: int, tokens: Tokens) -> int:
    """Operations of one sample with a model of so many blocks."""
    model = meta_model(config, "transformer", num_layers=num_layers)
    if layers := list(adapted_layers(config, model, "transformer")):
        from peft import LoraConfig

        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=config.lora.rank if config.lora else 0, target_modules=layers))
    if config.optimization.enable_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    video = _stream_inputs(model.config, "", tokens.video, tokens.text)
    audio = _stream_inputs(model.config, "audio_", tokens.audio, tokens.text)
    with FlopCounterMode(display=False) as counter:
        velocities = model(**video, **audio, return_dict=False)
        torch.stack([one.float().sum() for one in velocities if one is not None]).sum().backward()
    return counter.get_total_flops()


def _stream_inputs(config: Any, prefix: str, rows: int, text: int) -> dict[str, torch.Tensor | None]:
    """Arguments of the transformer for one stream without values; none for a stream without tokens."""
    is_projected = config["use_prompt_embeddings"]
    sizes: dict[str, tuple[int, ...]] = {
        "hidden_states": (1, rows, config[f"{prefix}in_channels"]),
        "encoder_hidden_states": (
            1,
            text,
            config["caption_channels" if is_projected else f"{prefix}cross_attention_dim"],
        ),
        "timestep": (1, 1),
        "sigma": (1,),
    }
    inputs = {f"{prefix}{name}": torch.empty(size, device="meta") if rows else None for name, size in sizes.items()}
    coords = torch.empty(1, 1 if prefix else 3, rows, 2, device="meta") if rows else None
    return {**inputs, f"{prefix or 'video_'}coords": coords}

"""Steps of training as CUDA graphs: a small network's kernels end sooner than Python starts the next ones."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Any]


class Replays:
    """Runs a function of a batch as CUDA graphs, one for each shape of a batch.

    The first batch of a shape runs as usual, the second is recorded, and later ones replay the record. The function must
    not look at values on the CPU, and gets tensors that stay where they are.

    Args:
        function: Of a batch; it gives a tensor.
        device: Of all tensors.
    """

    def __init__(self, function: Callable[[Batch], Tensor], device: torch.device) -> None:
        self.function, self.stream = function, torch.cuda.Stream(device)
        self._records: dict[Any, tuple[torch.cuda.CUDAGraph, Batch, Tensor] | None] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """What the function gives for a batch on the device; a later call changes it."""
        shape, around = _shape(batch), torch.cuda.current_stream()
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            if shape not in self._records:
                self._records[shape] = None
                result = self.function(batch)
            else:
                graph, kept, result = self._records[shape] or self._record(shape, batch)
                _copy(batch, kept)
                graph.replay()
        around.wait_stream(self.stream)
        return result

    def _record(self, shape: Any, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor]:
        kept, graph = _cloned(batch), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = self.function(kept)
        record = self._records[shape] = graph, kept, result
        return record


def _shape(batch: Any) -> Any:
    """What has to be the same for a record to hold: shapes of tensors, and everything else."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape), batch.dtype
    if isinstance(batch, Mapping):
        return tuple((name, _shape(value)) for name, value in batch.items())
    return batch


def _cloned(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _cloned(value) for name, value in batch.items()}
    return batch.clone() if isinstance(batch, Tensor) else batch


def _copy(source: Any, target: Any) -> None:
    if isinstance(source, Mapping):
        for name, value in source.items():
            _copy(value, target[name])
    elif isinstance(source, Tensor):
        target.copy_(source)

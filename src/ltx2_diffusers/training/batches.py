"""Which samples a step reads: an order that follows from the seed alone, and batches of clips of one size.

Shapes: B samples of a batch in one process.
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch

from ..data.dataset import PrecomputedDataset, collate
from ..data.samples import AUDIO_TEXT, VIDEO_TEXT, read_outline
from .objective.noise_levels import generator_of

# What a batch has in common, beside the shapes of its latents: clips of several rates have different positions.
_RATE = "fps"


class BatchOrder:
    """The batches of a run, over all processes: epoch by epoch in another order, always the same for one seed.

    Samples of different sizes never meet in a batch. At the end of an epoch, what is left of a size is filled up with
    samples of the same size from its beginning, so that no sample is left out.

    Args:
        kinds: What samples have to have in common to stand in one batch, one per sample.
        batch_size: Samples of a batch over all processes.
        seed: Seed of the run.
    """

    def __init__(self, kinds: Iterable[Hashable], batch_size: int, seed: int) -> None:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, kind in enumerate(kinds):
            groups[kind].append(index)
        self._groups, self._batch_size, self._seed = list(groups.values()), batch_size, seed

    def __len__(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(group) // self._batch_size) for group in self._groups)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of an epoch, counted from 0."""
        generator = generator_of(self._seed, "order", number)
        batches = []
        for group in self._groups:
            order = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
            while len(order) % self._batch_size:
                order += order[: self._batch_size - len(order) % self._batch_size]
            batches += [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def batches(self, start: int) -> Iterator[list[int]]:
        """All batches from a number on, counted over all epochs from 0; they never end."""
        epoch, skipped = divmod(start, len(self))
        while True:
            yield from self.epoch(epoch)[skipped:]
            epoch, skipped = epoch + 1, 0


class ProcessBatches:
    """The part of every batch that one process reads.

    Args:
        order: The batches over all processes.
        start: Number of the first batch.
        rows: First and last row of this process within a batch, the last one outside.
    """

    def __init__(self, order: BatchOrder, start: int, rows: tuple[int, int]) -> None:
        self._order, self._start, self._rows = order, start, slice(*rows)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self._rows] for batch in self._order.batches(self._start))


def kinds_of(dataset: Any) -> list[str]:
    """What the samples of a dataset have to have in common to stand in one batch: sources, sizes and rates.

    Args:
        dataset: A [`PrecomputedDataset`], of which only headers are read; another one is read whole.
    """
    if isinstance(dataset, PrecomputedDataset):
        places = [dataset.files(index) for index in range(len(dataset))]
        return [_kind({source: read_outline(path) for source, path in files.items()}) for files in places]
    return [_kind(dataset[index]) for index in range(len(dataset))]


def _kind(item: dict[str, Any]) -> str:
    """Texts of any length go together."""
    found: dict[str, dict[str, Any]] = {}
    for source, part in item.items():
        if source in ("idx", "conditions"):
            continue
        found[source] = {name: list(value.shape) for name, value in part.items() if isinstance(value, torch.Tensor)}
        if _RATE in part:
            found[source][_RATE] = round(float(part[_RATE]), 6)
    return json.dumps(found, sort_keys=True)


def make_loader(
    dataset: Any, order: BatchOrder, start: int, rows: tuple[int, int], workers: int, pin_memory: bool
) -> torch.utils.data.DataLoader:
    """Reads the batches of a process from a number on, ahead of the step that needs them.

    Args:
        dataset: The samples.
        order: The batches over all processes.
        start: Number of the first batch.
        rows: First and last row of this process within a batch, the last one outside.
        workers: Processes that read; 0 reads in this process.
        pin_memory: Whether batches lie in memory that a GPU reads directly.
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=ProcessBatches(order, start, rows),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,
        # Its own generator leaves the global one, from which dropout draws, alone.
        generator=torch.Generator().manual_seed(0),
    )


def names_of(dataset: Any, indices: Sequence[int]) -> list[str]:
    """What to call samples in messages."""
    names = getattr(dataset, "names", None)
    return [str(index) if names is None else names[index] for index in indices]


def check_widths(dataset: Any, models: Any) -> None:
    """Raise `ValueError` if the first sample is what the networks of another model made.

    Args:
        dataset: The samples.
        models: [`TrainedModels`] that are going to read them.
    """
    tokens, text = models.transformer.config, models.connectors.config
    names = ("video_hidden_dim", "audio_hidden_dim") if text.per_modality_projections else ("caption_channels",) * 2
    video_width, audio_width = (text[name] for name in names)
    for source, part in dataset[0].items():
        # Where there is no feature of its own, the audio connector reads the video's.
        if source == "conditions":
            video = part[VIDEO_TEXT]
            pairs = [(video.shape[1], video_width), (part.get(AUDIO_TEXT, video).shape[1], audio_width)]
        elif source == "idx" or "latents" not in part:
            continue
        elif part["latents"].ndim == 4:
            pairs = [(part["latents"].shape[0] * tokens.patch_size**2, tokens.in_channels)]
        else:
            channels, _, bins = part["latents"].shape
            pairs = [(channels * bins, tokens.audio_in_channels)]
        if odd := next(((found, width) for found, width in pairs if found != width), None):
            raise ValueError(
                f"{source} of sample {names_of(dataset, [0])[0]!r} are {odd[0]} wide, but the model reads {odd[1]}: they are of "
                "another model; run `ltx2 data process` with this one"
            )

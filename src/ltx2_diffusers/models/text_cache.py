"""What a generation computes from its prompt once instead of once per step.

Shapes: B batch, T text tokens, D width of the stream, I inner width of an attention layer.
"""

import torch


class KeyValueSlot:
    """Room for the keys and values `[B, T, I]` of one attention layer."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None


class TextCache:
    """Projected text, and text keys and values of every block, filled by the first forward pass that is given it.

    It belongs to one prompt and one state of the weights: make a new one after loading or scaling adapters. At full
    size the keys and values of one prompt of 1024 tokens take 1.2 GB in half precision.
    """

    def __init__(self) -> None:
        self._sources: tuple[torch.Tensor | None, ...] | None = None
        self._contexts: dict[str, torch.Tensor] = {}
        self._slots: dict[tuple[str, int], KeyValueSlot] = {}

    def check_sources(self, *sources: torch.Tensor | None) -> None:
        """Refuse text features other than those that the cache was filled from."""
        if self._sources is None:
            self._sources = sources
        for known, source in zip(self._sources, sources):
            # Hooks that place tensors on a device hand over a new copy at every call, which only its values tell.
            if known is not None and source is not None and not _equal(known, source):
                raise ValueError(
                    "text_cache holds another prompt; pass the same text tensors again, or a new TextCache()."
                )
        self._sources = tuple(source if known is None else known for known, source in zip(self._sources, sources))

    def context(self, stream: str) -> torch.Tensor | None:
        """The projected text `[B, T, D]` of a stream, once it is known."""
        return self._contexts.get(stream)

    def keep_context(self, stream: str, context: torch.Tensor) -> None:
        """Remember the projected text of a stream."""
        self._contexts[stream] = context

    def slot(self, stream: str, block: int) -> KeyValueSlot:
        """The slot of a stream's attention to the text in a block."""
        return self._slots.setdefault((stream, block), KeyValueSlot())


def _equal(known: torch.Tensor, source: torch.Tensor) -> bool:
    return known is source or (known.shape == source.shape and bool((known == source.to(known.device)).all()))

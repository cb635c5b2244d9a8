"""Results that stay valid for as long as the tensor they were computed from lives unchanged."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch


class TensorMemo:
    """Remembers results per source tensor; an entry dies with its tensor and with every in-place change of it.

    Identity and version counter of the tensor decide, never its values, so a look-up costs no device
    synchronisation. Tensors without a version counter (made under `torch.inference_mode`) and calls that are being
    compiled are computed afresh every time.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref, int, dict[Hashable, Any]]] = {}

    @staticmethod
    def can_remember(source: torch.Tensor) -> bool:
        """Whether changes of `source` can be noticed, which is what remembering needs."""
        return not (torch.compiler.is_compiling() or source.is_inference() or source.requires_grad)

    def get(self, source: torch.Tensor, key: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()`, or its earlier result for the same unchanged `source` and an equal `key`.

        Args:
            source (`torch.Tensor`): Everything that `compute` reads beside `key`.
            key (`Hashable`): All other values that the result depends on.
            compute (`Callable`): Called without arguments; its result is shared between calls and must not be
                written to.
        """
        if not self.can_remember(source):
            return compute()
        identity = id(source)
        entry = self._entries.get(identity)
        if entry is None or entry[0]() is not source or entry[1] != source._version:
            entries = self._entries
            reference = weakref.ref(source, lambda _: entries.pop(identity, None))
            entry = entries[identity] = (reference, source._version, {})
        results = entry[2]
        if key not in results:
            results[key] = compute()
        return results[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict) -> "TensorMemo":
        return TensorMemo()

    def __reduce__(self) -> tuple:
        return TensorMemo, ()


def host_can_read(tensor: torch.Tensor) -> bool:
    """Whether Python may look at the values of `tensor`: not while compiling, capturing a graph or on `meta`."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())

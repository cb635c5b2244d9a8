"""Attention of every position to the box of its neighbours in time, height and width, exact and without a mask of all pairs.

Queries are cut into boxes. A box attends to the union of its windows in one dense attention whose mask, that of a single
box, leaves to each query its own; boxes whose windows lie alike run together, as many as a budget of memory allows.

Shapes: B batch, T, H, W positions in time, height and width, N heads, D width of a head, C = N * D.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, product
from math import prod
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn

from ..checks import check_choice
from ..kernels.steps import RotaryTables, apply_rotary
from .attention import QK_NORM_EPS
from .video_vae_streaming import joined_frames

PROJECTED_TOKENS = 2**15
"""Positions that linear layers, norms and rotations, in float32, work on at a time where results go into the place of the input."""
SLAB_TOKENS = 2**17
"""Positions whose queries attend at a time there."""
NATTEN_SLAB_TOKENS = 2**19
"""The same for NATTEN, which computes queries for every key it is given."""
_SIDES = (1, 2, 4, 8, 16)
_MOST_QUERIES = 256
_ROTARY_BASE = 10000.0


class Gathering(NamedTuple):
    """How boxes are gathered on a kind of device.

    Args:
        values (`int`): Most numbers of the keys, and of the values, of boxes that run together: 64 MiB each in 16 bits.
        key_cost (`int`): Gathering a key costs about as much as the products with so many queries.
    """

    values: int = 2**25
    key_cost: int = 96


GATHERING = {"cpu": Gathering(2**19, 48)}
"""On a CPU, what is gathered should stay in its cache. Elsewhere it is that of a card, which has to be kept busy."""


def frame_slabs(frames: int, positions: int) -> Iterator[tuple[int, int]]:
    """First and last frames of parts with as many positions as are projected at a time, of frames with `positions`."""
    step = max(1, PROJECTED_TOKENS // positions)
    return ((start, min(start + step, frames)) for start in range(0, frames, step))


class Window(NamedTuple):
    """What the queries of one axis see of its keys.

    Args:
        starts (`tuple[int, ...]`): First key of every query, rising.
        length (`int`): Keys of every query.
    """

    starts: tuple[int, ...]
    length: int

    def between(self, first: int, last: int) -> "Window":
        """That of the queries from `first` to before `last`, over keys that begin with the first one they see."""
        origin = self.starts[first]
        return Window(tuple(start - origin for start in self.starts[first:last]), self.length)

    @property
    def is_whole(self) -> bool:
        """Whether the queries see the same keys."""
        return self.starts[0] == self.starts[-1]


def window(length: int, kernel: int) -> Window:
    """The windows of an axis: `kernel` keys around the query, shifted inward at the ends so that there are always as many."""
    size = min(kernel, length)
    return Window(tuple(min(max(i - size // 2, 0), length - size) for i in range(length)), size)


Windows = tuple[Window, ...]
"""Those of time, height and width."""


class _Row(NamedTuple):
    """Boxes one after another along an axis whose windows lie alike.

    Args:
        query (`int`): First query of the first box.
        key (`int`): First key of the first box.
        boxes (`int`): Boxes.
        window (`Window`): Of the queries of one box, over its own keys.
    """

    query: int
    key: int
    boxes: int
    window: Window

    @property
    def queries(self) -> int:
        """Queries of a box; its keys begin as much later than those of the box before."""
        return len(self.window.starts)

    @property
    def keys(self) -> int:
        """Keys of a box."""
        return self.window.starts[-1] + self.window.length

    def parts(self, most: int) -> Iterator["_Row"]:
        """The same boxes, at most so many together."""
        for first in range(0, self.boxes, max(most, 1)):
            moved = first * self.queries
            count = min(max(most, 1), self.boxes - first)
            yield self._replace(query=self.query + moved, key=self.key + moved, boxes=count)


def _rows(axis: Window, side: int) -> list[_Row]:
    count = len(axis.starts)
    boxes = [(i, axis.starts[i], axis.between(i, min(i + side, count))) for i in range(0, count, side)]
    groups = (list(group) for _, group in groupby(boxes, key=lambda box: (box[1] - box[0], box[2])))
    return [_Row(*group[0][:2], len(group), group[0][2]) for group in groups]


@lru_cache(maxsize=64)
def _layout(windows: Windows, key_cost: int) -> list[list[_Row]]:
    """The boxes of all axes, of the size that costs least."""
    options = [
        [(min(side, len(axis.starts)), _rows(axis, side)) for side in _SIDES if side < 2 * len(axis.starts)]
        for axis in windows
    ]

    def cost(choice: tuple[tuple[int, list[_Row]], ...]) -> float:
        queries = prod(side for side, _ in choice)
        keys = prod(sum(row.boxes * row.keys for row in rows) for _, rows in choice)
        return keys * (queries + key_cost) if queries <= _MOST_QUERIES else float("inf")

    return [rows for _, rows in min(product(*options), key=cost)]


def _boxes(x: torch.Tensor, rows: Sequence[_Row], of_keys: bool) -> torch.Tensor:
    """Queries or keys of boxes, a view `[B, boxes along T, H, W, positions of a box along T, H, W, N, D]` of `[B, T, H, W, N, D]`."""
    batch, *steps, head, width = x.stride()
    sizes = [row.keys if of_keys else row.queries for row in rows]
    first = sum((row.key if of_keys else row.query) * step for row, step in zip(rows, steps))
    between = [row.queries * step for row, step in zip(rows, steps)]
    shape = (len(x), *(row.boxes for row in rows), *sizes, *x.shape[-2:])
    return x.as_strided(shape, (batch, *between, *steps, head, width), x.storage_offset() + first)


@lru_cache(maxsize=256)
def _unseen(axis: Window, keys: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What is added to scores along an axis, `[queries, keys]`: minus infinity for keys of a box that a query does not see."""
    offset = torch.arange(keys, device=device) - torch.tensor(axis.starts, device=device)[:, None]
    scores = torch.zeros(offset.shape, dtype=dtype, device=device)
    return scores.masked_fill_((offset < 0) | (offset >= axis.length), float("-inf"))


def _mask(rows: Sequence[_Row], like: torch.Tensor) -> torch.Tensor | None:
    """What is added to the scores of a box, `[1, 1, queries, keys]`; `None` where every query sees every key."""
    if all(row.window.is_whole for row in rows):
        return None
    time, height, width = (_unseen(row.window, row.keys, like.dtype, like.device) for row in rows)
    mask = time[:, None, None, :, None, None] + height[:, None, None, :, None] + width[:, None, None, :]
    return mask.flatten(3).flatten(0, 2)[None, None]


def neighbourhood_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    windows: Windows,
    backend: AttentionBackendName | None = None,
) -> torch.Tensor:
    """Softmax attention of each query to the keys in its window; queries are scaled already.

    Args:
        query (`torch.Tensor`): `[B, T, H, W, N, D]`.
        key, value (`torch.Tensor`): `[B, T', H', W', N, D]`.
        windows (`Windows`): What the queries of each axis see of its keys.
        backend (`AttentionBackendName`, *optional*): Kernel of diffusers' dispatcher for the attention of the boxes.

    Returns:
        `torch.Tensor`: `[B, T, H, W, N, D]`.
    """
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    most, key_cost = GATHERING.get(query.device.type, Gathering())
    for rows in product(*_layout(windows, key_cost)):
        mask = _mask(rows, query)
        room = most // (len(query) * prod(row.keys for row in rows) * prod(query.shape[-2:]))
        along = [room // prod(row.boxes for row in rows[i:]) for i in (1, 2, 3)]
        for part in product(*map(_Row.parts, rows, along)):
            # Axes of boxes are joined, and those of their positions.
            queries, keys, values = (
                _boxes(x, part, of_keys).flatten(4, 6).flatten(0, 3)
                for x, of_keys in ((query, False), (key, True), (value, True))
            )
            made = dispatch_attention_fn(queries, keys, values, attn_mask=mask, scale=1.0, backend=backend)
            place = _boxes(output, part, False)
            place.copy_(made.reshape(place.shape))
            # They would live on while the next boxes are gathered.
            del queries, keys, values, made
    return output


def natten_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: Windows) -> torch.Tensor:
    """As [`neighbourhood_attention`] by NATTEN's kernels, for queries whose windows in height and width are those of all keys.

    NATTEN takes a query for every key, so that frames without one are filled up.
    """
    import natten  # type: ignore[import-not-found]  # where it is installed

    time, frames = windows[0], key.shape[1]
    size = tuple(axis.length for axis in windows)
    # NATTEN puts the window of query i of so many frames where `window` does.
    own = window(frames, time.length)
    first = next(i for i in range(frames) if own.starts[i : i + query.shape[1]] == time.starts)
    padded = query.new_zeros(key.shape)
    padded[:, first : first + query.shape[1]] = query
    # Other layouts would give wrong numbers without a word.
    made = natten.na3d(padded, key.contiguous(), value.contiguous(), kernel_size=size, scale=1.0)
    return made[:, first : first + query.shape[1]]


class LTX2VideoVaeNeighborhoodAttnProcessor:
    """Computes one neighbourhood attention of the diffusion decoder.

    Args:
        kernel (`str`, *optional*): `"torch"` for boxes in PyTorch, which run on every device by the kernel that
            `set_attention_backend` names; `"natten"` for the package of that name. Default NATTEN on CUDA where it is
            installed and no backend is set, else boxes. All give the same up to rounding.

    Raises:
        ValueError: If NATTEN is asked for and not installed.
    """

    # Set from outside by `set_attention_backend`.
    _attention_backend: AttentionBackendName | None = None

    def __init__(self, kernel: str | None = None) -> None:
        check_choice("kernel", kernel, ("torch", "natten", None))
        if kernel == "natten" and not _has_natten():
            raise ValueError(
                '`kernel` is "natten", but the package natten is not installed; use "torch", which gives the same'
            )
        self.kernel = kernel

    def uses_natten(self, x: torch.Tensor) -> bool:
        """Whether NATTEN computes on the device of `x`."""
        if self.kernel is None:
            return x.is_cuda and self._attention_backend is None and _has_natten()
        return self.kernel == "natten"

    def slab_tokens(self, x: torch.Tensor) -> int:
        """Positions of `x` whose keys and values are made at a time."""
        return NATTEN_SLAB_TOKENS if self.uses_natten(x) else SLAB_TOKENS

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: Windows) -> torch.Tensor:
        """The arguments and result of [`neighbourhood_attention`]."""
        if self.uses_natten(query):
            return natten_attention(query, key, value, windows)
        return neighbourhood_attention(query, key, value, windows, self._attention_backend)

    def __call__(self, attn: "NeighbourhoodAttention", hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, H, W, C]` to `[B, T, H, W, C]`."""
        mixed = self.attend(*attn.project_qkv(hidden_states), attn.windows(hidden_states.shape[1:4]))
        return attn.to_out[0](mixed.flatten(-2))


def _has_natten() -> bool:
    return importlib.util.find_spec("natten") is not None


def split_head(width: int) -> tuple[int, int, int]:
    """How many entries of a head are rotated by the position in time, height and width."""
    time = width // 16 * 4
    space = (width - time) // 2
    return time, space, space


def grid_rotary_tables(
    sizes: Sequence[int], head_dim: int, first_frame: int = 0, device: torch.device | None = None
) -> RotaryTables:
    """Cosines and sines `[T, H, W, 1, D]` of positions counted from 0 along each axis.

    Args:
        sizes (`Sequence[int]`): T, H and W.
        head_dim (`int`): Width D of a head.
        first_frame (`int`, defaults to 0): Position in time of the first frame.
        device (`torch.device`, *optional*): Where they lie.
    """
    angles = []
    for axis, (start, size, width) in enumerate(zip((first_frame, 0, 0), sizes, split_head(head_dim))):
        # In double precision on the CPU, since not every device has it.
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / max(width, 1)
        frequencies = (_ROTARY_BASE**-exponents).to(device, torch.float32)
        positions = torch.arange(start, start + size, dtype=torch.float32, device=device)
        place = (slice(None), *[None] * (4 - axis))
        angles.append((positions[place] * frequencies).expand(*sizes, 1, -1))
    grid = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return grid.cos(), grid.sin()


class NeighbourhoodAttention(nn.Module, AttentionModuleMixin):
    """Self-attention of positions to their neighbours, with norms per head and rotary positions.

    Args:
        dim (`int`): Width C.
        head_dim (`int`): Width D of a head.
        kernel (`Sequence[int]`): Positions that a query sees along time, height and width.
    """

    # `Any` because diffusers declares `None`, a list, and the processors of its own models only.
    _default_processor_cls: Any = LTX2VideoVaeNeighborhoodAttnProcessor
    _available_processors: Any = (LTX2VideoVaeNeighborhoodAttnProcessor,)
    _supports_qkv_fusion = False
    processor: Any

    def __init__(self, dim: int, head_dim: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.head_dim, self.kernel_size = head_dim, tuple(kernel)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q, self.norm_k = (nn.RMSNorm(head_dim, eps=QK_NORM_EPS) for _ in range(2))
        self.set_processor(self._default_processor_cls())

    def windows(self, sizes: Sequence[int]) -> Windows:
        """What the positions of a grid see."""
        return tuple(map(window, sizes, self.kernel_size))

    def query(self, hidden_states: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """Scaled queries `[B, T, H, W, N, D]` of `[B, T, H, W, C]` whose first frame is number `first_frame` of a clip."""
        scaled = self.norm_q(self._heads(self.to_q, hidden_states)) * self.head_dim**-0.5
        return self._rotated(scaled, first_frame)

    def key_value(self, hidden_states: torch.Tensor, first_frame: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, as [`query`] gives queries."""
        key = self.norm_k(self._heads(self.to_k, hidden_states))
        return self._rotated(key, first_frame), self._heads(self.to_v, hidden_states)

    def project_qkv(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of a whole clip, `[B, T, H, W, N, D]` each."""
        return self.query(hidden_states), *self.key_value(hidden_states)

    def _heads(self, layer: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        return layer(hidden_states).unflatten(-1, (-1, self.head_dim))

    def _rotated(self, x: torch.Tensor, first_frame: int) -> torch.Tensor:
        tables = grid_rotary_tables(x.shape[1:4], self.head_dim, first_frame, x.device)
        return apply_rotary(x, tables, "interleaved")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, H, W, C]` to `[B, T, H, W, C]`."""
        return self.processor(self, hidden_states)


def attend_in_place(
    x: torch.Tensor,
    attn: NeighbourhoodAttention,
    normed: Callable[[torch.Tensor], torch.Tensor],
    context: Callable[[int, int], torch.Tensor] | None = None,
) -> None:
    """Add to `x` the attention over itself, a few frames at a time: a frame is replaced when its keys and values are made.

    Args:
        x (`torch.Tensor`): `[B, T, H, W, C]`.
        attn (`NeighbourhoodAttention`): The attention; its processor has `attend` and `slab_tokens`.
        normed: From frames of `x` to the input of the attention.
        context: `context(first, last)` is added to frames before they are read for the first time, by default nothing.
    """
    frames, (time, *space) = x.shape[1], attn.windows(x.shape[1:4])
    positions = x[:, 0, ..., 0].numel()
    step = min(frames, max(1, attn.processor.slab_tokens(x) // positions))
    slabs = list(frame_slabs(frames, positions))
    most = min(frames, time.length + step + slabs[0][1] - 1)
    # Keys and values from frame `origin` on, in memory that is taken once, with the first of them.
    held: list[torch.Tensor] = []
    done = origin = 0
    for start, end in slabs:
        if context is not None:
            x[:, start:end] += context(start, end)
        made = attn.key_value(normed(x[:, start:end]), start)
        held = held or [one.new_empty(len(x), most, *one.shape[2:]) for one in made]
        for memory, one in zip(held, made):
            memory[:, start - origin : end - origin] = one
        del made, one
        ready = frames if end == frames else sum(first + time.length <= end for first in time.starts)
        while done < ready and (ready == frames or done + step <= ready):
            last = min(done + step, ready)
            places = frame_slabs(last - done, positions)
            parts = (attn.query(normed(x[:, done + i : done + j]), done + i) for i, j in places)
            query, window = joined_frames(parts, last - done, dim=1), (time.between(done, last), *space)
            mixed = attn.processor.attend(query, *(memory[:, : end - origin] for memory in held), window)
            x[:, done:last] += attn.to_out[0](mixed.flatten(-2))
            # They would live on while the next keys are made.
            del query, mixed
            done = last
            moved = time.starts[min(done, frames - 1)] - origin
            # One by one, since the two places overlap.
            for memory, i in product(held, range(end - origin - moved if moved else 0)):
                memory[:, i] = memory[:, i + moved]
            origin += moved

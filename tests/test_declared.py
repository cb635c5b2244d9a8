"""Values are read as their annotations declare them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers.declared import as_declared, settle, settled, takes_declared

NAN = float("nan")
IMAGE = PIL.Image.new("RGB", (2, 2))


class Index:
    def __index__(self) -> int:
        return 64


@pytest.mark.parametrize(
    "value", [64, np.int64(64), np.uint8(64), np.array(64), torch.tensor(64), torch.tensor([64]), Index()]
)
def test_whole_numbers_of_any_library(value):
    read = as_declared("height", value, int | None)
    assert type(read) is int and read == 64


@pytest.mark.parametrize(
    "value",
    [1.5, np.float32(1.5), np.float64(1.5), np.array(1.5), np.array([1.5]), torch.tensor(1.5), torch.tensor([1.5])]
    + [torch.tensor(1.5, dtype=torch.bfloat16), Fraction(3, 2), Decimal("1.5")],
)
def test_numbers_of_any_library(value):
    read = as_declared("scale", value, float)
    assert type(read) is float and read == 1.5


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        (3, float, 3.0),
        (np.bool_(True), bool, True),
        (None, float | None, None),
        ("preset", float | str | None, "preset"),
        (Fraction(24000, 1001), float | Fraction, Fraction(24000, 1001)),
        ([1, Fraction(1, 2)], Sequence[float], [1.0, 0.5]),
        (np.array([1, 0.5]), Sequence[float] | None, [1.0, 0.5]),
        (torch.tensor([1, 2]), list[int], [1, 2]),
        (("latents",), Sequence[str], ("latents",)),
        (("a", "b"), list[str], ["a", "b"]),
        ({"a": np.float32(0.5)}, Mapping[str, float], {"a": 0.5}),
        ({"a": 1}, dict[str, Any] | None, {"a": 1}),
        (0.5, Annotated[int, "has a reader of its own"], 0.5),
        (np.zeros((2, 3)), Sequence[Any] | np.ndarray, np.zeros((2, 3))),
    ],
)
def test_kinds(value, kind, read):
    result = as_declared("x", value, kind)
    assert type(result) is type(read)
    np.testing.assert_equal(result, read)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (64.0, int, "`x` has to be a whole number but is 64.0; use 64"),
        (True, int | None, "`x` has to be a whole number but is True; use 1"),
        (np.bool_(True), int, "whole number"),
        (torch.tensor(True), int, "whole number but is True"),
        ("64", int, "whole number but is '64'; use 64"),
        ([64], int, r"whole number but is \[64\]$"),
        (NAN, int, "whole number but is nan$"),
        (NAN, float | None, "`x` has to be a finite number but is nan$"),
        (float("inf"), float, "finite number but is inf$"),
        (np.float32("nan"), float, "finite number"),
        (torch.tensor(NAN), float, "finite number but is nan"),
        (Decimal("nan"), float, "finite number"),
        (Decimal("sNaN"), float, "finite number"),
        (10**400, float, "finite number but is a number of 1329 bits$"),
        (torch.zeros(2), float, r"finite number but is a tensor of torch.float32 \(2,\)$"),
        (torch.zeros(1, device="meta"), float, "finite number"),
        (1j, float, "finite number"),
        (True, float, "finite number but is True; use 1.0"),
        (None, float, "finite number but is None"),
        ("no", bool | None, "`x` has to be True or False but is 'no'"),
        (1, bool, "True or False but is 1"),
        (3, str | list[str] | None, "`x` has to be a `str` or a list of `str` but is 3$"),
        ("\ud800", str, "half a surrogate pair"),
        (["a", 3], list[str], r"a list of `str` but is \['a', 3\]"),
        ("latents", Sequence[str], "a list of `str` but is 'latents'; put it into a list"),
        (["1"], Sequence[float], r"a list of finite numbers but is \['1'\]"),
        ([0.5], list[int], r"a list of whole numbers but is \[0\.5\]"),
        (np.array([1.0, NAN]), Sequence[float], "a list of finite numbers"),
        ({"a": NAN}, Mapping[str, float], "a mapping of `str` to finite numbers"),
        ({1: 0.5}, Mapping[str, float], "a mapping of `str` to finite numbers"),
        ([], dict[str, Any], r"a mapping of `str` to values but is \[\]"),
        ([1.0], torch.Tensor | None, r"`x` has to be a tensor but is \[1\.0\]"),
        ("cpu", torch.Generator | list[torch.Generator] | None, "a torch.Generator or a list of torch.Generator"),
        ([None], torch.Generator | list[torch.Generator] | None, "a list of torch.Generator"),
        (5, Callable[..., None] | None, "`x` has to be a function but is 5"),
        (5, PIL.Image.Image | Sequence[Any], "an image or a list but is 5$"),
        (IMAGE, Sequence[PIL.Image.Image], "; put it into a list"),
    ],
)
def test_what_is_no_such_value_is_named_with_what_is(value, kind, message):
    with pytest.raises(ValueError, match=message):
        as_declared("x", value, kind)


@dataclass(frozen=True)
class Record:
    count: int = 1
    share: float | None = None


def test_records_are_settled_in_place_or_as_a_copy():
    record = Record(np.int64(2), Fraction(1, 2))
    copy = settled(record)
    assert type(record.count) is np.int64 and (copy.count, copy.share) == (2, 0.5) and type(copy.count) is int
    settle(record)
    assert type(record.count) is int
    assert settled("no record") == "no record"
    with pytest.raises(ValueError, match="`share` has to be a finite number"):
        settle(Record(share=NAN))


def test_functions_see_their_arguments_as_declared():
    @takes_declared
    def doubled(count: int, *rest: str, share: float = 0.5, **more: int) -> Any:
        return count * 2, rest, share, more

    assert doubled(np.int64(2), "a", share=Fraction(1, 4), b="c") == (4, ("a",), 0.25, {"b": "c"})
    with pytest.raises(ValueError, match="`share` has to be a finite number but is 'x'"):
        doubled(1, share="x")
    with pytest.raises(TypeError, match="count"):
        doubled()

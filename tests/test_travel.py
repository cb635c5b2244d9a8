"""The benchmark that follows values through the package counts a call graph whose ways are known."""

import runpy
from dataclasses import dataclass

import pytest
import torch

from benchmarks.travel import LIMITS, counts, holds, run, travels

FRONT = """
def start(call, other):
    first(call["text"], other)
    end(box=other)

def first(text, other):
    other.middle([text])
    other.middle([text])
    other.unrelated("another text")
    other.gather(text, text=text)

def end(box):
    box.peek(box)
"""
BACK = """
from dataclasses import dataclass

@dataclass
class Box:
    text: str

    def peek(self, _other):
        self.look()

    def look(self):
        pass

    def middle(self, texts):
        pass

    def unrelated(self, text):
        pass

    def gather(self, *texts, **named):
        pass
"""


@pytest.fixture
def ways(tmp_path):
    """The ways of a text through two files."""
    files = {name: tmp_path / f"{name}.py" for name in ("front", "back")}
    for path, source in zip(files.values(), (FRONT, BACK)):
        path.write_text(source)
    start, box = runpy.run_path(str(files["front"]))["start"], runpy.run_path(str(files["back"]))["Box"]("sought")
    found = travels(lambda: start({"text": "sought"}, box), {"text": "sought", "number": 7}, tmp_path)
    return {name: ([code.co_name for code in way], counts(way)) for name, way in found.items()}


def test_arguments_with_names_of_their_own(ways):
    # `other` holds the text in its field everywhere, but not as `self`.
    names, found = ways["text"]
    assert names == ["start", "first", "middle", "middle", "end", "peek"]
    assert found == {"stays": 5, "functions": 5, "files": 2, "moves": 3, "returns": 2}


def test_any_argument(ways):
    names, found = ways["text, any argument"]
    assert names == ["start", "first", "middle", "middle", "unrelated", "gather", "end", "peek", "look"]
    assert found == {"stays": 8, "functions": 8, "files": 2, "moves": 3, "returns": 2}


def test_the_whole_call_and_a_value_that_is_nowhere(ways):
    assert len(ways["whole"][0]) == 9
    assert ways["number"] == ([], {"stays": 0, "functions": 0, "files": 0, "moves": 0, "returns": 0})


@dataclass
class Holder:
    value: object


def test_where_a_value_is_looked_for():
    wanted, module = torch.zeros(1), torch.nn.Linear(1, 1)
    module.extra = wanted
    for value in (wanted, [wanted], {"a": (wanted,)}, Holder({"b": Holder([wanted])})):
        assert holds(value, wanted)
    for value in (wanted.clone(), [wanted.clone()], module, [module], Holder, None, "text"):
        assert not holds(value, wanted)
    assert holds([["equal text"]], "".join(["equal ", "text"]))
    assert not holds([[wanted]], wanted, depth=1)


@pytest.mark.slow
def test_values_travel_no_further_than_they_need():
    found = run()
    counts = {label: {name: found["counts"][label][name] for name in most} for label, most in LIMITS.items()}
    assert all(counts[label][name] <= most for label in LIMITS for name, most in LIMITS[label].items()), counts
    # In two stages a picture is encoded at both sizes, a sound of unchanged length once.
    opened = {"times the picture is opened": 1, "times the sound is opened": 1}
    assert found["files"] == opened | {"times the picture is encoded": 2, "times the sound is encoded": 1}

"""The sound's part of a block beside the video's: who waits for whom, and what is held until both have met."""

import contextlib
import weakref
from functools import partial

import pytest
import torch

from ltx2_diffusers.models.audio_stream import BesideStream, run_beside, runs_beside
from ltx2_diffusers.models.block_graphs import graphs_of, record_blocks
from ltx2_diffusers.models.transformer_block import BlockStream
from tests.models.test_transformer import keep_masks
from tests.models.transformer_tools import max_difference, tiny_inputs, tiny_transformer
from tests.pipelines.tiny import ours


class Order:
    """A lane that is the current stream itself, and notes what it is asked for."""

    def __init__(self):
        self.events = []
        self.crossing = []

    @contextlib.contextmanager
    def run(self):
        self.events.append("sound")
        yield

    def follow(self):
        self.events.append("follow")

    def rejoin(self):
        # Both streams meet here: until then nothing of what one reads of the other's may be given back.
        assert all(reference() is not None for reference in self.crossing)
        self.crossing.clear()
        self.events.append("rejoin")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_results_are_the_same_and_what_crosses_is_held(layout, monkeypatch):
    plain, beside = tiny_transformer(layout), tiny_transformer(layout)
    lane, take = Order(), BlockStream.take_from

    def noting(self, other, normed, other_normed, keep):
        lane.crossing.append(weakref.ref(other_normed))
        lane.events.append("sound takes" if isinstance(self, BesideStream) else "video takes")
        return take(self, other, normed, other_normed, keep)

    monkeypatch.setattr(BlockStream, "take_from", noting)
    for block in beside.transformer_blocks:
        block.audio_view = partial(BesideStream, lane)
    inputs = tiny_inputs(plain)
    masks = [None, keep_masks(video_self=[1], audio_self=[1]), keep_masks(a2v=range(3), v2a=range(3))]
    for mask in masks:
        expected = plain(**inputs, perturbation_keep_masks=mask)
        lane.crossing.clear()
        lane.events.clear()
        assert max_difference(beside(**inputs, perturbation_keep_masks=mask), expected) == 0.0
    # The last pass is isolated: its streams meet at the ends of the blocks alone.
    assert lane.events == ["follow", "sound", "sound", "sound", "sound", "sound", "rejoin"] * 3
    lane.events.clear()
    beside(**inputs)
    own, crossing = ["follow", "sound", "sound", "sound"], ["sound", "rejoin", "follow", "video takes"]
    # Noted where the taking begins: within the lane.
    assert lane.events == [*own, *crossing, "sound", "sound takes", "sound", "sound", "rejoin"] * 3


def test_streams_that_are_absent_or_given():
    plain, beside = tiny_transformer("2.3"), tiny_transformer("2.3")
    for block in beside.transformer_blocks:
        block.audio_view = partial(BesideStream, Order())
    inputs = tiny_inputs(plain)
    for change in ({"audio_enabled": False}, {"video_enabled": False}):
        call = inputs | change
        assert max_difference(beside(**call), plain(**call)) == 0.0
    alone = inputs | {"audio_hidden_states": None}
    assert torch.equal(beside(**alone)[0], plain(**alone)[0])


def test_without_a_card_and_with_gradients_blocks_run_as_they_are_written():
    model = tiny_transformer("2.3")
    inputs = tiny_inputs(model)
    expected = model(**inputs)
    run_beside(model, True)
    assert runs_beside(model)
    assert max_difference(model(**inputs), expected) == 0.0
    run_beside(model, False)
    assert not runs_beside(model) and "audio_view" not in model.transformer_blocks[0].__dict__


@pytest.mark.parametrize("method", ["enable_cuda_graphs", "enable_audio_stream"])
def test_pipelines_refuse_both_without_a_card(method):
    pipe = ours()
    with pytest.raises(ValueError, match=r"cpu.* by to\('cuda'\)"):
        getattr(pipe, method)()
    assert graphs_of(pipe.transformer) is None and not runs_beside(pipe.transformer)


@pytest.mark.parametrize(
    "move",
    [
        lambda pipe: pipe.enable_block_streaming(device="cpu"),
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
        lambda pipe: pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu")),
    ],
)
def test_what_moves_weights_is_refused_then(move):
    from tests.models.test_block_graphs import Computed

    pipe = ours()
    record_blocks(pipe.transformer, recorder=Computed())
    try:
        with pytest.raises(ValueError, match=r"moves weights while calls run, .* call disable_cuda_graphs\(\) first"):
            move(pipe)
        pipe.disable_cuda_graphs()
        run_beside(pipe.transformer, True)
        with pytest.raises(ValueError, match=r"call disable_audio_stream\(\) first"):
            move(pipe)
        with pytest.raises(ValueError, match=r"call disable_audio_stream\(\) before compile\(\)"):
            pipe.compile("transformer", backend="eager")
    finally:
        pipe.disable_cuda_graphs()
        pipe.disable_audio_stream()
    assert pipe.streamed_components == [] and pipe.compiled == {}


@pytest.mark.gpu
@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_card_computes_the_same_bits_beside_each_other(is_recorded):
    sizes = {"num_attention_heads": 16, "attention_head_dim": 64, "cross_attention_dim": 1024, "num_layers": 8}
    plain, beside = (tiny_transformer("2.3", **sizes).to("cuda", torch.bfloat16) for _ in range(2))
    run_beside(beside, True)
    if is_recorded:
        record_blocks(beside)
    for seed in range(20):
        given = tiny_inputs(plain.cpu(), seed=seed)
        plain.to("cuda")
        call = {
            name: value.to("cuda", torch.bfloat16 if value.ndim == 3 else value.dtype)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in given.items()
        }
        expected, found = plain(**call), beside(**call)
        assert all(map(torch.equal, found, expected))

"""Passes of a step as one batch, and text that is not kept: results of passes one after another, by rounding."""

import pytest
import torch

from ltx2_diffusers.sampling import PassLayout, denoiser
from ltx2_diffusers.sampling.denoiser import launch_bound_tokens, one_batch_is_faster
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.tiny import ALL_GUIDANCE, CFG, EXPLICIT, NO_GUIDANCE, PROMPT, load, max_difference, seeded

LAYOUTS = {
    "batched": PassLayout(batched=True),
    "without kept text": PassLayout(keeps_text=False),
    "batched, without kept text": PassLayout(batched=True, keeps_text=False),
}
GUIDANCE = {"all": ALL_GUIDANCE, "cfg": CFG, "none": NO_GUIDANCE}


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def pipeline(request):
    return load(request.param)


def run(pipeline, layout, **arguments):
    pipeline.pass_layout = layout
    calls = []
    handle = pipeline.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args: calls.append(len(args[0]))
    )
    try:
        return pipeline(PROMPT, generator=seeded(1), **EXPLICIT, **arguments), calls
    finally:
        handle.remove()
        pipeline.pass_layout = PassLayout()


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_layout_gives_the_results_of_passes_one_after_another(pipeline, guidance):
    expected, _ = run(pipeline, PassLayout(), **GUIDANCE[guidance])
    for layout in LAYOUTS.values():
        found, _ = run(pipeline, layout, **GUIDANCE[guidance])
        assert max_difference(found, expected) <= EQUAL_PIPELINES


def test_a_batch_goes_through_the_blocks_once_a_step(pipeline):
    _, apart = run(pipeline, PassLayout(), **ALL_GUIDANCE)
    _, together = run(pipeline, PassLayout(batched=True), **ALL_GUIDANCE)
    # The perturbed pass shares the first block; the isolated and the negative one do not.
    assert (set(apart), len(apart)) == ({1}, 6)
    assert (set(together), len(together)) == ({4}, 2)


def test_passes_of_some_steps_alone_are_batched_too(pipeline):
    from ltx2_diffusers import GuidanceOptions

    options = {**ALL_GUIDANCE, "guidance_options": GuidanceOptions(skip_step=1, audio_skip_step=1)}
    expected, _ = run(pipeline, PassLayout(), **options)
    found, _ = run(pipeline, PassLayout(batched=True), **options)
    assert max_difference(found, expected) <= EQUAL_PIPELINES


def test_a_batch_of_prompts_with_an_image_is_batched(pipeline):
    from ltx2_diffusers import LTX2ImageToVideoPipeline

    images = LTX2ImageToVideoPipeline.from_pipe(pipeline)
    picture = torch.zeros(3, 64, 96)
    arguments = {"image": picture, "prompt": [PROMPT, "rain"], "image_crf": 0, **EXPLICIT, **CFG}
    expected = images(generator=seeded(1, 2), **arguments)
    images.pass_layout = PassLayout(batched=True)
    assert max_difference(images(generator=seeded(1, 2), **arguments), expected) <= EQUAL_PIPELINES


def test_guidance_in_the_attention_to_the_text_keeps_passes_apart(pipeline):
    from ltx2_diffusers import GuidanceOptions

    options = {**CFG, "guidance_options": GuidanceOptions(nag_scale=3.0)}
    expected, _ = run(pipeline, PassLayout(), **options)
    found, sizes = run(pipeline, PassLayout(batched=True), **options)
    assert set(sizes) == {1}
    assert max_difference(found, expected) == 0


@pytest.mark.parametrize(
    ("tokens", "passes", "apart", "bound", "is_faster"),
    [
        # Two passes of few tokens launch as much as one; where computing takes longer there is nothing to win.
        (2000, 2, 2, 2048, True),
        (2048, 2, 2, 2048, False),
        (24_576, 4, 4, 2048, False),
        # What passes share would be computed anew in a batch: with 28 of 48 blocks four passes are 3.4.
        (1700, 4, 4 - 28 / 48, 2048, True),
        (1800, 4, 4 - 28 / 48, 2048, False),
        (600, 4, 4, 256, False),
        # Without anything to wait for but the computing, never.
        (1, 2, 2, 0, False),
    ],
)
def test_few_tokens_are_faster_as_one_batch(tokens, passes, apart, bound, is_faster):
    assert one_batch_is_faster(tokens, passes, apart, bound) == is_faster


def test_processors_have_nothing_to_wait_for_and_recorded_kernels_little():
    cuda = torch.device("cuda")
    assert launch_bound_tokens(torch.device("cpu"), False) == 0
    assert launch_bound_tokens(cuda, True) < launch_bound_tokens(cuda, False)


def test_pipelines_choose_by_the_number_of_tokens(pipeline, monkeypatch):
    """A clip of 12 and 9 tokens; two passes are as one where a pass takes as long as one of 22, but not of 20."""
    assert type(pipeline).pass_layout.batched == "auto"
    expected, _ = run(pipeline, PassLayout(), **CFG)
    tokens = 2 * 2 * 3 + 9
    for bound, batches in ((0, {1}), (tokens - 1, {1}), (tokens + 1, {2})):
        monkeypatch.setattr(denoiser, "launch_bound_tokens", lambda *_, bound=bound: bound)
        found, sizes = run(pipeline, PassLayout("auto"), **CFG)
        assert set(sizes) == batches
        assert max_difference(found, expected) <= EQUAL_PIPELINES
        assert {name: one["forwards"] for name, one in found.info["passes"].items()} == {
            "conditional": 2,
            "negative": 2,
        }


def test_shared_blocks_count(pipeline, monkeypatch):
    """All four passes, of which the perturbed one shares the first of two blocks: three and a half apart."""
    tokens = 2 * 2 * 3 + 9
    for bound, batches in ((int(4 * tokens / 3.5), {1}), (int(4 * tokens / 3.5) + 1, {4})):
        monkeypatch.setattr(denoiser, "launch_bound_tokens", lambda *_, bound=bound: bound)
        assert set(run(pipeline, PassLayout("auto"), **ALL_GUIDANCE)[1]) == batches


def test_a_layout_is_one_of_three():
    with pytest.raises(ValueError, match="`batched` has to be one of True, False, 'auto' but is 'never'"):
        PassLayout("never")


@pytest.mark.gpu
def test_a_card_makes_passes_of_few_tokens_as_one_batch():
    pipe = load("2.3").to("cuda")
    expected, _ = run(pipe, PassLayout(), **ALL_GUIDANCE)
    found, sizes = run(pipe, PassLayout("auto"), **ALL_GUIDANCE)
    assert set(sizes) == {4}
    assert max_difference(found, expected) <= EQUAL_PIPELINES

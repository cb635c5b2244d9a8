"""What diffusers checks of modular pipelines: one check, run on the blocks of both libraries, on components as tiny as its own."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler

import ltx2_diffusers
from tests.contract.both import LIBRARIES, both, model, named, new_model, picture, seeded, text_models

PARITY = 1e-5
PARTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
CALL = {
    "prompt": "a robot dancing",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
    "output_type": "pt",
    "use_cross_timestep": False,
}
WORKFLOWS = ("text2video", "image2video", "condition", "in_context")
each = pytest.mark.parametrize("workflow", WORKFLOWS)


def pipeline(library: str, blocks: str = "LTX2AutoBlocks", make: Any = model, **changes: Any) -> Any:
    """A modular pipeline on shared tiny components, without guidance that is rescaled."""
    package = ltx2_diffusers if library == "ours" else diffusers
    pipe = getattr(package, blocks)().init_pipeline()
    own = (
        {part: make(library, part) for part in PARTS}
        | text_models()
        | {"scheduler": FlowMatchEulerDiscreteScheduler()}
    )
    # diffusers' perturbed pass does nothing in such a transformer.
    guides = {"stg_scale": 0.0, "modality_scale": 3.0, "guidance_rescale": 0.0}
    pipe.update_components(
        **{part: one for part, one in own.items() if part in pipe.component_names},
        guider=pipe.guider.new(**guides),
        audio_guider=pipe.audio_guider.new(**guides),
        **changes,
    )
    for core in pipe._blocks.sub_blocks["denoise"].sub_blocks.values():
        core.sub_blocks["denoise"].set_progress_bar_config(disable=True)
    return pipe


def given(library: str, workflow: str) -> dict[str, Any]:
    """What makes a call one of a workflow."""
    shown = named(library, "LTX2VideoCondition")(frames=picture(), index=0, strength=1.0, crf=0)
    return {
        "text2video": {},
        "image2video": {"image": picture(), "image_crf": 0},
        "condition": {"conditions": [shown]},
        "in_context": {"reference_conditions": [named(library, "LTX2ReferenceCondition")(frames=[picture()] * 5)]},
    }[workflow]


def run(library: str, workflow: str, pipe: Any = None, **changes: Any) -> list[torch.Tensor]:
    """Videos and sound of a small call."""
    arguments = CALL | given(library, workflow) | {"generator": seeded()} | changes
    result = (pipe or pipeline(library))(**arguments, output=["videos", "audio"])
    return [result["videos"], result["audio"]]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    assert [part.shape for part in one] == [part.shape for part in other]
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(one, other))


@pytest.mark.quick_cases(2)
@each
def test_the_same_numbers_as_diffusers(workflow):
    assert difference(*(run(library, workflow) for library in LIBRARIES)) <= PARITY


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt", "latent"])
def test_the_same_numbers_by_the_diffusion_decoder(form):
    """Which draws noise of its own."""
    made = []
    for library in LIBRARIES:
        pipe = pipeline(library, "LTX25AutoBlocks", diffusion_decoder=model(library, "diffusion_decoder"))
        made.append(run(library, "text2video", pipe, output_type=form))
    assert difference(*made) <= PARITY


def test_frames_of_the_diffusion_decoder():
    pipe = pipeline("ours", "LTX25AutoBlocks", diffusion_decoder=model("ours", "diffusion_decoder"))
    frames, latents = (run("ours", "text2video", pipe, output_type=form)[0] for form in ("pt", "latent"))
    decoded = pipe.diffusion_decoder.decode(latents, generator=drawn(latents)).sample
    assert torch.equal(frames, decoded.movedim(1, 2).mul(0.5).add(0.5).clamp(0, 1))


def drawn(latents: torch.Tensor) -> torch.Generator:
    """A generator that has drawn the noise of a call."""
    generator = seeded()
    for shape in (latents.shape, (1, 2, 5, 2)):
        torch.randn(shape, generator=generator)
    return generator


@both
def test_the_length_is_predicted(library):
    pipe = pipeline(library, duration_head=model(library, "duration_head"))
    bounds = {"num_frames": None, "min_seconds": 0.1, "max_seconds": 0.3}
    frames = pipe(**CALL | bounds, generator=seeded(), output="num_frames")
    assert frames in (3, 5, 7)
    with pytest.raises(ValueError):
        pipe(**CALL | bounds | {"prompt": ["a", "b"]}, generator=seeded())
    with pytest.raises(ValueError):
        pipe(**CALL | bounds | {"min_seconds": 0.3}, generator=seeded())


# diffusers draws the noise of all videos from the first generator where there are conditions.
ROWS = [("ours", "text2video"), ("ours", "in_context"), ("diffusers", "text2video")]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("library", "workflow"), ROWS)
def test_rows_of_a_batch_are_calls_of_their_own(library, workflow):
    pipe = pipeline(library)
    both_rows = run(library, workflow, pipe, prompt=["one", "two"], generator=[seeded(1), seeded(2)])
    for row, (prompt, seed) in enumerate((("one", 1), ("two", 2))):
        alone = run(library, workflow, pipe, prompt=prompt, generator=[seeded(seed)])
        assert difference([part[row : row + 1] for part in both_rows], alone) <= PARITY


@both
def test_videos_per_prompt(library):
    videos, audio = run(library, "text2video", prompt=["one", "two"], num_videos_per_prompt=2)
    assert len(videos) == len(audio) == 4


@both
def test_a_call_leaves_out_the_passes_of_a_neutral_guider(library):
    passes = []
    pipe = pipeline(library, make=new_model)
    pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    run(library, "text2video", pipe)
    pipe.update_components(guider=pipe.guider.new(enabled=False), audio_guider=pipe.audio_guider.new(enabled=False))
    run(library, "text2video", pipe)
    assert len(passes) == 2 * 3 + 2


def test_other_guiders_are_refused_by_diffusers_and_taken_here():
    """If this fails for diffusers, a row of the page on differences is to go."""
    swapped = {"guider": ClassifierFreeGuidance(2.0), "audio_guider": ClassifierFreeGuidance(3.0)}
    theirs, ours = (pipeline(library) for library in LIBRARIES)
    for pipe in (theirs, ours):
        pipe.update_components(**swapped)
    with pytest.raises(AttributeError, match="spatio_temporal_guidance_blocks"):
        run("diffusers", "text2video", theirs)
    assert run("ours", "text2video", ours)[0].isfinite().all()


@both
def test_the_state_of_a_call_goes_on(library):
    pipe = pipeline(library)
    arguments = CALL | {"generator": seeded()}
    state = pipe(**arguments)
    assert state.get("videos").shape == (1, 5, 3, 32, 32)
    kept = state.get("connector_prompt_embeds").clone()
    blocks = pipe.blocks.sub_blocks["decode"].sub_blocks["default"]
    again = blocks.init_pipeline()
    again.update_components(**{name: getattr(pipe, name) for name in ("vae", "audio_vae", "vocoder")})
    if library == "diffusers":
        # Its decoders ask the pipeline for what the transformer says.
        again.transformer = pipe.transformer
    other = again(state=state, output=["videos", "audio"])
    assert other["videos"].shape == state.get("videos").shape
    assert torch.equal(other["audio"], state.get("audio"))
    assert torch.equal(state.get("connector_prompt_embeds"), kept)


@both
def test_a_pipeline_changes_its_data_type(library):
    pipe = pipeline(library, make=new_model)
    pipe.unload_components("text_encoder")
    assert pipe.to(torch.bfloat16) is pipe
    assert {getattr(pipe, part).dtype for part in PARTS} == {torch.bfloat16}
    assert pipe.dtype == torch.bfloat16


@both
def test_half_precision(library):
    """Of the transformer alone; the text says in which type it is called."""
    pipe = pipeline(library, make=new_model)
    pipe.transformer.to(torch.bfloat16)
    if library == "diffusers":
        with pytest.raises(RuntimeError):
            run(library, "text2video", pipe)
    else:
        assert all(part.isfinite().all() for part in run(library, "text2video", pipe))


@both
def test_components_by_name(library):
    pipe = pipeline(library)
    assert (
        set(PARTS)
        <= set(pipe.component_names)
        == set(pipe.pretrained_component_names) | set(pipe.config_component_names)
    )
    assert set(pipe.config_component_names) >= {"guider", "audio_guider", "video_processor"}
    assert {"duration_head", "prompt_enhancer", "processor"} <= set(pipe.null_component_names)
    pipe.unload_components("vocoder")
    assert pipe.vocoder is None
    assert pipe.get_component_spec("vae").type_hint is type(model(library, "vae"))


@both
def test_workflows(library):
    blocks = pipeline(library).blocks
    assert blocks.available_workflows == list(WORKFLOWS)
    for workflow in WORKFLOWS:
        own = blocks.get_workflow(workflow)
        assert own.sub_blocks
        assert ("image_latents" in [one.name for one in own.outputs]) == (workflow == "image2video")
    with pytest.raises(ValueError):
        blocks.get_workflow("video2text")
    assert all(word in pipeline(library).doc for word in ("prompt", "num_frames", "in_context"))

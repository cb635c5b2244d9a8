"""What a call of a pipeline does for whoever wrote it for diffusers: one check, run on the classes of both libraries."""

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from tests.contract.both import (
    CFG,
    DECODING,
    GENERATING,
    LIBRARIES,
    SPECIAL,
    UPSAMPLING,
    both,
    call,
    components,
    difference,
    each,
    generating,
    named,
    optional,
    picture,
    pipeline,
    run,
    seeded,
)

PARITY = 1e-5
# What sets a second call apart of a pipeline that takes no guidance.
OTHERS = {
    UPSAMPLING: {"adain_factor": 0.5},
    DECODING: {"denormalize": False},
    "LTX2DFRPipeline": {"frame_rate": 12.0},
    "LTX2HDRPipeline": {"guidance_scale": 2.0},
}


@each
@pytest.mark.quick_cases(3)
def test_the_same_numbers_as_diffusers(name):
    for changes in ({}, CFG if name in GENERATING else OTHERS[name]):
        actual, expected = (run(library, name, **changes, return_dict=False) for library in ("ours", "diffusers"))
        assert difference(actual, expected) <= PARITY


@each
@both
def test_the_constructor_takes_every_component_by_name(library, name):
    given = components(library, name)
    pipe = named(library, name)(**given)
    if name in SPECIAL:
        # Passes whose noise levels are fixed are not shifted here, whatever the scheduler.
        given["scheduler"] = pipe.scheduler
    assert {part: getattr(pipe, part) for part in given} == given
    assert given.items() <= pipe.components.items()
    assert named(library, name)(**pipe.components).components == pipe.components


@each
def test_the_arguments_begin_in_the_order_of_diffusers(name):
    methods = ["__init__", "__call__"] + (["encode_prompt", "enhance_prompt"] if name in GENERATING else [])
    for method in methods:
        theirs, ours = (
            list(inspect.signature(getattr(named(library, name), method)).parameters) for library in LIBRARIES
        )
        assert ours[: len(theirs)] == theirs


@generating
def test_what_diffusers_can_do_without_is_optional_here(name):
    assert set(optional(name)) <= set(named("ours", name)._optional_components)


@each
@both
@pytest.mark.quick_cases(6)
def test_a_tuple_holds_what_the_output_holds(library, name):
    output, values = run(library, name), run(library, name, return_dict=False)
    assert isinstance(values, tuple)
    assert difference(output.to_tuple()[: len(values)], values) == 0
    assert torch.equal(output[0], values[0])


@each
@both
@pytest.mark.quick_cases(6)
def test_the_generator_decides(library, name):
    pipe = pipeline(library, name)
    first, again, other = (run(library, name, pipe, generator=seeded(seed)) for seed in (1, 1, 2))
    assert difference(first, again) == 0
    if name != UPSAMPLING:
        assert difference(first, other) > 1e-3


@generating
@both
@pytest.mark.parametrize("kind", ["np", "pt", "pil", "latent"])
@pytest.mark.quick_cases(11)
def test_forms_of_frames(library, name, kind):
    frames = run(library, name, output_type=kind).frames
    shapes = {"np": (1, 5, 32, 32, 3), "pt": (1, 5, 3, 32, 32), "latent": (1, 4, 3, 16, 16)}
    if kind == "pil":
        assert [[frame.size for frame in clip] for clip in frames] == [[(32, 32)] * 5]
    else:
        assert isinstance(frames, np.ndarray if kind == "np" else torch.Tensor)
        assert tuple(frames.shape) == shapes[kind]


@generating
@both
@pytest.mark.quick_cases(3)
def test_several_prompts_and_videos_per_prompt(library, name):
    pipe = pipeline(library, name)
    for prompt, videos, count in (("one", 2, 2), (["one", "two"], 1, 2), (["one", "two"], 2, 4)):
        if library == "diffusers" and name != "LTX2Pipeline" and videos > 1:
            # diffusers repeats the given pictures for prompts only.
            continue
        negative = "" if isinstance(prompt, str) else [""] * len(prompt)
        texts = {"prompt": prompt, "negative_prompt": negative, "num_videos_per_prompt": videos}
        output = run(library, name, pipe, **texts, **CFG)
        assert len(output.frames) == len(output.audio) == count


@pytest.mark.parametrize("name", ["LTX2Pipeline", "LTX2ImageToVideoPipeline"])
@both
def test_a_row_of_a_batch_is_a_call_of_its_own(library, name):
    pipe, prompts = pipeline(library, name), ["a robot dancing", "waves"]
    pictures = {} if name == "LTX2Pipeline" else {"image": [picture()] * 2, "image_crf": 0}
    batch = run(library, name, pipe, prompt=prompts, generator=[seeded(1), seeded(2)], **pictures)
    pictures = {} if name == "LTX2Pipeline" else {"image": picture(), "image_crf": 0}
    singles = [
        run(library, name, pipe, prompt=prompt, generator=seeded(seed), **pictures)
        for prompt, seed in zip(prompts, (1, 2))
    ]
    for row, single in enumerate(singles):
        assert (batch.frames[row] - single.frames[0]).abs().max() <= 1e-4


@pytest.mark.quick_cases(3)
@generating
@both
def test_texts_are_encoded_apart_and_handed_to_a_pipeline_without_text_encoder(library, name):
    """The way of diffusers' own check: from the text models alone, through the names of the results, to the same clip."""
    given = components(library, name)
    texts = {part for part in given if "text" in part or "tokenizer" in part}
    encoding = named(library, name)(**{part: value if part in texts else None for part, value in given.items()})
    rest = pipeline(library, name, **dict.fromkeys(texts))
    arguments = call(library, name, **CFG)
    known = inspect.signature(encoding.encode_prompt).parameters
    with torch.no_grad():
        results = encoding.encode_prompt(**{key: arguments.pop(key) for key in [*arguments] if key in known})
    handed = dict(zip(returned_names(encoding.encode_prompt), results, strict=True))
    assert handed.keys() <= inspect.signature(rest.__call__).parameters.keys()
    output, expected = rest(**arguments | handed), run(library, name, **CFG)
    assert difference(output, expected) <= 1e-4


def returned_names(method: Any) -> list[str]:
    """The plain names in the last line of a method's source."""
    line = inspect.getsource(method).rstrip().splitlines()[-1].strip()
    assert line.startswith("return ")
    names = [name.strip() for name in line.removeprefix("return ").split(",")]
    assert all(name.isidentifier() for name in names)
    return names


@generating
@both
def test_states_have_rows_for_every_video_and_none_without_guidance(library, name):
    pipe = pipeline(library, name)
    texts = {"prompt": ["one", "two"], "max_sequence_length": 16, "num_videos_per_prompt": 2}
    embeds, mask, negative, negative_mask = pipe.encode_prompt(**texts, negative_prompt=["", ""])
    assert embeds.shape[:2] == negative.shape[:2] == mask.shape == negative_mask.shape == (4, 16)
    assert pipe.encode_prompt(**texts, do_classifier_free_guidance=False)[2:] == (None, None)
    given = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    again = pipe.encode_prompt(None, **given, do_classifier_free_guidance=False)
    assert torch.equal(again[0], embeds) and torch.equal(again[1], mask)


# --- step callbacks ---


@generating
@both
@pytest.mark.quick_cases(3)
def test_a_callback_sees_what_it_asks_for(library, name):
    pipe, seen = pipeline(library, name), []

    def watch(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, sorted(tensors), float(timestep), float(pipe.current_timestep)))
        return tensors

    for names in (["latents"], pipe._callback_tensor_inputs):
        run(library, name, pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, **CFG)
    assert [step for step, *_ in seen] == [0, 1, 0, 1]
    assert [names for _, names, *_ in seen] == [["latents"]] * 2 + [sorted(pipe._callback_tensor_inputs)] * 2
    assert {"latents", "prompt_embeds", "negative_prompt_embeds"} <= set(seen[-1][1])
    assert all(0 < level <= 1000 and shown == level for _, _, level, shown in seen)


@generating
@both
def test_a_callback_replaces_the_latents(library, name):
    def blank(pipe: Any, step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == pipe.num_timesteps - 1 else tensors

    pipe = pipeline(library, name)
    latents = run(library, name, pipe, callback_on_step_end=blank, output_type="latent").frames
    kept = run(library, name, pipe, output_type="latent").frames
    assert not torch.equal(latents, kept)
    # All positions of a channel are at its mean.
    assert latents.std(dim=(2, 3, 4)).max() < 1e-5


@generating
@both
@pytest.mark.parametrize("prefix", ["_", "_audio_"])
@pytest.mark.quick_cases(6)
def test_a_callback_turns_guidance_up(library, name, prefix):
    def increase(pipe: Any, _step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        setattr(pipe, f"{prefix}guidance_scale", getattr(pipe, f"{prefix}guidance_scale") + 1.0)
        return tensors

    pipe, plain = pipeline(library, name), pipeline(library, name)
    guided = run(library, name, pipe, **CFG, callback_on_step_end=increase)
    argument = f"{prefix[1:]}guidance_scale"
    assert getattr(pipe, argument) == CFG[argument] + pipe.num_timesteps
    unchanged = run(library, name, plain, **CFG)
    assert difference(guided, unchanged) > 1e-5
    assert getattr(plain, argument) == CFG[argument]


SCALES = {"guidance_scale": 4.0, "stg_scale": 0.8, "modality_scale": 2.0, "guidance_rescale": 0.3}


@pytest.mark.parametrize("argument", [prefix + scale for prefix in ("", "audio_") for scale in SCALES])
@pytest.mark.quick_cases(3)
def test_every_scale_that_a_callback_sets_counts_as_in_diffusers(argument):
    value, outputs = SCALES[argument.removeprefix("audio_")], []

    def change(pipe: Any, step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            setattr(pipe, f"_{argument}", value)
        return tensors

    for library in LIBRARIES:
        pipe = pipeline(library, "LTX2Pipeline")
        scales = {**CFG, "guidance_rescale": 0.7, "modality_scale": 1.5, "audio_modality_scale": 1.5}
        # 0.0 for the audio would mean the video's value in diffusers.
        scales["audio_guidance_rescale"] = 0.5
        outputs.append(
            run(library, "LTX2Pipeline", pipe, **scales, callback_on_step_end=change, num_inference_steps=3)
        )
        assert getattr(pipe, argument) == value
    # The pass of spatio-temporal guidance changes nothing in diffusers with these weights.
    if "stg" not in argument:
        assert difference(*outputs) <= PARITY


@generating
@both
def test_a_callback_ends_the_call(library, name):
    steps = []

    def stop(pipe: Any, step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._interrupt = True
        return tensors

    pipe = pipeline(library, name)
    run(library, name, pipe, callback_on_step_end=stop)
    assert steps == [0] and pipe.interrupt
    run(library, name, pipe)
    assert not pipe.interrupt


@generating
@both
def test_no_callback_needs_to_see_nothing(library, name):
    assert difference(run(library, name, callback_on_step_end_tensor_inputs=None), run(library, name)) == 0


class Watch(PipelineCallback):
    """One of diffusers' callback objects, which say themselves what they want to see."""

    tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012 (as in diffusers)
    seen: list[list[str]]

    def callback_fn(self, _pipeline: Any, _step: int, _timestep: Any, callback_kwargs: dict) -> dict[str, Any]:
        self.seen.append(sorted(callback_kwargs))
        return callback_kwargs


@generating
@both
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_callback_objects_say_what_they_watch(library, name, several):
    callback = Watch()
    callback.seen = []
    run(library, name, callback_on_step_end=MultiPipelineCallbacks([callback]) if several else callback)
    assert callback.seen == [["latents", "prompt_embeds"]] * 2


@generating
@both
def test_a_call_shows_what_it_runs_with(library, name):
    pipe, scales = pipeline(library, name), {}
    scales = {"guidance_scale": 2.0, "stg_scale": 0.0, "modality_scale": 1.5, "guidance_rescale": 0.7}
    scales |= {f"audio_{key}": value + 0.25 for key, value in scales.items() if key != "stg_scale"}
    run(library, name, pipe, **scales, attention_kwargs={})
    assert {key: getattr(pipe, key) for key in scales} == scales
    assert {key: getattr(pipe, f"_{key}") for key in scales} == scales
    assert pipe.num_timesteps == pipe._num_timesteps == 2
    assert pipe.do_classifier_free_guidance and pipe.do_modality_isolation_guidance
    assert not pipe.do_spatio_temporal_guidance
    assert pipe.attention_kwargs == pipe._attention_kwargs == {}
    assert pipe.interrupt is pipe._interrupt is False


# --- what is refused ---

WRONG = {
    "a prompt twice": {"prompt_embeds": torch.zeros(1, 16, 96), "prompt_attention_mask": torch.ones(1, 16)},
    "no prompt": {"prompt": None},
    "a prompt that is no text": {"prompt": 5},
    "states without their mask": {"prompt": None, "prompt_embeds": torch.zeros(1, 16, 96)},
    "a size between two": {"height": 33},
    "a tensor that nobody knows": {"callback_on_step_end_tensor_inputs": ["noise"]},
    "a list of generators of another length": {"generator": [seeded()] * 3},
}


@pytest.mark.parametrize("wrong", WRONG)
@generating
@both
def test_wrong_calls_are_value_errors(library, name, wrong):
    with pytest.raises(ValueError):
        run(library, name, **WRONG[wrong])


# --- lengths that leave no audio latent ---


@generating
@pytest.mark.parametrize("frames_and_rate", [(1, 24.0), (1, 50.0), (1, 60), (1, 120), (9, 480), (1, 1000)])
def test_the_shortest_clips_have_sound(name, frames_and_rate):
    num_frames, frame_rate = frames_and_rate
    output = run("ours", name, num_frames=num_frames, frame_rate=frame_rate)
    assert output.frames.shape[1] == num_frames
    assert 1 <= output.audio.shape[-1] <= max(num_frames / frame_rate * output.sampling_rate, 1)
    assert output.audio.isfinite().all()


# --- workers ---


@each
@pytest.mark.quick_cases(3)
def test_a_pipeline_can_be_sent_to_another_process(name):
    pipe = pipeline("ours", name)
    expected = run("ours", name, pipe)
    for copied in (pickle.loads(pickle.dumps(pipe)), copy.deepcopy(pipe)):
        assert difference(run("ours", name, copied), expected) == 0
    assert difference(run("ours", name, pipe), expected) == 0

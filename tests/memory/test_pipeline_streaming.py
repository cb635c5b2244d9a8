"""Pipelines whose blocks are streamed, and whose text encoder is in memory only while it reads: the same bits."""

import copy
import pickle
import shutil

import pytest
import torch

from ltx2_diffusers import LTX2LatentUpsamplePipeline, LTX2Pipeline, PromptCache
from ltx2_diffusers.checkpoints.fingerprint import model_fingerprint
from ltx2_diffusers.memory import on_demand
from ltx2_diffusers.memory.lazy import LazyWeight
from ltx2_diffusers.memory.streaming import stream_blocks
from ltx2_diffusers.pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.adapters.stored import bits, changed, stored_as, velocity
from tests.checkpoints.tiny import V20
from tests.golden_loras import ORIGINAL
from tests.pipelines.recipes import PICTURE, SOUND, STAGE_2, add_lora
from tests.pipelines.tiny import ALL_GUIDANCE, CFG, EXPLICIT, NEGATIVE, NO_GUIDANCE, PROMPT, load, ours, seeded
from tests.tiny_checkpoints import tiny_checkpoint

CALL = {**EXPLICIT, **ALL_GUIDANCE, "prompt": PROMPT, "negative_prompt": NEGATIVE}
STREAMED = ["text_encoder", "transformer"]


@pytest.fixture(scope="module")
def expected():
    return ours()(**CALL, generator=seeded(1))


def assert_equal(output, expected):
    assert torch.equal(output.frames, expected.frames) and torch.equal(output.audio, expected.audio)


def assert_runs(pipe, expected, times=1):
    pipe.set_progress_bar_config(disable=True)
    for _ in range(times):
        assert_equal(pipe(**CALL, generator=seeded(1)), expected)


def lazy(model):
    return sum(isinstance(parameter, LazyWeight) for parameter in model.parameters())


# --- streaming ---


@pytest.mark.parametrize("offload_others", [False, True])
@pytest.mark.parametrize("source", ["ram", "disk"])
@pytest.mark.quick_cases(2)
def test_streaming_changes_no_bit(expected, source, offload_others):
    pipe = load()
    pipe.enable_block_streaming(source=source, offload_others=offload_others)
    assert pipe.streamed_components == STREAMED
    assert bool(lazy(pipe.transformer)) == (source == "disk")
    assert_runs(pipe, expected, times=2)
    if offload_others:
        with pytest.raises(ValueError, match=r"components wait in host memory .* disable_block_streaming\(\) first"):
            pipe.to("cpu")
    else:
        assert pipe.to("cpu") is pipe
    pipe.disable_block_streaming()
    assert pipe.streamed_components == [] and not lazy(pipe.transformer)
    assert not any(hasattr(part, "_hf_hook") for part in pipe.vae.modules())
    assert_runs(pipe, expected)


def test_loading_for_streaming_reads_no_blocks(expected, monkeypatch):
    read = []
    original = LazyWeight.__init__
    monkeypatch.setattr(
        LazyWeight, "__init__", lambda self, *a, **kw: (read.append(self), original(self, *a, **kw))[1]
    )
    pipe = load(block_streaming="disk")
    assert pipe.streamed_components == STREAMED
    assert len(read) == lazy(pipe.transformer) + lazy(pipe.text_encoder) > 0
    pipe.to("cpu")
    assert_runs(pipe, expected)
    sibling = LTX2ImageToVideoPipeline.from_pipe(pipe)
    assert sibling.streamed_components == STREAMED


@pytest.mark.quick_cases(0)
def test_an_original_file_is_streamed():
    folder = tiny_checkpoint("2.0")
    options = {"text_encoder": folder, "dtype": torch.float32}
    whole = LTX2Pipeline.from_single_file(V20, **options)
    streamed = LTX2Pipeline.from_single_file(V20, block_streaming="disk", **options)
    assert streamed.streamed_components == STREAMED and lazy(streamed.transformer)
    one, other = whole.transformer.state_dict(), streamed.transformer.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert type(streamed.tokenizer) is type(whole.tokenizer)
    released = LTX2Pipeline.from_single_file(V20, text_encoder_residency="on_demand", **options)
    assert released.text_encoder is None
    embeds = [pipe.encode_prompt(PROMPT, max_sequence_length=64)[0] for pipe in (whole, streamed, released)]
    assert torch.equal(embeds[0], embeds[1]) and torch.equal(embeds[0], embeds[2])


@pytest.mark.parametrize("source", ["ram", "disk"])
def test_two_stages_with_a_distilled_adapter_a_picture_and_sound(source, tmp_path):
    call = {**EXPLICIT, **CFG, "prompt": PROMPT, "image": PICTURE, "height": 128, "width": 128}
    del call["use_cross_timestep"]
    call |= {"audio": SOUND, "sampling_rate": 24000, "audio_cond_noise_scale": 0.5, "stage_2_sigmas": STAGE_2}
    outputs = []
    for streams in (False, True):
        pipe = load("2.0", LTX2TwoStagePipeline)
        add_lora(pipe, tmp_path, "distilled")
        if streams:
            pipe.enable_block_streaming(source=source)
        outputs.append(pipe(**call, generator=seeded(1)))
    assert_equal(*outputs)


def test_two_transformers():
    call = {**EXPLICIT, **NO_GUIDANCE, "prompt": PROMPT, "height": 128, "width": 128, "stage_2_sigmas": STAGE_2}
    del call["use_cross_timestep"]
    outputs = []
    for streams in (False, True):
        second = load("2.0").transformer
        for parameter in second.parameters():
            parameter.data *= 1.01
        pipe = load("2.0", LTX2TwoStagePipeline, stage_2_transformer=second)
        if streams:
            pipe.enable_block_streaming(components=["transformer", "stage_2_transformer"])
            assert pipe.streamed_components == ["transformer", "stage_2_transformer"]
        outputs.append(pipe(**call, generator=seeded(1)))
    assert_equal(*outputs)


def test_an_interrupted_call_is_followed_by_a_whole_one(expected):
    pipe = load()
    pipe.enable_block_streaming(source="disk")

    def stop(_pipe, _step, _time, _tensors):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipe(**CALL, callback_on_step_end=stop)
    assert_runs(pipe, expected)


def test_fusing_is_refused_where_weights_stay_in_their_file(tmp_path):
    pipe = load()
    add_lora(pipe, tmp_path, "style")
    pipe.enable_block_streaming(components="transformer", source="disk")
    with pytest.raises(ValueError, match=r"cannot be fused into the `transformer`, whose blocks are streamed"):
        pipe.fuse_lora()
    pipe.disable_block_streaming()
    pipe.enable_block_streaming(components="transformer")
    pipe.fuse_lora()
    fused = load()
    add_lora(fused, tmp_path, "style")
    fused.fuse_lora()
    assert_equal(*(p(**CALL, generator=seeded(1)) for p in (pipe, fused)))


def refused(pipe, **options):
    with pytest.raises(ValueError) as error:
        pipe.enable_block_streaming(**options)
    assert pipe.streamed_components == []
    return str(error.value)


def test_contradictions(expected):
    pipe = load()
    assert "names 'transfomer', which is no component with blocks; use 'transformer'" in refused(
        pipe, components=["transfomer"]
    )
    assert "names 'vae', which is no component with blocks" in refused(pipe, components="vae")
    assert "needs the components ['prompt_enhancer']" in refused(pipe, components=["prompt_enhancer"])
    assert "from 1 to 2, the number of blocks" in refused(pipe, num_on_device=3)
    assert "`source` has to be one of" in refused(pipe, source="cloud")
    pipe.text_encoder.__dict__.pop("_weights_origin")
    assert "it is not known which files" in refused(pipe, source="disk")
    # What was begun with the first component is taken back if the second one cannot be streamed.
    pipe = load()
    pipe.transformer.transformer_blocks[1].attn1.to_q.bias.data += 1
    assert "has other values in the file" in refused(pipe, source="disk")
    pipe.transformer.transformer_blocks[1].attn1.to_q.bias.data -= 1
    pipe = load()
    pipe.enable_model_cpu_offload(device="cpu")
    assert "is offloaded" in refused(pipe)
    pipe.remove_all_hooks()
    pipe._all_hooks = []
    pipe.enable_block_streaming()
    for method in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"):
        with pytest.raises(
            ValueError, match=rf"{method}\(\) contradicts block streaming, .* transformer; call disable_"
        ):
            getattr(pipe, method)()
    with pytest.raises(
        ValueError, match=r"the blocks of `text_encoder` are streamed in torch\.float32; call disable_"
    ):
        pipe.to(torch.bfloat16)
    assert pipe.vae.dtype == torch.float32
    for way in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match="cannot be copied or pickled"):
            way(pipe)
    assert_runs(pipe, expected)


def test_loading_says_what_it_does_not_know():
    with pytest.raises(ValueError, match="`block_streaming` has to be one of None, 'disk' but is 'ram'"):
        load(block_streaming="ram")
    with pytest.raises(
        ValueError, match="`text_encoder_residency` has to be one of 'resident', 'on_demand' but is 'never'"
    ):
        load(text_encoder_residency="never")
    with pytest.raises(ValueError, match="but `text_encoder` is given; leave one of them out"):
        load(text_encoder_residency="on_demand", text_encoder=ours().text_encoder)
    with pytest.raises(ValueError, match="this pipeline has no text encoder"):
        load("2.0", LTX2LatentUpsamplePipeline, text_encoder_residency="on_demand")


# --- the text encoder, released ---


@pytest.fixture
def loads(monkeypatch):
    """How often a text encoder is loaded on demand."""
    counted = []
    original = on_demand.OnDemandModel._loaded
    monkeypatch.setattr(
        on_demand.OnDemandModel, "_loaded", lambda self, device: (counted.append(device), original(self, device))[1]
    )
    return counted


@pytest.mark.parametrize("streamed", [None, "disk"])
@pytest.mark.quick_cases(1)
def test_the_text_encoder_is_gone_when_the_transformer_runs(expected, loads, streamed):
    pipe = load(text_encoder_residency="on_demand", block_streaming=streamed)
    on_demand, seen = pipe._text_encoder_on_demand, []
    assert pipe.text_encoder is None and loads == []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(on_demand._model))
    assert_runs(pipe, expected, times=2)
    hook.remove()
    assert seen and set(seen) == {None} and len(loads) == 2
    assert on_demand._users == 0


def test_it_is_never_loaded_for_prompts_in_the_cache(loads, tmp_path):
    filled, pipe = load(), load(text_encoder_residency="on_demand")
    for one in (filled, pipe):
        one.enable_prompt_cache(tmp_path)
    first = filled(**CALL, generator=seeded(1))
    # What encoded the prompts is known from the files.
    assert_equal(pipe(**CALL, generator=seeded(1)), first)
    assert loads == []
    pipe(**CALL | {"prompt": "Waves."}, generator=seeded(1))
    assert len(loads) == 1
    assert isinstance(pipe.prompt_cache, PromptCache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fingerprint_is_that_of_the_loaded_model(dtype):
    model_on_demand = on_demand.OnDemandModel(tiny_checkpoint("2.0") / "text_encoder", dtype)
    with model_on_demand.session():
        model = model_on_demand.model(torch.device("cpu"))
        assert model_on_demand.fingerprint() == model_fingerprint(model)
    with pytest.raises(RuntimeError, match=r"within its session\(\)"):
        model_on_demand.model(torch.device("cpu"))


@pytest.mark.quick_cases(0)
def test_prompts_are_encoded_and_rewritten_with_one_loading_each(loads):
    pipe = load(text_encoder_residency="on_demand")
    whole = ours()
    options = {"max_new_tokens": 4, "generation_kwargs": {"do_sample": False}}
    assert pipe.enhance_prompt([PROMPT, "Waves."], **options) == whole.enhance_prompt([PROMPT, "Waves."], **options)
    assert len(loads) == 1
    for one, other in zip(pipe.encode_prompt(PROMPT), whole.encode_prompt(PROMPT), strict=True):
        assert torch.equal(one, other)
    assert len(loads) == 2
    call = {**CALL, "enable_prompt_enhancement": True, "prompt_max_new_tokens": 4}
    call["prompt_enhancement_kwargs"] = {"do_sample": False}
    assert_equal(*(one(**call, generator=seeded(1)) for one in (pipe, whole)))
    assert len(loads) == 3


def test_it_can_be_released_and_kept_at_any_time(expected, loads):
    pipe = load()
    pipe.enable_text_encoder_release()
    pipe.enable_text_encoder_release()
    assert pipe.text_encoder is None
    assert_runs(pipe, expected)
    assert len(loads) == 1
    pipe.disable_text_encoder_release()
    assert pipe.text_encoder.device == torch.device("cpu") and len(loads) == 2
    assert_runs(pipe, expected)
    assert len(loads) == 2
    pipe.text_encoder.get_input_embeddings().weight.data += 1
    with pytest.raises(ValueError, match="the text encoder is not what lies in"):
        pipe.enable_text_encoder_release()
    assert pipe.text_encoder is not None
    pipe.register_modules(text_encoder=None)
    with pytest.raises(ValueError, match=r"needs the components \['text_encoder'\]"):
        pipe.enable_text_encoder_release()


@pytest.mark.quick_cases(0)
def test_siblings_copies_and_folders_have_it_too(expected, tmp_path):
    pipe = load(text_encoder_residency="on_demand")
    for other in (
        LTX2Pipeline.from_pipe(pipe),
        copy.copy(pipe),
        copy.deepcopy(pipe),
        pickle.loads(pickle.dumps(pipe)),
    ):
        assert_runs(other, expected)
    assert LTX2Pipeline.from_pipe(pipe, text_encoder=None)._text_encoder_on_demand is None
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.text_encoder is None
    again = load(tmp_path / "saved")
    for one, other in zip(again.text_encoder.parameters(), ours().text_encoder.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.quick_cases(0)
def test_streaming_may_be_added_to_release(expected):
    pipe = load(text_encoder_residency="on_demand")
    pipe.enable_block_streaming()
    assert pipe.streamed_components == ["transformer"]
    assert pipe._text_encoder_on_demand.streamed == "ram"
    assert_runs(pipe, expected)
    pipe.disable_block_streaming()
    assert pipe._text_encoder_on_demand.streamed is None
    assert_runs(pipe, expected)


def test_files_that_changed_are_not_read(tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_checkpoint("2.0"), folder)
    pipe = load(folder, text_encoder_residency="on_demand")
    file = folder / "text_encoder" / "model.safetensors"
    file.rename(file.with_suffix(".old"))
    with pytest.raises(ValueError, match=r"text_encoder/model\.safetensors', from which weights are read, is gone"):
        pipe(**CALL)
    file.with_suffix(".old").rename(file)
    pipe(**CALL)


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["ram", "disk"])
def test_a_card_holds_what_it_holds_for_resident_weights_and_gives_it_back(source):
    expected = load().to("cuda")(**CALL, generator=seeded(1))
    pipe = load(text_encoder_residency="on_demand")
    pipe.enable_block_streaming(source=source, offload_others=True)
    assert pipe._execution_device.type == "cuda"
    output = pipe(**CALL, generator=seeded(1))
    assert_equal(output, expected)
    assert all(p.device.type == "cpu" for p in pipe.vae.parameters())
    assert_equal(pipe(**CALL, generator=seeded(1)), expected)


@pytest.mark.gpu
def test_memory_of_a_released_text_encoder_is_free():
    pipe = load(text_encoder_residency="on_demand").to("cuda")
    before = torch.cuda.memory_allocated()
    pipe.encode_prompt(PROMPT)
    assert torch.cuda.memory_allocated() <= before + 2**20


# --- adapters ---


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8_cast", "fp8_scaled_mm"], ids=str)
def test_adapters_are_fused_into_streamed_blocks(kind):
    """What lies in host memory changes, and comes back to the bit."""
    plain, streamed = stored_as(kind), stored_as(kind)
    stream_blocks(streamed.transformer)
    before = bits(streamed)
    for pipe in (plain, streamed):
        pipe.load_lora_weights(ORIGINAL, adapter_name="style")
    for change in ("fuse_lora", "unfuse_lora"):
        for pipe in (plain, streamed):
            getattr(pipe, change)()
        results = [velocity(pipe) for pipe in (plain, streamed)]
        assert all(torch.equal(one, other) for one, other in zip(*results))
        assert bool(changed(bits(streamed), before)) == (change == "fuse_lora")


def test_nothing_is_fused_into_blocks_in_their_file(tmp_path):
    pipe = load()
    add_lora(pipe, tmp_path, "style")
    pipe.enable_block_streaming(source="disk")
    with pytest.raises(
        ValueError, match=r"cannot be fused into the `transformer`, whose blocks are streamed from their file"
    ):
        pipe.fuse_lora()


# --- what contradicts itself ---


@pytest.mark.parametrize("method", ["fp8_cast", "fp8_scaled_mm"])
def test_weights_that_are_never_read_are_not_quantised(method):
    with pytest.raises(
        ValueError, match=r"`quantization_config` rounds weights .* which `block_streaming` leaves out"
    ):
        load(block_streaming="disk", quantization_config=method)
    with pytest.raises(
        ValueError, match=r"`quantization_config` rounds weights .* which `block_streaming` leaves out"
    ):
        LTX2Pipeline.from_single_file(
            V20, text_encoder=tiny_checkpoint("2.0"), block_streaming="disk", quantization_config=method
        )


def test_what_cannot_be_streamed_later_is_refused_now(expected):
    pipe = load(text_encoder_residency="on_demand")
    with pytest.raises(ValueError, match=r"`num_on_device` has to be from 1 to 2, .* but is 99; use 2"):
        pipe.enable_block_streaming("text_encoder", num_on_device=99)
    with pytest.raises(ValueError, match="`components` is empty; leave it out"):
        pipe.enable_block_streaming([])
    with pytest.raises(ValueError, match="`device` 'meta' computes nothing; use 'cpu'"):
        pipe.enable_block_streaming(device="meta")
    assert pipe.streamed_components == []
    assert_runs(pipe, expected)


def test_a_text_encoder_on_demand_keeps_its_type(expected):
    pipe = load(text_encoder_residency="on_demand")
    with pytest.raises(ValueError, match=r"`text_encoder` is on demand and is loaded in torch\.float32"):
        pipe.to(torch.bfloat16)
    assert pipe.transformer.dtype == torch.float32
    assert_runs(pipe.to("cpu", torch.float32), expected)


def test_a_text_encoder_that_is_put_there_is_used():
    pipe, model = load(text_encoder_residency="on_demand"), load().text_encoder
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(-1)
    given = pipe.encode_prompt(PROMPT, max_sequence_length=64)[0]
    pipe.text_encoder = model
    assert not torch.equal(pipe.encode_prompt(PROMPT, max_sequence_length=64)[0], given)
    with pytest.raises(ValueError, match="the text encoder is not what lies in"):
        pipe.enable_text_encoder_release()
    pipe.disable_text_encoder_release()
    assert pipe.text_encoder is model

"""The offloading of diffusers with all that a call can have: two stages, sound, a distilled adapter and a picture.

It moves weights between two devices; with the CPU for both, all its hooks run, and what it writes to disk is read from there.
"""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.recipes import PICTURE, SOUND, STAGE_2, add_lora
from tests.pipelines.tiny import ALL_GUIDANCE, EXPLICIT, NEGATIVE, PROMPT, load, seeded

CPU = torch.device("cpu")
CALL = {
    **{name: value for name, value in (EXPLICIT | ALL_GUIDANCE).items() if name != "use_cross_timestep"},
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "height": 128,
    "width": 128,
    "image": PICTURE,
    "audio": SOUND,
    "sampling_rate": 24000,
    "audio_cond_noise_scale": 0.5,
    "stage_2_sigmas": STAGE_2,
    "output_type": "uint8",
}


@pytest.mark.parametrize("offloaded", ["not at all", "by layers", "in groups"])
def test_the_device_that_computes_is_the_one_that_diffusers_finds(offloaded):
    pipe, meta = load(), torch.device("meta")
    *models, last = [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
    if offloaded == "by layers":
        for model in (*models, last):
            cpu_offload(model, meta)
    elif offloaded == "in groups":
        for model in models:
            model.to(meta)
        apply_group_offloading(last, CPU, CPU, offload_type="leaf_level")
    device = pipe._execution_device
    assert device == DiffusionPipeline._execution_device.fget(pipe) == (meta if offloaded == "by layers" else CPU)


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


def adapted(loras):
    pipe = load("2.0", LTX2TwoStagePipeline)
    add_lora(pipe, loras, "distilled")
    return pipe


@pytest.fixture(scope="module")
def expected(loras):
    output = adapted(loras)(**CALL, generator=seeded(1))
    without = adapted(loras)(**CALL | {"stage_2_adapters": {}}, generator=seeded(1))
    # The adapter and the given sound take part.
    assert not torch.equal(output.frames, without.frames)
    return output


def by_group(level, *, to_disk=False):
    def enable(pipe, folder):
        options = {"offload_to_disk_path": str(folder)} if to_disk else {}
        number = {"num_blocks_per_group": 1} if level == "block_level" else {}
        pipe.enable_group_offload(CPU, CPU, offload_type=level, **number, **options)

    enable.__name__ = "on_disk" if to_disk else "in_memory"
    return enable


def assert_same(output, expected, bits=True):
    """What is read from disk begins at other addresses in memory, by which some kernels of CPUs round in another way."""
    assert torch.equal(output.frames, expected.frames)
    if bits:
        assert torch.equal(output.audio, expected.audio)
    else:
        torch.testing.assert_close(output.audio, expected.audio, rtol=0, atol=EQUAL_PIPELINES)


def by_model(pipe, _folder):
    pipe.enable_model_cpu_offload(device="cpu")


def by_layer(pipe, _folder):
    # The pipeline's own method takes the CPU for an accelerator with a number; these are the hooks that it sets.
    for name in pipe._networks:
        model = getattr(pipe, name)
        cpu_offload(model, CPU, offload_buffers=len(model._parameters) > 0)


WAYS = {
    "model": by_model,
    "sequential": by_layer,
    "group by block": by_group("block_level"),
    "group by leaf": by_group("leaf_level"),
    "group by block, on disk": by_group("block_level", to_disk=True),
    "group by leaf, on disk": by_group("leaf_level", to_disk=True),
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_offloading_changes_no_bit(loras, expected, tmp_path, way):
    pipe = adapted(loras)
    way(pipe, tmp_path)
    # Twice: what was moved for one call is there for the next.
    for _ in range(2):
        assert_same(pipe(**CALL, generator=seeded(1)), expected, bits="on_disk" not in way.__name__)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_streamed_decoding_finds_its_weights(loras, tmp_path, way):
    """Its chunks pass the layers of the decoder one by one, and not the decoder."""
    plain, pipe = adapted(loras), adapted(loras)
    way(pipe, tmp_path)
    for one in (plain, pipe):
        one.vae.enable_streaming(chunk_frames=2)
    call = {**CALL, "output_type": "pt"}
    expected, output = (one(**call, generator=seeded(1)) for one in (plain, pipe))
    torch.testing.assert_close(output.frames, expected.frames, rtol=0, atol=EQUAL_PIPELINES)


def test_weights_on_disk_are_those_of_this_pipeline(loras, expected, tmp_path):
    """Files of another run are used again if they hold the same weights, and only then."""
    enable = by_group("leaf_level", to_disk=True)
    other = adapted(loras)
    for model in (other.transformer, other.vae):
        for parameter in model.parameters():
            parameter.data *= 1.01
    enable(other, tmp_path)
    enable(adapted(loras), tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    pipe = adapted(loras)
    enable(pipe, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    assert_same(pipe(**CALL, generator=seeded(1)), expected, bits=False)


# The library's own methods want an accelerator, and only with one anything moves.
@pytest.mark.gpu
@pytest.mark.parametrize(
    "way",
    [
        lambda pipe, _: pipe.enable_model_cpu_offload(),
        lambda pipe, _: pipe.enable_sequential_cpu_offload(),
        lambda pipe, _: pipe.enable_group_offload(torch.device("cuda"), CPU, "block_level", num_blocks_per_group=1),
        lambda pipe, _: pipe.enable_group_offload(torch.device("cuda"), CPU, "leaf_level", use_stream=True),
        lambda pipe, folder: pipe.enable_group_offload(
            torch.device("cuda"), CPU, "leaf_level", offload_to_disk_path=str(folder)
        ),
    ],
    ids=["model", "sequential", "group by block", "group by leaf", "group by leaf, on disk"],
)
def test_offloading_from_a_card_changes_no_bit(loras, tmp_path, way):
    expected = adapted(loras).to("cuda")(**CALL, generator=seeded(1))
    pipe = adapted(loras)
    way(pipe, tmp_path)
    for _ in range(2):
        output = pipe(**CALL, generator=seeded(1))
        assert torch.equal(output.frames, expected.frames) and torch.equal(output.audio, expected.audio)

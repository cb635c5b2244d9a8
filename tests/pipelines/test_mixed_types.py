"""Components in different data types work together."""

import pytest
import torch

from ltx2_diffusers import (
    LTX2AudioToVideoPipeline,
    LTX2AVTransformer3DModel,
    LTX2ImageToVideoPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2LatentUpsamplerModel,
    LTX2Pipeline,
    LTX2TwoStagePipeline,
)
from ltx2_diffusers.models.mixed_precision import input_dtype
from tests.models.transformer_tools import tiny_transformer
from tests.pipelines import recipes
from tests.pipelines.tiny import CFG, EXPLICIT, PROMPT, load, max_difference, ours, seeded
from tests.tiny_checkpoints import tiny_checkpoint

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT, "output_type": "np"}
PARTS = ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder")
HALF = (torch.bfloat16, torch.float16)


def parts_in(dtypes: dict[str, torch.dtype], pipeline_class: type = LTX2Pipeline, name: str = "2.0") -> LTX2Pipeline:
    """A float32 pipeline but for some components."""
    pipe = load(name, pipeline_class)
    for part, dtype in dtypes.items():
        getattr(pipe, part).to(dtype)
    return pipe


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_one_component_in_half_precision(part, dtype):
    output = parts_in({part: dtype})(**CALL, generator=seeded(1))
    assert max_difference(output, ours()(**CALL, generator=seeded(1))) < 0.3


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", PARTS)
def test_one_component_in_full_precision(part):
    others = dict.fromkeys(set(PARTS) - {part}, torch.bfloat16)
    output = parts_in(others)(**CALL, generator=seeded(1))
    assert max_difference(output, ours()(**CALL, generator=seeded(1))) < 0.5


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_a_transformer_in_half_precision_in_a_pipeline_without_a_data_type(name):
    folder = tiny_checkpoint(name)
    transformer = LTX2AVTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.bfloat16)
    pipe = LTX2Pipeline.from_pretrained(folder, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    pipe(**CALL, generator=seeded(1))
    hook.remove()
    names = ("hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states")
    assert {inputs[name].dtype for inputs in seen for name in names} == {torch.bfloat16}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", ["vae", "audio_vae", "latent_upsampler", "transformer", "stage_2_transformer"])
def test_stages_and_conditions(part):
    second = LTX2AVTransformer3DModel.from_pretrained(tiny_checkpoint("2.0") / "transformer")
    pipe = load("2.0", LTX2TwoStagePipeline, stage_2_transformer=second)
    getattr(pipe, part).to(torch.bfloat16)
    call = {**recipes.CALL, **recipes.TWO_STAGES, "image": recipes.PICTURE, "output_type": "np"}
    output = pipe(**call, audio=recipes.SOUND, sampling_rate=recipes.RATE, audio_cond_noise_scale=0.5)
    assert torch.as_tensor(output.frames).isfinite().all() and output.audio.isfinite().all()


@pytest.mark.parametrize("pipeline_class", [LTX2ImageToVideoPipeline, LTX2AudioToVideoPipeline])
def test_what_a_half_precision_encoder_gives_meets_a_full_precision_transformer(pipeline_class):
    pipe = parts_in({"vae": torch.bfloat16, "audio_vae": torch.bfloat16}, pipeline_class)
    first = {"image": recipes.PICTURE}
    if pipeline_class is LTX2AudioToVideoPipeline:
        first = {"audio": recipes.SOUND, "sampling_rate": recipes.RATE, "two_stage": False}
    output = pipe(**first, **recipes.CALL | {"output_type": "np"})
    assert torch.as_tensor(output.frames).isfinite().all()


@pytest.mark.parametrize("part", ["vae", "latent_upsampler"])
def test_enlarging_latents(part):
    folder = tiny_checkpoint("2.0")
    upsampler = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler")
    pipe = LTX2LatentUpsamplePipeline(vae=load().vae, latent_upsampler=upsampler)
    getattr(pipe, part).to(torch.bfloat16)
    latents = torch.randn(1, 128, 2, 2, 2, generator=seeded(0))
    for given in ({"latents": latents}, {"video": recipes.CLIP[:9], "height": 64, "width": 64}):
        assert torch.as_tensor(pipe(**given, output_type="np", adain_factor=0.5).frames).isfinite().all()


def test_stored_types_say_nothing_of_the_input():
    model = tiny_transformer()
    assert input_dtype(model, torch.bfloat16) == torch.float32
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16)
    assert input_dtype(model, torch.bfloat16) == torch.float16
    stored = tiny_transformer().to(torch.float8_e4m3fn)
    assert input_dtype(stored, torch.bfloat16) == torch.bfloat16
    quantised = tiny_transformer()
    quantised.proj_in.weight = torch.nn.Parameter(
        quantised.proj_in.weight.detach().to(torch.uint8), requires_grad=False
    )
    assert input_dtype(quantised, torch.bfloat16) == torch.bfloat16

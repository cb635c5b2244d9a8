"""One step of a LoRA, end to end, against the reference's trainer."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig

from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.conditioning import Streams, TextContext
from ltx2_diffusers.models.modality_front import LTX2ModalityModel
from ltx2_diffusers.training.objective.losses import step_losses
from ltx2_diffusers.training.objective.noise_levels import LogitNormalLevels
from ltx2_diffusers.training.objective.strategies import strategy_of
from ltx2_diffusers.training.trained.network import velocities
from tests.golden_data import load_json, load_tensors
from tests.training.drawing import GlobalDraws, sizes

GOLDEN = load_json("training/training_step_2_0.json")
TENSORS = load_tensors("training/training_step_2_0.safetensors")
FIELDS = {"audio_latents_dir": "audio_latents", "reference_latents_dir": "reference_latents"}


def prepared(case: dict):
    """Streams and text of a case."""
    name = case["case"]
    inputs = {k.removeprefix(f"{name}.in."): v for k, v in TENSORS.items() if k.startswith(f"{name}.in.")}
    section = SimpleNamespace(
        name="video_to_video" if name == "v2v" else "text_to_video",
        with_audio=name == "t2av",
        first_frame_conditioning_p=0.0 if name == "v2v" else 1.0,
        **FIELDS,
    )
    batch = {key: {"latents": inputs[key]} for key in ("latents", "audio_latents", "ref_latents") if key in inputs}
    batch["latents"]["fps"] = torch.full((2,), 25.0)
    torch.manual_seed(case["seed"])
    chosen = torch.full((2,), 1.0 if name == "v2v" else 0.0)
    strategy = strategy_of(section, shared_noise_level=True)
    streams = strategy.prepare(batch, LogitNormalLevels(), GlobalDraws(chosen), sizes(8, 4, 4))
    return streams, TextContext(inputs["video_prompt_embeds"], inputs["audio_prompt_embeds"])


def adapted(case: dict) -> LTX2AVTransformer3DModel:
    """The model of the vectors with its LoRA."""
    model = LTX2AVTransformer3DModel(**GOLDEN["config"])
    weights = {key.removeprefix("weights."): value for key, value in TENSORS.items() if key.startswith("weights.")}
    model.load_state_dict(weights)
    model.requires_grad_(False)
    lora = case["lora"]
    model.add_adapter(LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["target_modules"]))
    cast_training_params(model, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(TENSORS["lora_A." + name.partition(".lora_A.")[0]])
    return model


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[case["case"] for case in GOLDEN["cases"]])
@pytest.mark.usefixtures("golden_sinusoid")
def test_a_step_is_that_of_the_reference(case):
    name, (streams, text) = case["case"], prepared(case)
    assert streams.video.sigma.tolist() == pytest.approx(case["sigmas"], abs=2e-6)
    model = adapted(case)
    front = LTX2ModalityModel(model)

    predicted = Streams(*velocities(front, streams, text))
    for stream, said in zip(("video", "audio"), predicted):
        expected = TENSORS.get(f"{name}.base.{stream}_velocity")
        assert (said is None) == (expected is None)
        if said is not None:
            # The reference puts appended tokens in front.
            appended = said.shape[1] - getattr(streams, stream).velocity.shape[1]
            torch.testing.assert_close(said.roll(appended, 1), expected, atol=1e-5, rtol=0)

    losses = step_losses(predicted, streams, Streams(1.0, 1.0))
    assert losses.total.item() == pytest.approx(case["loss_before"], abs=1e-5)
    losses.total.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for key, norm in case["lora_B_grad_norms"].items():
        gradient = trained[key].grad
        assert (0.0 if gradient is None else gradient.norm().item()) == pytest.approx(norm, rel=1e-4, abs=1e-9)

    parameters = list(trained.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, case["max_grad_norm"])
    assert norm.item() == pytest.approx(case["grad_norm_before_clip"], rel=1e-4)
    optimiser = torch.optim.AdamW(parameters, lr=case["optimizer"]["lr"])
    optimiser.step()
    losses = step_losses(Streams(*velocities(front, streams, text)), streams, Streams(1.0, 1.0))
    assert losses.total.item() == pytest.approx(case["loss_after_one_step_same_batch"], abs=1e-5)

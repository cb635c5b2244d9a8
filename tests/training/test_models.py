"""What is loaded for a run, how it is made ready, and what is refused."""

import shutil

import pytest
import torch
from diffusers.utils import logging
from huggingface_hub import constants
from safetensors.torch import save_file

from ltx2_diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from ltx2_diffusers.checkpoints import keys
from ltx2_diffusers.conditioning.streams import Streams
from ltx2_diffusers.training.trained.models import load_adapter, lora_arguments, start_file, without_projections
from ltx2_diffusers.training.trained.quantization import _LIBRARIES, QUANTIZATIONS
from ltx2_diffusers.training.trained.targets import matching_modules, resolve
from tests.golden_data import load_json
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.tiny import config, loaded, train, velocities

FULL = {"model_path": str(tiny_checkpoint("2.0")), "training_mode": "full"}


def test_a_lora_run_trains_float32_factors_on_a_frozen_bfloat16_base():
    models = loaded(config({"target_modules": "video"}))
    layers = matching_modules(models.transformer, resolve("video").transformer)
    assert len(models.parameters()) == 2 * len(layers) > 0
    assert {p.dtype for p in models.parameters()} == {torch.float32}
    frozen = [p for m in (models.transformer, models.connectors) for p in m.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert list(models.trained) == ["transformer"]
    assert models.transformer.is_gradient_checkpointing
    assert models.generation == "2.0"
    assert loaded(config(model={"model_path": str(tiny_checkpoint("2.3"))})).generation == "2.3"


@pytest.mark.parametrize("needs_decoders", [False, True])
def test_only_what_is_needed_is_loaded(needs_decoders):
    models = loaded(config(), needs_decoders)
    beside = ("vae", "audio_vae", "vocoder", "text_encoder", "tokenizer")
    assert [name for name in beside if models.pipeline.has(name)] == (list(beside) if needs_decoders else [])
    assert models.pipeline.transformer is models.transformer
    assert models.pipeline.connectors is models.connectors
    parts = [c for c in models.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    trained = {id(p) for p in models.parameters()}
    assert all(p.requires_grad == (id(p) in trained) for part in parts for p in part.parameters())


def test_the_seed_decides_how_adapters_begin():
    first, second = loaded(config()), loaded(config())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    # The second factor is zero, so a run begins with the base.
    base = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), dtype=torch.bfloat16)
    with torch.no_grad():
        pairs = zip(velocities(first.transformer, first.connectors), velocities(base.transformer, base.connectors))
        assert all(torch.equal(a, b) for a, b in pairs)


def test_full_training_trains_the_whole_transformer_in_float32():
    settings = config(model=FULL, optimization={"learning_rate": 1e-3})
    models = loaded(settings)
    assert len(models.parameters()) == len(list(models.transformer.parameters()))
    assert {p.dtype for p in models.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in models.connectors.parameters())
    before = [p.detach().clone() for p in models.parameters()]
    losses = train(models, settings)
    assert losses[1] < losses[0]
    assert sum(not torch.equal(a, b) for a, b in zip(before, models.parameters())) > len(before) / 2


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "file"])
def test_full_training_starts_from_a_checkpoint(kind, tmp_path):
    transformer = LTX2VideoTransformer3DModel.from_pretrained(tiny_checkpoint("2.0"), subfolder="transformer")
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.mul_(1.5)
    if kind == "file":
        # As the reference saves it: original names without a prefix, and no configuration.
        state = transformer.state_dict()
        names = keys.rename("transformer", list(state), to="original")
        save_file(
            {names[k]: v.contiguous() for k, v in state.items()}, tmp_path / "model_weights_step_00010.safetensors"
        )
    else:
        transformer.save_pretrained(tmp_path / "transformer" if kind == "checkpoint" else tmp_path)
    models = loaded(config(model=FULL | {"load_checkpoint": tmp_path}))
    expected = transformer.state_dict()
    assert all(torch.equal(value, expected[name].float()) for name, value in models.transformer.state_dict().items())
    assert len(models.parameters()) == len(expected)


def test_full_training_refuses_weights_of_another_model(tmp_path):
    transformer = LTX2VideoTransformer3DModel.from_pretrained(tiny_checkpoint("2.3"), subfolder="transformer")
    transformer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is of another model than .*ltx-2-tiny.*differs"):
        loaded(config(model=FULL | {"load_checkpoint": tmp_path}))


def test_an_original_file_is_a_base_too(tmp_path):
    from ltx2_diffusers.checkpoints.convert import convert_to_original

    file = tmp_path / "ltx-2-tiny.safetensors"
    convert_to_original(tiny_checkpoint("2.0"), file)
    models = loaded(config(model={"model_path": str(file)}))
    assert not models.pipeline.has("text_encoder")
    expected = loaded(config())
    for one, other in zip(models.transformer.parameters(), expected.transformer.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(
        ValueError, match=r"holds no text encoder.* name a Gemma folder or Hub id as `model\.text_encoder_path`"
    ):
        loaded(config(model={"model_path": str(file)}), True)
    text = tiny_checkpoint("2.0")
    models = loaded(config(model={"model_path": str(file), "text_encoder_path": str(text)}), True)
    assert models.pipeline.has("text_encoder")
    assert models.pipeline.has("tokenizer")


def test_a_hub_id_is_read_from_the_local_cache(tmp_path, monkeypatch):
    repository, commit = tmp_path / "models--owner--tiny", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "refs" / "v1").write_text(commit)
    shutil.copytree(tiny_checkpoint("2.0"), repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    models = loaded(config(model={"model_path": "owner/tiny", "revision": "v1"}))
    for one, other in zip(models.transformer.parameters(), loaded(config()).transformer.parameters(), strict=True):
        assert torch.equal(one, other)


def test_vaes_may_lie_apart(tmp_path):
    base = tiny_checkpoint("2.0")
    pipeline = LTX2Pipeline.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        for name in ("vae", "audio_vae"):
            model = getattr(pipeline, name)
            next(model.parameters()).add_(1.0)
            model.save_pretrained(tmp_path / name)
    own = {"video_vae_path": tmp_path / "vae", "audio_vae_path": tmp_path / "audio_vae"}
    models = loaded(config(model=own), True)
    for name in ("vae", "audio_vae"):
        assert torch.equal(
            next(getattr(models.pipeline, name).parameters()), next(getattr(pipeline, name).parameters())
        )


def test_the_text_encoder_may_be_stored_in_8_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    settings = config(acceleration={"load_text_encoder_in_8bit": True})
    encoder = loaded(settings, True).pipeline.text_encoder
    layers = [m for m in encoder.modules() if isinstance(m, bitsandbytes.nn.Linear8bitLt)]
    assert len(layers) > 4
    assert loaded(config(), True).pipeline.text_encoder.dtype == torch.bfloat16


# --- targets ---


def test_layers_that_never_run_get_no_adapter(caplog):
    logging.enable_propagation()
    models = loaded(config(), runs=Streams(True, False))
    assert "never run in this strategy and get no adapter" in caplog.text
    paths = [path for path, module in models.transformer.named_modules() if hasattr(module, "lora_A")]
    assert {path.split(".")[2] for path in paths} == {"attn1", "attn2"}
    with pytest.raises(ValueError, match=r"none of the layers in `lora\.target_modules` runs"):
        loaded(config({"target_modules": "audio"}), runs=Streams(True, False))


def test_connectors_are_trained_beside_the_transformer():
    settings = config({"target_modules": ["text", "connectors"]})
    models = loaded(settings)
    assert list(models.trained) == ["transformer", "connectors"]
    assert models.connectors.is_gradient_checkpointing
    before = [p.detach().clone() for p in models.parameters()]
    train(models, settings)
    moved = [not torch.equal(a, b) for a, b in zip(before, models.parameters())]
    # After two steps both factors have moved, all but for layers whose results nothing reads.
    assert sum(moved) > 0.9 * len(moved)
    alone = loaded(config({"target_modules": "connectors"}))
    assert list(alone.trained) == ["connectors"]
    assert not any(p.requires_grad for p in alone.transformer.parameters())
    assert list(lora_arguments(alone)) == ["connectors_lora_layers", "connectors_lora_adapter_metadata"]


def test_a_misspelt_target_is_named():
    with pytest.raises(ValueError, match=r"names 'to_kk', which is no linear layer .* did you mean"):
        loaded(config({"target_modules": ["to_kk"]}))


# --- what saves memory ---


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_training_runs_on_a_quantised_base(name):
    pytest.importorskip(_LIBRARIES[name][0])
    settings = config(acceleration={"quantization": name})
    models = loaded(settings)
    losses = train(models, settings, 3)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("quantization", [None, "torchao-int8"])
def test_streaming_changes_no_loss(quantization):
    if quantization:
        pytest.importorskip("torchao")
    acceleration = {"quantization": quantization}
    plain = config(acceleration=acceleration)
    streamed = config(acceleration=acceleration | {"block_streaming": 1})
    models = loaded(streamed)
    assert models.streaming is not None
    assert train(models, streamed, 3) == train(loaded(plain), plain, 3)


@pytest.mark.slow
def test_compiled_blocks_train_alike(monkeypatch):
    """With a compiler that changes nothing but how blocks are called."""
    compiled, original = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: (compiled.append(self), original(self, backend="eager"))
    )
    plain, settings = config(), config(acceleration={"compile": True})
    models = loaded(settings)
    assert compiled == list(models.transformer.transformer_blocks)
    assert train(models, settings) == pytest.approx(train(loaded(plain), plain), rel=1e-3)
    assert all("_orig_mod" not in name for name in lora_arguments(models)["transformer_lora_layers"])


@pytest.mark.parametrize(("version", "names"), [("2.0", 1), ("2.3", 2)])
def test_projections_of_the_text_stay_on_the_host(version, names):
    """All else goes to the device; here one without values."""
    connectors = loaded(config(model={"model_path": str(tiny_checkpoint(version))})).connectors
    order = list(connectors.state_dict())
    with without_projections(connectors):
        torch.nn.Module.to(connectors, "meta")
    devices = {name: next(part.parameters()).device.type for name, part in connectors.named_children()}
    assert [device for name, device in devices.items() if name.endswith("text_proj_in")] == ["cpu"] * names
    assert {device for name, device in devices.items() if name.endswith("_connector")} == {"meta"}
    assert list(connectors.state_dict()) == order


# --- weights to start from ---


@pytest.mark.parametrize("case", load_json("training/find_checkpoint.json"), ids=lambda case: str(case["chosen"]))
def test_the_latest_step_in_a_folder_is_found(case, tmp_path):
    for name in case["files"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if case["chosen"] is None:
        with pytest.raises(ValueError, match="holds no weights to start from"):
            start_file(tmp_path)
    else:
        assert start_file(tmp_path) == tmp_path / case["chosen"]


def saved(tmp_path, **lora):
    models = loaded(config(lora))
    for parameter in models.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    LTX2Pipeline.save_lora_weights(tmp_path, **lora_arguments(models))
    return tmp_path


@pytest.mark.parametrize(
    "written, lora, message",
    [
        ({"rank": 8}, {}, r"has rank 8 at .*; use `lora\.rank: 8`"),
        (
            {"target_modules": "all"},
            {},
            "changes 8 layers of the transformer that `lora.target_modules` does not name",
        ),
        (
            {"target_modules": ["av", "connectors"]},
            {},
            "layers of the connectors that `lora.target_modules` does not name",
        ),
        ({"use_dora": True}, {}, "is of another kind of LoRA at .*; use `lora.use_dora: true`"),
        ({}, {"use_dora": True}, "use `lora.use_dora: false`"),
        ({"lora_bias": True}, {}, "use `lora.lora_bias: true`"),
    ],
)
@pytest.mark.quick_cases(2)
def test_a_lora_of_another_form_is_refused_as_a_whole(written, lora, message, tmp_path):
    saved(tmp_path, **written)
    models = loaded(config(lora))
    before = [p.detach().clone() for p in models.parameters()]
    with pytest.raises(ValueError, match=message):
        load_adapter(models, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, models.parameters()))


def test_targets_that_a_file_lacks_begin_anew(tmp_path, caplog):
    logging.enable_propagation()
    saved(tmp_path, target_modules="video")
    models = loaded(config(model={"load_checkpoint": tmp_path}))
    assert "has no factors for 32 targets in the transformer, which begin anew" in caplog.text
    layers = {path: m for path, m in models.transformer.named_modules() if hasattr(m, "lora_A")}
    for path, layer in layers.items():
        assert bool(layer.lora_B["default"].weight.any()) == (path.split(".")[2] in ("attn1", "attn2"))


# --- refused before anything is loaded ---


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"acceleration": {"block_streaming": 1}, "optimization": {"enable_gradient_checkpointing": False}}, "needs `optimization.enable_gradient_checkpointing: true`"),
        ({"acceleration": {"block_streaming": 1, "compile": True}}, "exclude each other"),
        ({"acceleration": {"block_streaming": 1, "quantization": "bnb-nf4"}}, "weights in bnb-nf4 cannot be streamed; use int8-quanto"),
        ({"acceleration": {"block_streaming": 1}, "model": FULL}, "`acceleration.block_streaming` is for a frozen base"),
        ({"lora": {"use_dora": True}, "acceleration": {"quantization": "int8-quanto"}}, "`lora.use_dora` does not work on a base in int8-quanto"),
        ({"lora": {"lora_bias": True}, "acceleration": {"quantization": "torchao-int8"}}, "`lora.lora_bias` does not work on a base in torchao-int8"),
        ({"lora": {"target_modules": ["connectors.text_proj_in"]}}, "never runs in training"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_before_loading(settings, message, monkeypatch):
    monkeypatch.setattr(LTX2Pipeline, "from_pretrained", None)
    with pytest.raises(ValueError, match=message):
        loaded(config(**settings))


def test_initialisations_that_change_the_base_are_refused():
    settings = config()
    settings.lora.init_lora_weights = "pissa"
    with pytest.raises(ValueError, match="is 'pissa', but has to be true or 'gaussian': others change the base"):
        loaded(settings)

"""Diffusion decoder: golden vectors, both layouts of files, parity with diffusers, tiles, parts, small clips, refused inputs."""

import json
from functools import cache

import diffusers
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from safetensors.torch import load_file, save_file

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2VideoDiffusionDecoderModel
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original, differences
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.models import diffusion_decoder_blocks, neighbourhood_attention
from ltx2_diffusers.models.diffusion_decoder_tiling import tile_intervals
from ltx2_diffusers.models.neighbourhood_attention import LTX2VideoVaeNeighborhoodAttnProcessor
from ltx2_diffusers.planning.counting import counted, measured
from tests.golden_data import EQUAL_MODELS, GOLDEN_DIR, assert_within, load_json, load_metadata, load_tensors

FOLDER = "ltx25/diffusion_decoder"
ORIGINAL = GOLDEN_DIR / FOLDER / "x0" / "original.safetensors"
TILES = json.loads(load_metadata(f"{FOLDER}/x0/tiled_1step.safetensors")["tiles"])
CASES = (
    "x0/decode_1step",
    "x0/decode_3step",
    "x0/tiled_1step",
    "x0/tiled_2step",
    "v/decode_1step",
    "v/decode_default",
)


def fresh(kind: str = "x0", **changes) -> LTX2VideoDiffusionDecoderModel:
    config = {name: value for name, value in load_json(f"{FOLDER}/{kind}/config.json").items() if name[0] != "_"}
    model = LTX2VideoDiffusionDecoderModel(**config | changes)
    model.load_state_dict(load_tensors(f"{FOLDER}/{kind}/diffusers.safetensors"))
    return model.eval().requires_grad_(False)


@cache
def decoder(kind: str = "x0") -> LTX2VideoDiffusionDecoderModel:
    """Shared by tests that leave it as it is."""
    return fresh(kind)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(*size: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 8, *size, generator=seeded(0))


def golden_decode(model: LTX2VideoDiffusionDecoderModel, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model makes of a recorded case, and what is recorded."""
    tensors, about = load_tensors(f"{FOLDER}/{case}.safetensors"), load_metadata(f"{FOLDER}/{case}.safetensors")
    tiles, steps = json.loads(about["tiles"]), json.loads(about["steps"])
    model.disable_tiling()
    if tiles:
        model.enable_tiling(**tiles)
    generator = seeded(int(about["seed"]))
    made = model.decode(tensors["latents"], generator=generator, num_inference_steps=steps).sample
    return made[:, :, :: int(about["keep_every_nth_frame"])], tensors["sample"]


@pytest.mark.parametrize("case", CASES)
def test_golden_vectors(case):
    assert_within(*golden_decode(fresh(case[: case.index("/")]), case), "diffusion decoder")


@pytest.mark.parametrize("case", ["x0/decode_1step", "x0/tiled_2step"])
def test_golden_vectors_in_the_smallest_parts(monkeypatch, case):
    monkeypatch.setattr(neighbourhood_attention, "SLAB_TOKENS", 1)
    monkeypatch.setattr(diffusion_decoder_blocks, "MLP_TOKENS", 7)
    monkeypatch.setattr(neighbourhood_attention, "PROJECTED_TOKENS", 1)
    monkeypatch.setitem(neighbourhood_attention.GATHERING, "cpu", neighbourhood_attention.Gathering(1))
    with torch.no_grad():
        assert_within(*golden_decode(fresh(), case), "diffusion decoder")


def test_a_changed_weight_is_seen():
    model = fresh()
    model.decoder.diff_blocks[1].attn.to_k.weight[0] *= 1.5
    made, expected = golden_decode(model, "x0/decode_1step")
    with pytest.raises(AssertionError):
        assert_within(made, expected, "diffusion decoder")


def test_golden_context():
    recorded, model = load_tensors(f"{FOLDER}/x0/decode_1step.safetensors"), decoder().decoder
    padded = torch.cat([recorded["latents"], *[recorded["latents"][:, :, -1:]] * 2], dim=2)
    features = model.features(padded)
    context = model.context(features.clone())(0, 9)
    assert_within(context[:, ::4], recorded["context"], "diffusion decoder")
    assert_within(model.context(features)(3, 8), context[:, 3:8], "diffusion decoder")


def test_clips_below_the_size_of_the_attention_are_those_of_the_reference():
    recorded = load_tensors(f"{FOLDER}/x0/small_reference.safetensors")
    seeds = json.loads(load_metadata(f"{FOLDER}/x0/small_reference.safetensors")["seeds"])
    for index, seed in enumerate(seeds):
        made = decoder().decode(recorded[f"{index}.latents"], generator=seeded(seed), return_dict=False)[0]
        assert_within(made, recorded[f"{index}.sample"], "diffusion decoder")


def test_golden_tiles():
    for row in load_json(f"{FOLDER}/tile_intervals.json"):
        made = tile_intervals(row["length"], row["tile"], row["stride"], row["min"])
        assert [list(one) for one in made] == row["intervals"], row


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_parity_with_diffusers(steps):
    theirs = diffusers.LTX2VideoDiffusionDecoderModel.from_config(decoder().config).eval()
    theirs.load_state_dict(decoder().state_dict())
    z, generators = latents(2, 3, 3, batch=2), ([seeded(1), seeded(2)] for _ in range(2))
    made, expected = (
        model.decode(z, generator, steps, return_dict=False)[0]
        for model, generator in zip((decoder(), theirs), generators)
    )
    assert (made - expected).abs().max() <= 1e-4


def test_gradients_reach_latents_and_weights():
    model, z = fresh().requires_grad_(True), latents(2, 3, 4).requires_grad_()
    model.decode(z, seeded(0)).sample.square().mean().backward()
    assert z.grad.abs().sum() > 0
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []
    with torch.no_grad():
        assert torch.isfinite(model.decode(z, seeded(0)).sample).all()


@torch.no_grad()
def test_a_batch_is_its_clips():
    z = latents(2, 3, 4, batch=2)
    both = decoder().decode(z, [seeded(3), seeded(4)]).sample
    for index, seed in enumerate((3, 4)):
        assert_within(
            decoder().decode(z[index : index + 1], seeded(seed)).sample, both[index : index + 1], "equal models"
        )


@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_frames_come_in_order_and_in_parts(steps):
    model, z = fresh(), latents(5, 4, 4)
    model.enable_tiling(**TILES)
    chunks = list(model.decode_streamed(z, seeded(5), steps))
    assert len(chunks) > 2
    assert torch.equal(torch.cat(chunks, dim=2), model.decode(z, seeded(5), steps).sample)
    model.disable_tiling()
    (whole,) = model.decode_streamed(z, seeded(5), steps)
    assert torch.equal(whole, model(z, seeded(5), steps).sample)


@torch.no_grad()
def test_tiles_change_little_but_near_their_seams():
    """With overlaps as long as the attention reaches, inside a tile."""
    model, z = fresh("x0"), latents(2, 16, 16)
    whole = model.decode(z, seeded(6), 2).sample
    # One row of tiles after the other; what is nearer to the first seam than attention reaches is left out.
    model.enable_tiling(96, 128, 100, 64, 128, 100)
    tiled = model.decode(z, seeded(6), 2).sample
    difference = (tiled - whole).abs().amax(dim=(0, 1, 2, 4))
    assert difference[:20].max() <= EQUAL_MODELS
    assert difference[60:100].max() > EQUAL_MODELS


def test_safe_tiles_share_what_the_original_demands():
    model = LTX2VideoDiffusionDecoderModel.from_config(decoder().config)
    names = ("height", "width", "num_frames")
    defaults = [(getattr(model, f"tile_sample_min_{n}"), getattr(model, f"tile_sample_stride_{n}")) for n in names]
    assert defaults == [(768, 704), (768, 704), (80, 56)]
    with pytest.raises(ValueError, match="`safe` has to be one of True, False but is 'x'"):
        model.enable_tiling(512, safe="x")
    model.enable_tiling(512, safe=True)
    assert [getattr(model, f"tile_sample_stride_{n}") for n in names] == [352, 608, 40]
    with pytest.raises(ValueError, match=r"`tile_sample_stride_height` is 400, .* at least 160; use 352"):
        model.enable_tiling(tile_sample_stride_height=400, safe=True)
    with pytest.raises(ValueError, match=r"`tile_sample_min_num_frames` is 40, .*more than 40"):
        model.enable_tiling(tile_sample_min_num_frames=40, safe=True)
    assert model.tile_sample_stride_height == 352


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ({"tile_sample_min_height": 8}, "`tile_sample_min_height` has to be at least 12, .* but is 8; use 12"),
        (
            {"tile_sample_stride_width": 800},
            "`tile_sample_stride_width` has to be from 4 to .*768 but is 800; use 768",
        ),
        ({"tile_sample_stride_num_frames": 1}, "`tile_sample_stride_num_frames` has to be from 2 .* but is 1; use 2"),
    ],
)
def test_impossible_tiles_are_refused_and_change_nothing(tiles, message):
    model = fresh()
    before = {name: value for name, value in vars(model).items() if name.startswith("tile_")}
    with pytest.raises(ValueError, match=message):
        model.enable_tiling(**tiles)
    assert not model.use_tiling
    assert {name: getattr(model, name) for name in before} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_head_dim": 12}, "`decoder_head_dim` has to be a multiple of 8 but is 12"),
        ({"decoder_head_dim": 32}, "multiples of `decoder_head_dim` = 32 but holds 16"),
        ({"decoder_stage_channels": [32, 16, 16, 24, 24]}, "holds 24 behind 16, .* divides by 1; use 16"),
        ({"decoder_stage_channels": [32, 32, 16, 16, 16]}, "holds 32 behind 32, .* divides by 2; use 16"),
        ({"decoder_stage_depths": [1, 1]}, r"`decoder_stage_depths` has to hold 5 numbers but is \[1, 1\]"),
        ({"decoder_model_output_type": "eps"}, "`decoder_model_output_type` has to be one of 'x0', 'v' but is 'eps'"),
        ({"temporal_compression_ratio": 4}, "`temporal_compression_ratio` is 4, .* make 8; use 8"),
        ({"spatial_compression_ratio": 32}, "`spatial_compression_ratio` is 32, .* make 8; use 8"),
    ],
)
def test_contradictory_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fresh(**changes)


def test_wrong_calls_are_refused_before_anything_is_computed():
    with pytest.raises(
        ValueError, match=r"latents must have shape \[B, 8, F, h, w\], none of them 0, got \[1, 4, 2, 3, 3\]"
    ):
        decoder().decode(torch.zeros(1, 4, 2, 3, 3))
    with pytest.raises(
        ValueError, match=r"`num_inference_steps` has to be a whole number of at least 1 but is 0; use 1"
    ):
        decoder().decode_streamed(latents(2, 3, 3), num_inference_steps=0)


def test_original_files_are_those_weights():
    made = LTX2VideoDiffusionDecoderModel.from_single_file(ORIGINAL)
    assert dict(made.config) == dict(decoder().config) | {"_name_or_path": made.config.get("_name_or_path")} or all(
        made.config[name] == value for name, value in decoder().config.items() if name[0] != "_"
    )
    for name, tensor in decoder().state_dict().items():
        assert_within(made.state_dict()[name], tensor, "neighbourhood attention", name)


def test_files_are_converted_both_ways(tmp_path):
    convert_to_diffusers(ORIGINAL, tmp_path / "folder")
    assert differences(ORIGINAL, tmp_path / "folder") == []
    convert_to_original(tmp_path / "folder", tmp_path / "file.safetensors")
    assert differences(tmp_path / "file.safetensors", tmp_path / "folder") == []
    names = load_file(tmp_path / "file.safetensors")
    assert "vae.decoder.det_stages.0.0.attn.qkv.weight" in names
    assert not [name for name in names if "gate_m" in name or "coarse" in name]
    theirs = diffusers.LTX2VideoDiffusionDecoderModel.from_pretrained(tmp_path / "folder")
    assert theirs.state_dict().keys() == names.keys() or len(theirs.state_dict()) == len(decoder().state_dict())
    section = OriginalCheckpoint(tmp_path / "file.safetensors").metadata_config["vae"]
    assert section == json.loads(load_metadata(f"{FOLDER}/x0/original.safetensors")["config"])["vae"] | {
        "decoder": section["decoder"]
    }


def test_gates_are_multiplied_before_rounding():
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(ORIGINAL).items()}
    config = json.loads(load_metadata(f"{FOLDER}/x0/original.safetensors")["config"])
    made = LTX2VideoDiffusionDecoderModel.from_single_file(tensors, original_config=config)
    block = "decoder.diff_blocks.0."
    for part in ("weight", "bias"):
        gate, layer = tensors[f"{block}gate_msa"].float(), tensors[f"{block}attn.proj.{part}"].float()
        expected = (gate.view(-1, *[1] * (layer.ndim - 1)) * layer).bfloat16()
        assert torch.equal(made.decoder.diff_blocks[0].attn.to_out[0].state_dict()[part], expected)


def test_an_autoencoder_is_not_loaded_from_a_decoder(tmp_path):
    with pytest.raises(ValueError, match="holds no vae; it holds diffusion_decoder"):
        AutoencoderKLLTX2Video.from_single_file(ORIGINAL)
    config = json.loads(load_metadata(f"{FOLDER}/x0/original.safetensors")["config"])
    config["vae"]["decoder"]["stage5_channels"] = 8
    save_file(load_file(ORIGINAL), tmp_path / "other.safetensors", {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=r"sets vae\.decoder\.stage5_channels to 8; only 16 is supported"):
        LTX2VideoDiffusionDecoderModel.from_single_file(tmp_path / "other.safetensors")


def test_processors_are_exchanged(monkeypatch):
    # Setting a backend changes that of all models, too.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model = fresh()
    names = set(model.attn_processors)
    blocks = sum(model.config.decoder_stage_depths)
    assert len(names) == blocks
    model.set_attn_processor(LTX2VideoVaeNeighborhoodAttnProcessor("torch"))
    assert {processor.kernel for processor in model.attn_processors.values()} == {"torch"}

    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, attn, hidden_states):
            self.calls += 1
            query, key, value = attn.project_qkv(hidden_states)
            attend = neighbourhood_attention.neighbourhood_attention
            mixed = attend(query, key, value, attn.windows(hidden_states.shape[1:4]))
            return attn.to_out[0](mixed.flatten(-2))

    own = Counting()
    model.set_attn_processor(own)
    with torch.no_grad():
        assert_within(*golden_decode(model, "x0/decode_1step"), "diffusion decoder")
    assert own.calls == blocks
    model.set_attn_processor(LTX2VideoVaeNeighborhoodAttnProcessor())
    # diffusers sets it for all models, and does not set it back.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model.set_attention_backend("_native_math")
    assert_within(*golden_decode(model, "x0/decode_1step"), "diffusion decoder")


@pytest.mark.gpu
@torch.no_grad()
def test_frames_of_a_gpu_are_those_of_a_cpu():
    """The noise comes from the CPU's generator in both cases."""
    z = latents(3, 8, 8)
    expected = decoder().decode(z, seeded(8)).sample
    made = fresh().to("cuda").decode(z.to("cuda"), seeded(8)).sample
    assert (made.cpu() - expected).abs().max() <= 1e-2 * expected.abs().max()


def streamed(model: LTX2VideoDiffusionDecoderModel, values: torch.Tensor) -> None:
    for chunk in model.decode_streamed(values):
        # It would live on while the next one is made.
        del chunk


@pytest.mark.parametrize("sizes", [None, (48, 48, 16, 32, 32, 8)], ids=["whole", "tiles"])
@torch.no_grad()
def test_memory_is_as_counted_without_values(monkeypatch, sizes):
    """And nowhere near that of a mask of all pairs. Boxes of a CPU are fewer at a time than those that are counted."""
    model, z = fresh(), latents(4, 10, 10)
    with torch.device("meta"):
        shapes = LTX2VideoDiffusionDecoderModel.from_config(model.config).eval()
    for one in (model, shapes) if sizes else ():
        one.enable_tiling(*sizes)
    expected = counted(lambda: streamed(shapes, z.to("meta")), "cpu").peak
    assert measured(lambda: streamed(model, z)).allocated < 1.2 * expected
    monkeypatch.delitem(neighbourhood_attention.GATHERING, "cpu")
    found = measured(lambda: streamed(model, z)).allocated
    assert 0.8 * expected < found < 1.2 * expected
    assert found < (25 * 40 * 40) ** 2 / 20

"""Calls shared among processes: each returns what one alone makes."""

import pytest
import torch
import torch.distributed as dist
from diffusers import FirstBlockCacheConfig

from ltx2_diffusers.guidance import GuidanceOptions
from ltx2_diffusers.models.video_vae_tiling_config import SpatialTilingConfig, TilingConfig
from ltx2_diffusers.sampling import PassLayout
from ltx2_diffusers.sampling.ranks import PassShare
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.tiny import ALL_GUIDANCE, CFG, EXPLICIT, NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded
from tests.ranks import lines_of_ranks

WEIGHTED = TilingConfig(SpatialTilingConfig(64, 32), None)
CALL = {**EXPLICIT, "prompt": PROMPT}
KINDS = {
    "all": ALL_GUIDANCE,
    "cfg": CFG,
    "none": NO_GUIDANCE,
    "some": {**ALL_GUIDANCE, "guidance_options": GuidanceOptions(audio_skip_step=1, guidance_interval=(0.3, 1.0))},
}


def differences(what, name, kinds):
    """How far the calls of this rank with others are from its own alone."""
    pipe = ours(name)
    alone = {kind: pipe(**CALL, **KINDS[kind], generator=seeded(0)) for kind in kinds}
    runs = []
    for block in pipe.transformer.transformer_blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    pipe.enable_parallelism(what)
    assert pipe.is_parallel
    lines = []
    for kind in kinds:
        runs.clear()
        output = pipe(**CALL, **KINDS[kind], generator=seeded(0))
        assert output.info == alone[kind].info
        lines.append(f"{max_difference(output, alone[kind])} {kind} {len(runs)}")
    try:
        pipe(**CALL, **NO_GUIDANCE)
    except ValueError as error:
        lines.append(f"0 refused: {error}")
    return lines


def tiles_of(_):
    """How far shared tiles are from those of one process, and how many this rank ran."""
    vae = ours().vae
    vae.enable_tiling(64, 64, tile_sample_stride_height=32, tile_sample_stride_width=32)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, vae.config.latent_channels, 2, 3, 4, generator=generator)
    video = torch.rand(1, 3, 9, 96, 128, generator=generator) * 2 - 1

    @torch.no_grad()
    def made():
        weighted = torch.cat(list(vae.decode_in_tiles(latents, WEIGHTED)), dim=2)
        return vae.decode(latents).sample, vae.encode(video).latent_dist.mean, weighted

    alone, ran = made(), []
    vae.decoder.register_forward_hook(lambda *_: ran.append(1))
    vae.share_tiles(dist.group.WORLD)
    together = made()
    return [f"{max((a - b).abs().max().item() for a, b in zip(alone, together))} {len(ran)}"]


def figures(lines):
    return [float(line.split()[0]) for line in lines]


def test_two_ranks_share_the_passes_of_a_step(tmp_path):
    # Loaded before the processes part, which then share it.
    depth = ours().transformer.config.num_layers
    first, second = lines_of_ranks(differences, 2, tmp_path, "passes", "2.0", ["all"])
    assert figures(first) == figures(second) == [0] * 2
    assert "processes that share a call need equal noise" in first[-1]
    # Of 2 steps each: the conditional pass and what the perturbed one does not share with it; the isolated and the negative one.
    blocks = [int(lines[0].split()[-1]) for lines in (first, second)]
    assert blocks == [2 * (depth + depth - 1), 2 * (depth + depth)]


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_ranks_share_passes(tmp_path, num_ranks, name):
    ours(name)
    for lines in lines_of_ranks(differences, num_ranks, tmp_path, "passes", name, list(KINDS)):
        assert figures(lines) == [0] * (len(KINDS) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_ranks_share_tokens(tmp_path, name):
    ours(name)
    for lines in lines_of_ranks(differences, 2, tmp_path, "tokens", name, list(KINDS)):
        assert len(lines) == len(KINDS) + 1 and max(figures(lines)) <= EQUAL_PIPELINES


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_share_tiles(tmp_path, num_ranks):
    ours()
    found = lines_of_ranks(tiles_of, num_ranks, tmp_path, None)
    assert [figures(lines) for lines in found] == [[0]] * num_ranks
    ran = [int(lines[0].split()[-1]) for lines in found]
    assert max(ran) - min(ran) <= 2 and sum(ran) < num_ranks * max(ran) + 1


def test_passes_are_spread_and_stay_where_they_are(monkeypatch):
    names = ["conditional", "perturbed", "isolated", "negative"]
    for size, owners in (
        (1, [0, 0, 0, 0]),
        (2, [0, 0, 1, 1]),
        (3, [0, 0, 1, 2]),
        (4, [0, 1, 2, 3]),
        (8, [0, 2, 4, 6]),
    ):
        monkeypatch.setattr(dist, "get_world_size", lambda _, size=size: size)
        share = PassShare(names, None)
        assert [share.owner(name) for name in names] == owners
        assert share.owner("unknown") == 0


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"no group of them; start the program by torchrun"):
        ours().enable_parallelism()
    with pytest.raises(ValueError, match=r"`what` .* 'tiles'"):
        ours().enable_parallelism("tiles")
    assert not ours().is_parallel
    with pytest.raises(ValueError, match="`batched` is True, but the ranks of `group`"):
        PassLayout(batched=True, group=object())
    pipe = load("2.0")
    pipe.pass_layout = PassLayout(group=object())
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.1))
    with pytest.raises(ValueError, match=r"do not know what a cache of the transformer skips"):
        pipe(**CALL, **CFG, generator=seeded(0))


def on_cards(rank, folder, what):
    """A call on two cards against the same on one."""
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    pipe = load("2.0").to(f"cuda:{rank}")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.0))
    alone = pipe(**CALL, **ALL_GUIDANCE, generator=seeded(0))
    if what == "passes":
        pipe.transformer.disable_cache()
    pipe.enable_parallelism(what)
    together = pipe(**CALL, **ALL_GUIDANCE, generator=seeded(0))
    (folder / f"lines.{rank}").write_text(str(max_difference(together, alone)))
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("what", ["tokens", "passes"])
def test_two_cards_give_what_one_gives(tmp_path, what):
    torch.multiprocessing.spawn(on_cards, (tmp_path, what), nprocs=2)
    assert all(float((tmp_path / f"lines.{rank}").read_text()) <= EQUAL_PIPELINES for rank in range(2))

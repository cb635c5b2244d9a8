from collections import Counter
from itertools import chain, islice

import torch

from ltx2_diffusers.data.dataset import DummyDataset, PrecomputedDataset
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.training.batches import BatchOrder, ProcessBatches, kinds_of, make_loader


def test_every_sample_comes_once_an_epoch_and_the_order_changes():
    order = BatchOrder(["a"] * 12, 3, seed=1)
    epochs = [order.epoch(number) for number in range(3)]
    assert all(sorted(chain(*epoch)) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order.epoch(2) == BatchOrder(["a"] * 12, 3, seed=1).epoch(2)
    assert order.epoch(0) != BatchOrder(["a"] * 12, 3, seed=2).epoch(0)


def test_sizes_do_not_mix_and_nothing_is_left_out():
    kinds = ["wide"] * 5 + ["tall"] * 2 + ["square"]
    order = BatchOrder(kinds, 2, seed=0)
    batches = order.epoch(0)
    assert len(batches) == len(order) == 5
    assert all(len({kinds[i] for i in batch}) == 1 and len(batch) == 2 for batch in batches)
    assert set(chain(*batches)) == set(range(8))
    # What fills up is of the same size.
    assert Counter(chain(*batches))[7] == 2


def test_a_run_goes_on_where_it_stopped():
    order = BatchOrder(["a"] * 5, 2, seed=3)
    whole = list(islice(order.batches(0), 11))
    for start in range(11):
        assert list(islice(order.batches(start), 11 - start)) == whole[start:]


def test_processes_share_a_batch():
    order = BatchOrder(["a"] * 8, 4, seed=3)
    parts = [islice(ProcessBatches(order, 1, rows), 4) for rows in ((0, 2), (2, 4))]
    assert [one + other for one, other in zip(*parts)] == list(islice(order.batches(1), 4))


def stored(tmp_path, name, frames, fps, audio):
    write_sample(tmp_path / f"latents/{name}.safetensors", {"latents": torch.zeros(4, frames, 1, 1)}, {"fps": fps})
    write_sample(tmp_path / f"conditions/{name}.safetensors", {"video_prompt_embeds": torch.zeros(frames, 3)}, {})
    if audio:
        write_sample(tmp_path / f"audio_latents/{name}.safetensors", {"latents": torch.zeros(2, 5, 4)}, {})


def test_kinds_follow_from_headers(tmp_path):
    clips = [
        ("a", 2, 24.0, True),
        ("b", 2, 24.0, True),
        ("c", 2, 24.0, False),
        ("d", 3, 24.0, True),
        ("e", 2, 25.0, True),
    ]
    for clip in clips:
        stored(tmp_path, *clip)
    folders = ("latents", "conditions", "audio_latents")
    dataset = PrecomputedDataset(tmp_path, dict(zip(folders, folders)), optional=["audio_latents"])
    kinds = kinds_of(dataset)
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 4
    # Reading whole samples comes to the same.
    read = kinds_of([dataset[i] for i in range(5)])
    assert [read.index(kind) for kind in read] == [kinds.index(kind) for kind in kinds]


def test_reading_ahead_leaves_the_global_generator_alone():
    dataset = DummyDataset({"latents": "latents", "conditions": "conditions"}, 64, 64, 9, length=4, prompt_tokens=3)
    order = BatchOrder(kinds_of(dataset), 2, seed=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches = list(islice(make_loader(dataset, order, 0, (0, 2), 0, False), 3))
    assert torch.equal(torch.rand(3), expected)
    assert [batch["idx"].tolist() for batch in batches] == list(islice(order.batches(0), 3))

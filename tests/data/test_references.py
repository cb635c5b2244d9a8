"""References are drawn from clips, frame by frame, and named in the dataset."""

import csv
import json
from fractions import Fraction

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

from ltx2_diffusers.data.metadata import read_clips
from ltx2_diffusers.data.references import DepthMaker, edges, make_reference, make_references, reference_file
from ltx2_diffusers.data.tables import read_rows
from ltx2_diffusers.media.reading import probe, read_video
from ltx2_diffusers.media.writing import write_video
from tests.media.clips import write_frames, write_timed

RATE = Fraction(30000, 1001)


def squares(num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A light square that moves over a dark ground; `[F, H, W, 3]`."""
    frames = np.full((num_frames, height, width, 3), 20, np.uint8)
    for index, frame in enumerate(frames):
        frame[12:32, 4 + 2 * index : 24 + 2 * index] = (230, 200, 180)
    return frames


def inverted(frames: np.ndarray) -> np.ndarray:
    return 255 - frames


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "a.mp4", squares(), RATE, crf=1)


# --- edges ---


def test_edges_are_those_of_opencv_on_grey():
    frames = squares(3)
    drawn = edges(frames)
    assert (drawn.shape, drawn.dtype) == (frames.shape, np.uint8)
    for frame, own in zip(frames, drawn):
        expected = cv2.Canny(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 100, 200)
        assert (own == expected[..., None]).all()
    assert set(np.unique(drawn)) == {0, 255}
    # The outline of a square of 20 pixels.
    assert 60 < (drawn[0, ..., 0] == 255).sum() < 100


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_a_reference_has_the_frames_and_the_rate_of_its_clip(clip, batch_size):
    output = clip.with_name("out.mp4")
    make_reference(clip, output, edges, batch_size)
    info = probe(output)
    assert (info.num_frames, info.frame_rate, info.height, info.width) == (12, RATE, 48, 64)
    expected = edges(read_video(clip).numpy())
    assert np.abs(read_video(output).numpy().astype(float) - expected).mean() < 6


def test_a_maker_sees_no_more_than_a_batch(clip):
    sizes = []

    def maker(frames):
        sizes.append(len(frames))
        return frames

    make_reference(clip, clip.with_name("out.mp4"), maker, batch_size=5)
    assert sizes == [5, 5, 2]


def test_a_video_whose_rate_varies_keeps_its_time(tmp_path):
    times = [0, 1, 2, 3, 8, 9, 10, 20, 21, 22]
    path = tmp_path / "v.mkv"
    write_timed(path, [time / 24 for time in times], codecs=("ffv1", "pcm_s16le"))
    assert not make_reference(path, tmp_path / "out.mp4", lambda frames: frames)
    assert make_references(path, lambda frames: frames).varying == [path]
    before, after = probe(path), probe(tmp_path / "out.mp4")
    assert not before.constant_rate
    assert (after.num_frames, after.frame_rate) == (before.num_frames, before.frame_rate)
    assert after.duration_s == pytest.approx(before.duration_s, abs=0.05)


def test_odd_sides_lose_a_row_and_a_column(tmp_path):
    path = write_frames(tmp_path / "odd.mkv", list(squares(4, 47, 63)))
    make_reference(path, tmp_path / "out.mp4", edges)
    info = probe(tmp_path / "out.mp4")
    assert (info.height, info.width, info.num_frames) == (46, 62, 4)


def test_a_picture_has_a_picture_as_reference(tmp_path):
    PIL.Image.fromarray(squares(1)[0]).save(tmp_path / "p.png")
    report = make_references(tmp_path / "p.png", inverted)
    assert report.made == [tmp_path / "p_reference.png"]
    assert report.table is None
    assert (np.asarray(PIL.Image.open(tmp_path / "p_reference.png")) == inverted(squares(1)[0])).all()


@pytest.mark.parametrize(
    ("media", "reference"),
    [
        ("a.mp4", "a_reference.mp4"),
        ("x/a.MOV", "x/a_reference.MOV"),
        ("a.webm", "a_reference.mp4"),
        ("a.b.jpg", "a.b_reference.png"),
        ("a.png", "a_reference.png"),
    ],
)
def test_names_of_references(tmp_path, media, reference):
    assert reference_file(tmp_path / media) == tmp_path / reference


# --- datasets ---


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "clips" / name, squares(), RATE, crf=1)
    return tmp_path


def dataset(folder, suffix):
    rows = [
        {"media_path": "clips/a.mp4", "caption": "one, two", "note": "x"},
        {"media_path": "clips/b.mp4", "caption": "three", "note": "y"},
    ]
    path = folder / f"set{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path, rows


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_the_dataset_names_its_references(folder, suffix):
    path, rows = dataset(folder, suffix)
    report = make_references(path, inverted)
    assert [file.name for file in report.made] == ["a_reference.mp4", "b_reference.mp4"]
    expected = [{**row, "reference_path": f"clips/{name}_reference.mp4"} for row, name in zip(rows, "ab")]
    assert read_rows(path) == expected
    again = make_references(path, edges)
    assert (again.made, again.kept) == ([], report.made)
    assert read_rows(path) == expected
    anew = make_references(path, edges, override=True)
    assert anew.made == report.made


def test_another_dataset_file_may_be_written(folder):
    path, rows = dataset(folder, ".json")
    before = path.read_bytes()
    (folder / "other").mkdir()
    report = make_references(path, inverted, output=folder / "other" / "new.csv")
    assert path.read_bytes() == before
    assert report.table == folder / "other" / "new.csv"
    assert read_rows(report.table)[0] == {
        **rows[0],
        "media_path": "../clips/a.mp4",
        "reference_path": "../clips/a_reference.mp4",
    }


def test_a_folder_of_clips_gets_a_dataset_file(folder):
    report = make_references(folder / "clips", inverted)
    expected = [{"media_path": f"{n}.mp4", "reference_path": f"{n}_reference.mp4"} for n in "ab"]
    assert read_rows(folder / "clips" / "dataset.json") == expected
    # References are no clips.
    assert make_references(folder / "clips", inverted).kept == report.made
    assert read_rows(folder / "clips" / "dataset.json") == expected


def test_bad_clips_are_named_and_the_others_done(folder):
    path, _ = dataset(folder, ".json")
    (folder / "clips" / "b.mp4").write_bytes(b"no clip")
    report = make_references(path, inverted)
    assert [file.name for file in report.made] == ["a_reference.mp4"]
    assert list(report.unreadable) == [folder / "clips" / "b.mp4"]
    assert [row.get("reference_path") for row in read_rows(path)] == ["clips/a_reference.mp4", None]
    assert not (folder / "clips" / "b_reference.mp4").exists()


@pytest.mark.parametrize(
    ("maker", "returned"),
    [
        (lambda frames: frames[:, ::2], r"uint8 of shape \[12, 24, 64, 3\]"),
        (lambda frames: frames.astype(float), r"float64 of shape \[12, 48, 64, 3\]"),
        (lambda frames: frames[..., 0], r"uint8 of shape \[12, 48, 64\]"),
    ],
)
def test_a_maker_has_to_return_bytes_of_the_same_shape(clip, maker, returned):
    with pytest.raises(RuntimeError, match=f"the maker of references returned {returned}"):
        make_references(clip, maker)
    assert [path.name for path in clip.parent.iterdir()] == ["a.mp4"]


def test_what_cannot_be_told_apart_is_refused(folder):
    path, rows = dataset(folder, ".json")
    rows[1]["media_path"] = "clips/a.webm"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"would both have the reference 'a_reference.mp4'; rename one"):
        make_references(path, inverted)
    with pytest.raises(ValueError, match="has no column 'film'; it has media_path, caption, note"):
        make_references(path, inverted, column="film")
    with pytest.raises(ValueError, match="is no dataset file, so it has no column 'film'"):
        make_references(folder / "clips", inverted, column="film")


# --- depth ---


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory):
    """A tiny Depth Anything of random weights."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "dinov2",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "out_indices": [1, 2],
        "reshape_hidden_states": False,
    }
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=8,
        reassemble_factors=[1, 0.5],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    folder = tmp_path_factory.mktemp("depth")
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)
    return folder


def test_depth_spans_a_clip_whatever_the_batch(depth_model, clip):
    maker = DepthMaker.from_pretrained(depth_model)
    frames = read_video(clip).numpy()
    maker.look_at(iter([frames[:5], frames[5:]]))
    whole = maker(frames)
    assert (whole.shape, whole.dtype) == (frames.shape, np.uint8)
    assert (whole == np.concatenate([maker(frames[:7]), maker(frames[7:])])).all()
    assert (whole[..., 0] == whole[..., 1]).all()
    nearness = maker._nearness(frames)
    assert maker.range == (float(nearness.min()), float(nearness.max()))
    assert whole.std() > 10


def test_near_is_white_for_models_of_both_kinds(depth_model):
    relative, metric = (DepthMaker.from_pretrained(depth_model) for _ in range(2))
    metric.model.config.depth_estimation_type = "metric"
    metric = DepthMaker(metric.model, metric.processor)
    frames = squares(2)
    assert torch.equal(relative._nearness(frames), -metric._nearness(frames))


def test_depth_as_the_reference_of_a_clip(depth_model, clip):
    report = make_references(clip, DepthMaker.from_pretrained(depth_model), batch_size=5)
    assert probe(report.made[0]).num_frames == 12


def test_a_folder_that_is_no_depth_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as a depth model"):
        DepthMaker.from_pretrained(tmp_path)


def test_captions_beside_clips_stay_in_force(tmp_path):
    """A dataset file without them would be read in place of the texts."""
    for name in ("a.mp4", "sub/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, squares(2), RATE)
        (tmp_path / name).with_suffix(".txt").write_text(f"Clip {name}")
    report = make_references(tmp_path, inverted)
    assert (report.table, len(report.made)) == (None, 2)
    assert [(clip.caption, clip.reference_video) for clip in read_clips(tmp_path)] == [
        ("Clip a.mp4", tmp_path / "a_reference.mp4"),
        ("Clip sub/b.mp4", tmp_path / "sub" / "b_reference.mp4"),
    ]
    report = make_references(tmp_path, inverted, tmp_path / "all.csv")
    assert [row["caption"] for row in read_rows(report.table)] == ["Clip a.mp4", "Clip sub/b.mp4"]

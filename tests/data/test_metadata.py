import json

import pytest

from ltx2_diffusers.data.metadata import Clip, read_clips


@pytest.fixture
def folder(tmp_path):
    """Empty files under the names of media."""
    for name in ("a.mp4", "b.mp4", "sub/c.mov", "ref.mp4", "tone.wav", "mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def table(folder, rows, suffix=".json"):
    path = folder / f"list{suffix}"
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_kinds_of_files(folder, suffix):
    path = folder / f"list{suffix}"
    if suffix == ".csv":
        path.write_text('\ufeffcaption,media_path\n"A cat, asleep", a.mp4\nA dog,sub/c.mov\n', encoding="utf-8")
    else:
        rows = [{"caption": "A cat, asleep", "media_path": " a.mp4"}, {"caption": "A dog", "media_path": "sub/c.mov"}]
        table(folder, rows, suffix)
    assert read_clips(path) == [
        Clip("a", "A cat, asleep", video=folder / "a.mp4"),
        Clip("sub/c", "A dog", video=folder / "sub/c.mov"),
    ]


@pytest.mark.parametrize("caption", ["caption", "text", "prompt"])
@pytest.mark.parametrize("video", ["video", "media_path", "file_name", "video_path"])
def test_columns_have_several_names(folder, caption, video):
    assert read_clips(table(folder, [{caption: "x", video: "a.mp4"}])) == [Clip("a", "x", video=folder / "a.mp4")]


def test_all_that_a_clip_has(folder):
    row = {
        "caption": "x",
        "video": "a.mp4",
        "reference_path": "ref.mp4",
        "audio": "tone.wav",
        "reference_audio": "tone.wav",
        "video_mask": "mask.png",
        "audio_mask": "tone.wav",
    }
    (clip,) = read_clips(table(folder, [row]))
    assert {name: path.name for name, path in clip.files.items()} == {
        "video": "a.mp4",
        "audio": "tone.wav",
        "reference_video": "ref.mp4",
        "reference_audio": "tone.wav",
        "video_mask": "mask.png",
        "audio_mask": "tone.wav",
    }


def test_sound_alone(folder):
    expected = [Clip("tone", "x", audio=folder / "tone.wav")]
    assert read_clips(table(folder, [{"caption": "x", "audio": "tone.wav"}])) == expected
    assert read_clips(table(folder, [{"caption": "x", "file_name": "tone.wav"}])) == expected


def test_columns_can_be_named(folder):
    path = table(folder, [{"caption": "no", "what": "yes", "video": "a.mp4", "clip": "b.mp4", "edges": "ref.mp4"}])
    (clip,) = read_clips(path, {"caption": "what", "video": "clip", "reference_video": "edges"})
    assert clip == Clip("b", "yes", video=folder / "b.mp4", reference_video=folder / "ref.mp4")
    with pytest.raises(ValueError, match=r"no column 'edge' \(did you mean 'edges'\?\); it has caption, what, video"):
        read_clips(path, {"reference_video": "edge"})
    with pytest.raises(ValueError, match=r"no 'reference' \(did you mean 'reference_\w+'\?\); it has caption"):
        read_clips(path, {"reference": "edges"})


def test_missing_columns_name_those_that_are_there(folder):
    with pytest.raises(
        ValueError, match=r"no column caption, text or prompt \(did you mean 'captions'\?\); it has captions, "
    ):
        read_clips(table(folder, [{"captions": "x", "video": "a.mp4"}]))
    with pytest.raises(
        ValueError, match=r"no column media_path, .* or audio; it has caption: name the one that holds the v"
    ):
        read_clips(table(folder, [{"caption": "x"}]))
    with pytest.raises(ValueError, match="no text under 'caption' in entry 2"):
        read_clips(table(folder, [{"caption": "x", "video": "a.mp4"}, {"video": "b.mp4"}]))
    with pytest.raises(ValueError, match="names no file under 'video' in entry 2; add it"):
        read_clips(table(folder, [{"caption": "x", "video": "a.mp4"}, {"caption": "x", "video": " "}]))
    with pytest.raises(ValueError, match="names no file under 'video' in entry 1 but has 7"):
        read_clips(table(folder, [{"caption": "x", "video": 7}]))


def test_missing_files_are_listed(folder):
    rows = [{"caption": "x", "video": f"no{number}.mp4"} for number in range(7)]
    with pytest.raises(FileNotFoundError, match=r"7 media files do not exist: .*no0\.mp4.*no4\.mp4', \.\.\.$"):
        read_clips(table(folder, rows))
    with pytest.raises(FileNotFoundError, match="no dataset"):
        read_clips(folder / "none.json")
    with pytest.raises(ValueError, match="names no clips"):
        read_clips(table(folder, []))
    with pytest.raises(ValueError, match=r"list\.txt"):
        (folder / "list.txt").touch()
        read_clips(folder / "list.txt")


def test_samples_of_one_name_are_refused(folder):
    (folder / "a.mov").touch()
    with pytest.raises(ValueError, match="differ only in their suffix, but name the same sample 'a'"):
        read_clips(table(folder, [{"caption": "x", "video": "a.mp4"}, {"caption": "y", "video": "a.mov"}]))
    with pytest.raises(ValueError, match="are the same, but name"):
        read_clips(table(folder, [{"caption": "x", "video": "a.mp4"}, {"caption": "y", "video": "a.mp4"}]))


def test_media_outside_of_the_folder_mirror_their_path(folder):
    inner = folder / "sub"
    row = {"caption": "x", "video": "../a.mp4"}
    (clip,) = read_clips(table(inner, [row]))
    assert clip.name == (folder / "a").relative_to("/").as_posix()
    (clip,) = read_clips(table(inner, [{"caption": "x", "video": str(inner / "c.mov")}]))
    assert clip.name == "c"


def test_a_folder_with_texts(tmp_path):
    for name, text in (("b.txt", "A boat\n"), ("sub/a.caption", "An ape"), ("tone.txt", "A tone")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("b.mp4", "b_reference.mp4", "sub/a.PNG", "tone.wav", ".hidden/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_clips(tmp_path) == [
        Clip("b", "A boat", video=tmp_path / "b.mp4", reference_video=tmp_path / "b_reference.mp4"),
        Clip("sub/a", "An ape", video=tmp_path / "sub/a.PNG"),
        Clip("tone", "A tone", audio=tmp_path / "tone.wav"),
    ]
    with pytest.raises(ValueError, match="has no metadata file, so it has no column 'edges'"):
        read_clips(tmp_path, {"reference_video": "edges"})
    (tmp_path / "c.mp4").touch()
    with pytest.raises(ValueError, match=r"1 media files of .* have no caption, such as .*c\.mp4'; write 'c\.txt'"):
        read_clips(tmp_path)
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"c\.txt' is no text in UTF-8"):
        read_clips(tmp_path)


def test_a_folder_with_a_metadata_file(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    assert read_clips(folder) == [Clip("a", "x", video=folder / "a.mp4")]


def test_a_folder_has_references_of_sounds(tmp_path):
    for name in ("a.wav", "a_reference.wav", "b.mp4", "b_reference.mp4", "b_reference.flac"):
        (tmp_path / name).touch()
    for stem in ("a", "b"):
        (tmp_path / f"{stem}.txt").write_text(stem)
    assert read_clips(tmp_path) == [
        Clip("a", "a", audio=tmp_path / "a.wav", reference_audio=tmp_path / "a_reference.wav"),
        Clip(
            "b",
            "b",
            video=tmp_path / "b.mp4",
            reference_video=tmp_path / "b_reference.mp4",
            reference_audio=tmp_path / "b_reference.flac",
        ),
    ]


def test_captions_of_no_clip_are_told(tmp_path):
    for name in ("a.mp4", "moving.gif"):
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text("x")
    with pytest.warns(
        UserWarning, match=r"1 texts of .* captions of no clip, such as .*moving\.txt'; clips .* end in"
    ):
        assert [clip.name for clip in read_clips(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    "name", ["with space.mp4", "dots.v1.2.mp4", "ünï 日本 🎬.mp4", "it's;[br]*?%d.mp4", "-dash.MP4", "d.d/e e/f.mp4"]
)
def test_names_of_all_kinds(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / name).with_suffix(".txt").write_bytes(b"\xef\xbb\xbfTwo\r\nlines\r\n")
    expected = [Clip(name[:-4], "Two\nlines", video=tmp_path / name)]
    assert read_clips(tmp_path) == expected
    (tmp_path / "metadata.csv").write_text(f'caption,video\n"Two\nlines","{name}"\n', encoding="utf-8")
    assert read_clips(tmp_path) == expected

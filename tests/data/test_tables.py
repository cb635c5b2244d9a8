"""Dataset files keep all their columns, and folders tell clips from references."""

import pytest

from ltx2_diffusers.data.tables import column_of, dataset_file, media_files, read_rows, relative_name, write_rows

ROWS = [
    {"media_path": "a b.mp4", "caption": 'One, "two"\nand three \u2028 four'},
    {"media_path": "ü/c.mp4", "caption": "", "note": "x"},
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_rows_come_back(tmp_path, suffix):
    path = tmp_path / f"set{suffix}"
    write_rows(path, ROWS)
    filled = [{**dict.fromkeys(("media_path", "caption", "note"), ""), **row} for row in ROWS]
    assert read_rows(path) == (filled if suffix == ".csv" else ROWS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1]", "has to hold a list of objects"),
        ("a.json", '{"a": 1}', "has to hold a list of objects"),
        ("a.jsonl", '{"a": 1}\n{', "cannot be read as a dataset file"),
        ("a.csv", "a,b\n1,2,3\n", "entry 1 has more cells than the header"),
        ("a.xlsx", "", r"a dataset file ends in .json, .jsonl, .csv, got .*; use 'a.json'"),
        ("a.mp4", "", r"a dataset file ends in .json, .jsonl, .csv, got .*; give the folder of the clips, '"),
    ],
)
def test_what_is_no_dataset_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_a_file_from_a_spreadsheet_may_begin_with_a_mark(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffcaption\r\nx\r\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.csv") == [{"caption": "x"}]


def test_columns_are_found_by_name(tmp_path):
    rows = [{"video": "a", "text": "x"}, {"video": "", "text": "y"}]
    path = tmp_path / "a.json"
    assert column_of(rows, ("caption", "text"), path) == "text"
    assert column_of(rows, ("media_path",), path, given="video", everywhere=False) == "video"
    with pytest.raises(ValueError, match="has no 'video' in entry 2"):
        column_of(rows, ("media_path", "video"), path)
    with pytest.raises(ValueError, match="has no column 'media_path' or 'film'; it has video, text"):
        column_of(rows, ("media_path", "film"), path)


def test_media_of_a_folder(tmp_path):
    for name in ("b.MP4", "a.png", "a_reference.png", "lone_reference.mp4", ".hidden.mp4", "x.txt", "sub/c.webm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.name for path in media_files(tmp_path)] == ["a.png", "b.MP4", "lone_reference.mp4"]
    assert [path.name for path in media_files(tmp_path, (".webm",), recursive=True)] == ["c.webm"]


def test_the_dataset_file_of_a_folder(tmp_path):
    assert dataset_file(tmp_path) is None
    (tmp_path / "metadata.csv").touch()
    assert dataset_file(tmp_path) == tmp_path / "metadata.csv"
    (tmp_path / "dataset.json").touch()
    with pytest.raises(ValueError, match=r"holds dataset.json and metadata.csv; name the one to use"):
        dataset_file(tmp_path)


def test_names_are_relative_to_the_dataset_file(tmp_path):
    assert relative_name(tmp_path / "clips" / "a.mp4", tmp_path / "sets" / "x.json") == "../clips/a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "caption;video\nx;a.mp4\n", "its columns are divided by semicolons; divide them by commas"),
        ("a.csv", "caption\tvideo\nx\ta.mp4\n", "its columns are divided by tabs; divide them by commas"),
        ("a.csv", "caption,video, caption\nx,a.mp4,y\n", "it has two columns 'caption'; rename one"),
        ("a.csv", "caption,video\nx,a.mp4,y\n", "entry 1 has more cells than the header"),
        ("a.csv", 'caption,video\n"x,a.mp4\n', "unexpected end of data"),
        ("a.jsonl", '{"a": "b"}\r\n\r\n{"a": \r\n', "line 3: Expecting value at character"),
        ("a.jsonl", '{"a": "b"}{"a": "c"}', "line 1: Extra data at character 11"),
        ("a.json", '{"caption": "x"}', "has to hold a list of objects"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_other_encodings_are_named(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "a.csv").write_text("caption,video\nü,a.mp4\n", encoding=encoding)
        with pytest.raises(ValueError, match=r"a\.csv' is no text in UTF-8 .*; save it as UTF-8"):
            read_rows(tmp_path / "a.csv")


def test_blanks_around_names_of_columns_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("caption , video,,\nx,a.mp4,,\n")
    assert read_rows(tmp_path / "a.csv") == [{"caption": "x", "video": "a.mp4", "": ""}]


def test_folders_that_are_links_are_looked_into(tmp_path):
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "a.mp4").touch()
    clips = tmp_path / "clips"
    (clips / ".hidden").mkdir(parents=True)
    (clips / ".hidden" / "b.mp4").touch()
    (clips / "linked").symlink_to(tmp_path / "store")
    # One that leads in a circle does not.
    (tmp_path / "store" / "deep" / "back").symlink_to(tmp_path / "store")
    assert media_files(clips, recursive=True) == [clips / "linked" / "deep" / "a.mp4"]

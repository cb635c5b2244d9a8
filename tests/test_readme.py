"""What the README shows exists: code compiles, public names and options are real."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import ltx2_diffusers
from benchmarks.mini_world_tables import tables
from ltx2_diffusers import training
from ltx2_diffusers.cli.main import build_parser
from ltx2_diffusers.media.copying import rule
from tests.media.test_kinds import IMAGE_KINDS, VIDEO_KINDS

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.startswith("ltx2 ")
]
PLACES = re.findall(r"^\| Where .*\? \| (.*) \|$", README, flags=re.MULTILINE)
KINDS = README.partition("## What files are taken")[2].partition("\n## ")[0]
# Names of codecs that are not FFmpeg's own, letters and digits alone.
CODECS = {"mpeg2video": "mpeg2", "qtrle": "quicktimerle"}
MODES = re.findall(r"^\| .* \| `(LTX2\w+Pipeline)`: `(.*)` \|$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_code_compiles_and_imports_public_names(code):
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = {name.name for node in imported if node.module == "ltx2_diffusers" for name in node.names}
    assert names <= set(ltx2_diffusers.__all__)


@pytest.mark.parametrize("table", tables())
def test_scores_of_the_miniature_are_those_that_were_measured(table):
    assert table in README


def test_every_name_of_the_package_is_public():
    names = set(re.findall(r"\b(?:LTX2|AutoencoderKLLTX2)[A-Z]\w+\b", README))
    assert names <= {*ltx2_diffusers.__all__, *training.__all__}


def test_the_mode_table_shows_every_pipeline():
    pipelines = {name for name in ltx2_diffusers.__all__ if re.fullmatch(r"LTX2\w*Pipeline", name)}
    assert {name for name, _ in MODES} | {"LTX2Pipeline"} == pipelines


@pytest.mark.parametrize(("pipeline", "line"), MODES)
def test_a_line_of_the_mode_table_fits_its_call(pipeline, line):
    call = ast.parse(line).body[0].value
    signature = arguments_of(pipeline)
    assert {keyword.arg for keyword in call.keywords} <= set(signature)
    assert len(call.args) <= len(signature)


def arguments_of(pipeline: str) -> list[str]:
    """Names of the arguments of a pipeline's call."""
    return list(inspect.signature(getattr(ltx2_diffusers, pipeline).__call__).parameters)[1:]


@pytest.mark.parametrize("place", PLACES)
def test_places_that_are_named_exist(place):
    """Rooms and files, and the names that are said to stand in a file."""
    files = [Path(ltx2_diffusers.__file__).parent / name for name in re.findall(r"`([a-z_]+[/\w]*(?:/|\.py))`", place)]
    assert files and all(file.exists() for file in files)
    text = "".join(file.read_text() for file in files if file.is_file())
    named = [name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", place) if not name.endswith(".py")]
    assert [name for name in named if not re.search(rf"^ *(def |class )?{name}\b", text, flags=re.MULTILINE)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    arguments = re.findall(r'"([^"]*)"|(\S+)', command)
    build_parser().parse_args([quoted or plain for quoted, plain in arguments][1:])


def cells(row: str) -> list[str]:
    """The cells behind the first one of a row of the tables of files."""
    return re.search(rf"^\| {re.escape(row)} \|(.*)\|$", KINDS, flags=re.MULTILINE)[1].split("|")


@pytest.mark.parametrize(("row", "kinds"), [("Videos", VIDEO_KINDS), ("Pictures", IMAGE_KINDS)])
def test_the_kinds_of_files_that_are_named_are_those_that_are_tested(row, kinds):
    """AVIF depends on the version of Pillow."""
    named = cells(row)[0].partition(" and whatever")[0].split(",")
    assert sorted({name.partition(" (")[0].strip() for name in named} - {"AVIF"}) == sorted(kinds)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_codecs_that_are_named_are_those_that_are_copied(suffix):
    for kind, cell in zip(("video", "audio"), cells(f"`{suffix}`")):
        named = {re.sub(r"[^a-z0-9]", "", name.lower()) for name in cell.split(",")}
        held = {"pcm" if codec.startswith("pcm_") else codec for codec in rule._HELD[kind, suffix]}
        assert named == {CODECS.get(codec, codec) for codec in held}

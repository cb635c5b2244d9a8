"""`ltx2 doctor` proves the numbers of this machine, and notices wrong ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ltx2_diffusers
from ltx2_diffusers.checkpoints import packaged, self_check
from ltx2_diffusers.cli.main import main
from scripts import build_doctor_vectors
from tests.tiny_checkpoints import tiny_checkpoint

SHIPPED, VECTORS = packaged._FOLDERS["ltx2-mini"], self_check.VECTORS


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Vectors of the tiny checkpoint, which is packaged in these tests."""
    folder = tmp_path_factory.mktemp("doctor") / "golden"
    build_doctor_vectors.build(tiny_checkpoint("2.0"), folder)
    return folder


@pytest.fixture(autouse=True)
def damaged(vectors, tmp_path, monkeypatch):
    """A copy of the vectors that a test may change."""
    folder = shutil.copytree(vectors, tmp_path / "golden")
    monkeypatch.setattr(self_check, "VECTORS", folder)
    return folder


def test_what_is_packaged_passes(monkeypatch, capsys):
    monkeypatch.setattr(self_check, "VECTORS", VECTORS)
    monkeypatch.setitem(packaged._FOLDERS, "ltx2-mini", SHIPPED)
    assert main(["doctor"]) == 0
    assert "all checks passed" in capsys.readouterr().out


def test_all_checks_pass_and_are_listed(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "all checks passed" in printed
    assert "FAILED" not in printed
    assert all(f"{check.name:<26}{check.case}" in printed for check in self_check.CHECKS)
    for name in ("torch", "diffusers", "python", "device"):
        assert f"\n{name}" in printed or printed.startswith(name)
    assert ltx2_diffusers.__version__ in printed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_types_pass_with_their_own_tolerance(dtype):
    results = list(self_check.run_checks(dtype=getattr(torch, dtype)))
    assert all(result.passed for result in results), [result for result in results if not result.passed]
    # The check would mean nothing if the model still ran in float32.
    assert max(result.error for result in results) > 1e-3


def test_every_component_is_checked():
    index = json.loads((tiny_checkpoint("2.0") / "model_index.json").read_text())
    language = {"text_encoder", "tokenizer", "processor"}
    present = {name for name, entry in index.items() if not name.startswith("_") and entry[0] is not None}
    assert {check.component for check in self_check.CHECKS} == present - language | {"latent_upsampler"}


@pytest.mark.parametrize("check", self_check.CHECKS, ids=lambda check: check.name)
@pytest.mark.quick_cases(4)
def test_a_wrong_number_is_noticed(check, damaged, capsys):
    file = damaged / f"{check.case}.safetensors"
    case = load_file(file)
    wrong = case[check.expected]
    wrong.view(-1)[wrong.abs().argmax()] *= 1.001
    save_file(case, file)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    failed = [line[:26].strip() for line in printed.splitlines() if "FAILED" in line]
    # What one model makes is what another one takes.
    assert check.name in failed and f"{len(failed)} checks failed" in printed


def test_a_check_that_cannot_run_says_why_and_lets_the_others_run(damaged, capsys):
    (damaged / "upsampling.safetensors").unlink()
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert line.startswith("latent upsampler")
    assert "upsampling" in line


def test_vectors_that_this_package_does_not_compute_are_not_written(tmp_path, monkeypatch):
    decode = self_check.CHECKS[4]
    off = self_check.Check(**vars(decode) | {"run": lambda *given: 1.001 * decode.run(*given)})
    monkeypatch.setattr(self_check, "CHECKS", (off,))
    with pytest.raises(ValueError, match=r"other numbers than diffusers, so nothing is written.*video VAE, decode"):
        build_doctor_vectors.build(tiny_checkpoint("2.0"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_vectors_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(build_doctor_vectors, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"more than 1000; make the inputs smaller"):
        build_doctor_vectors.build(tiny_checkpoint("2.0"), tmp_path / "new")


def test_a_device_that_is_not_there(capsys):
    assert main(["doctor", "--device", "abacus"]) != 0
    captured = capsys.readouterr()
    assert "abacus" in captured.err + captured.out


def test_a_data_type_without_tolerance():
    with pytest.raises(ValueError, match=r"`dtype` has to be one of .*bfloat16.* but is torch\.int8"):
        next(self_check.run_checks(dtype=torch.int8))

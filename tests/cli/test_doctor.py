"""`ltx2 doctor` proves the numbers of this machine, and notices wrong ones."""

import shutil

import pytest
import torch

import ltx2_diffusers
from ltx2_diffusers.checkpoints import self_check
from ltx2_diffusers.cli.main import main


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


def test_every_model_is_checked():
    public = [getattr(ltx2_diffusers, name) for name in ltx2_diffusers.__all__]
    # A class may have diffusers' name beside its own.
    models = {one.__name__ for one in public if isinstance(one, type) and issubclass(one, ltx2_diffusers.ModelMixin)}
    assert {check.class_name for check in self_check.CHECKS} == models


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """A copy of the packaged vectors that a test may change."""
    folder = shutil.copytree(self_check.GOLDEN, tmp_path / "golden")
    monkeypatch.setattr(self_check, "GOLDEN", folder)
    return folder


def test_a_wrong_number_is_noticed(damaged, capsys):
    weights = damaged / "vocoder" / "original.safetensors"
    content = bytearray(weights.read_bytes())
    content[-400:] = bytes(400)
    weights.write_bytes(content)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "1 checks failed" in printed
    (line,) = [line for line in printed.splitlines() if "FAILED" in line]
    assert line.startswith("vocoder 2.0")


def test_a_check_that_cannot_run_says_why_and_lets_the_others_run(damaged, capsys):
    (damaged / "audio_vae" / "cases" / "decode_t5.safetensors").unlink()
    assert main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert line.startswith("audio VAE, decode")
    assert "decode_t5" in line


def test_a_device_that_is_not_there(capsys):
    assert main(["doctor", "--device", "abacus"]) != 0
    captured = capsys.readouterr()
    assert "abacus" in captured.err + captured.out


def test_a_data_type_without_tolerance():
    with pytest.raises(ValueError, match=r"`dtype` has to be one of .*bfloat16.* but is torch\.int8"):
        next(self_check.run_checks(dtype=torch.int8))

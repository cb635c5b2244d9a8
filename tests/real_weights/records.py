"""Numbers of earlier runs, in a JSON file.

A checkpoint is known by its name and what it holds, a case also by the LoRA that it ran with. Numbers in float32 hold on every
machine; those in 16 bits, and peaks of memory, on the kind of device that they were found on.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.checkpoints.tolerances import TOLERANCES

RECORDS = Path(__file__).with_name("records.json")
COUNT = 16
"""Values of a tensor that are kept, evenly spread over it."""
MORE_MEMORY = 1.05
"""A peak may be so many times the recorded one: versions of PyTorch differ in what they hold for a moment."""
REMEDY = "if these weights are right, write what they give now: pytest -m slow tests/real_weights --record, with the same options"


def expected_slice(tensor: Tensor) -> dict[str, list]:
    """Shape, and some values in six digits."""
    flat = tensor.detach().float().cpu().flatten()
    places = torch.linspace(0, len(flat) - 1, COUNT).round().long()
    return {"shape": list(tensor.shape), "values": [float(f"{value:.6g}") for value in flat[places].tolist()]}


class Records:
    """What is recorded of a checkpoint.

    Args:
        path: The JSON file.
        name: The checkpoint's.
        identity: What it holds, as `checkpoint_identity` tells it.
        numbers: Data type, and for 16 bits the device, which numbers belong to.
        memory: Device that peaks belong to.
        writes: `"record"` to write everything, `"record_missing"` to write what is not there.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        identity: Mapping[str, str],
        numbers: str,
        memory: str,
        writes: Collection[str] = (),
    ) -> None:
        self.path, self.name, self.identity = path, name, dict(identity)
        self.numbers, self.memory, self.writes = numbers, memory, writes

    def check_slices(self, case: str, lora: str, found: Mapping[str, Tensor], rows: Mapping[str, str]) -> None:
        """Raise `AssertionError` unless the tensors are those of the record.

        Args:
            case: Name of the case.
            lora: SHA-256 of the LoRA that it ran with; empty without.
            found: Tensors by name.
            rows: Name of a tensor to the row of the table of tolerances that judges it.
        """
        slices = {name: expected_slice(tensor) for name, tensor in found.items()}
        known = self._case(case)
        if self._records(known is None):
            self._write(case, {"lora": lora, "slices": slices, "peak_bytes": {}})
            return
        assert known is not None, f"no record of {case} by {self.name} in {self.numbers}; {REMEDY}"
        assert known["lora"] == lora, f"the record of {case} was made with another LoRA; {REMEDY}"
        assert known["slices"].keys() == slices.keys()
        wrong = []
        for name, expected in known["slices"].items():
            assert slices[name]["shape"] == expected["shape"], f"{case}, {name}"
            actual, wanted = (torch.tensor(part["values"], dtype=torch.float64) for part in (slices[name], expected))
            difference, allowed = TOLERANCES[rows[name]].worst(actual, wanted)
            if not difference <= allowed:
                wrong.append(f"{name} differs by {difference:.2e}, allowed {allowed:.2e} ({rows[name]})")
        assert not wrong, f"{case}: {'; '.join(wrong)}; {REMEDY}"

    def check_peak(self, case: str, peak_bytes: int) -> None:
        """Raise `AssertionError` if a case, whose slices were judged before, needs more memory than the record says."""
        known = self._case(case)
        assert known is not None, f"no record of {case} by {self.name} in {self.numbers}; {REMEDY}"
        recorded = known["peak_bytes"].get(self.memory)
        if self._records(recorded is None):
            self._write(case, {**known, "peak_bytes": {**known["peak_bytes"], self.memory: peak_bytes}})
            return
        assert recorded is not None, f"no record of the memory of {case} on {self.memory}; {REMEDY}"
        assert peak_bytes <= MORE_MEMORY * recorded, (
            f"{case} took {peak_bytes:,} bytes, recorded are {recorded:,}; {REMEDY}"
        )

    def _records(self, is_missing: bool) -> bool:
        return "record" in self.writes or ("record_missing" in self.writes and is_missing)

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def _case(self, case: str) -> dict[str, Any] | None:
        """The entry of a case; `None` if there is none."""
        entry = self._read().get(self.name)
        if entry is None:
            return None
        if entry["identity"] != self.identity:
            # What is written belongs to these weights alone.
            assert "record" in self.writes, f"the record of {self.name} is of other weights; {REMEDY}"
            return None
        return entry["numbers"].get(self.numbers, {}).get(case)

    def _write(self, case: str, content: dict[str, Any]) -> None:
        everything = self._read()
        entry = everything.get(self.name)
        if entry is None or entry["identity"] != self.identity:
            entry = {"identity": self.identity, "numbers": {}}
        cases = {**entry["numbers"].get(self.numbers, {}), case: content}
        entry = {**entry, "numbers": {**entry["numbers"], self.numbers: cases}}
        text = json.dumps({**everything, self.name: entry}, indent=1, sort_keys=True)
        with complete_file(self.path) as temporary:
            temporary.write_text(_lists_in_lines(text) + "\n")


def _lists_in_lines(text: str) -> str:
    """JSON with a line for each list of numbers."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text)

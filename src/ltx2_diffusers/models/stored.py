"""The values of weights wherever they are: in the module, or kept elsewhere by the hook that offloads it."""

import torch

# Values read per tensor to tell it from another. Training, merging a LoRA or another data type changes nearly all values
# of a tensor, so a few tell; reading all of a large model would take long.
_SAMPLES = 64


def stored_tensor(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer of a module itself, to read it or to change it in place.

    Raises:
        ValueError: If nothing keeps its values.
    """
    tensor = getattr(module, name).detach()
    return _kept_by_hook(module, name) if tensor.is_meta else tensor


def _kept_by_hook(module: torch.nn.Module, name: str) -> torch.Tensor:
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return weights[name]
    raise ValueError(f"the weight {name!r} of {type(module).__name__} was never loaded; load the model anew")


def sampled_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes of evenly spaced values, the first and the last among them: uint8, on the device of the tensor."""
    flat = tensor.reshape(-1)
    count = min(_SAMPLES, flat.numel())
    if not count:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    places = torch.arange(count, device=tensor.device) * (flat.numel() - 1) // max(1, count - 1)
    return flat.view(torch.uint8).view(flat.numel(), -1)[places].reshape(-1)

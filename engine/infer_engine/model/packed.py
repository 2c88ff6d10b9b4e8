"""Linear layers with weights in oneDNN's own layout, for bfloat16 on CPU.

In: a model. Out: the same model with its plain linear layers replaced where oneDNN can do better. The reordering that each
call would otherwise make is made once; results are the same to the bit.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """Computes what `linear` does. The packed weight is a copy: the layer's own is free to go, unless it is tied."""

    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._weight = _pack(linear.weight.detach())
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Arguments after the bias: what to fuse behind the product; nothing
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self.bias, "none", [], "")
        return output


def is_available() -> bool:
    """Whether this build of torch and this processor pack bfloat16 weights and multiply with them."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        packed = _pack(torch.zeros(16, 16, dtype=torch.bfloat16))
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 16, dtype=torch.bfloat16), packed, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return True


@torch.inference_mode()
def pack_linears(model: nn.Module) -> int:
    """Replace the plain bfloat16 linear layers of a model on CPU, in place; return how many (0 where unavailable).

    Subclasses of nn.Linear are left alone: they may compute something else. An embedding that shares its weight with the
    output layer keeps it.
    """
    if not is_available():
        return 0
    num_packed = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(module, name, PackedLinear(child))
                num_packed += 1
    return num_packed


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed

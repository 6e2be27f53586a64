"""Muon: steps of equal size in every direction of a weight matrix.

Adam scales each weight by itself. Muon takes the momentum of a whole matrix and moves along the nearest matrix whose
singular values are all about 1, so that rare directions learn as fast as common ones. Small networks from random
weights need far fewer steps for the same loss (docs/training.md). Source: Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"; the size of a step after Liu et al. 2025 (arXiv 2502.16982), with which weight decay
and the order of the learning rate are AdamW's. `torch.optim.Muon`, since torch 2.9, knows no convolutions and leaves
AdamW's part to a second optimiser.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import torch

# Matrices between hidden features. First and last layers, whose rows are pixels or classes, stay with AdamW.
HIDDEN_MATRIX = re.compile(
    r"(^|\.)((en|de)coder\.layers\.\d+\..*(proj|fc1|fc2)|(de)?conv_layers\.\d+\.convolution)\.weight$"
)
# An odd polynomial that takes singular values between 0 and 1 to about 1 if it is repeated.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
NUM_ITERATIONS = 5
MOMENTUM = 0.95
STEP_RMS = 0.2  # root mean square of an update at learning rate 1, as AdamW's


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups with `muon=True`, AdamW for the others.

    Matrices of one shape are orthogonalised together. Convolutions of shape (a, b, k, k) count as matrices (a, b k k).
    Parameters must be whole on every process, as in DDP: FSDP and DeepSpeed cut them up.

    Args:
        params: groups of `training.optim.split_groups`, each with its learning rate and weight decay.
        lr, betas, weight_decay, ...: of AdamW; learning rate and weight decay are also Muon's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have a gradient."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            loss = super().step(closure)  # first, as the closure computes the gradients
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What `load_state_dict` and unpickling call: AdamW wants to see state of its own only."""
        groups = state["param_groups"]
        super().__setstate__({**state, "param_groups": [group for group in groups if not group["muon"]]})
        self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append((parameter, self._momentum_of(parameter, parameter.grad)))
        for shape, found in by_shape.items():
            parameters = [parameter for parameter, _ in found]
            matrices = torch.stack([momentum for _, momentum in found]).flatten(2)
            updates = orthogonal(matrices).view(-1, *shape)
            size = STEP_RMS * max(matrices.shape[1:]) ** 0.5  # an orthogonal (a, b) has RMS max(a, b) ** -0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * size)

    def _momentum_of(self, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient's running mean, looked at one step ahead (Nesterov)."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(buffer, MOMENTUM)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Near each matrix, one whose singular values are about 1 (0.7 to 1.2).

    Newton-Schulz iterations in bfloat16, which is exact enough as the values need not be 1.

    Args:
        matrices: (N, a, b), of any scale.

    Returns:
        (N, a, b) in the dtype of `matrices`. A matrix of zeros stays one.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    norms = torch.linalg.vector_norm(matrices.flatten(1), dim=1).clamp_min(1e-7)
    x = (matrices / norms[:, None, None]).to(torch.bfloat16)
    x = x.mT if tall else x
    first, third, fifth = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if tall else x).to(matrices.dtype)

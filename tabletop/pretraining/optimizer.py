"""Optimisation shared by the pretrainings: Muon for matrices, AdamW for the rest, cosine decay, an EMA."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MuonAdamW:
    """Muon on the matrices inside a model's blocks, AdamW on everything else, one schedule for both.

    Muon (torch.optim.Muon) orthogonalises momentum; it is meant for hidden layers, so embeddings, heads and
    norms go to AdamW. A convolution counts as the matrix (out, in * kernel): Muon updates a flat view of it.
    """

    def __init__(
        self, model: nn.Module, steps: int, muon_lr: float, adam_lr: float, blocks: tuple[str, ...], warmup: int = 50
    ):
        self.convolutions: list[tuple[nn.Parameter, nn.Parameter]] = []  # (weight, flat view on the same storage)
        muon, adam = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2 or parameter.shape[0] == 1 or not any(block in name for block in blocks):
                adam.append(parameter)
            elif parameter.ndim == 2:
                muon.append(parameter)
            else:
                flat = nn.Parameter(parameter.data.view(len(parameter), -1))
                self.convolutions.append((parameter, flat))
                muon.append(flat)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adam, adam_lr, betas=(0.9, 0.99), weight_decay=0.01)
        ]
        if muon:
            self.optimizers.append(torch.optim.Muon(muon, muon_lr, weight_decay=0.01, adjust_lr_fn="original"))

        def schedule(step: int) -> float:
            return min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))))

        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in self.optimizers]

    def step(self, loss: Tensor, max_norm: float = 1.0) -> float:
        """Back-propagate, clip, update; the gradient norm before clipping."""
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, max_norm)
        for weight, flat in self.convolutions:
            flat.grad = None if weight.grad is None else weight.grad.view_as(flat)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        for weight, _ in self.convolutions:
            weight.grad = None
        return float(norm)


class Ema:
    """Exponential moving average of parameters, with a warm-up so that the first steps weigh little.

    Not diffusers' EMAModel: its first update copies and its decay is one step behind, so the weights would differ.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters, self.decay, self.steps = list(parameters), decay, 0
        self.average = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's parameters and their average; call twice to come back."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            keep = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(keep)

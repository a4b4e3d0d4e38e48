"""Muon for the matrices inside the layers and Adam for the rest, as one optimizer, which is what `Trainer` handles."""

import torch

from .muon import Muon


class MuonWithAdam(torch.optim.Optimizer):
    """Two optimizers over one list of parameter groups and one state; frozen parameters are left out.

    Args:
        model: a Reformer; the matrices of its encoder go to Muon with the learning rate `lr`, all else to Adam.
        share: of `lr` for Adam.
    """

    def __init__(self, model: torch.nn.Module, lr: float, share: float):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {name: p for name, p in trained.items() if p.ndim == 2 and ".encoder." in name}
        others = [p for name, p in trained.items() if name not in matrices]
        self.parts = [Muon(matrices.values(), lr=lr)] if matrices else []
        if others:
            self.parts.append(torch.optim.AdamW(others, lr=share * lr, betas=(0.9, 0.95), weight_decay=0.0))
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # loading a state replaces groups and state, so the parts are given the current ones each time
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

"""Whether PyTorch is making a graph (`torch.compile`, `torch.export`) of a forward pass that needs no gradient."""

import torch


def tracing() -> bool:
    """Then lengths may be symbols: no loop over them, nothing in place, and no cache unless one is asked for."""
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler.is_exporting() or not torch.is_grad_enabled()

"""Whether a forward pass must be made of ordinary operations alone, since somebody else makes a graph of it."""

import torch


def tracing() -> bool:
    """In a graph of PyTorch's (`torch.compile`, `torch.export`) that needs no gradient, lengths may be symbols: no loop over
    them, nothing in place, and no cache unless one is asked for. The transforms of `torch.func` know no functions with a
    backward of their own."""
    if torch._C._are_functorch_transforms_active():
        return True
    if not torch.compiler.is_compiling():
        return False
    return torch.compiler.is_exporting() or not torch.is_grad_enabled()

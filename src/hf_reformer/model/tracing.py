"""What a forward pass must keep from doing: since somebody else makes a graph of it, or since a device would be waited for."""

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


def readable(tensor):
    """Whether looking at values is free: a GPU would have to be waited for, and in a graph there are none."""
    plain = type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.numel() > 0
    return plain and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()

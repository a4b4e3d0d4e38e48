"""What a card alone can show: the fused kernel beside the blocks, and a training step in half precision. Skipped without one."""

import pytest
import torch
from helpers import build, cotangent, gradients, tiny_config, tokens

from hf_reformer.model import attention_varlen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA")
SIZES = {"attention_head_size": 64, "local_attn_chunk_length": 64, "lsh_attn_chunk_length": 64, "axial_norm_std": 0.5}


def results(implementation, dtype, kinds, mask, **changes):
    config = tiny_config(kinds, attn_implementation=implementation, num_hashes=3, hash_seed=5, **SIZES, **changes)
    model = build(config, dtype=dtype).cuda()
    ids = tokens(config, 2, 211).cuda()
    logits = model(ids, attention_mask=mask).logits.float()
    logits = logits if mask is None else logits * mask[..., None]
    (logits * cotangent(logits.cpu()).cuda()).sum().backward()
    return logits, gradients(model)


def difference(ours, exact):
    found = torch.stack([(ours[name].float() - exact[name].float()).square().sum() for name in exact]).sum()
    return float((found / torch.stack([x.float().square().sum() for x in exact.values()]).sum()).sqrt())


@pytest.mark.parametrize("changes", [{}, {"is_decoder": False, "local_num_chunks_after": 1, "lsh_num_chunks_after": 2}])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["strict_local", "strict_lsh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fused_kernel_is_as_near_to_float32_as_the_blocks(dtype, kind, masked, changes, monkeypatch):
    mask = None
    if masked:
        mask = torch.ones(2, 211, dtype=torch.long, device="cuda")
        mask[0, :17], mask[1, 190:] = 0, 0
    calls = []
    forward = attention_varlen.VarlenRings.forward
    spy = staticmethod(lambda *arguments: (calls.append(1), forward(*arguments))[1])
    monkeypatch.setattr(attention_varlen.VarlenRings, "forward", spy)
    exact = results("eager", torch.float32, [kind] * 3, mask, **changes)
    assert not calls
    blocks = results("eager", dtype, [kind] * 3, mask, **changes)
    fused = results("sdpa", dtype, [kind] * 3, mask, **changes)
    assert calls
    assert difference({"": fused[0]}, {"": exact[0]}) < 1.5 * difference({"": blocks[0]}, {"": exact[0]}) + 1e-3
    assert difference(fused[1], exact[1]) < 1.5 * difference(blocks[1], exact[1]) + 1e-3


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_step_under_autocast_waits_for_the_device_once_at_most(implementation):
    """Backward looks at its check of what it rebuilt, at the end."""
    config = tiny_config(["strict_local", "strict_lsh"] * 2, attn_implementation=implementation, **SIZES)
    model, ids = build(config, dtype=torch.float32).cuda().train(), tokens(config, 2, 211).cuda()
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns() as said:
                loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(w.message) for w in said) <= 1
    assert all(p.grad.isfinite().all() for p in model.parameters())

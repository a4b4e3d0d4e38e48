"""Continuations of held-out prompts, made at each evaluation and kept beside the checkpoints."""

from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from ..files import replacing_file
from ..model.tokenization_reformer import NUM_BYTES, NUM_SPECIAL_TOKENS, ReformerByteTokenizer

SAMPLE_SEED = 0


class Samples(TrainerCallback):
    """Writes `samples/step-N.txt` (for images `.png`) at each evaluation; the random generators are as before afterwards.

    Args:
        prompts: token ids to continue, each (L,).
        settings: the `evaluation` section.
        folder: where `samples` goes.
        tokenizer: None: the tokens are the byte values of images.
    """

    def __init__(self, prompts, settings, folder: Path, tokenizer):
        self.prompts, self.settings, self.folder = prompts, settings, folder
        self.tokenizer = tokenizer

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Every process generates, so that none waits for another; the first one writes."""
        sequences = [self.continued(model, prompt) for prompt in self.prompts]
        if not state.is_world_process_zero:
            return
        path = self.folder / "samples" / f"step-{state.global_step}"
        if self.tokenizer is None:
            write_picture(path.with_suffix(".png"), sequences)
            return
        texts = [self.text(prompt, ids) for prompt, ids in zip(self.prompts, sequences, strict=True)]
        with replacing_file(path.with_suffix(".txt")) as temporary:
            temporary.write_text("\n\n".join(texts) + "\n", encoding="utf-8")

    def continued(self, model, prompt: torch.Tensor) -> torch.Tensor:
        """Prompt and continuation, (L + new,)."""
        room = model.config.maximum_length - len(prompt)
        settings = self.settings
        drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        how = drawn if settings.temperature > 0 else {"do_sample": False}
        if settings.num_hashes is not None:
            how["num_hashes"] = settings.num_hashes
        training = model.training
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(SAMPLE_SEED)
            ids = prompt[None].to(model.device)
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(settings.sample_tokens, room), use_cache=True,
                pad_token_id=0, eos_token_id=None, **how,
            )  # fmt: skip
        model.train(training)
        return output[0].cpu()

    def text(self, prompt, ids) -> str:
        """The continuation marked off from its prompt."""
        before, after = decoded(self.tokenizer, ids[: len(prompt)]), decoded(self.tokenizer, ids[len(prompt) :])
        return f"{before}⟹{after}"


def decoded(tokenizer, ids: torch.Tensor) -> str:
    """Text of the ids; bytes that are no UTF-8 show as U+FFFD."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        known = [i for i in ids.tolist() if i < NUM_SPECIAL_TOKENS + NUM_BYTES]
        return tokenizer.decode_bytes(known).decode("utf-8", "replace")
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def write_picture(path: Path, sequences: list[torch.Tensor]) -> None:
    """The images side by side; what was not generated is black."""
    from matplotlib import image

    longest = max(map(len, sequences))
    size = int(np.ceil(np.sqrt(longest / 3)))
    pictures = [
        np.pad(s.numpy().astype(np.uint8), (0, 3 * size * size - len(s))).reshape(size, size, 3) for s in sequences
    ]
    with replacing_file(path) as temporary:
        image.imsave(temporary, np.concatenate(pictures, axis=1), format="png")

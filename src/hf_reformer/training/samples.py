"""Continuations of held-out prompts, made at each evaluation and kept beside the checkpoints and in the trackers."""

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
        self.callbacks = ()  # of the trainer, the trackers among them

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Every process generates, so that none waits for another; the first one writes."""
        sequences = [self.continued(model, prompt) for prompt in self.prompts]
        if not state.is_world_process_zero:
            return
        path = self.folder / "samples" / f"step-{state.global_step}"
        if self.tokenizer is None:
            pixels = picture(sequences)
            with replacing_file(path.with_suffix(".png")) as temporary:
                write_png(temporary, pixels)
            track(self.callbacks, "image", pixels, state.global_step)
            return
        text = "\n\n".join(self.text(prompt, ids) for prompt, ids in zip(self.prompts, sequences, strict=True))
        with replacing_file(path.with_suffix(".txt")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        track(self.callbacks, "text", text, state.global_step)

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
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(settings.sample_tokens, room),
                use_cache=True, pad_token_id=0, eos_token_id=None, **how,
            )  # fmt: skip
        model.train(training)
        return output[0].cpu()

    def text(self, prompt, ids) -> str:
        """The continuation marked off from its prompt."""
        before, after = decoded(self.tokenizer, ids[: len(prompt)]), decoded(self.tokenizer, ids[len(prompt) :])
        return f"{before}⟹{after}"


def track(callbacks, kind: str, sample, step: int) -> None:
    """Gives a sample to TensorBoard and Weights & Biases, where they are among the callbacks."""
    for callback in callbacks:
        writer, wandb = getattr(callback, "tb_writer", None), getattr(callback, "_wandb", None)
        if writer is not None and kind == "text":
            writer.add_text("samples", sample, step)
        elif writer is not None:
            writer.add_image("samples", sample, step, dataformats="HWC")
        if wandb is not None:
            shown = wandb.Html(f"<pre>{sample}</pre>") if kind == "text" else wandb.Image(sample)
            wandb.log({"samples": shown, "train/global_step": step})


def decoded(tokenizer, ids: torch.Tensor) -> str:
    """Text of the ids; bytes that are no UTF-8 show as U+FFFD."""
    if isinstance(tokenizer, ReformerByteTokenizer):
        known = [i for i in ids.tolist() if i < NUM_SPECIAL_TOKENS + NUM_BYTES]
        return tokenizer.decode_bytes(known).decode("utf-8", "replace")
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def picture(sequences: list[torch.Tensor]) -> np.ndarray:
    """(H, W, 3): the images side by side; what was not generated is black."""
    longest = max(map(len, sequences))
    size = int(np.ceil(np.sqrt(longest / 3)))
    padded = [np.pad(s.numpy().astype(np.uint8), (0, 3 * size * size - len(s))) for s in sequences]
    return np.concatenate([pixels.reshape(size, size, 3) for pixels in padded], axis=1)


def write_png(path: Path, pixels: np.ndarray) -> None:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(
            "evaluation.samples of images need pillow: pip install 'hf-reformer[image]', or evaluation.samples=0"
        ) from None
    Image.fromarray(pixels).save(path, format="PNG")

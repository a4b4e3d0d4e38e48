"""What `hf-reformer quickstart` trains, and how: the model, the plan of steps, the loop, its state on disk.

A run is a pure function of its settings and its text: windows are drawn by (seed, step), the plan and the learning rate
by the step, and everything else that changes is in the training state. So a resumed run equals an uninterrupted one.
"""

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..files import replacing_file
from ..model.configuration_reformer import ReformerConfig
from ..model.modeling_reformer import ReformerModelWithLMHead
from .muon import Muon
from .text_data import draw_windows

BYTE_OFFSET = 2  # id of byte 0 in ReformerByteTokenizer
AXIS = 128  # positions on the inner axis; the period of its features
ADAM_SHARE = 0.15  # of the learning rate
STATE_FORMAT = 1
SAVES_PER_RUN = 20


@dataclass(frozen=True)
class Settings:
    """What a run is a function of, besides its text."""

    steps: int = 1_800
    context: int = 16_384
    seed: int = 0
    learning_rate: float = 0.02  # of Muon; the embeddings' is a fixed share of it
    data: tuple[str, ...] = ()  # empty: the standard library


class Stage(NamedTuple):
    """A part of the run: up to which share of the steps, with windows of context / divisor."""

    until: float
    divisor: int


# What counts is the number of steps, and a step on a short window costs little: most of the steps, and with them most of
# the learning, come before the full context does. The windows of every stage lie anywhere in the model's positions.
PLAN = (Stage(0.90, 32), Stage(0.97, 8), Stage(0.99, 4), Stage(1.0, 1))
REVERSIBLE_FROM = (
    4_096  # bytes; of shorter windows there is room to keep the activations, which saves a third of the time
)


def window_length(settings: Settings, step: int) -> int:
    """Bytes in the window of a step; the last step always has the full context."""
    stage = next(stage for stage in PLAN if step < int(stage.until * settings.steps) or stage is PLAN[-1])
    return max(2, settings.context // stage.divisor)


def total_bytes(settings: Settings) -> int:
    """Bytes that all steps read."""
    return sum(window_length(settings, step) for step in range(settings.steps))


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth of the steps, then linearly down towards 0."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup), 1.0)


def build_model(settings: Settings) -> ReformerModelWithLMHead:
    """A byte-level causal Reformer with strictly causal layers for `settings.context` positions."""
    inner = min(AXIS, settings.context)
    outer = -(-settings.context // inner)
    model = ReformerModelWithLMHead(
        ReformerConfig(
            attn_layers=["strict_local", "strict_lsh"] * 2,
            is_decoder=True,
            vocab_size=256 + BYTE_OFFSET,
            hidden_size=128,
            feed_forward_size=512,
            num_attention_heads=2,
            attention_head_size=64,
            num_hashes=1,
            axial_pos_shape=[outer, inner],
            axial_pos_embds_dim=[32, 96],
            max_position_embeddings=outer * inner,
            hidden_dropout_prob=0.0,
            local_attention_probs_dropout_prob=0.0,
            lsh_attention_probs_dropout_prob=0.0,
            eos_token_id=None,
        )
    )
    initialise_embeddings(model)
    return model


@torch.no_grad()
def initialise_embeddings(model: ReformerModelWithLMHead) -> None:
    """Word vectors of size 1 and sinusoids as axial positions: learning starts several times faster than from the defaults.

    The inner axis holds whole numbers of periods, so the distance between two positions looks the same everywhere,
    across the ends of the axis too; the outer axis runs through half a period at most, so that it tells far from near.
    """
    torch.nn.init.normal_(model.reformer.embeddings.word_embeddings.weight)
    outer, inner = model.reformer.embeddings.position_embeddings.weights
    outer.copy_(sinusoids(outer.shape[-3], outer.shape[-1], longest=4.0 * outer.shape[-3], whole=False).view_as(outer))
    inner.copy_(sinusoids(inner.shape[-2], inner.shape[-1], longest=inner.shape[-2], whole=True).view_as(inner))


def sinusoids(count: int, dim: int, *, longest: float, whole: bool) -> torch.Tensor:
    """(count, dim): sines, then cosines, with periods from 2 to `longest` positions; `whole`: that divide `longest`."""
    frequencies = torch.logspace(0, math.log2(max(2.0, longest) / 2), (dim + 1) // 2, base=2)
    if whole:
        frequencies = frequencies.round()
    angles = 2 * math.pi * torch.arange(count)[:, None] * frequencies / longest
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


@torch.no_grad()
def held_out_bits_per_byte(model: torch.nn.Module, windows: list[torch.Tensor], device: torch.device) -> float:
    """Bits that the model needs for the uint8 `windows`, by their bytes; each is predicted on its own.

    Every byte counts: the first of a window, before which the model has seen nothing, costs 8 bits.
    """
    was_training = model.training
    model.eval()
    bits = 0.0
    for window in tqdm(windows, desc="held-out text", unit="window", leave=False):
        ids = window.long()[None].to(device) + BYTE_OFFSET
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss if len(window) > 1 else torch.zeros(())
        bits += 8 + loss.item() / math.log(2) * (len(window) - 1)
    model.train(was_training)
    return bits / sum(map(len, windows))


@dataclass
class Run:
    """A run under way: what the loop changes."""

    settings: Settings
    text_digest: str
    accelerator: Accelerator
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[torch.optim.lr_scheduler.LRScheduler]
    step: int = 0  # steps done
    bits_before: float | None = None  # held-out, before the first step
    seconds: float = 0.0  # spent in the loop, over all sessions
    losses: list[float] = field(default_factory=list)  # bits per byte of each step


def start_run(settings: Settings, text_digest: str, accelerator: Accelerator) -> Run:
    """A model, its optimisers and their schedules at step 0."""
    torch.manual_seed(settings.seed)
    model = build_model(settings)
    optimizers = build_optimizers(model, settings.learning_rate)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings.steps))
        for optimizer in optimizers
    ]
    model, *prepared = accelerator.prepare(model, *optimizers, *schedulers)
    return Run(settings, text_digest, accelerator, model, prepared[: len(optimizers)], prepared[len(optimizers) :])


def build_optimizers(
    model: torch.nn.Module, learning_rate: float, adam_share: float = ADAM_SHARE
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, Adam for embeddings, head, norms and biases; frozen parameters are left out."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trained.items() if p.ndim == 2 and ".encoder." in name}
    others = [p for name, p in trained.items() if name not in matrices]
    return [
        Muon(matrices.values(), lr=learning_rate),
        torch.optim.AdamW(others, lr=adam_share * learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def training_step(run: Run, text: torch.Tensor) -> float:
    """One step on one window; returns its loss in bits per byte."""
    settings, device = run.settings, run.accelerator.device
    length = window_length(settings, run.step)
    ids = draw_windows(text, length=length, count=1, seed=settings.seed, step=run.step) + BYTE_OFFSET
    first = torch.randint(settings.context - length + 1, ())  # where among the model's positions the window lies
    ids, positions = ids.to(device), (first + torch.arange(length))[None].to(device)
    run.accelerator.unwrap_model(run.model).reformer.encoder.reversible = length >= REVERSIBLE_FROM
    loss = run.model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
    run.accelerator.backward(loss)
    run.accelerator.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer, scheduler in zip(run.optimizers, run.schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return loss.item() / math.log(2)


def train(run: Run, text: torch.Tensor, state_path: Path) -> bool:
    """Train to the last step, saving the state now and then and at the end. False: Ctrl-C stopped it, state saved."""
    steps = run.settings.steps
    save_every = max(1, steps // SAVES_PER_RUN)
    done = sum(window_length(run.settings, step) for step in range(run.step))
    bar = tqdm(total=total_bytes(run.settings), initial=done, unit="tok", unit_scale=True, desc="training")
    run.model.train()
    with bar, stop_after_step() as stop:
        earlier = run.seconds
        save_state(run, state_path)
        while run.step < steps and not stop.is_set():
            length = window_length(run.settings, run.step)
            bits = training_step(run, text)
            run.losses.append(bits)
            run.step += 1
            recent = run.losses[-20:]
            mean = sum(recent) / len(recent)
            bar.set_postfix_str(
                f"step {run.step}/{steps}, context {length:,}, loss {mean * math.log(2):.3f}, {mean:.3f} bits/byte",
                refresh=False,
            )
            bar.update(length)
            run.seconds = earlier + bar.format_dict["elapsed"]
            if run.step % save_every == 0 or run.step == steps or stop.is_set():
                save_state(run, state_path)
    return run.step == steps


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C only sets the event, so that a step is finished and saved; the second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(signum, frame):
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def save_state(run: Run, path: Path) -> None:
    """Everything that a resumed run needs, in one file that is replaced in one step."""
    state = {
        "format": STATE_FORMAT,
        "settings": asdict(run.settings),
        "text_digest": run.text_digest,
        "model": run.accelerator.unwrap_model(run.model).state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in run.schedulers],
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "step": run.step,
        "bits_before": run.bits_before,
        "seconds": run.seconds,
        "losses": run.losses,
    }
    with replacing_file(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict:
    """The file that `save_state` wrote.

    Raises:
        ValueError: when it is missing, or not such a file.
    """
    if not path.is_file():
        raise ValueError(f"resume needs the training state {str(path)!r}, which does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != STATE_FORMAT:
            raise KeyError("format")
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not a training state of this version: {type(error).__name__}") from error
    state["settings"] = Settings(**{**state["settings"], "data": tuple(state["settings"]["data"])})
    return state


def restore(run: Run, state: dict) -> None:
    """Put a loaded state into a run that `start_run` made with the same settings."""
    run.accelerator.unwrap_model(run.model).load_state_dict(state["model"])
    for part, saved in zip(run.optimizers + run.schedulers, state["optimizers"] + state["schedulers"], strict=True):
        part.load_state_dict(saved)
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    run.step, run.bits_before = state["step"], state["bits_before"]
    run.seconds, run.losses = state["seconds"], state["losses"]

"""What is measured: cases as data. A case compares runs; the first is the one that the others are held against."""

from dataclasses import dataclass, replace

K = 1024


@dataclass(frozen=True)
class Run:
    """One model, one kind of step. See `models.py` for the peers and the model's sizes."""

    label: str
    peer: str = "hf_reformer"  # hf_reformer, transformers, gpt2, reformer_pytorch, encoder_decoder (ours), marian
    mode: str = "train"  # train: forward, backward, Adam step; forward: evaluation without gradient
    length: int = 16 * K
    target: int | None = None  # tokens that an encoder-decoder writes
    rounds: int = 4
    layers: int = 6
    strict: bool = False
    reversible: bool | str = True
    bf16: bool = False  # under bfloat16 autocast, as Trainer's `bf16=True`
    dropout: float = 0.0
    implementation: str | None = None
    chunk_size_lm_head: int = 0
    steps: int = 2


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    runs: tuple[Run, ...]
    goal: str = ""
    repetitions: int | None = None  # instead of the command's


OURS, STRICT = Run("lsh"), Run("strict_lsh", strict=True)
STOCK = Run("transformers", peer="transformers")
LUCIDRAINS = Run("reformer-pytorch", peer="reformer_pytorch", steps=1)


def _all(runs, **changes):
    return tuple(replace(run, **changes) for run in runs)


def _half(runs):
    return tuple(replace(run, label=f"{run.label}, bf16", bf16=True) for run in runs)


def _lengths(peers, lengths):
    return tuple(replace(run, label=f"{run.label} {n}", length=n) for n in lengths for run in peers)


GPT2 = Run("GPT-2 with SDPA", peer="gpt2")
MILLION = {"rounds": 1, "chunk_size_lm_head": 2 * K}

CASES = (
    Case(
        "train-4", "training step, 16,384 tokens, 4 rounds",
        (STOCK, OURS, STRICT, replace(OURS, label="lsh, reversible=False", reversible=False), LUCIDRAINS),
        "lsh and strict_lsh 2.0 times faster than transformers and half its memory, reversible=False 2.4 times",
    ),
    Case("train-1", "training step, 16,384 tokens, 1 round", _all((STOCK, OURS, STRICT), rounds=1), "1.2 times faster"),
    Case("forward", "forward only, 16,384 tokens, 4 rounds", _all((STOCK, OURS, STRICT), mode="forward"), "3 times faster"),
    Case(
        "implementations", "training step by attn_implementation, 16,384 tokens, 4 rounds",
        (replace(OURS, label="eager"), replace(OURS, label="sdpa", implementation="sdpa")),
    ),
    Case(
        "growth", "training step of 65,536 tokens beside one of 16,384, 1 round",
        _all((OURS, replace(OURS, label="lsh 65,536", length=64 * K)), rounds=1), "at most 4.4 times",
    ),
    Case(
        "million", "training step of 1,048,576 tokens beside one of 65,536, 1 round",
        (
            replace(OURS, label="lsh 65,536", length=64 * K, **MILLION),
            replace(OURS, label="lsh 1,048,576", length=1024 * K, steps=0, **MILLION),
        ),
        "at most 8 GiB resident and 1.3 times the time per token", repetitions=1,
    ),
    Case(
        "crossover", "training step over length, 4 rounds",
        _lengths((GPT2, STOCK, OURS, STRICT), (512, K, 2 * K, 4 * K)), "faster than GPT-2 at 1,024 tokens",
    ),
    Case(
        "dropout", "training step with dropout 0.05 in hidden layers and local attention, 16,384 tokens, 4 rounds",
        (OURS, replace(OURS, label="lsh, dropout 0.05", dropout=0.05)), "costs at most 15 %",
    ),
    Case(
        "half", "training step under bfloat16 autocast beside float32, 16,384 tokens, 4 rounds",
        (OURS, *_half((OURS, STRICT, replace(OURS, label="lsh, reversible=False", reversible=False))), STOCK, *_half((STOCK,))),
        "at least 1.9 times faster than in float32, 2.5 and 4 times than transformers (bf16 and float32)",
    ),
    Case(
        "half-forward", "forward only under bfloat16 autocast beside float32, 16,384 tokens, 4 rounds",
        _all((OURS, *_half((OURS, STRICT))), mode="forward"), "at least 1.9 times faster than in float32",
    ),
    Case(
        "half-million", "training step of 1,048,576 tokens under bfloat16 autocast, 1 round",
        _half((replace(OURS, label="lsh 1,048,576", length=1024 * K, steps=0, **MILLION),)), "at most 5 GiB", repetitions=1,
    ),
    Case(
        "short", "training step of short inputs, reversible=\"auto\", 4 rounds",
        _lengths((GPT2, *(replace(run, reversible="auto") for run in (OURS, STRICT)), replace(OURS, label="lsh, reversible")),
                 (256, 512, K)),
        "not slower than GPT-2 at 512 tokens, at most 1.2 times its time at 256",
    ),
    Case(
        "depth", "memory of 48 layers beside 6, 16,384 tokens, 1 round",
        _all((replace(OURS, label="6 layers"), replace(OURS, label="48 layers", layers=48)), rounds=1, steps=1),
        "grows by at most 10 % beyond parameters, gradients and optimiser state",
    ),
    Case(
        "source", "training step of an encoder-decoder (3 layers each) over the length of its source, target of 1,024, 1 round",
        tuple(
            Run(f"{label} {length}", peer=peer, length=length, target=K, rounds=1, layers=3, strict=True, steps=1)
            for label, peer, length in (
                ("Marian", "marian", 4 * K), ("ours", "encoder_decoder", 4 * K),
                ("ours", "encoder_decoder", 16 * K), ("ours", "encoder_decoder", 64 * K),
            )
        ),
    ),
    Case(
        "lengths", "training step over length, 1 round",
        _lengths(_all((GPT2, STOCK, OURS), rounds=1, steps=1), (K, 4 * K, 16 * K, 64 * K))[:-3]
        + (replace(OURS, label="lsh 65536", length=64 * K, rounds=1),),
        repetitions=2,
    ),
)  # fmt: skip

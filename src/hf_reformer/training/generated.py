"""Made-up data of the formats that recipes read: learnable in seconds, for trials (`--smoke`) and tests."""

import numpy as np

NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Felix"]
PLACES = ["Paris", "Kazan", "Lagos", "Quito"]
THINGS = ["lamp", "boat", "coat", "door", "ring", "book"]
COLOURS = ["red", "blue", "green", "black", "white"]
VERBS = ["sees", "paints", "sells", "finds"]
PRAISE = ["good", "great", "lovely", "brilliant"]
BLAME = ["bad", "dull", "awful", "boring"]
TAGS = ["O", "B-PER", "B-LOC"]


def sentence(random: np.random.Generator) -> str:
    """Such as "Anna sees the red lamp in Paris."."""
    pick = lambda words: words[random.integers(len(words))]
    return f"{pick(NAMES)} {pick(VERBS)} the {pick(COLOURS)} {pick(THINGS)} in {pick(PLACES)}."


def generated_text(length: int, seed: int) -> bytes:
    """`length` bytes of sentences."""
    random = np.random.default_rng(seed)
    parts, size = [], 0
    while size < length:
        parts.append(sentence(random) + "\n")
        size += len(parts[-1])
    return "".join(parts).encode()[:length]


def generated_images(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size, 3) uint8: smooth slopes with a little noise."""
    random = np.random.default_rng(seed)
    axis = np.arange(size) / size
    slopes = random.uniform(-60, 60, (2, count, 1, 1, 3))
    base = random.uniform(90, 160, (count, 1, 1, 3))
    values = (
        base + slopes[0] * axis[:, None, None] + slopes[1] * axis[:, None] + random.normal(0, 2, (count, size, size, 3))
    )
    return values.clip(0, 255).astype(np.uint8)


def generated_reviews(count: int, seed: int) -> list[dict]:
    """Rows of `text` and `label` (0: blamed, 1: praised); the words that tell lie anywhere in it."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        words = [(BLAME, PRAISE)[label][random.integers(4)] if random.random() < 0.5 else "it" for _ in range(12)]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def generated_questions(count: int, seed: int) -> list[dict]:
    """Rows of `question`, `context` and `answers`, as SQuAD has them."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        things = random.permutation(len(THINGS))[:2]
        facts = [f"The {THINGS[i]} is {COLOURS[random.integers(len(COLOURS))]}." for i in things]
        asked = int(random.integers(2))
        answer = facts[asked].removesuffix(".").split()[-1]
        start = len(" ".join(facts[: asked + 1])) - 1 - len(answer)
        rows.append(
            {
                "question": f"Which colour is the {THINGS[things[asked]]}?",
                "context": " ".join(facts),
                "answers": {"text": [answer], "answer_start": [start]},
            }
        )
    return rows


def generated_pairs(count: int, seed: int) -> list[dict]:
    """Rows of `source`, two sentences, and `target`, their things in reverse order."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        source = [sentence(random) for _ in range(2)]
        things = [text.split()[4] for text in reversed(source)]
        rows.append({"source": " ".join(source), "target": " ".join(things)})
    return rows


def generated_tags(count: int, seed: int) -> list[dict]:
    """Rows of `tokens` and `ner_tags` (indices into `TAGS`)."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = sentence(random).removesuffix(".").split() + ["."]
        tags = [1 if word in NAMES else 2 if word in PLACES else 0 for word in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows

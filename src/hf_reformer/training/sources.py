"""Where data comes from: exactly one of files, a dataset of the Hub and a generator; what is passed over is counted."""

import hashlib
from collections.abc import Iterable

SOURCES = ("files", "dataset", "generated")


def source_of(data, trained: bool = True) -> str:
    """Which of `SOURCES` the settings name.

    Args:
        trained: False where a model is only measured: `evaluation_files` alone are enough then.

    Raises:
        ValueError: for none, or for several.
    """
    given = [name for name in ("generated", "dataset", "files", "evaluation_files") if getattr(data, name) is not None]
    if len(given) > 1 and given != ["files", "evaluation_files"]:
        raise ValueError(
            f"data.{given[0]} and data.{given[1]} are both given, but data has one source: set the other one to null "
            f"(--set data.{given[0]}=null)"
        )
    if data.revision is not None and given and given[0] != "dataset":
        raise ValueError(f"data.revision is {data.revision!r}, but must be null without a data.dataset")
    if not given or (trained and given == ["evaluation_files"]):
        hint = f" ({' '.join(data.obtain.split())})" if data.obtain else ""
        raise ValueError(
            f"data.files is missing: this recipe needs data{hint}; give --set data.files=PATH or data.dataset=NAME"
        )
    return "files" if given[0] == "evaluation_files" else given[0]


def load_rows(data, split: str, streaming: bool = False):
    """A split of the dataset that the settings name, at the revision that they name."""
    import datasets

    try:
        return datasets.load_dataset(
            data.dataset, data.subset, split=split, revision=data.revision, streaming=streaming
        )  # fmt: skip
    except Exception as error:  # datasets, huggingface_hub, fsspec and httpx each raise their own
        raise ValueError(
            f"data.dataset is {data.dataset!r} (subset {data.subset}, split {split}), which cannot be loaded: "
            f"{type(error).__name__}: {error}; local files are given with data.files"
        ) from error


def as_list(paths: list[str] | str) -> list[str]:
    """`data.files` may be one path."""
    return [paths] if isinstance(paths, str) else list(paths)


def fingerprint_of(parts: Iterable) -> str:
    """16 hexadecimal digits that change with any byte of any part, and with where a part ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]

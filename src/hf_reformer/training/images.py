"""Images as sequences of byte values, row by row, the colours of a pixel together."""

from pathlib import Path

import numpy as np

from .corpus import load_rows, missing_data
from .generated import generated_images
from .settings import ImageData

ARRAYS = (".npy", ".npz")


def read_images(data: ImageData, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Training and evaluation images, uint8 (images, 3 * size * size), and a line that says what they are."""
    if data.generated is not None:
        parts = [generated_images(data.generated, data.size, seed), generated_images(4, data.size, seed + 1)]
        return *(part.reshape(len(part), -1) for part in parts), "generated slopes of colour"
    if data.dataset is not None:
        parts = [load_rows(data, split) for split in (data.training_split, data.evaluation_split)]
        return *(stacked([row[data.image_column] for row in rows], data) for rows in parts), data.dataset
    if data.files is None:
        raise missing_data(data)
    if data.evaluation_files is None:
        raise ValueError("data.evaluation_files is missing: images to evaluate on are files of their own")
    return local_images(data.files, data), local_images(data.evaluation_files, data), "images of the user's own"


def local_images(paths: list[str] | str, data: ImageData) -> np.ndarray:
    """Arrays in the files of .npy and .npz, and pictures in folders."""
    parts = []
    for path in map(Path, [paths] if isinstance(paths, str) else paths):
        if path.suffix in ARRAYS and path.is_file():
            parts.append(from_planes(np.load(path), data, path))
        elif path.is_dir():
            parts.append(stacked(pictures_in(path), data))
        else:
            raise ValueError(f"data.files: {str(path)!r} must be a folder of images or a file of {', '.join(ARRAYS)}")
    return np.concatenate(parts)


def pictures_in(folder: Path) -> list:
    """The images of a folder and those below it."""
    import datasets

    try:
        return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", drop_labels=True)["image"]
    except Exception as error:
        raise ValueError(f"data.files: folder {str(folder)!r} cannot be read as images: {error}") from None


def stacked(images, data: ImageData) -> np.ndarray:
    """Images of PIL as one array; each must have the size."""
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    for array in arrays:
        if array.shape[:2] != (data.size, data.size):
            raise ValueError(
                f"data.size is {data.size}, but an image of {array.shape[1]} x {array.shape[0]} pixels is there"
            )
    return np.stack(arrays).reshape(len(arrays), -1)


def from_planes(content, data: ImageData, path: Path) -> np.ndarray:
    """The official 64 x 64 ImageNet arrays: all red values of an image, then all green, then all blue ones."""
    values = (
        content
        if isinstance(content, np.ndarray)
        else content["data"]
        if "data" in content
        else content[content.files[0]]
    )
    wanted = 3 * data.size**2
    if values.ndim != 2 or values.shape[1] != wanted or values.dtype != np.uint8:
        raise ValueError(
            f"data.files: {str(path)!r} has shape {values.shape} of {values.dtype}, but must be uint8 (N, {wanted})"
        )
    planes = values.reshape(len(values), 3, -1)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(len(values), -1)

"""Images as sequences of byte values, row by row, the colours of a pixel together: the tokens of `ReformerImageProcessor`."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..model.image_processing_reformer import ReformerImageProcessor
from .generated import generated_images
from .settings import ImageData
from .sources import as_list, fingerprint_of, load_rows, source_of

ARRAYS = (".npy", ".npz")


class Images:
    """Images of several arrays as one sequence of uint8 (3 * size * size).

    Args:
        parts: (array (images, 3 * size * size), perhaps still on disk; whether it holds all red values of an image first, then
            all green, then all blue ones, as the official 64 x 64 ImageNet files do).
    """

    def __init__(self, parts: list[tuple[np.ndarray, bool]]):
        self.parts, self.ends = parts, np.cumsum([len(part) for part, _ in parts])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        place = int(np.searchsorted(self.ends, index, side="right"))
        part, planes = self.parts[place]
        image = np.asarray(part[index - (self.ends[place] - len(part))])
        return image.reshape(3, -1).T.reshape(-1) if planes else image

    def fingerprint(self) -> str:
        return fingerprint_of(self[index] for index in range(len(self)))


def read_images(data: ImageData, seed: int) -> tuple[Images, Images, str]:
    """Training and evaluation images, and a line that says what they are.

    Raises:
        ValueError: for data that is missing, cannot be read, or is of another size.
    """
    source = source_of(data)
    if source == "generated":
        parts = [generated_images(data.generated, data.size, seed), generated_images(4, data.size, seed + 1)]
        return *(Images([(part.reshape(len(part), -1), False)]) for part in parts), "generated slopes of colour"
    if source == "dataset":
        parts = [load_rows(data, split) for split in (data.training_split, data.evaluation_split)]
        found = [stacked(column_of(rows, data), len(rows), data, data.dataset) for rows in parts]
        return *(Images([(part, False)]) for part in found), data.dataset
    if data.evaluation_files is None:
        raise ValueError("data.evaluation_files is missing: images to evaluate on are files of their own")
    return local_images(data.files, data), local_images(data.evaluation_files, data), "images of the user's own"


def column_of(rows, data: ImageData) -> Iterator:
    if data.image_column not in rows.column_names:
        raise ValueError(
            f"data.image_column is {data.image_column!r}, but must be one of {', '.join(rows.column_names)}, the columns of "
            f"{data.dataset}"
        )
    return (row[data.image_column] for row in rows)


def local_images(paths: list[str] | str, data: ImageData) -> Images:
    """Arrays in the files of .npy and .npz, and pictures in folders."""
    parts = []
    for path in map(Path, as_list(paths)):
        if path.suffix in ARRAYS and path.is_file():
            parts.append((planes_in(path, data), True))
        elif path.is_dir():
            files = pictures_in(path)
            parts.append((stacked(opened(files), len(files), data, path), False))
        else:
            raise ValueError(f"data.files: {str(path)!r} must be a folder of images or a file of {', '.join(ARRAYS)}")
    return Images(parts)


def pictures_in(folder: Path) -> list[Path]:
    """The images of a folder and those below it, by the endings that Pillow knows."""
    from PIL import Image

    known = Image.registered_extensions()
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in known and file.is_file()]
    if not files:
        raise ValueError(f"data.files: folder {str(folder)!r} holds no image")
    return files


def opened(files: list[Path]) -> Iterator:
    """Images of PIL, the right way up, in the mode that they have (`transformers`' own loader drops transparency)."""
    from PIL import Image, ImageOps

    for file in files:
        try:
            with Image.open(file) as image:
                yield ImageOps.exif_transpose(image)
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a file that is cut off or is none
            raise ValueError(f"data.files: {str(file)!r} cannot be read as an image: {error}") from None


def stacked(images: Iterable, count: int, data: ImageData, where) -> np.ndarray:
    """(count, 3 * size * size) uint8; each image must have the size and be one that the processor takes."""
    processor = ReformerImageProcessor(do_resize=False, token_dtype="uint8")
    rows = np.empty((count, 3 * data.size**2), np.uint8)
    for i, image in enumerate(images):
        if image.size != (data.size, data.size):
            raise ValueError(
                f"data.size is {data.size}, but an image of {image.size[0]} x {image.size[1]} pixels is there"
            )
        try:
            rows[i] = processor(images=[image])["input_ids"][0]
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"data: image {i} of {str(where)!r} cannot be used: {error}") from None
    return rows


def planes_in(path: Path, data: ImageData) -> np.ndarray:
    """The array of a file in the official layout; of an .npy file it stays on disk."""
    try:
        content = np.load(path, mmap_mode="r")
        if not isinstance(content, np.ndarray):
            content = content["data" if "data" in content.files else content.files[0]]
    except Exception as error:  # ValueError, EOFError, BadZipFile, zlib.error, IndexError, ...
        raise ValueError(f"data.files: {str(path)!r} cannot be read as an array: {error}") from None
    wanted = 3 * data.size**2
    if content.ndim != 2 or content.shape[1] != wanted or content.dtype != np.uint8 or not len(content):
        raise ValueError(
            f"data.files: {str(path)!r} has shape {content.shape} of {content.dtype}, but must be uint8 (N, {wanted})"
        )
    return content

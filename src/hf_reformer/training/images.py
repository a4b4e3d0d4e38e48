"""Images as sequences of byte values, row by row, the colours of a pixel together: the tokens of `ReformerImageProcessor`."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..model.image_processing_reformer import BYTES, ReformerImageProcessor
from .generated import generated_images
from .settings import ImageData
from .sources import as_list, fingerprint_of, load_rows, source_of
from .text_data import digest_of

ARRAYS = (".npy", ".npz")


class Images:
    """Images of several arrays as one sequence of uint8 (3 * size * size).

    Args:
        parts: (array (images, 3 * size * size), perhaps still on disk; whether it holds all red values of an image first, then
            all green, then all blue ones, as the official 64 x 64 ImageNet files do).
        names: of the files, those that came from files.
        chosen: which of the images, in this order; None: all.
    """

    def __init__(self, parts: list[tuple[np.ndarray, bool]], names: list[str | None] | None = None, chosen=None):
        self.parts, self.ends = parts, np.cumsum([len(part) for part, _ in parts])
        self.names, self.chosen = names, chosen

    def __len__(self):
        return int(self.ends[-1]) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> np.ndarray:
        index = index if self.chosen is None else int(self.chosen[index])
        place = int(np.searchsorted(self.ends, index, side="right"))
        part, planes = self.parts[place]
        image = np.asarray(part[index - (self.ends[place] - len(part))])
        return image.reshape(3, -1).T.reshape(-1) if planes else image

    def fingerprint(self) -> str:
        return fingerprint_of(self[index] for index in range(len(self)))

    def first_values(self) -> list[int]:
        """How often each value is the first of an image, (256,)."""
        return np.bincount([int(self[index][0]) for index in range(len(self))], minlength=BYTES).tolist()


def processor_of(data: ImageData, **more) -> ReformerImageProcessor:
    """The processor that makes the images of these settings."""
    square = {"height": data.size, "width": data.size}
    if not data.resize:
        return ReformerImageProcessor(size=square, **more)
    return ReformerImageProcessor(
        size={"shortest_edge": data.size}, do_center_crop=True, crop_size=square, **more
    )  # fmt: skip


def read_images(data: ImageData, seed: int, trained: bool = True) -> tuple[Images, Images, str]:
    """Training and evaluation images, and a line that says what they are.

    Args:
        trained: False where a model is only measured: `evaluation_files` alone are enough then, and stand for both.

    Raises:
        ValueError: for data that is missing, cannot be read, or is of another size.
    """
    source = source_of(data, trained)
    if source == "generated":
        parts = [generated_images(data.generated, data.size, seed), generated_images(4, data.size, seed + 1)]
        return *(Images([(part.reshape(len(part), -1), False)]) for part in parts), "generated slopes of colour"
    if source == "dataset":
        parts = [load_rows(data, split) for split in (data.training_split, data.evaluation_split)]
        found = [stacked(column_of(rows, data), len(rows), data, data.dataset) for rows in parts]
        return *(Images([(part, False)]) for part in found), data.dataset
    held_out = None if data.evaluation_files is None else local_images(data.evaluation_files, data)
    if data.files is None:
        return held_out, held_out, "images of the user's own"
    images = local_images(data.files, data)
    training, held_out = split_images(images, data, seed) if held_out is None else (images, held_out)
    return training, held_out, "images of the user's own"


def split_images(images: Images, data: ImageData, seed: int) -> tuple[Images, Images]:
    """Training and held-out images: those whose content (or name, see `ImageData.alike`) has a hash below the share.

    Raises:
        ValueError: where all of them are alike, or some that must be told by their names have none.
    """
    groups = {}
    for index, name in enumerate(images.names):
        if data.alike is not None and name is None:
            raise ValueError(f"data.alike is {data.alike!r}, but must be null for arrays, whose images have no names")
        key = images[index] if data.alike is None else np.frombuffer(re.sub(data.alike, "", name).encode(), np.uint8)
        groups.setdefault(digest_of(key, seed), []).append(index)
    digests = sorted(groups)
    if len(digests) < 2:
        raise ValueError(f"data.files: {len(images)} image(s), all alike, but two are needed, one of them to hold out")
    border = data.held_out * 256 ** len(digests[0])
    below = sum(int.from_bytes(digest, "big") < border for digest in digests)
    below = min(max(below, 1), len(digests) - 1)
    chosen = [sorted(i for digest in part for i in groups[digest]) for part in (digests[below:], digests[:below])]
    training, held_out = (Images(images.parts, images.names, np.array(part)) for part in chosen)
    return training, held_out


def column_of(rows, data: ImageData) -> Iterator:
    if data.image_column not in rows.column_names:
        raise ValueError(
            f"data.image_column is {data.image_column!r}, but must be one of {', '.join(rows.column_names)}, the columns of "
            f"{data.dataset}"
        )
    return (row[data.image_column] for row in rows)


def local_images(paths: list[str] | str, data: ImageData) -> Images:
    """Arrays in the files of .npy and .npz, and pictures in folders."""
    parts, names = [], []
    for path in map(Path, as_list(paths)):
        if path.suffix in ARRAYS and path.is_file():
            parts.append((planes_in(path, data), True))
            names += [None] * len(parts[-1][0])
        elif path.is_dir():
            files = pictures_in(path)
            parts.append((stacked(opened(files), len(files), data, path), False))
            names += [file.stem for file in files]
        else:
            raise ValueError(f"data.files: {str(path)!r} must be a folder of images or a file of {', '.join(ARRAYS)}")
    return Images(parts, names)


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
        except Exception as error:  # of a damaged file Pillow's readers raise of all kinds
            raise ValueError(f"data.files: {str(file)!r} cannot be read as an image: {error}") from None


def stacked(images: Iterable, count: int, data: ImageData, where) -> np.ndarray:
    """(count, 3 * size * size) uint8; each image must have the size, unless it is resized, and be one that the processor takes."""
    processor = processor_of(data, token_dtype="uint8")
    rows = np.empty((count, 3 * data.size**2), np.uint8)
    for i, image in enumerate(images):
        if image.size != (data.size, data.size) and not data.resize:
            raise ValueError(
                f"data.size is {data.size}, but an image of {image.size[0]} x {image.size[1]} pixels is there; "
                "data.resize=true makes all images fit"
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


def png_bits_per_dimension(images: Iterable[np.ndarray], size: int) -> float | None:
    """What PNG needs for each image by itself, file headers and all, in bits per colour value; None without Pillow.

    Args:
        images: uint8 (3 * size * size) each.
    """
    try:
        from PIL import Image
    except ImportError:
        return None
    sizes = []
    for pixels in images:
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(size, size, 3)).save(file, format="PNG", optimize=True)
        sizes.append(8 * file.tell() / pixels.size)
    return float(np.mean(sizes))

"""Images as sequences of byte tokens and back: row after row, pixel after pixel, channel after channel.

    B images, H rows, W columns, C channels; L = H W C tokens

Token (h W + w) C + c is the value 0..255 of channel c of the pixel in row h and column w, plus `token_offset`. An RGB image
of 64 x 64 is 12,288 tokens, the paper's imagenet64; its model has axial positions of shape (64, 64, 3), one axis each.
"""

import os
import reprlib

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, SizeDict, is_pil_image, is_valid_image
from transformers.processing_utils import ImagesKwargs

BYTES = 256
BOX = 4  # PIL's filter that averages the pixels that become one; `PIL.Image.Resampling.BOX` without importing PIL
RGB_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
PLAIN_MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # those whose bytes are the values
CHANNELS = (1, 3, 4)
TOKEN_TYPES = ("uint8", "int16", "int32", "int64")


class ReformerImagesKwargs(ImagesKwargs, total=False):
    """Arguments beside those of every image processor."""

    token_offset: int | None
    token_dtype: str | None
    first_values: list | None


class ReformerImageProcessor(PilBackend):
    """Images to `input_ids` (B, L) and `attention_mask` (ones), and back.

    Args:
        do_convert_rgb (default true): make three channels of grey, indexed, CMYK, ... images; transparency becomes white.
        do_resize, size (true, 64 x 64), resample (the box filter): scale to this size; an image that has it stays as it is.
            `size={"shortest_edge": n}` keeps the aspect ratio.
        do_center_crop, crop_size (false, 64 x 64): afterwards cut out the middle.
        token_offset (0): added to every value. 2 gives the tokens of `ReformerByteTokenizer`.
        token_dtype ("int64"): what tokens are stored as; "uint8" takes an eighth (models want "int32" or "int64").
        first_values (none): how often each of the 256 values is the first of an image. A causal model predicts every token but
            that one: a whole image starts with a value drawn from here.

    Images are PIL images, arrays or tensors of integers 0 to 255, (H, W), (H, W, C) or (C, H, W), a batch of such with one
    dimension more, a list of any of them, or paths. `return_tensors="pt"` or `"np"` stacks images of one size.

    Raises:
        ValueError: something is not an image of bytes (numbers in [0, 1], 16 bits, ...), or an argument is impossible.
    """

    valid_kwargs = ReformerImagesKwargs
    model_input_names = ["input_ids", "attention_mask"]
    do_convert_rgb = True
    do_resize = True
    size = {"height": 64, "width": 64}
    resample = BOX
    do_center_crop = False
    crop_size = {"height": 64, "width": 64}
    token_offset = 0
    token_dtype = "int64"
    first_values = None

    def __init__(self, **kwargs):
        for name in ("size", "crop_size"):
            if isinstance(kwargs.get(name), (list, tuple)) and len(kwargs[name]) != 2:
                raise ValueError(f"`{name}` is {kwargs[name]!r}, but must give a height and a width.")
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name, None) for name in self._valid_kwargs_names})

    def _validate_preprocess_kwargs(self, **kwargs):
        for name in ("do_normalize", "do_rescale", "do_pad"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` is {kwargs[name]!r}, but must be false: the tokens are the bytes of the image."
                )
        offset, dtype = kwargs["token_offset"], kwargs["token_dtype"]
        if dtype not in TOKEN_TYPES:
            raise ValueError(f"`token_dtype` is {dtype!r}, but must be one of {', '.join(TOKEN_TYPES)}.")
        most = np.iinfo(dtype).max - BYTES + 1
        if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset <= most:
            raise ValueError(f"`token_offset` is {offset!r}, but must be an integer from 0 to {most} (for {dtype}).")
        check_first_values(kwargs["first_values"])
        super()._validate_preprocess_kwargs(**kwargs)

    # --- images to tokens -------------------------------------------------------------------------------------------

    def preprocess(self, images, *args, **kwargs):
        """Images to tokens; keywords are those of the class, for this call only, and `return_tensors`."""
        try:
            return super().preprocess(images, *args, **kwargs)
        except StrictDataclassError as error:  # an argument of a wrong type
            raise ValueError(str(error)) from error

    def _prepare_images_structure(self, images, expected_ndims=3):
        """A flat list of single images."""
        flat = [one for item in _listed(images) for one in _single_images(self._fetched(item))]
        if not flat:
            raise ValueError("`images` is empty, but must hold at least one image.")
        return flat

    def _fetched(self, image):
        """Paths and addresses are opened; anything else must be an image already."""
        if isinstance(image, (str, os.PathLike)):
            return _opened(image) if os.path.isfile(image) else self.fetch_images(os.fspath(image))
        if not is_valid_image(image):
            raise ValueError(
                f"`images` holds a {type(image).__name__}, but must hold PIL images, arrays, tensors or paths."
            )
        return image

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs):
        """uint8 (C, H, W)."""
        if is_pil_image(image):
            allowed = RGB_MODES if do_convert_rgb else tuple(PLAIN_MODES)
            if image.mode not in allowed:
                raise ValueError(f"an image has the mode {image.mode!r}, but must have one of {', '.join(allowed)}.")
        else:
            image = _bytes_of(image)
            input_data_format = _data_format(image.shape, input_data_format)
            image = image[..., None] if image.ndim == 2 else image
        return super().process_image(image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format)

    def center_crop(self, image, size, **kwargs):
        """Differs from other image processors: what is larger than the image is an error, not a black border."""
        if not size.height or not size.width or size.height > image.shape[1] or size.width > image.shape[2]:
            height, width = image.shape[1:]
            raise ValueError(
                f"`crop_size` is {dict(size)}, but must have a height up to {height} and a width up to {width}."
            )
        return super().center_crop(image, size, **kwargs)

    def _preprocess(
        self, images, do_resize, size, resample, do_center_crop, crop_size, token_offset, token_dtype, return_tensors, **kwargs
    ):  # fmt: skip
        rows = []
        for image in images:
            image = self.resize(image, size=size, resample=resample) if do_resize else image
            image = self.center_crop(image, crop_size) if do_center_crop else image
            tokens = image.transpose(1, 2, 0).reshape(-1).astype(np.int64) + token_offset
            rows.append(tokens.astype(token_dtype))
        lengths = sorted({len(row) for row in rows})
        if return_tensors is not None and len(lengths) > 1:
            raise ValueError(
                f"`images` become {lengths} tokens, but must be of one size for `return_tensors`: resize them."
            )
        masks = [np.ones(len(row), np.int64) for row in rows]
        return BatchFeature({"input_ids": rows, "attention_mask": masks}, tensor_type=return_tensors)

    def upper_rows(self, image, rows=None, input_data_format=None):
        """The tokens that a completion starts from: those of an image's upper rows, and how many channels it has.

        Args:
            image: one image.
            rows: how many rows are taken, once the image has the size that this processor makes; None: the image is that part.
            input_data_format: "channels_first" or "channels_last", where an array could be both.

        Returns:
            int64 (rows * W * C), and C.

        Raises:
            ValueError: it is not one image, not as wide as an image is, as high or higher, or `rows` are too few or too many.
        """
        height, width = self.image_size()
        images = self._prepare_images_structure(image)
        if len(images) != 1:
            raise ValueError(f"`image` is {len(images)} images, but must be 1.")
        if rows is None:
            pixels = self.process_image(
                images[0], do_convert_rgb=self.do_convert_rgb, input_data_format=input_data_format
            )
            if pixels.shape[2] != width or pixels.shape[1] >= height:
                raise ValueError(
                    f"an image has {pixels.shape[2]} x {pixels.shape[1]} pixels, but must be {width} wide and less than {height} "
                    "high, the part to be kept; or say with `rows` how many rows of the scaled image are kept."
                )
            rows, channels = pixels.shape[1], pixels.shape[0]
            tokens = pixels.transpose(1, 2, 0).reshape(-1).astype(np.int64) + self.token_offset
        else:
            if isinstance(rows, bool) or not isinstance(rows, int) or not 1 <= rows < height:
                raise ValueError(f"`rows` is {rows!r}, but must be a whole number from 1 to {height - 1}.")
            tokens = self.preprocess(images, token_dtype="int64", input_data_format=input_data_format)["input_ids"][0]
            channels = len(tokens) // (height * width)
        return tokens[: rows * width * channels], channels

    def image_size(self):
        """(height, width) of the images that this processor makes; `ValueError` where it does not say."""
        return self._size_of(None)

    # --- tokens to images -------------------------------------------------------------------------------------------

    def post_process(self, input_ids, size=None, output_type="np"):
        """The images of rows of tokens, for instance of what a model generated: the exact inverse.

        Args:
            input_ids: (B, L) or (L): a tensor, an array, or lists, which may differ in length where `size` is a list.
            size: {"height": H, "width": W}, or a list of them, one per image; default: the size that this processor makes.
                With fewer rows it reads a part, such as the upper half that a completion starts from.
            output_type: "np" (uint8 (H, W, C)), "pt" (uint8 (C, H, W)) or "pil".

        Raises:
            ValueError: the tokens are not as many as the size says, or are no bytes.
        """
        rows = _rows_of(input_ids)
        sizes = size if isinstance(size, (list, tuple)) else [size] * len(rows)
        if len(sizes) != len(rows):
            raise ValueError(f"`size` is a list of {len(sizes)}, but must be one for each of the {len(rows)} images.")
        if output_type not in ("np", "pt", "pil"):
            raise ValueError(f"`output_type` is {output_type!r}, but must be np, pt or pil.")
        return [_as(output_type, self._pixels(row, one)) for row, one in zip(rows, sizes, strict=True)]

    def decode(self, input_ids, size=None, output_type="np"):
        """The one image of one row of tokens; see `post_process`."""
        images = self.post_process(input_ids, size, output_type)
        if len(images) != 1:
            raise ValueError(
                f"`input_ids` are the tokens of {len(images)} images, but must be of 1: use `post_process`."
            )
        return images[0]

    def _pixels(self, tokens, size):
        """uint8 (H, W, C)."""
        height, width = self._size_of(size)
        channels = (3,) if self.do_convert_rgb else CHANNELS
        if height * width == 0 or len(tokens) % (height * width) or len(tokens) // (height * width) not in channels:
            allowed = " or ".join(str(height * width * count) for count in channels)
            raise ValueError(f"`input_ids` has {len(tokens)} tokens, but an image of {height} x {width} has {allowed}.")
        values = tokens.astype(np.int64) - self.token_offset
        if values.min() < 0 or values.max() >= BYTES:
            least, most = self.token_offset, self.token_offset + BYTES - 1
            raise ValueError(f"`input_ids` holds {tokens.min()} to {tokens.max()}, but must hold {least} to {most}.")
        return values.astype(np.uint8).reshape(height, width, -1)

    def _size_of(self, size):
        if size is None:
            size = self.crop_size if self.do_center_crop else self.size if self.do_resize else {}
        size = dict(size) if isinstance(size, (dict, SizeDict)) else {}
        height, width = size.get("height"), size.get("width")
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (height, width)):
            raise ValueError(f"`size` is {size}, but must give the height and width of the image.")
        return height, width


def check_first_values(values):
    """Raises `ValueError` unless they are 256 weights to draw with, or None."""
    if values is None:
        return
    try:
        weights = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):  # no numbers, or of no one length
        weights = np.zeros(0)
    if weights.shape != (BYTES,) or not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
        raise ValueError(
            f"`first_values` is {reprlib.repr(values)}, but must be {BYTES} numbers of at least 0, not all of them 0."
        )


def _listed(images):
    """A list, flattened; a single thing is a list of one."""
    if not isinstance(images, (list, tuple)):
        return [images]
    return [one for item in images for one in _listed(item)]


def _opened(path):
    """The image of a file in the mode that it has, turned as its camera says. (transformers makes it RGB at once, which turns
    what is transparent into whatever colour lies below, and 16 bits into 8.)"""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{os.fspath(path)!r} is not an image that can be read.") from error
    except Exception as error:  # of a damaged file Pillow's readers raise of all kinds
        raise ValueError(f"{os.fspath(path)!r} cannot be read as an image: {error}.") from error


def _single_images(image):
    """The images of a batch (4 dimensions), or the one image itself."""
    if is_pil_image(image) or image.ndim in (2, 3):
        return [image]
    if image.ndim == 4:
        return list(image)
    raise ValueError(f"an image has the shape {tuple(image.shape)}, but must have 2 or 3 dimensions, or 4 as a batch.")


def _bytes_of(image):
    """A NumPy array of uint8."""
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
    if array.dtype.kind not in "iu":
        raise ValueError(f"an image is of {array.dtype}, but must be of integers from 0 to 255.")
    if array.size == 0:
        raise ValueError(f"an image has the shape {array.shape}, but must have at least one pixel.")
    if array.min() < 0 or array.max() >= BYTES:
        raise ValueError(f"an image holds values from {array.min()} to {array.max()}, but must hold 0 to 255.")
    return array.astype(np.uint8)


def _data_format(shape, given):
    """Which dimension is that of channels; where both the first and the last could be, it must be said."""
    if len(shape) == 2:
        return ChannelDimension.LAST
    first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
    if given is not None:
        given = ChannelDimension(given)
        fits = first if given == ChannelDimension.FIRST else last
    elif first and last:
        raise ValueError(
            f"an image has the shape {shape}: say with `input_data_format` whether channels are first or last."
        )
    else:
        given, fits = (ChannelDimension.FIRST, first) if first else (ChannelDimension.LAST, last)
    if not fits:
        raise ValueError(f"an image has the shape {shape}, but must have 1, 3 or 4 channels, first or last.")
    return given


def _rows_of(input_ids):
    """A list of integer arrays (L)."""
    if isinstance(input_ids, torch.Tensor):
        input_ids = input_ids.detach().cpu().numpy()
    if not (isinstance(input_ids, (list, tuple)) or (isinstance(input_ids, np.ndarray) and input_ids.ndim)):
        raise ValueError(
            f"`input_ids` is {reprlib.repr(input_ids)}, but must be a tensor, an array or lists of tokens."
        )
    single = isinstance(input_ids, np.ndarray) and input_ids.ndim == 1
    single = single or not any(isinstance(x, (list, tuple)) or getattr(x, "ndim", 0) for x in input_ids)
    rows = [_array_of(row) for row in ([input_ids] if single else input_ids)]
    for row in rows:
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise ValueError(
                f"`input_ids` has a row of {row.dtype} and shape {row.shape}, but must have rows of integers."
            )
    return rows


def _array_of(row):
    """One row; of what is no array, one of objects, which is no row of integers either."""
    try:
        return np.asarray(row)
    except ValueError:  # lists of several lengths
        return np.asarray([None])


def _as(output_type, pixels):
    if output_type == "np":
        return pixels
    if output_type == "pt":
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


__all__ = ["ReformerImageProcessor"]

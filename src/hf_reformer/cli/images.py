"""Images for `hf-reformer generate`: one is completed, or whole ones are made; several of them become one PNG."""

import os

from .evaluate import check_writable

ENLARGED = 128  # pixels that an image gets at least, where --scale does not say
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TEXT_ONLY, IMAGES_ONLY = ("tail_bytes", "max_new_tokens"), ("rows", "samples", "scale")


def add_options(parser) -> None:
    """Those of images."""
    images = parser.add_argument_group("images, of a model that was trained on some")
    images.add_argument("--image", metavar="FILE", help="image to complete; without it, whole images are made")
    images.add_argument("--rows", type=int, metavar="N", help="scale the image and keep its upper N rows")
    images.add_argument("--samples", type=int, metavar="N", help="how many images (default 4)")
    images.add_argument("--output", metavar="FILE.png", help="where the images go, as one grid")
    images.add_argument("--scale", type=int, metavar="N", help="enlarge each pixel N times (default: so that it shows)")


def are_asked_for(arguments, has_text: bool) -> bool:
    """Whether the arguments are those of images.

    Raises:
        ValueError: where some of them are of text, some of images.
    """
    given = [name for name in ("image", "output", *IMAGES_ONLY) if getattr(arguments, name) is not None]
    text = [name for name in TEXT_ONLY if getattr(arguments, name) is not None] if given else []
    text += ["prompt or --prompt-file"] if has_text and given else []
    if text:
        raise ValueError(
            f"--{given[0]} is given, which is of images, and --{text[0].replace('_', '-')}, which is of text: leave one out"
        )
    return bool(given)


def check_arguments(arguments) -> None:
    """Raises `ValueError` for what is missing or out of range, `OSError` where the output cannot be written."""
    if arguments.output is None:
        raise ValueError("--output is missing: images need a file to go to, as --output grid.png")
    if not arguments.output.lower().endswith(".png"):
        raise ValueError(f"--output is {arguments.output!r}, but must end with .png")
    if arguments.rows is not None and arguments.image is None:
        raise ValueError(f"--rows is {arguments.rows}, but does nothing without --image")
    for name in ("samples", "scale"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, but must be at least 1")
    if arguments.image is not None and not os.path.isfile(arguments.image):
        raise ValueError(f"--image {arguments.image!r} is no file; allowed is an image")
    check_writable(arguments.output)


def load_processor(name: str, revision: str | None):
    """The image processor in a folder or on the Hub.

    Raises:
        ValueError: where there is none, or none of ours; or Pillow is missing.
    """
    from transformers import AutoImageProcessor
    from transformers.utils import is_vision_available

    if not is_vision_available():
        raise ValueError("images need pillow: pip install 'hf-reformer[image]'")
    missing = f"model {name} has no image processor ({PROCESSOR_FILES[0]}): it was not trained on images"
    if os.path.isdir(name) and not any(os.path.isfile(os.path.join(name, file)) for file in PROCESSOR_FILES):
        raise ValueError(missing)
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"{missing}, or it cannot be loaded: {error}") from error
    if not hasattr(processor, "upper_rows"):
        raise ValueError(f"model {name} has a {type(processor).__name__}, but must have a ReformerImageProcessor")
    return processor


def make(model, processor, device, arguments) -> str:
    """Writes the grid; gives a line that says so."""
    from ..files import replacing_file
    from ..model.image_completion import ReformerImagePipeline, grid

    pipe = ReformerImagePipeline(model=model, image_processor=processor, device=device)
    how = {"temperature": arguments.temperature, "top_p": arguments.top_p, "num_images": arguments.samples or 4}
    more = {name: getattr(arguments, name) for name in ("seed", "num_hashes", "rows")}
    with TokenBar(model.config.maximum_length) as bar:
        how |= {name: value for name, value in more.items() if value is not None}
        images = pipe(arguments.image, streamer=bar, **how)
    width, height = images[0].size
    sheet = grid(images, scale=arguments.scale or max(1, -(-ENLARGED // max(width, height))))
    with replacing_file(arguments.output) as temporary:
        sheet.save(temporary, format="PNG")
    return f"{len(images)} image(s) of {width} x {height} pixels in {arguments.output}"


class TokenBar:
    """How many tokens of each image are there, as a streamer of `generate`; only a terminal sees it.

    Args:
        length: of an image.
    """

    def __init__(self, length: int):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=length, unit="token", disable=None, leave=False, desc="generating")
        self.begun = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def put(self, value):
        """The given tokens first, (images, L), then those of each step, (images,)."""
        self.bar.update(1 if self.begun else value.shape[-1])
        self.begun = True

    def end(self):
        self.bar.refresh()

"""Images made by a causal model: `pipeline("image-completion", model=...)` continues the upper rows of one, or makes whole ones.

H rows, W columns, C channels of the images that the model was trained on; L = H W C tokens
"""

import contextlib

import torch
from transformers import AutoModelForCausalLM
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .generation import COLDEST, is_temperature
from .image_processing_reformer import BYTES, CHANNELS

TASK = "image-completion"
SEEDS = 2**64
GREY = 128


class ReformerImagePipeline(Pipeline):
    """Images to images, of PIL: the rows that are given are kept, those below are generated.

    `pipeline("image-completion", model=FOLDER)("upper-half.png", num_images=4)` gives four images.

    Args of a call:
        images: one image of anything that `ReformerImageProcessor` takes, or a list of them, for which a list of lists comes
            back; None: whole images are made, from a first value drawn as often as it was in training.
        rows: how many rows of each image are kept, once it is scaled to the model's size. Without it the image is that upper
            part: as wide as the model's images, and not as high.
        input_data_format: "channels_first" or "channels_last", where an array could be both, as one of 3 rows.
        num_images: of each (1).
        temperature (1.0; at least 1e-4, or 0: always the likeliest), top_p (1.0: all values): how values are drawn.
        seed: 0 to 2**64 - 1; the generators are afterwards as before. None: they are drawn from.
        num_hashes: rounds of hashing (None: the model's).
        streamer: of transformers' `generate`: gets the first tokens, and then those of each step.

    Raises:
        ValueError: for an image that does not fit, a number out of range, a model that cannot make the processor's images.
    """

    _load_processor = _load_feature_extractor = _load_tokenizer = _load_video_processor = False
    _load_image_processor = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.image_processor, "upper_rows"):
            kind = type(self.image_processor).__name__
            raise ValueError(f"`image_processor` is a {kind}, but must be a ReformerImageProcessor.")
        check_model(self.model.config, self.image_processor)

    def __call__(self, images=None, **kwargs):
        """See the class."""
        return super().__call__(list(images) if isinstance(images, tuple) else images, **kwargs)

    def _sanitize_parameters(self, rows=None, input_data_format=None, **kwargs):
        check_drawing(**kwargs)
        given = {"rows": rows, "input_data_format": input_data_format}
        return {name: value for name, value in given.items() if value is not None}, kwargs, {}

    def preprocess(self, image, rows=None, input_data_format=None):
        if image is None:
            if rows is not None:
                raise ValueError(f"`rows` is {rows!r}, but must be None where no image is given.")
            channels = channels_of(self.model.config, self.image_processor)
            return {"tokens": torch.zeros(0, dtype=torch.long), "channels": channels}
        tokens, channels = self.image_processor.upper_rows(image, rows, input_data_format)
        return {"tokens": torch.from_numpy(tokens), "channels": channels}

    def _forward(self, inputs, num_images=1, seed=None, **how):
        height, width = self.image_processor.image_size()
        length = height * width * inputs["channels"]
        check_room(self.model.config, length)
        with seeded(seed, self.device):
            tokens = inputs["tokens"].to(self.device).expand(num_images, -1)
            if not tokens.shape[1]:
                tokens = self._first_tokens(num_images)
            if tokens.shape[1] < length:
                tokens = self._continued(tokens, length, **how)
        return {"tokens": tokens}

    def postprocess(self, outputs):
        return self.image_processor.post_process(outputs["tokens"], output_type="pil")

    def _first_tokens(self, count):
        """(count, 1), drawn as often as each value was the first of the training images."""
        weights = self.image_processor.first_values
        if weights is None:
            raise ValueError(
                "`images` is None, but must be an image to complete: the model's image processor has no `first_values`, from which "
                "the first value of a whole image would be drawn."
            )
        drawn = torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, replacement=True)
        return (drawn[:, None] + self.image_processor.token_offset).to(self.device)

    def _continued(self, tokens, length, temperature=1.0, top_p=1.0, num_hashes=None, streamer=None):
        """(N, length). Without top_k=0 transformers would draw from the 50 likeliest only."""
        drawn = {"do_sample": True, "temperature": float(temperature), "top_p": top_p, "top_k": 0}
        how = drawn if temperature > 0 else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        if num_hashes is not None:
            how["num_hashes"] = num_hashes
        first, vocabulary = self.image_processor.token_offset, self.model.config.vocab_size
        others = [*range(first), *range(first + BYTES, vocabulary)]  # tokens that are no values
        return self.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length - tokens.shape[1], streamer=streamer,
            suppress_tokens=others or None, pad_token_id=0, eos_token_id=None, **how,
        )  # fmt: skip


def check_drawing(num_images=1, temperature=1.0, top_p=1.0, seed=None, num_hashes=None, streamer=None):
    """Raises `ValueError` for a number out of range, `TypeError` for an argument that there is none of."""
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    for name, value, fits, allowed in (
        ("num_images", num_images, lambda v: whole(v) and v >= 1, "a whole number of at least 1"),
        ("temperature", temperature, lambda v: number(v) and is_temperature(v), f"0 or a number of at least {COLDEST}"),
        ("top_p", top_p, lambda v: number(v) and 0 < v <= 1, "above 0 and at most 1"),
        ("seed", seed, lambda v: v is None or (whole(v) and 0 <= v < SEEDS), "from 0 to 2**64 - 1, or None"),
        ("num_hashes", num_hashes, lambda v: v is None or (whole(v) and v >= 1), "a whole number of at least 1, or None"),
    ):  # fmt: skip
        if not fits(value):
            raise ValueError(f"`{name}` is {value!r}, but must be {allowed}.")


def check_model(config, processor):
    """Raises `ValueError` where a model cannot write the processor's tokens."""
    wanted = processor.token_offset + BYTES
    if not getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ValueError("`model` is not a causal language model (`is_decoder`), but must be one to make images.")
    if config.vocab_size < wanted:
        raise ValueError(
            f"`model` has {config.vocab_size} tokens, but must have {wanted}, those of its image processor."
        )


def check_room(config, length):
    if config.maximum_length < length:
        raise ValueError(f"`model` has {config.maximum_length} positions, but must have {length}, those of an image.")


def channels_of(config, processor):
    """Of a whole image, where no other is given."""
    if processor.do_convert_rgb:
        return 3
    height, width = processor.image_size()
    channels = config.maximum_length // (height * width)
    if channels not in CHANNELS:
        raise ValueError(
            f"`model` has {config.maximum_length} positions, which must be those of images of {height} x {width} with 1, 3 or 4 "
            "channels where no image says how many they are."
        )
    return channels


@contextlib.contextmanager
def seeded(seed, device):
    """Within it random numbers follow `seed`, where there is one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def grid(images, columns=None, scale=1, margin=2):
    """One image of PIL of several of one size, row by row.

    Args:
        columns: default: as many as rows, or one more.
        scale: each pixel becomes so many in both directions.
        margin: grey pixels between the images.
    """
    from PIL import Image

    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"`images` have the sizes {sorted(sizes)}, but must be at least one, all of one size.")
    columns = min(columns or int((len(images) - 1) ** 0.5) + 1, len(images))
    width, height = (scale * n for n in images[0].size)
    rows = -(-len(images) // columns)
    size = (columns * (width + margin) - margin, rows * (height + margin) - margin)
    sheet = Image.new("RGB", size, (GREY,) * 3)
    for i, image in enumerate(images):
        place = (i % columns * (width + margin), i // columns * (height + margin))
        sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), place)
    return sheet


def register():
    """Makes the task known to `transformers.pipeline`; again it changes nothing."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=ReformerImagePipeline, pt_model=AutoModelForCausalLM)

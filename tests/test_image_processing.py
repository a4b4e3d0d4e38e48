"""`ReformerImageProcessor`: images to byte tokens in the paper's order, and exactly back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import build, tiny_config
from PIL import Image
from transformers import AutoImageProcessor

from hf_reformer import ReformerImageProcessor

HEIGHT, WIDTH = 5, 7
SIZE = {"height": HEIGHT, "width": WIDTH}


def random_images(count=2, height=HEIGHT, width=WIDTH, channels=3, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def processor():
    return ReformerImageProcessor(size=SIZE)


def test_tokens_go_by_row_then_pixel_then_channel(processor):
    image = random_images(1)[0]
    tokens = processor(image, return_tensors="np")["input_ids"][0]
    expected = [int(image[h, w, c]) for h in range(HEIGHT) for w in range(WIDTH) for c in range(3)]
    assert tokens.tolist() == expected


def test_an_image_of_the_paper_is_12288_tokens():
    image = random_images(1, 64, 64)[0]
    output = ReformerImageProcessor()(image, return_tensors="pt")
    assert output["input_ids"].shape == (1, 12288) and output["input_ids"].dtype == torch.int64
    assert torch.equal(output["input_ids"].reshape(64, 64, 3), torch.from_numpy(image).long())


def test_every_token_counts_although_black_is_the_padding_token(processor):
    output = processor(np.zeros((HEIGHT, WIDTH, 3), np.uint8), return_tensors="pt")
    assert output["attention_mask"].shape == (1, HEIGHT * WIDTH * 3) and bool(output["attention_mask"].all())


IMAGES = random_images()
INPUTS = {
    "PIL": [Image.fromarray(image) for image in IMAGES],
    "array, channels last": IMAGES,
    "array, channels first": IMAGES.transpose(0, 3, 1, 2),
    "tensor, channels last": torch.from_numpy(IMAGES),
    "tensor, channels first": torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
    "wide integers": IMAGES.astype(np.int64),
    "list of arrays": list(IMAGES),
    "list of tensors": list(torch.from_numpy(IMAGES)),
    "nested list": [[IMAGES[0]], [IMAGES[1]]],
    "list of batches": [IMAGES[:1], IMAGES[1:]],
    "mixed list": [Image.fromarray(IMAGES[0]), torch.from_numpy(IMAGES[1]).permute(2, 0, 1)],
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_input_gives_the_same_tokens(processor, name):
    tokens = processor(INPUTS[name], return_tensors="np")["input_ids"]
    assert np.array_equal(tokens, IMAGES.reshape(2, -1))


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_opened(processor, tmp_path, kind):
    Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
    expected = IMAGES[0].reshape(-1).tolist()
    assert processor(kind(tmp_path / "image.png"))["input_ids"][0].tolist() == expected
    assert processor([kind(tmp_path / "image.png")])["input_ids"][0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white_in_files_of_every_mode(processor, tmp_path, mode):
    image = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 0))
    image.convert(mode).save(tmp_path / "image.png")
    assert set(processor(tmp_path / "image.png")["input_ids"][0].tolist()) == {255}


def test_an_image_of_16_bits_is_refused_by_its_mode(processor, tmp_path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 1000, np.uint16)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="mode 'I;16', but must have one of"):
        processor(tmp_path / "image.png")


@pytest.mark.parametrize("kind", ["PIL", "array", "array with a channel", "channel first", "tensor"])
def test_grey_becomes_three_equal_channels(processor, kind):
    grey = IMAGES[0, :, :, 0]
    images = {
        "PIL": Image.fromarray(grey), "array": grey, "array with a channel": grey[..., None], "channel first": grey[None],
        "tensor": torch.from_numpy(grey.copy()),
    }  # fmt: skip
    tokens = processor(images[kind], return_tensors="np")["input_ids"][0]
    assert np.array_equal(tokens.reshape(HEIGHT, WIDTH, 3), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_other_modes_of_pil_become_rgb(processor, mode):
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255)).convert(mode)
    tokens = processor(image, return_tensors="np")["input_ids"][0]
    assert tokens.shape == (HEIGHT * WIDTH * 3,) and (tokens >= 254).all()


def test_transparency_becomes_white(processor):
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    assert (processor(Image.fromarray(image, "RGBA"), return_tensors="np")["input_ids"] == 255).all()


# --- and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64"])
@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_inverse_is_exact(offset, channels, dtype):
    images = random_images(3, channels=channels)
    processor = ReformerImageProcessor(
        size=SIZE, token_offset=offset, token_dtype=dtype, do_convert_rgb=channels == 3, do_resize=False
    )
    output = processor(images, return_tensors="pt")
    assert output["input_ids"].dtype == getattr(torch, dtype)
    assert int(output["input_ids"].min()) >= offset
    assert np.array_equal(np.stack(processor.post_process(output["input_ids"], SIZE)), images)


def test_bytes_are_kept_in_bytes():
    processor = ReformerImageProcessor(size=SIZE, token_dtype="uint8")
    tokens = processor(IMAGES, return_tensors="np")["input_ids"]
    assert tokens.dtype == np.uint8
    assert np.array_equal(np.stack(processor.post_process(tokens)), IMAGES)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_output_types(output_type, channels):
    image = random_images(1, channels=channels)[0]
    processor = ReformerImageProcessor(size=SIZE, do_convert_rgb=channels == 3)
    back = processor.decode(processor(image)["input_ids"][0], output_type=output_type)
    assert {"np": np.ndarray, "pt": torch.Tensor, "pil": Image.Image}[output_type] is type(back)
    back = back.permute(1, 2, 0).numpy() if output_type == "pt" else np.asarray(back).reshape(image.shape)
    assert np.array_equal(back, image)


def test_tokens_of_the_upper_half_are_an_image_too(processor):
    tokens = processor(IMAGES, return_tensors="pt")["input_ids"][:, : 3 * WIDTH * 3]
    halves = processor.post_process(tokens, {"height": 3, "width": WIDTH})
    assert np.array_equal(np.stack(halves), IMAGES[:, :3])


def test_images_of_several_sizes_without_tensors():
    processor = ReformerImageProcessor(do_resize=False)
    images = [random_images(1)[0], random_images(1, 11, 3 + 10)[0]]
    rows = processor(images)["input_ids"]
    back = processor.post_process(rows, [SIZE, {"height": 11, "width": 13}])
    assert all(np.array_equal(a, b) for a, b in zip(back, images, strict=True))


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_resizing_averages_the_pixels_that_become_one(processor):
    large = np.kron(IMAGES[0], np.ones((4, 3, 1), np.uint8))
    large[0, 0] += 12 * (large[0, 0] < 240).astype(np.uint8)
    expected = large.reshape(HEIGHT, 4, WIDTH, 3, 3).mean((1, 3))
    actual = processor(large, return_tensors="np")["input_ids"].reshape(HEIGHT, WIDTH, 3)
    assert np.abs(actual - expected).max() <= 0.51  # rounding


def test_the_middle_is_cut_out():
    processor = ReformerImageProcessor(do_resize=False, do_center_crop=True, crop_size=SIZE)
    large = random_images(1, 9, 13)[0]
    tokens = processor(large)["input_ids"][0]
    assert np.array_equal(processor.decode(tokens), large[2:7, 3:10])


def test_the_shorter_edge_alone_keeps_the_aspect_ratio():
    processor = ReformerImageProcessor(
        size={"shortest_edge": 5}, do_center_crop=True, crop_size={"height": 5, "width": 5}
    )
    assert len(processor(random_images(1, 10, 20)[0])["input_ids"][0]) == 75


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "NoneType"),
        (3, "holds a int"),
        ([], "is empty"),
        ([IMAGES[0], "x" * 3], "image source"),
        (IMAGES / 255, "float64.*integers from 0 to 255"),
        (torch.zeros(3, 5, 7), "float32"),
        (IMAGES.astype(np.int64) - 1, "-1 to"),
        (IMAGES.astype(np.int64) + 300, "300|from"),
        (IMAGES > 3, "bool"),
        (np.zeros((5, 7, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 7, 3), np.uint8), "input_data_format"),
        (np.zeros((1, 1, 5, 7, 3), np.uint8), "2 or 3 dimensions"),
        (np.zeros((0, 7, 3), np.uint8), "at least one pixel"),
        (Image.new("I;16", (7, 5)), "I;16"),
        (Image.new("F", (7, 5)), "'F'"),
    ],
)  # fmt: skip
def test_what_is_no_image_of_bytes_is_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_normalize": True}, "`do_normalize`"),
        ({"do_rescale": True}, "`do_rescale`"),
        ({"do_pad": True}, "`do_pad`"),
        ({"token_offset": -1}, "`token_offset` is -1"),
        ({"token_offset": 1, "token_dtype": "uint8"}, "from 0 to 0"),
        ({"token_offset": "3"}, "token_offset"),
        ({"token_dtype": "float32"}, "`token_dtype` is 'float32'"),
        ({"size": "x"}, "size"),
        ({"size": {"height": 0, "width": 3}}, "Size must"),
        ({"do_center_crop": True, "crop_size": {"height": 99, "width": 3}}, "`crop_size`.*up to 5"),
        ({"do_convert_rgb": False}, None),
    ],
)
def test_arguments_that_cannot_be_followed(processor, arguments, message):
    if message is None:
        assert len(processor(IMAGES[0], **arguments)["input_ids"][0]) == HEIGHT * WIDTH * 3
        return
    with pytest.raises(ValueError, match=message):
        processor(IMAGES[0], **arguments)


def test_indices_of_a_palette_are_not_taken_for_values():
    processor = ReformerImageProcessor(size=SIZE, do_convert_rgb=False)
    with pytest.raises(ValueError, match="mode 'P'"):
        processor(Image.new("P", (WIDTH, HEIGHT)))


def test_images_of_several_sizes_make_no_tensor():
    with pytest.raises(ValueError, match=r"\[105, 429\] tokens"):
        ReformerImageProcessor(do_resize=False)([random_images(1)[0], random_images(1, 11, 13)[0]], return_tensors="pt")


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (list(range(104)), {}, "104 tokens, but an image of 5 x 7 has 105"),
        ([256] * 105, {}, "holds 256 to 256, but must hold 0 to 255"),
        ([0.5] * 105, {}, "float64"),
        ([0] * 105, {"size": {"height": 0, "width": 7}}, "`size`"),
        ([0] * 105, {"size": {"shortest_edge": 7}}, "`size`"),
        ([0] * 105, {"output_type": "tf"}, "`output_type`"),
        ([[0] * 105] * 2, {"size": [SIZE]}, "list of 1"),
        ([[0] * 105] * 2, {"decode": True}, "2 images"),
    ],
)
def test_tokens_that_are_no_image_are_refused(processor, tokens, arguments, message):
    back = processor.decode if arguments.pop("decode", False) else processor.post_process
    with pytest.raises(ValueError, match=message):
        back(tokens, **arguments)


# --- transformers ---------------------------------------------------------------------------------------------------


def test_saved_settings_come_back_through_the_auto_class(tmp_path):
    processor = ReformerImageProcessor(
        size=SIZE, token_offset=2, do_center_crop=True, crop_size={"height": 3, "width": 3}
    )
    processor.save_pretrained(tmp_path)
    for again in (AutoImageProcessor.from_pretrained(tmp_path), ReformerImageProcessor.from_pretrained(tmp_path)):
        assert type(again) is ReformerImageProcessor
        assert again.to_dict() == processor.to_dict()
        assert again(IMAGES)["input_ids"][0].tolist() == processor(IMAGES)["input_ids"][0].tolist()


def test_the_auto_class_finds_it_by_the_model_alone(tmp_path):
    """A processor file that names no class, as other programs write them."""
    tiny_config(["local"]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"token_offset": 2}')
    assert AutoImageProcessor.from_pretrained(tmp_path).token_offset == 2


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_the_auto_class_gives_it_whatever_backend_is_asked_for(tmp_path, backend, caplog):
    ReformerImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is ReformerImageProcessor
    assert "not available" not in caplog.text


def test_a_model_completes_an_image():
    config = tiny_config(
        ["strict_local", "strict_lsh"], vocab_size=256, max_position_embeddings=105, axial_pos_shape=[5, 7, 3],
        axial_pos_embds_dim=[4, 5, 5], use_cache=True,
    )  # fmt: skip
    model, processor = build(config, dtype=torch.float32), ReformerImageProcessor(size=SIZE)
    prompt = {name: tensor[:, :63] for name, tensor in processor(IMAGES * 0, return_tensors="pt").items()}
    tokens = model.generate(**prompt, max_new_tokens=42, do_sample=False)
    images = processor.post_process(tokens)
    assert len(images) == 2 and images[0].shape == (5, 7, 3) and not images[0][:3].any()


@pytest.mark.parametrize(
    "values", [-float("inf"), "a" * 256, [None] * 256, {1: 2}, [[1]] * 256], ids=lambda x: str(x)[:20]
)
def test_first_values_that_are_no_weights(values):
    with pytest.raises(ValueError, match="`first_values` is"):
        ReformerImageProcessor(first_values=values)


@pytest.mark.parametrize("ids", [None, 3, "abc", {}, [[1, 2, 3], [4, 5]], [[1], 2], [[[1], [2, 3]]]], ids=str)
def test_tokens_that_are_none(ids):
    with pytest.raises(ValueError, match="`input_ids`"):
        ReformerImageProcessor(size={"height": 1, "width": 1}).post_process(ids)


def test_a_damaged_image_of_any_kind_is_named(processor, tmp_path):
    """Pillow's reader of .ppm raises a ValueError about a literal, that of .gif an IndexError, ..."""
    (tmp_path / "a.ppm").write_bytes(b"P6\n7 5\n\x1255\n" + bytes(105))
    with pytest.raises(ValueError, match=r"a.ppm' cannot be read as an image"):
        processor(str(tmp_path / "a.ppm"))


@pytest.mark.parametrize("name", ["size", "crop_size"])
def test_a_size_of_no_two_numbers_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ReformerImageProcessor(**{name: []})

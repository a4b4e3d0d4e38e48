"""`pipeline("image-completion")` and `hf-reformer generate --image`: what is kept, what is drawn, what is refused."""

import numpy as np
import pytest
import torch
from helpers import tiny_config
from PIL import Image
from transformers import pipeline, set_seed

from hf_reformer import ReformerForMaskedLM, ReformerImagePipeline, ReformerImageProcessor, ReformerModelWithLMHead, cli
from hf_reformer.model.image_completion import grid

HEIGHT, WIDTH = 5, 7
SIZE = {"height": HEIGHT, "width": WIDTH}
LENGTH = HEIGHT * WIDTH * 3


def model_of(vocab_size=256, **changes):
    torch.manual_seed(0)
    settings = {
        "max_position_embeddings": LENGTH,
        "axial_pos_shape": [HEIGHT, WIDTH, 3],
        "axial_pos_embds_dim": [4, 5, 5],
    }
    config = tiny_config(
        ["strict_local", "strict_lsh", "strict_local"], vocab_size=vocab_size, **{**settings, **changes}
    )
    config.use_cache = True
    return ReformerModelWithLMHead(config).eval()


def processor_of(**changes):
    return ReformerImageProcessor(**{"size": SIZE, "first_values": [0] * 40 + [1, 3] + [0] * 214, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model_of().save_pretrained(folder)
    processor_of().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def complete(folder):
    return pipeline("image-completion", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def arrays(images):
    return [np.asarray(image) for image in images]


def test_the_rows_that_are_given_are_kept_and_the_others_drawn_anew(complete, picture):
    images = arrays(complete(Image.fromarray(picture[:3]), num_images=4, seed=0))
    assert [image.shape for image in images] == [(HEIGHT, WIDTH, 3)] * 4
    assert all(np.array_equal(image[:3], picture[:3]) for image in images)
    assert len({image[3:].tobytes() for image in images}) == 4


def test_the_likeliest_completion_is_that_of_the_models_own_logits(complete, picture):
    """Each pixel against a full forward over what stands before it."""
    (image,) = arrays(complete(Image.fromarray(picture[:4]), temperature=0))
    tokens = torch.from_numpy(image.reshape(1, -1).astype(np.int64))
    with torch.no_grad():
        guesses = complete.model(tokens).logits.argmax(-1)[0]
    assert torch.equal(tokens[0, 4 * WIDTH * 3 :], guesses[4 * WIDTH * 3 - 1 : -1])


@pytest.mark.parametrize("kind", ["PIL", "array", "tensor", "path"])
def test_every_kind_of_image_is_completed_alike(complete, picture, kind, tmp_path):
    Image.fromarray(picture[:2]).save(tmp_path / "top.png")
    images = {
        "PIL": Image.fromarray(picture[:2]), "array": picture[:2], "tensor": torch.from_numpy(picture[:2]),
        "path": str(tmp_path / "top.png"),
    }  # fmt: skip
    expected = complete(picture[:2], seed=3)
    assert np.array_equal(*arrays([complete(images[kind], seed=3)[0], expected[0]]))


def test_rows_of_a_larger_image_are_those_of_the_scaled_one(complete, picture):
    large = np.kron(picture, np.ones((4, 4, 1), np.uint8))
    kept, other = arrays([complete(large, rows=rows, seed=0)[0] for rows in (4, 2)])
    assert np.array_equal(kept[:4], picture[:4]) and np.array_equal(other[:2], picture[:2])
    assert not np.array_equal(other[2:4], picture[2:4])


def test_an_array_that_could_be_read_in_two_ways_says_which(complete, picture):
    with pytest.raises(ValueError, match="say with `input_data_format`"):
        complete(picture[:3])
    (image,) = arrays(complete(picture[:3], input_data_format="channels_last"))
    assert np.array_equal(image[:3], picture[:3])


def test_a_list_of_images_gives_a_list_of_lists(complete, picture):
    found = complete([picture[:2], Image.fromarray(picture[:4])], num_images=2, seed=0)
    assert [len(images) for images in found] == [2, 2]
    assert np.array_equal(np.asarray(found[1][1])[:4], picture[:4])


def test_whole_images_start_as_often_with_a_value_as_those_of_training(complete):
    first = [image[0, 0, 0] for image in arrays(complete(num_images=200, seed=0, temperature=0))]
    assert set(first) == {40, 41} and 30 < first.count(40) < 72


def test_a_seed_gives_the_same_images_again_and_leaves_the_generator_alone(complete):
    set_seed(5)
    expected = torch.rand(3)
    set_seed(5)
    one, again, other = (arrays(complete(seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(*arrays([complete()[0], complete()[0]]))  # without one the generator is drawn from


def test_tokens_that_are_no_values_are_never_drawn():
    """An offset of 2 and 3 tokens after the values, all of them made likelier than any value."""
    model, processor = model_of(vocab_size=261), processor_of(token_offset=2)
    with torch.no_grad():
        model.lm_head.bias[[0, 1, 258, 259, 260]] = 100.0
    images = arrays(ReformerImagePipeline(model=model, image_processor=processor)(num_images=3, seed=0))
    assert len(images) == 3 and {image[0, 0, 0] for image in images} <= {40, 41}


def test_temperature_and_top_p_reach_the_drawing(complete, picture):
    top = Image.fromarray(picture[:4])
    sure = arrays(complete(top, temperature=0))[0]
    assert np.array_equal(arrays(complete(top, temperature=1e-4, seed=0))[0], sure)
    assert np.array_equal(arrays(complete(top, top_p=1e-6, seed=0))[0], sure)
    assert not np.array_equal(arrays(complete(top, seed=0))[0], sure)


def test_grey_images_are_made_where_the_model_is_of_grey_ones():
    config = {"max_position_embeddings": 35, "axial_pos_shape": [HEIGHT, WIDTH], "axial_pos_embds_dim": [5, 9]}
    pipe = ReformerImagePipeline(model=model_of(**config), image_processor=processor_of(do_convert_rgb=False))
    assert [image.mode for image in pipe(num_images=2, seed=0)] == ["L", "L"]
    grey = np.arange(14, dtype=np.uint8).reshape(2, WIDTH)
    assert np.array_equal(np.asarray(pipe(grey, seed=0)[0])[:2], grey)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((2, WIDTH + 1, 3), np.uint8), {}, "8 x 2 pixels, but must be 7 wide and less than 5 high"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), {}, "7 x 5 pixels"),
        (np.zeros((2, WIDTH, 3)), {}, "float64, but must be of integers from 0 to 255"),
        (np.full((2, WIDTH, 3), 256), {}, "256 to 256, but must hold 0 to 255"),
        (Image.new("I;16", (WIDTH, 2)), {}, "mode 'I;16'"),
        (np.zeros((2, 2, WIDTH, 3), np.uint8), {}, "2 images, but must be 1"),
        (3, {}, "holds a int"),
        (np.zeros((9, 9, 3), np.uint8), {"rows": HEIGHT}, "`rows` is 5, but must be a whole number from 1 to 4"),
        (np.zeros((9, 9, 3), np.uint8), {"rows": 1.5}, "`rows` is 1.5"),
        (None, {"rows": 2}, "`rows` is 2, but must be None"),
        (None, {"num_images": 0}, "`num_images` is 0, but must be a whole number"),
        (None, {"temperature": -1}, "`temperature` is -1"),
        (None, {"temperature": 1e-9}, "`temperature` is 1e-09"),
        (None, {"temperature": float("nan")}, "`temperature` is nan"),
        (None, {"top_p": 0}, "`top_p` is 0, but must be above 0"),
        (None, {"seed": -1}, "`seed` is -1"),
        (None, {"num_hashes": 0}, "`num_hashes` is 0"),
    ],
)
def test_what_cannot_be_completed_is_one_clear_error(complete, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        complete(image, **arguments)


@pytest.mark.parametrize(
    ("model", "processor", "message"),
    [
        ({"vocab_size": 255}, {}, "255 tokens, but must have 256"),
        ({"vocab_size": 256}, {"token_offset": 2}, "256 tokens, but must have 258"),
        ({}, {"first_values": None}, "no `first_values`"),
        ({}, {"size": {"height": 6, "width": 7}}, "105 positions, but must have 126"),
    ],
)
def test_a_model_that_cannot_make_the_processors_images_is_refused(model, processor, message):
    with pytest.raises(ValueError, match=message):
        ReformerImagePipeline(model=model_of(**model), image_processor=processor_of(**processor))(seed=0)


def test_a_model_that_is_not_causal_is_refused():
    model = ReformerForMaskedLM(tiny_config(["strict_local"], vocab_size=256, is_decoder=False))
    with pytest.raises(ValueError, match="not a causal language model"):
        ReformerImagePipeline(model=model, image_processor=processor_of())


@pytest.mark.parametrize("values", [[1] * 255, [-1] * 256, [0] * 256, [float("nan")] * 256])
def test_first_values_that_cannot_be_drawn_from_are_refused(values):
    with pytest.raises(ValueError, match="`first_values`"):
        ReformerImageProcessor(first_values=values)


def test_a_grid_holds_the_images_row_by_row():
    images = [Image.new("RGB", (3, 2), (i, i, i)) for i in range(5)]
    sheet = np.asarray(grid(images, columns=2, scale=2, margin=1))
    assert sheet.shape == (3 * 4 + 2, 2 * 6 + 1, 3)
    assert [sheet[5 * (i // 2), 7 * (i % 2), 0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert sheet[4, 0, 0] == sheet[0, 6, 0] == sheet[-1, -1, 0] == 128
    with pytest.raises(ValueError, match="all of one size"):
        grid([])


# --- the command ----------------------------------------------------------------------------------------------------


def run(capfd, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main(["generate", *map(str, arguments)])
    return code, *capfd.readouterr()


def test_the_command_completes_an_image_into_a_grid(folder, complete, picture, tmp_path, capfd):
    Image.fromarray(picture[:3]).save(tmp_path / "top.png")
    how = ("--seed", 1, "--samples", 4, "--scale", 3, "--temperature", 0.7, "--top-p", 0.9)
    code, out, err = run(capfd, folder, "--image", tmp_path / "top.png", "--output", tmp_path / "grid.png", *how)
    assert (code, err) == (0, "") and out == f"4 image(s) of 7 x 5 pixels in {tmp_path / 'grid.png'}\n"
    expected = grid(complete(Image.fromarray(picture[:3]), num_images=4, seed=1, temperature=0.7, top_p=0.9), scale=3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), np.asarray(expected))


def test_the_command_makes_whole_images_that_can_be_seen(folder, tmp_path, capfd):
    assert run(capfd, folder, "--output", tmp_path / "grid.png", "--samples", 1, "--seed", 0)[0] == 0
    assert Image.open(tmp_path / "grid.png").size == (19 * WIDTH, 19 * HEIGHT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "top.png"], "--output is missing"),
        (["--output", "a.jpg"], "--output is 'a.jpg', but must end with .png"),
        (["--output", "nowhere/a.png"], "No such file or directory: nowhere/a.png"),
        (["--output", "a.png", "--image", "missing.png"], "--image 'missing.png' is no file"),
        (["--output", "a.png", "--image", "text.png"], "'text.png' is not an image that can be read."),
        (["--output", "a.png", "--image", "cut.png"], "'cut.png' cannot be read as an image: "),
        (["--output", "a.png", "--image", "whole.png"], "an image has 7 x 5 pixels, but must be 7 wide and less than 5"),
        (["--output", "a.png", "--image", "deep.png"], "mode 'I;16'"),
        (["--output", "a.png", "--rows", "2"], "--rows is 2, but does nothing without --image"),
        (["--output", "a.png", "--samples", "0"], "--samples is 0, but must be at least 1"),
        (["--output", "a.png", "--prompt", "a"], "--output is given, which is of images, and --prompt"),
        (["--output", "a.png", "--tail-bytes", "3"], "--output is given, which is of images, and --tail-bytes"),
        ([], "nothing to generate from"),
    ],
)  # fmt: skip
def test_the_command_says_in_one_line_what_is_wrong(folder, picture, arguments, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("whole.png")
    Image.fromarray(picture[:3]).save("top.png")
    Image.fromarray(np.full((3, WIDTH), 1000, np.uint16)).save("deep.png")
    (tmp_path / "text.png").write_text("no image")
    large = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(large).save("cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    code, out, err = run(capfd, folder, *arguments)
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "a.png").exists()


def test_a_model_without_an_image_processor_makes_no_images(tmp_path, capfd):
    model_of().save_pretrained(tmp_path / "model")
    code, _, err = run(capfd, tmp_path / "model", "--output", tmp_path / "a.png")
    assert code == 2 and "has no image processor (preprocessor_config.json)" in err and err.count("\n") == 1

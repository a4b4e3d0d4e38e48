"""`make wheel` runs this in an empty environment with nothing but the wheel, from another folder: does what is installed work, and
what does it cost? Prints the size of the package and of all that it needs, and how long the import takes."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

WORDS = ("--prompt", "The President", "--max-new-tokens", "20", "--seed", "0")


def command(*arguments):
    done = subprocess.run(
        [Path(sys.executable).with_name("hf-reformer"), *arguments], capture_output=True, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def import_seconds():
    """Median of five fresh processes, less that of an empty one."""
    code = {"package": "import hf_reformer", "nothing": "pass"}
    took = {name: [] for name in code}
    for _ in range(5):
        for name, line in code.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", line], check=True)
            took[name].append(time.perf_counter() - start)
    return statistics.median(took["package"]) - statistics.median(took["nothing"])


def megabytes(folder):
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def there_and_back(hf_reformer):
    """A published model becomes one of Trax and ours again, with the same weights."""
    config = hf_reformer.ReformerConfig(
        attn_layers=["local", "lsh"], hidden_size=16, axial_pos_embds_dim=[4, 12], axial_pos_shape=[8, 8], is_decoder=True
    )  # fmt: skip
    model = hf_reformer.ReformerModelWithLMHead(config)
    model.save_pretrained("published")
    command("convert", "published", "--to", "trax", "--tokenizer", "none", "--output", "trax")
    command("convert", "trax", "--tokenizer", "none", "--output", "back")
    back = hf_reformer.ReformerModelWithLMHead.from_pretrained("back").state_dict()
    assert all(value.equal(back[name]) for name, value in model.state_dict().items())


def main():
    wheel = Path(sys.argv[1]).resolve()
    from transformers import AutoConfig

    import hf_reformer
    from hf_reformer.auto import shipped

    package = Path(hf_reformer.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not what was installed"
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if name.startswith("hf_reformer/")]
    for part in ("py.typed", "training/recipes/text.yaml", "training/card.md", "conversion/converting.py"):
        assert f"hf_reformer/{part}" in held and (package / part).is_file(), part
    for name in shipped():
        assert AutoConfig.from_pretrained(hf_reformer.pretrained(name)).model_type == "reformer"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert len(command("generate", "text-16k", *WORDS)) > 10
        command("train", "text", "--smoke", "--output", "run", "--quiet")
        assert Path("run/model/model.safetensors").is_file()
        assert len(command("generate", "run", *WORDS)) > 0
        there_and_back(hf_reformer)
        os.chdir("/")
    site = package.parent
    print(f"wheel {wheel.stat().st_size / 1e6:.1f} MB, package {megabytes(package):.1f} MB")
    print(f"with all that it needs {megabytes(site):,.0f} MB, PyTorch {megabytes(site / 'torch'):,.0f} MB of these")
    print(f"import hf_reformer: {import_seconds():.2f} s")


if __name__ == "__main__":
    main()

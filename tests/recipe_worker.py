"""What `test_accelerate_launch.py` launches: `hf-reformer train`, on CPUs, sharded if that is asked for."""

import os
import sys

from accelerate_worker import let_accelerate_shard_on_cpus

from hf_reformer import cli
from hf_reformer.training import run


def main(output, sharded, *arguments):
    if sharded == "sharded":
        original = run.build_trainer

        def build_trainer(*args, **kwargs):
            let_accelerate_shard_on_cpus()
            return original(*args, **kwargs)

        run.build_trainer = build_trainer
    return cli.main(["train", *arguments, "--output", output])


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run

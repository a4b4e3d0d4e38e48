"""`python -m conversion SOURCE --config ... --output ...`: the same as `hf-reformer convert`."""

import sys

from hf_reformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

"""`python -m hf_reformer.cli`: the same as `hf-reformer`, only later with its help: the package is imported by then."""

import sys

from hf_reformer_cli import main

sys.exit(main())

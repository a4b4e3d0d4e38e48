"""`python -m hf_reformer.cli`: the same as `hf-reformer`."""

import sys

from . import main

sys.exit(main())

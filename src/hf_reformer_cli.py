"""Where `hf-reformer` starts: the command line is read before the package is imported, which takes seconds.

A module of its own beside the package, because `import hf_reformer` registers the classes and so imports torch and
transformers. Here the package is known by its path only until a command runs; `--help` and wrong options need no more.
"""

import importlib.util
import sys
from collections.abc import Sequence

PACKAGE = "hf_reformer"


def main(argv: Sequence[str] | None = None) -> int:
    """`hf_reformer.cli.main` as a program of its own: it also chooses how many threads compute."""
    finish_import = lambda: None
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)  # its submodules can be imported now
        finish_import = lambda: spec.loader.exec_module(package)
    from hf_reformer import cli

    return cli.main(argv, prepare=lambda arguments: cli.prepare(arguments, finish_import))


if __name__ == "__main__":
    sys.exit(main())

"""Bases of DNA as bytes: from FASTA and GenBank files to a figure on held-out bases, beside Markov models and xz.

    pip download --no-binary :all: --no-deps biopython            # Tests/GenBank/NC_000932.gb, a chloroplast
    apt-get download unicycler-data                               # sample_data/reference.fasta, plasmids
    python -m benchmarks.dna prepare NC_000932.gb reference.fasta --records NC_000932.1 NC_016833.1
    hf-reformer train dna --minutes 20
    hf-reformer train dna-masked --minutes 10
    python -m benchmarks.dna compare --causal dna-output/model --masked dna-masked-output/model

`prepare` writes each record as plain upper-case letters: the last 65,536 bases are held out, the rest is trained on, and once
more as the other strand reads (the reverse complement). `compare` measures all on the same held-out bases: Markov models of
order 1 to 12 that are counted on the training text, `xz -9` that has read the training text before, and the trained models.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from hf_reformer.files import replacing_file

from . import dna_models as models
from .dna_records import prepare

RESULTS = Path("benchmarks/results/dna.json")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dna", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="FASTA and GenBank files to folders of plain bases")
    first.add_argument("files", nargs="+", type=Path)
    first.add_argument("--records", nargs="+", help="names of records to take (default: all)")
    first.add_argument("--held-out", type=int, default=65_536, help="bases at the end of each record")
    first.add_argument("--output", type=Path, default=Path("dna"))
    then = commands.add_parser("compare", help="bits per base of Markov models, xz and trained models")
    then.add_argument("--data", type=Path, default=Path("dna"), help="what prepare has written")
    then.add_argument("--causal", type=Path, help="folder of a model of the recipe dna")
    then.add_argument("--masked", type=Path, help="folder of a model of the recipe dna-masked")
    then.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    command = " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)])
    try:
        run(args, command)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


def run(args, command):
    if args.command == "prepare":
        for line in prepare(args.files, args.output, args.held_out, args.records):
            print(line)
        return
    result = {"command": command, "python": sys.version.split()[0], "torch": torch.__version__}
    result |= models.compare(args.data, args.causal, args.masked)
    with replacing_file(args.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

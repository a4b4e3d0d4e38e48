"""Records of FASTA and GenBank files as upper-case letters, and their split into training and held-out bases."""

import re
from pathlib import Path

from hf_reformer.files import replacing_file

LETTERS = b"ACGTRYSWKMBDHVN"  # IUPAC's: four bases, then what stands for several of them
OTHER_STRAND = bytes.maketrans(LETTERS, b"TGCAYRSWMKVHDBN")


def records(path: Path) -> dict[str, bytes]:
    """Name -> letters of each record of a FASTA or GenBank file.

    Raises:
        ValueError: for a file that cannot be read or is neither, and for letters that are no bases.
    """
    try:
        text = Path(path).read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise ValueError(f"file {str(path)!r} cannot be read: {error.strerror}") from None
    start = text.lstrip()[:5]
    if start[:1] == ">":
        found = fasta(text)
    elif start == "LOCUS":
        found = genbank(text)
    else:
        raise ValueError(f"file {str(path)!r} begins with {start!r}; allowed are FASTA ('>') and GenBank ('LOCUS')")
    for name, letters in found.items():
        if not re.fullmatch(r"[\w|-][\w.|-]*", name):
            raise ValueError(
                f"record {name!r} of {str(path)!r} makes no file name; allowed are letters, digits and _ . | -"
            )
        wrong = letters.translate(None, LETTERS)
        if wrong or not letters:
            what = f"the letter {chr(wrong[0])!r}" if wrong else "no bases"
            raise ValueError(f"record {name!r} of {str(path)!r} has {what}; allowed are {LETTERS.decode()}")
    return found


def fasta(text: str) -> dict[str, bytes]:
    """A record is a line of '>' and its name, then lines of letters."""
    parts = [part.partition("\n") for part in ("\n" + text.lstrip()).split("\n>")[1:]]
    return named(((title.split() or [""])[0], plain(lines)) for title, _, lines in parts)


def genbank(text: str) -> dict[str, bytes]:
    """A record ends with `//`; its letters stand between the lines ORIGIN and `//`, numbered and in groups."""
    found = []
    for part in ("\n" + text).split("\n//")[:-1]:
        head, _, letters = part.partition("\nORIGIN")
        names = [
            line.split()[1]
            for line in head.splitlines()
            if line.startswith(("LOCUS ", "VERSION ")) and line.split()[1:]
        ]
        numbered = letters.partition("\n")[2]
        found.append((names[-1] if names else "", plain(numbered.translate(DIGITS))))
    if not found:
        raise ValueError("a GenBank file has no line //; allowed are whole records, which end with it")
    return named(found)


DIGITS = dict.fromkeys(map(ord, "0123456789"))


def named(pairs) -> dict[str, bytes]:
    """Name -> letters; `ValueError` where two records have one name."""
    found = {}
    for name, letters in pairs:
        if name in found:
            raise ValueError(f"a file has two records {name!r}; allowed is one of each name")
        found[name] = letters
    return found


def plain(lines: str) -> bytes:
    """The letters without blanks, in upper case."""
    return "".join(lines.split()).upper().encode("ascii", "replace")


def other_strand(letters: bytes) -> bytes:
    """The reverse complement."""
    return letters.translate(OTHER_STRAND)[::-1]


def prepare(files: list[Path], output: Path, held_out: int, wanted: list[str] | None = None) -> list[str]:
    """Writes `output`/training and `output`/held-out, a file a record and strand; a line on each record.

    Raises:
        ValueError: for files that cannot be read, records that are not there or given twice, and records of less than twice
            the bases to hold out.
    """
    if held_out < 1:
        raise ValueError(f"--held-out is {held_out}; allowed are numbers from 1")
    found = [item for path in files for item in records(path).items()]
    names = [name for name, _ in found]
    for name in wanted or names:
        if names.count(name) != 1:
            raise ValueError(
                f"--records has {name!r}, which stands {names.count(name)} times in the files; allowed are {', '.join(names)}"
            )
    chosen = {name: letters for name, letters in found if wanted is None or name in wanted}
    for name, letters in chosen.items():
        if len(letters) < 2 * held_out:
            raise ValueError(
                f"record {name!r} has {len(letters):,} bases; allowed are at least {2 * held_out:,}, twice --held-out"
            )
    return [write_record(output, name, letters, held_out) for name, letters in chosen.items()]


def write_record(output: Path, name: str, letters: bytes, held_out: int) -> str:
    training = letters[:-held_out]
    for place, part in (
        (f"training/{name}.txt", training),
        (f"training/{name}.other-strand.txt", other_strand(training)),
        (f"held-out/{name}.txt", letters[-held_out:]),
    ):
        with replacing_file(output / place) as temporary:
            temporary.write_bytes(part)
    return f"{name}: {len(training):,} bases to train on, and their other strand; {held_out:,} held out"

"""Which errors are expected, and how they are said: everything else is a programming error and shows its trace."""

# by name, so that nothing is imported for it: of a class or of one of its bases
INPUT = {
    "ValueError", "zipfile.BadZipFile", "EOFError", "zlib.error", "_pickle.UnpicklingError", "lzma.LZMAError",
    "safetensors_rust.SafetensorError", "PIL.UnidentifiedImageError", "PIL.Image.DecompressionBombError",
    "datasets.exceptions.DatasetsError", "datasets.exceptions.DataFilesNotFoundError",
    "datasets.exceptions.DatasetNotFoundError", "datasets.exceptions.DatasetGenerationError", "click.exceptions.ClickException",
}  # fmt: skip
MACHINE = {"OSError", "MemoryError", "torch.OutOfMemoryError", "httpx.HTTPError", "httpx2.HTTPError"}


def exit_code(error: Exception) -> int | None:
    """2 for a wrong input, 1 for a machine that failed (disk, network, memory), None for a programming error."""
    names = {f"{base.__module__}.{base.__qualname__}".removeprefix("builtins.") for base in type(error).__mro__}
    return 2 if names & INPUT else 1 if names & MACHINE else None


def one_line(error: Exception) -> str:
    """What the error says, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{name}"
    return " ".join(str(error).split()) or type(error).__name__

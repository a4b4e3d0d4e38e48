"""Which errors are expected, and how they are said: everything else is a programming error and shows its trace."""

# package and class, by name, so that nothing is imported for it
INPUT = {
    "builtins.ValueError", "builtins.EOFError", "zipfile.BadZipFile", "zlib.error", "_lzma.LZMAError", "_pickle.UnpicklingError",
    "safetensors.SafetensorError", "PIL.UnidentifiedImageError", "PIL.DecompressionBombError", "datasets.DatasetsError",
    "click.ClickException", "typer.TyperException",
}  # fmt: skip
MACHINE = {"builtins.OSError", "builtins.MemoryError", "torch.OutOfMemoryError", "httpx.HTTPError", "httpx2.HTTPError"}


def exit_code(error: Exception) -> int | None:
    """2 for a wrong input, 1 for a machine that failed (disk, network, memory), None for a programming error."""
    names = {f"{base.__module__.split('.')[0]}.{base.__qualname__}" for base in type(error).__mro__}
    return 2 if names & INPUT else 1 if names & MACHINE else None


def one_line(error: Exception) -> str:
    """What the error says, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f": {error.filename}"
        return f"{error.strerror}{name}"
    said = getattr(error, "format_message", error.__str__)()  # click's errors know their option only there
    return " ".join(said.split()) or type(error).__name__

"""Folders sealed with a manifest: the names, sizes and SHA-256 digests of all their files, so that damage is noticed."""

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"
WINDOWS = os.name == "nt"  # what is tested is Linux


def seal(folder, **facts):
    """Writes `manifest.json` into `folder` and flushes the whole folder to the disk.

    Args:
        facts: kept in the manifest beside the files, for `facts_of`.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): _entry(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flaw(folder) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if every file is as it was. More files do not matter."""
    folder = Path(folder)
    try:
        files = _manifest(folder)["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _entry(path) != entry:
                return f"{name} has other contents than its manifest says"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({type(error).__name__}: {error})"
    return None


def facts_of(folder) -> dict:
    """What was given to `seal`; empty for a folder without a manifest."""
    try:
        return {name: value for name, value in _manifest(folder).items() if name != "files"}
    except FileNotFoundError:
        return {}


def flush(path):
    """Waits until a file, or the list of names in a folder, is on the disk. Windows opens no folders."""
    if WINDOWS and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder):
    return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))


def _entry(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}

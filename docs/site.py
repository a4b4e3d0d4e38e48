"""A hook of mkdocs: pages of the repository that lie outside docs/ join the site, README.md as its first page.

Links are written as they work in the repository; here they become those of the site. What a page links to and lies elsewhere
(a picture of the benchmarks, a notebook) is brought along.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urldefrag

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
FIRST, FOLDER = "README.md", "docs/"


def in_site(path):
    """Where a file of the repository stands in the site."""
    return "index.md" if path == FIRST else path.removeprefix(FOLDER)


def in_repository(uri):
    """The file of the repository that stands at `uri` in the site."""
    if uri == "index.md":
        return FIRST
    return FOLDER + uri if (ROOT / FOLDER / uri).exists() else uri


def targets(path, markdown):
    """(link, file of the repository, anchor) of each relative link on the page at `path` whose file exists."""
    for link in dict.fromkeys(LINK.findall(markdown)):
        name, anchor = urldefrag(link)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if name and ":" not in name and not target.startswith("..") and (ROOT / target).is_file():
            yield link, target, anchor


def reached(start):
    """`start` and all files that its pages lead to, by any number of links."""
    found, waiting = set(), list(start)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            if path.endswith(".md"):
                waiting += [target for _, target, _ in targets(path, (ROOT / path).read_text(encoding="utf-8"))]
    return found


def on_files(files, config):
    pages = [FOLDER + file.src_uri for file in files if file.src_uri.endswith(".md")]
    for path in sorted(reached([FIRST, *pages])):
        if files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    path = in_repository(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)
    moved = {
        link: posixpath.relpath(in_site(target), here or ".") + (f"#{anchor}" if anchor else "")
        for link, target, anchor in targets(path, markdown)
    }
    return LINK.sub(lambda match: moved.get(match[0], match[0]), markdown)

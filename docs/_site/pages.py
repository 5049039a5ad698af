"""Pages of the site that nobody writes by hand; MkDocs calls the functions `on_*`.

Commands come from the command lines, datasets from their manifests, and some pages are files of the
repository that stand outside docs/. Links between files hold on the site as they do in the
repository.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from command_pages import command_pages
from dataset_pages import dataset_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
COPIED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "manifests/README.md": "manifests.md",
}
"""File of the repository -> page of the site."""
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages that are made where the settings name a folder, as `commands/`."""
    made = _made()
    for section in config.nav or []:
        for title, entry in section.items():
            if isinstance(entry, str) and entry.endswith("/"):
                section[title] = _entries(entry, made)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made, what is copied, and the files that links lead to."""
    pages = _made()
    for source, page in COPIED.items():
        pages[page] = (ROOT / source).read_text("utf-8")
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for source in sorted(_linked_files()):
        files.append(File.generated(config, _place(source), abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links lead to where a file is on the site."""
    here = page.file.src_uri
    source = next((s for s, p in COPIED.items() if p == here), f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        return posixpath.relpath(_place(_target(link[0], source)), posixpath.dirname(here) or ".")

    # Pages that are made have links of the site already.
    return markdown if here in _made() else _LINK.sub(moved, markdown)


def on_post_page(output: str, **_: object) -> str:
    """Give the dialogue of the search, which the theme leaves without one, a name."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def _made() -> dict[str, str]:
    return command_pages() | dataset_pages()


def _entries(folder: str, made: Mapping[str, str]) -> list[object]:
    """Give a section's entries: pages of the folder, then of folders in it, each by itself."""
    inside = [page for page in made if page.startswith(folder)]
    entries: list[object] = []
    groups: dict[str, list[object]] = {}
    for page in inside:
        group, slash, _ = page.removeprefix(folder).partition("/")
        if not slash:
            entries.append(page)
            continue
        if group not in groups:
            groups[group] = []
            entries.append({group: groups[group]})
        groups[group].append(page)
    return entries


def _target(link: str, source: str) -> str:
    """Say which file of the repository a link of another one leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _place(source: str) -> str:
    """Say where a file of the repository is on the site."""
    if source in COPIED:
        return COPIED[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if source.startswith("manifests/demo/"):
        return "datasets/demo.md"
    return f"files/{source}"


def _linked_files() -> set[str]:
    """Find files outside docs/ that pages link to and that are no pages."""
    sources = [*COPIED, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    linked = {
        _target(link, source)
        for source in sources
        for link in _LINK.findall((ROOT / source).read_text("utf-8"))
    }
    return {one for one in linked if _place(one).startswith("files/") and (ROOT / one).is_file()}

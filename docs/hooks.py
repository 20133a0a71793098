"""What the site holds besides this folder: files beside it that pages refer to, and the catalogue of the registries."""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from leakmap.report.catalogue import markdown

ROOT = Path(__file__).parents[1]
PRESETS = "src/leakmap/study/presets.toml"
OUTSIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "entries/", "examples/", PRESETS)
"""Taken over as they are, under the paths that they have in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside, and the catalogue, which is as new as the registries."""
    files.append(File.generated(config, "catalogue.md", content=markdown()))
    for name in OUTSIDE:
        for path in sorted({ROOT / name, *(ROOT / name).rglob("*")}):
            inside = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in inside.parts:
                files.append(File.generated(config, inside.as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that are right in the repository be right in the site, which has this folder as its root."""
    at = page.file.src_uri
    here = at if at.startswith(OUTSIDE) else f"docs/{at}"

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1])).removeprefix("docs/")
        return f"]({posixpath.relpath(target, posixpath.dirname(at) or '.')}"

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)", moved, text)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Give the search a name for screen readers, which the theme leaves out."""
    search = 'data-md-component="search" role="dialog"'
    return output.replace(search, f'{search} aria-label="Search"')


class Readable(griffe.Extension):
    """Docstrings name functions as Sphinx does, which becomes code; of ``Annotated[T, …]`` a reader needs T."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called with each attribute, before dataclasses get their parameters from them."""
        annotation = attr.annotation
        if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
            inside = annotation.slice
            attr.annotation = inside.elements[0] if isinstance(inside, griffe.ExprTuple) else inside

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with each object that was read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":[a-z]+:`~?([\w.]+)`", r"``\1``", obj.docstring.value)

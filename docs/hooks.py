"""What mkdocs does besides: files of other folders, the changelog, and tables that fit a phone."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


class PlainTypes(griffe.Extension):
    """In the API reference `Annotated[T, ...]` is T: what else is there is ours."""

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Looks at the parameters of each function."""
        for parameter in func.parameters:
            found = parameter.annotation
            if isinstance(found, griffe.ExprSubscript) and str(found.left) == "Annotated":
                parameter.annotation = next(iter(found.slice.elements))


def on_files(files: Files, config: Any) -> Files:
    """Adds the recorded pictures and the examples to the site."""
    for pattern in ("results/*.png", "results/*.gif", "examples/*.py", "examples/*.ipynb"):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """What is one folder up on disk is beside the pages on the site."""
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text().replace("(docs/", "(")
    return re.sub(r"\(\.\./(results|examples)/", r"(\1/", markdown)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Code in a table may break behind `_`, `/` and `.`, or a phone shows only its first column."""

    def breakable(code: re.Match[str]) -> str:
        return re.sub(r"(<[^>]*>)|([_/]|\.(?=[A-Za-z]))", lambda m: m[1] or f"{m[2]}<wbr>", code[0])

    def cell(found: re.Match[str]) -> str:
        return re.sub(r"<code>.*?</code>", breakable, found[0], flags=re.DOTALL)

    return re.sub(r"<td.*?</td>", cell, html, flags=re.DOTALL)

"""What mkdocs does besides: pages show the pictures in `results/` and the changelog."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Adds the recorded pictures to the site."""
    for path in sorted(ROOT.glob("results/*")):
        if path.suffix in (".png", ".gif"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Pictures and the changelog are one folder up on disk, and beside the pages on the site."""
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text().replace("(docs/", "(")
    return markdown.replace("(../results/", "(results/")

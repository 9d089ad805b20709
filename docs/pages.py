"""What MkDocs needs beside the pages of `docs/`: those from elsewhere, and the package.

A code host shows the README, the changelog and the notebooks where they lie; the site has them
as pages of its own, and links to them are turned accordingly. The API reference is read from
the package as it is installed, where `models/` and `train/` are inside of it.
"""

import json
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

# Files of the repository, and the pages that they are.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    **{
        f"examples/{path.name}": f"examples/{path.stem}.md"
        for path in ROOT.glob("examples/*.ipynb")
    },
}


def on_startup(**_: Any) -> None:
    """Lays the package out as it is installed, before MkDocs looks for the folder."""
    folder = ROOT / "build" / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from elsewhere."""
    files.remove(files.src_uris["README.md"])
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = notebook(text)
        files.append(File.generated(config, page, content=turned(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links of a page of `docs/`."""
    source = f"docs/{page.file.src_uri}"
    return markdown if page.file.generated_by else turned(markdown, source)


def turned(text: str, source: str) -> str:
    """Returns a text whose links lead to the pages that files are on the site.

    Args:
        text: Markdown.
        source: the path of its file in the repository.
    """
    page = PAGES.get(source, source.removeprefix("docs/"))

    def turn(match: re.Match[str]) -> str:
        target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = PAGES.get(path, path.removeprefix("docs/"))
        return f"]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor or ''})"

    return re.sub(r"\]\(((?!\w+:)[^)#\s]+)(#[^)\s]*)?\)", turn, text)


def notebook(text: str) -> str:
    """Returns a notebook as Markdown: its texts, its code, and what the code showed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in shown:
                parts.append(f"![Plot](data:image/png;base64,{shown['image/png'].strip()})")
            else:
                parts.append(f"```\n{''.join(shown['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts)

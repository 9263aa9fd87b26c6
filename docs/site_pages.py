"""What the site has beside docs/: the README as its first page, and the reference of the API from the docstrings.

A hook of mkdocs. It also writes links to what is not on the site, such as rows of results, as plain text.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
API = "api/"  # what stands for the reference in the navigation
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def modules() -> dict[str, list[str]]:
    """The modules of every part of the package, by the name of the part; 'reformer' is what it exports."""
    found: dict[str, list[str]] = {"reformer": ["reformer"]}
    for path in sorted((ROOT / "reformer").rglob("*.py")):
        *packages, stem = path.relative_to(ROOT).with_suffix("").parts
        if stem.startswith("_") or "configs" in packages:
            continue
        part = packages[1] if len(packages) > 1 else stem
        found.setdefault(f"reformer.{part}", []).append(".".join([*packages, stem]))
    return found


def on_config(config):
    """Puts a page for every part into the navigation."""
    of_parts = [{part: f"{API}{part}.md"} for part in modules()]
    config.nav = [{"API": of_parts} if item == {"API": API} else item for item in config.nav]
    return config


def on_files(files, config):
    """Makes the pages that have no file."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=readme))
    for part, names in modules().items():
        page = f"# {part}\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"
        files.append(File.generated(config, f"{API}{part}.md", content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leaves of a link to a file outside docs/ its text."""
    folder = PurePosixPath(page.file.src_uri).parent

    def shorten(match):
        target = match[2].partition("#")[0]
        is_on_site = files.get_file_from_path(str(folder / target)) is not None
        return match[0] if is_on_site else match[1]

    return LINK.sub(shorten, markdown) if not page.file.src_uri.startswith(API) else markdown

"""Checks the built documentation: it fetches nothing from elsewhere, and each public name is on its API page.

`make docs` runs it on what mkdocs has built.
"""

import argparse
import ast
import sys
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "timm_mvhybrid"
# what a browser fetches when it opens a page; links that a reader follows are not among it
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page fetches, and the anchors it has."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if attributes.get("id"):
            self.anchors.add(attributes["id"])
        address = attributes.get(FETCHED.get(tag))
        if address and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(address)


def public_names(module):
    """The names in ``__all__`` of a file, read without an import; none where there is no ``__all__``."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def missing_from_api(site):
    """Public names without an entry on the API page of their package; subpackages and dunders have none."""
    missing = []
    for page in sorted((site / "api").glob("*.html")):
        module = PACKAGE / ("" if page.stem == PACKAGE.name else page.stem) / "__init__.py"
        if not module.exists():
            module = PACKAGE / f"{page.stem}.py"
        last_words = {anchor.rpartition(".")[2] for anchor in Page(page.read_text(encoding="utf-8")).anchors}
        names = [name for name in public_names(module) if not name.startswith("__")]
        names = [
            name
            for name in names
            if not (module.parent / name / "__init__.py").exists() or page.stem == "ops"
        ]
        missing += [f"{page.stem}.{name}" for name in names if name not in last_words]
    return missing


def fetched_from_elsewhere(site):
    """What pages and style sheets fetch over a network, as "file: address"."""
    found = []
    for page in sorted(site.rglob("*.html")):
        addresses = Page(page.read_text(encoding="utf-8")).fetched
        found += [
            f"{page.relative_to(site)}: {it}" for it in addresses if it.startswith(("http:", "https:", "//"))
        ]
    for sheet in sorted(site.rglob("*.css")):
        if any(
            f"{rule}{quote}http" in sheet.read_text(encoding="utf-8")
            for rule in ("url(", "@import ")
            for quote in ("", '"', "'")
        ):
            found.append(f"{sheet.relative_to(site)}: a font, picture or style sheet of another server")
    return found


def main():
    """Prints what is wrong; the exit code is 1 where anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="folder that mkdocs has built")
    site = parser.parse_args().site
    if not (site / "api").is_dir():
        sys.exit(f"{site}: no documentation was built here; run make docs")
    problems = [f"fetched from elsewhere: {it}" for it in fetched_from_elsewhere(site)]
    problems += [f"not on its API page: {it}" for it in missing_from_api(site)]
    if problems:
        sys.exit("\n".join(problems))
    print(
        f"{len(list(site.rglob('*.html')))} pages, nothing fetched from elsewhere, all public names described"
    )


if __name__ == "__main__":
    main()

"""The examples → notebooks that show each step with what it prints and draws.

A notebook has the example's description, its functions, and the body of its `main`, a cell for each paragraph; so the
examples are written once. Run from a clone of the repository, with ``pip install -e '.[tutorials]'``:

    python examples/make_tutorials.py build/tutorials
"""

import argparse
import ast
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent
NAMES = ("quickstart", "loso_phantom", "patch_and_slide_tasks", "pretrain_slide")


def paragraphs(source: str, statements: list[ast.stmt]) -> list[str]:
    """Divides statements into groups at the blank lines between them.

    An ``if`` that returns from `main` is left out: a cell cannot return, and ours do so under torchrun alone.

    Args:
        source: The whole file.
        statements: Neighbours in it, of one indentation.

    Returns:
        The code of each group, comments in front of it included, without indentation.
    """
    lines = source.splitlines()
    groups: list[list[str]] = []
    end = statements[0].lineno - 1
    for statement in statements:
        if isinstance(statement, ast.If) and any(
            isinstance(node, ast.Return) for node in ast.walk(statement)
        ):
            end = statement.end_lineno or statement.lineno
            continue
        between = lines[end : statement.lineno - 1]
        indented = lines[end : statement.end_lineno]
        if not groups or "" in (line.strip() for line in between):
            groups.append([])
        groups[-1] += [line[statement.col_offset :] for line in indented if line.strip() or groups[-1]]
        end = statement.end_lineno or statement.lineno
    return ["\n".join(group) for group in groups]


def notebook(name: str, arguments: list[str]) -> nbformat.NotebookNode:
    """Makes the notebook of an example.

    Args:
        name: The example's file without suffix.
        arguments: What its command line is given.

    Returns:
        The notebook, not executed.
    """
    path = EXAMPLES / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    before = tree.body[1 : tree.body.index(main)]
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name.replace('_', ' ').capitalize()}\n\n{ast.get_docstring(tree)}")
    ]
    setup = f"import sys\n\n__file__ = {str(path)!r}\n__doc__ = {ast.get_docstring(tree)!r}\nsys.argv = {[path.name, *arguments]!r}"
    setup += "".join(f"\n{argument.arg} = None" for argument in main.args.args)
    code = [setup, *paragraphs(source, before), *paragraphs(source, main.body[1:])]
    cells += [nbformat.v4.new_code_cell(text) for text in code]
    pictures = (
        "from IPython.display import Image as Picture, display\n\n"
        "for picture_file in sorted(options.output.glob('*.png')):\n    display(Picture(picture_file))"
    )
    cells.append(nbformat.v4.new_code_cell(pictures))
    return nbformat.v4.new_notebook(cells=cells)


def main() -> None:
    """Writes and executes the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the notebooks")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES, help="examples (default: all)")
    options, arguments = parser.parse_known_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        folder = options.output / "outputs" / name
        if folder.exists():
            sys.exit(f"{folder} exists already: remove it, or name another folder")
        made = notebook(name, ["--output", str(folder.resolve()), *arguments])
        NotebookClient(made, timeout=None, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
        nbformat.write(made, options.output / f"{name}.ipynb")
        print(options.output / f"{name}.ipynb")


if __name__ == "__main__":
    main()

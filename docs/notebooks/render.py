"""Hook of mkdocs: notebooks with their outputs as pages; nothing is executed or loaded."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Puts a page and its pictures in the place of each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".py"):
            files.remove(file)
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            made = pages(Path(file.abs_src_path), file.src_uri.removesuffix(".ipynb"))
            for uri, content in made.items():
                files.append(File.generated(config, uri, content=content))
    return files


def pages(notebook: Path, uri: str) -> dict[str, str | bytes]:
    """Address -> content: the page as Markdown, and the pictures that it shows."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    name, found, texts = uri.rsplit("/", 1)[-1], dict[str, str | bytes](), list[str]()
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            texts.append(source.replace(".ipynb)", ".md)"))
            continue
        texts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            if "image/png" in shown:
                picture = f"{name}-{len(found) + 1}.png"
                found[f"{uri.rpartition('/')[0]}/{picture}"] = base64.b64decode(shown["image/png"])
                texts.append(f"![The figure that the cell above draws]({picture})")
            elif "text/html" in shown:
                texts.append(table("".join(shown["text/html"])))
            elif "text/plain" in shown:
                texts.append(fenced("".join(shown["text/plain"])))
            elif "text" in output:
                texts.append(fenced("".join(output["text"])))
    return found | {f"{uri}.md": "\n\n".join(texts) + "\n"}


def fenced(text: str) -> str:
    """Text as a block that keeps its columns."""
    return f"```text\n{text.rstrip()}\n```"


def table(markup: str) -> str:
    """The table of a data frame, without its style sheet, so that the page's own holds."""
    drop = r"<style.*?</style>|</?div>|\s*\n\s*| border=\"1\"| class=\"\w+\""
    return re.sub(drop, "", markup, flags=re.DOTALL)

"""What makes a page self-contained and safe: scripts named by hash, data that cannot be code."""

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from effopd.errors import MissingExtraError
from effopd.records import write_text_atomic


def write_page(
    path: Path | str, template: str, parts: Mapping[str, str], scripts: Mapping[str, str]
) -> None:
    """Fill a template of this package and write it as one file, about 5 MB.

    Args:
        path: The file to write, replaced in one step.
        template: Name of the template; it holds `{{policy}}`, `{{style}}` and the names below.
        parts: What else to put in, already safe where it is put; see `embedded`.
        scripts: The only scripts that may run.
    """
    known = {
        "policy": content_security_policy(list(scripts.values())),
        "style": resource("page.css"),
        **parts,
        **scripts,
    }
    # One pass, so that a record that holds "{{page}}" stays what it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: known[match[1]], resource(template))
    write_text_atomic(path, page)


def embedded(value: object) -> str:
    """`value` as JSON that cannot end or leave the script element it is put in.

    `<`, `>`, `&` and everything beyond ASCII, U+2028 and U+2029 included, are written as escapes.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_security_policy(scripts: Sequence[str]) -> str:
    """Policy under which only `scripts`, named by their hash, run and nothing is fetched.

    Styles need 'unsafe-inline' because plotly.js writes style elements and attributes; images are
    the data and blob addresses of its picture export.
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def resource(name: str) -> str:
    """Text of a file of this package."""
    return importlib.resources.files("effopd.reports").joinpath(name).read_text(encoding="utf-8")


def plotly_source() -> str:
    """The plotting library as one script.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(
            "a report needs plotly, which is not installed: pip install 'effopd[report]'"
        ) from error
    # The hash in the policy is that of the text as a browser reads it, with LF line ends.
    source = str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in source.lower()
    assert "<!--" not in source
    return source

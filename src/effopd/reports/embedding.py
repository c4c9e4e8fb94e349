"""What makes a page self-contained and safe: scripts named by hash, data that cannot be code."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from effopd.errors import MissingExtraError
from effopd.records import display_text


def rendered_page(
    template: str,
    values: Mapping[str, Any],
    data: Mapping[str, object],
    scripts: Sequence[str],
    *,
    asks: bool = False,
) -> str:
    """A template of this package, filled, with plotly.js, `scripts` and their data inside.

    A content security policy lets no script run but plotly.js and `scripts`, and nothing be loaded;
    with `asks`, scripts may ask the server that the page came from. Values are made visible and
    escaped where they are put, unless they are `Markup`.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(
            "a report needs plotly, which is not installed: pip install 'effopd[report]'"
        ) from error
    # The hash in the policy is that of the text as a browser reads it, with LF line ends.
    plotly = str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in plotly.lower()
    assert "<!--" not in plotly
    sources = [plotly, *map(resource, scripts)]
    digests = [hashlib.sha256(source.encode()).digest() for source in sources]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    environment = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: display_text(value) if type(value) is str else value,
    )
    # plotly.js writes style elements and attributes, and exports pictures as data and blobs.
    page: str = environment.get_template(template).render(
        values,
        policy=(
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'"
            + ("; connect-src 'self'" if asks else "")
        ),
        style=Markup(resource("page.css")),
        data={name: Markup(embedded(value)) for name, value in data.items()},
        scripts=[Markup(source) for source in sources],
    )
    return page


def embedded(value: object) -> str:
    """`value` as JSON that cannot end or leave the script element it is put in.

    `<`, `>`, `&` and everything beyond ASCII, U+2028 and U+2029 included, are written as escapes.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def resource(name: str) -> str:
    """Text of a file of this package."""
    return importlib.resources.files("effopd.reports").joinpath(name).read_text(encoding="utf-8")

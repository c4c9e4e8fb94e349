"""The repository itself: files, versions, links, and a page whose examples run."""

import ast
import contextlib
import io
import pkgutil
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LARGEST_BYTES = 512 * 1024
IMAGES = {".png"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|tmp|home/\w+)/")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
VERSION_HEADING = re.compile(r"^## \[?(\d[^\]\s]*)\]?", re.MULTILINE)
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


def tracked_files() -> list[Path]:
    """What git tracks here; a copy without its history has nothing to check."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def text_files() -> list[Path]:
    return [file for file in tracked_files() if file.suffix not in IMAGES]


def pages() -> list[Path]:
    return [file for file in tracked_files() if file.suffix == ".md"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's fenced blocks in order."""
    return FENCE.findall(page.read_text("utf-8"))


def output_of(source: str) -> str:
    """What a Python source prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(source, {"__name__": "__main__"})
    return printed.getvalue()


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead to no file."""
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8"))]
    return [
        link
        for link in links
        if link and not link.startswith(("http:", "https:")) and not (page.parent / link).exists()
    ]


def test_no_path_of_one_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in text_files()
        if file.name != "test_attacks.py"  # where such paths are what is attacked
        if (match := MACHINE_PATH.search(file.read_text("utf-8")))
    ]
    assert not found


def test_tracked_files_are_small_text() -> None:
    files = tracked_files()
    assert [f.name for f in files if f.stat().st_size >= LARGEST_BYTES] == []
    assert [f.name for f in text_files() if b"\0" in f.read_bytes()] == []
    images = {f.parent for f in files if f.suffix in IMAGES}
    assert images <= {ROOT / "docs" / "assets", ROOT / "docs" / "assets" / "reproduction"}


def test_one_version_everywhere() -> None:
    import effopd

    ours = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert effopd.__version__ == version("effopd") == citation["version"] == ours
    released = VERSION_HEADING.findall((ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert released[:1] in ([], [ours])


def test_every_recipe_is_documented() -> None:
    text = "\n".join(page.read_text("utf-8") for page in pages())
    recipes = [file for file in tracked_files() if file.parent.name == "recipes"]
    assert [r.name for r in recipes if r.suffix == ".toml" and r.name not in text] == []


def test_links_lead_somewhere() -> None:
    broken = {str(page.relative_to(ROOT)): broken_links(page) for page in pages()}
    assert {page: links for page, links in broken.items() if links} == {}


def test_pages_name_existing_make_targets() -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    named = {
        target
        for page in pages()
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named
    assert named <= targets


MODULE = re.compile(r"`(effopd(?:\.\w+)+)")


def missing_names(page: Path) -> list[str]:
    """Names of the package that a page imports or names and that are not there."""
    named = set()
    for language, text in blocks(page):
        for node in ast.walk(ast.parse(text)) if language in {"python", "py"} else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "effopd":
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
    if page.name != "verl.md":  # there `effopd.key` is a setting
        named |= set(MODULE.findall(page.read_text("utf-8")))
    return sorted(name for name in named if not is_there(name))


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_pages_name_what_the_package_has() -> None:
    described = [page for page in pages() if page.name not in {"CHANGELOG.md", "LOG.md"}]
    missing = {str(page.relative_to(ROOT)): missing_names(page) for page in described}
    assert {page: names for page, names in missing.items() if names} == {}


def test_page_on_integration_runs_and_prints_what_it_shows() -> None:
    found = blocks(ROOT / "docs" / "integrate.md")
    (at,) = [place for place, (language, _) in enumerate(found) if language == "text"]
    (language, bowl), (_, shown) = found[at - 1 : at + 1]
    assert language == "python", "the example's output follows it in a ```text block"
    assert output_of(bowl) == shown
    top_to_bottom = [text for language, text in found[: at - 1] if language == "python"]
    steps = [line.split()[0] for line in output_of("\n".join(top_to_bottom)).splitlines()]
    assert steps == ["1", "2", "4", "8", "16", "32"]

import matplotlib.image
import numpy as np
import pytest

from effopd.records import Run
from effopd.reports.png import write_pngs
from effopd.reports.style import run_styles


def has_color(path, color):
    image = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((image == rgb).all(axis=-1).any())


@pytest.fixture(scope="module")
def pictures(sample_runs, tmp_path_factory):
    return write_pngs(sample_runs, tmp_path_factory.mktemp("png"))


def test_pictures_have_their_names_and_resolution(pictures):
    names = ["accuracy_steps", "accuracy_tokens", "reverse_kl_steps", "search"]
    assert [path.name for path in pictures] == [f"{name}.png" for name in names]
    for path in pictures[:3]:
        assert matplotlib.image.imread(path).shape[:2] == (800, 1280)


def test_every_run_is_drawn_in_its_colour(pictures, sample_runs):
    for style in run_styles(sample_runs):
        assert all(has_color(path, style.color) for path in pictures[:3])
    assert has_color(pictures[3], "#0072B2")  # the best candidate


def test_empty_and_odd_runs_draw_without_a_warning(tmp_path, make_run):
    labels = ["$\\frac", "_hidden", "a\x00b", "<b>"]
    runs = [make_run("other", [(0, 0.5, 1, 1.0)], label=label) for label in labels]
    runs.append(Run(directory=None, label="empty", info={}))
    assert [path.stem for path in write_pngs(runs, tmp_path)] == [
        "accuracy_steps",
        "accuracy_tokens",
        "reverse_kl_steps",
    ]
    assert len(write_pngs(runs[-1:], tmp_path)) == 3

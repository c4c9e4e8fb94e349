"""The paper's claims as numbers that records of the tiny world can contradict.

Each claim is a quantity per seed which the claim says is above a neutral value. What a record holds
is said where it is measured, in `accuracy.py`, `geometry.py` and `methods.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from studies.paper.quantities import (
    alike_within_2,
    at_equal_norm,
    difference,
    edge_excess,
    kept,
    middle_over_edges,
    mlp_over_attention,
    more_kept,
    norm_saving,
    recovered,
    share,
    sooner,
)

from effopd.records import Row

Statistic = Callable[[Row], float | None]
"""A record of one seed -> its number; None where the record leaves it undefined."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        figure: Figure or table of the paper.
        text: What is claimed.
        paper: The paper's value, as it gives it.
        quantity: What our number is.
        measurement: Name of the records it is computed from.
        statistic: The number of one seed.
        neutral: The claim says the number is above this.
    """

    figure: str
    text: str
    paper: str
    quantity: str
    measurement: str
    statistic: Statistic
    neutral: float = 0.0


CLAIMS: tuple[Claim, ...] = (
    Claim(
        figure="2a, 8",
        text="Scaled to the same norm, OPD's final update gives more accuracy than RL's",
        paper="curves only",
        quantity="accuracy of OPD minus RL, mean over common norms",
        measurement="scaling",
        statistic=at_equal_norm,
    ),
    Claim(
        figure="2b",
        text="During training OPD needs smaller updates than RL for the same accuracy",
        paper="curves only",
        quantity="log of RL's over OPD's norm at 80% of the lower final accuracy",
        measurement="progress",
        statistic=lambda record: norm_saving(record, "grpo", 0.8),
    ),
    Claim(
        figure="9",
        text="So does it against other RL algorithms (DAPO)",
        paper="curves only",
        quantity="log of DAPO's over OPD's norm at 80% of the lower final accuracy",
        measurement="progress",
        statistic=lambda record: norm_saving(record, "dapo", 0.8),
    ),
    Claim(
        figure="3a, 10a",
        text="Embeddings hardly matter: OPD keeps its accuracy with the base's embeddings",
        paper="negligible",
        quantity="share of OPD's gain that is kept",
        measurement="embeddings",
        statistic=lambda r: kept(r, "opd", r["opd"]["base_embeddings"]),
        neutral=0.9,
    ),
    Claim(
        figure="3a, 10a",
        text="The same for RL",
        paper="negligible",
        quantity="share of RL's gain that is kept",
        measurement="embeddings",
        statistic=lambda r: kept(r, "grpo", r["grpo"]["base_embeddings"]),
        neutral=0.9,
    ),
    Claim(
        figure="3b",
        text="RL changes the first and last layers more than OPD",
        paper="bars only",
        quantity="share of the squared update in edge layers, RL minus OPD",
        measurement="windows",
        statistic=edge_excess,
    ),
    Claim(
        figure="3b, 10b",
        text="MLP updates matter more than attention updates",
        paper="curves only",
        quantity="accuracy of MLP windows minus attention windows, OPD",
        measurement="windows",
        statistic=lambda record: mlp_over_attention(record, "opd"),
    ),
    Claim(
        figure="3b, 10b",
        text="Middle layers matter most (inverted U)",
        paper="curves only",
        quantity="accuracy of central minus outermost whole MLP windows, OPD",
        measurement="windows",
        statistic=lambda record: middle_over_edges(record, "opd"),
    ),
    Claim(
        figure="4a",
        text="A tenth of the rank keeps over 95% of OPD's performance at the same norm",
        paper="> 95%",
        quantity="share of OPD's accuracy with the top 10%",
        measurement="ranks",
        statistic=lambda r: share(r["opd"]["top"]["0.1"], r["opd"]["full"]),
        neutral=0.95,
    ),
    Claim(
        figure="4a",
        text="Leading parts of OPD's update are worth more than RL's",
        paper="all ranks",
        quantity="kept share of the gain with the top 5%, OPD minus RL",
        measurement="ranks",
        statistic=lambda record: more_kept(record, "0.05"),
    ),
    Claim(
        figure="4b",
        text="The tail half of the directions is worth less than the leading tenth (OPD)",
        paper="about 30% against 40.3%",
        quantity="accuracy with the top 10% minus the bottom 50%",
        measurement="ranks",
        statistic=lambda r: r["opd"]["top"]["0.1"] - r["opd"]["bottom"]["0.5"],
    ),
    Claim(
        figure="4b",
        text="RL's tail is larger than OPD's",
        paper="ratio 1.6 to 2.5",
        quantity="norm of the bottom half, RL over OPD, minus 1",
        measurement="ranks",
        statistic=lambda r: r["grpo"]["tail_norm"] / r["opd"]["tail_norm"] - 1,
    ),
    Claim(
        figure="5a, 15-28",
        text="OPD's leading directions move along a smoother path than RL's",
        paper="pictures only",
        quantity="path length of the leading vectors over all checkpoints, RL minus OPD",
        measurement="geometry",
        statistic=lambda record: difference(record, "path", "grpo", "opd"),
    ),
    Claim(
        figure="5b",
        text="Early on OPD's leading subspaces are closer to the final ones than RL's",
        paper="curves only",
        quantity="mean cosine (k = 1 to 20) in the first 30%, OPD minus RL",
        measurement="geometry",
        statistic=lambda record: difference(record, "early_cosine", "opd", "grpo"),
    ),
    Claim(
        figure="12",
        text="OPD's first direction at the start is closer to the last one than RL's",
        paper="up to 0.9 in middle layers",
        quantity="cosine of the first and last leading vectors, OPD minus RL",
        measurement="geometry",
        statistic=lambda record: difference(record, "first_last", "opd", "grpo"),
    ),
    Claim(
        figure="13",
        text="OPD's trajectories are more two-dimensional than RL's",
        paper="heat map only",
        quantity="explained variance of two components, OPD minus RL",
        measurement="geometry",
        statistic=lambda record: difference(record, "evr", "opd", "grpo"),
    ),
    Claim(
        figure="Table 1",
        text="OPD's updates have a larger spectral share than RL's",
        paper="39.6 against 33.2% (1.5B)",
        quantity="spectral over Frobenius norm, OPD minus RL",
        measurement="geometry",
        statistic=lambda record: difference(record, "table1.spectral_share", "opd", "grpo"),
    ),
    Claim(
        figure="Table 1",
        text="OPD's updates have a lower effective rank",
        paper="778 against 964 (1.5B)",
        quantity="effective rank, RL minus OPD",
        measurement="geometry",
        statistic=lambda record: difference(record, "table1.effective_rank", "grpo", "opd"),
    ),
    Claim(
        figure="Table 1",
        text="OPD's updates have more of their norm in the leading directions",
        paper="92.3 against 78.1% (1.5B, top 1%)",
        quantity="top 5% norm ratio, OPD minus RL",
        measurement="geometry",
        statistic=lambda record: difference(record, "table1.top_5_ratio", "opd", "grpo"),
    ),
    Claim(
        figure="5c",
        text="A tenth of the training gives 80% of the gain once it has the final norms",
        paper="about 80%",
        quantity="share of OPD's gain",
        measurement="rescaling",
        statistic=lambda record: recovered(record, "opd"),
        neutral=0.8,
    ),
    Claim(
        figure="14a",
        text="Accuracy rises with beta up to 0.8",
        paper="plateau from about 0.8",
        quantity="accuracy at beta = 0.8 minus beta = 0",
        measurement="rescaling",
        statistic=lambda r: r["opd"]["accuracy"]["0.8"] - r["opd"]["accuracy"]["0.0"],
    ),
    Claim(
        figure="14a",
        text="Accuracy falls again for large beta",
        paper="beyond about 1.2",
        quantity="accuracy at beta = 1.2 minus beta = 2",
        measurement="rescaling",
        statistic=lambda r: r["opd"]["accuracy"]["1.2"] - r["opd"]["accuracy"]["2.0"],
    ),
    Claim(
        figure="14b",
        text="The divergence from the teacher falls up to beta = 0.8",
        paper="monotone",
        quantity="KL at beta = 0 minus beta = 0.8, nats a token",
        measurement="rescaling",
        statistic=lambda r: r["opd"]["kl"]["0.0"] - r["opd"]["kl"]["0.8"],
    ),
    Claim(
        figure="14b",
        text="and rises again for large beta",
        paper="beyond about 1.2",
        quantity="KL at beta = 2 minus beta = 1.2, nats a token",
        measurement="rescaling",
        statistic=lambda r: r["opd"]["kl"]["2.0"] - r["opd"]["kl"]["1.2"],
    ),
    Claim(
        figure="11, Table 3",
        text="OPD shifts the token embeddings less than RL",
        paper="higher cosine to the base at all scales",
        quantity="1 - cosine to the base's embeddings, RL minus OPD, in units of 1e-6",
        measurement="shift",
        statistic=lambda r: 1e6 * (r["opd"]["embedding_cosine"] - r["grpo"]["embedding_cosine"]),
    ),
    Claim(
        figure="6",
        text="EffOPD (the paper's) is sooner at 90% of the teacher than vanilla OPD",
        paper="about 3x",
        quantity="log of steps, OPD over EffOPD, at the same learning rate",
        measurement="methods",
        statistic=lambda record: sooner(record, "paper", "opd"),
    ),
    Claim(
        figure="6",
        text="EffOPD (the paper's) is sooner than AlphaOPD",
        paper="curves only",
        quantity="log of steps, AlphaOPD over EffOPD",
        measurement="methods",
        statistic=lambda record: sooner(record, "paper", "alphaopd"),
    ),
    Claim(
        figure="6",
        text="EffOPD (the paper's) is sooner than ExOPD",
        paper="curves only",
        quantity="log of steps, ExOPD over EffOPD",
        measurement="methods",
        statistic=lambda record: sooner(record, "paper", "exopd"),
    ),
    Claim(
        figure="7a",
        text="One EffOPD run is as soon as vanilla OPD at its best learning rate",
        paper="curves only",
        quantity="log of steps, best OPD over EffOPD at the middle rate",
        measurement="methods",
        statistic=lambda record: sooner(record, "paper", "opd_best"),
        neutral=-0.05,
    ),
    Claim(
        figure="7b",
        text="The difficulty of the validation set is not critical",
        paper="curves only",
        quantity="log 2 minus |log of steps, easy over hard validation|",
        measurement="difficulty",
        statistic=alike_within_2,
    ),
    Claim(
        figure="7c",
        text="EffOPD (the paper's) is sooner in seconds too, validation included",
        paper="curves only",
        quantity="log of seconds to 90%, OPD over EffOPD",
        measurement="methods",
        statistic=lambda record: sooner(record, "paper", "opd", "seconds"),
    ),
)

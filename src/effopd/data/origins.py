"""Data sets by name: where they are, at which commit, and what their fields mean.

Commits are the ones that were current when they were written down, so that a run of today can be
repeated when the data set has changed. No code of a data set is ever run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from effopd.data.problem import AnswerRules

TestsForm = Literal["input_output", "codeforces", "evalplus", "livecodebench"]
"""Forms that tests of programs are written in; `effopd.data.code_formats` and its siblings."""

OriginName = Literal[
    "custom", "deepmath", "math_12k", "gsm8k", "eurus_code", "gopd_math", "gopd_code"
]


@dataclass(frozen=True, kw_only=True)
class Origin:
    r"""A data set. Fields of its rows may be dotted; "" is none.

    Attributes:
        repo: Repository on the Hugging Face hub.
        revision: Commit of the repository, 40 hexadecimal digits.
        licence: Licence of the data, for people.
        config: Configuration (subset) of the repository.
        split: Split of the repository.
        files: File of the repository, where only some are meant.
        prompt_field: Field with the question, or with chat messages.
        answer_field: Field with the reference answer.
        answer_after: The reference follows the last of this text in the answer field.
        level_field: Field with the difficulty.
        teacher_field: Field with the name of the problem's teacher.
        source_field: Field that says where the problem is from.
        tests_form: Form of the tests of a program; "" where answers are texts.
        tests_field: Field with the tests; "" where the form is one of whole rows.
        where_field: Field that selects rows.
        where: What that field has to be.
        log_base: What `\log` without a base means in its references, "e" or "10".
        relative_error: Relative error that answers to rounded references may have.
        system: What becomes of a system message in the data.
        template: Name or text of the template around a question.
    """

    repo: str = ""
    revision: str = ""
    licence: str = ""
    config: str = ""
    split: str = "train"
    files: str = ""
    prompt_field: str = "question"
    answer_field: str = "answer"
    answer_after: str = ""
    level_field: str = ""
    teacher_field: str = ""
    source_field: str = ""
    tests_form: TestsForm | Literal[""] = ""
    tests_field: str = ""
    where_field: str = ""
    where: str = ""
    log_base: Literal["e", "10"] = "e"
    relative_error: float = 0.0
    system: Literal["keep", "drop"] = "keep"
    template: str = "plain"

    @property
    def rules(self) -> AnswerRules:
        """How its references are written."""
        return AnswerRules(log_base=self.log_base, relative_error=self.relative_error)


_EURUS_CODE = Origin(
    repo="PRIME-RL/Eurus-2-RL-Data",
    revision="9776b13264b5aaa0b16495fcf086a0a8d86fd655",
    licence="MIT",
    prompt_field="prompt",
    answer_field="",
    source_field="data_source",
    tests_form="input_output",
    tests_field="reward_model.ground_truth",
    where_field="ability",
    where="code",
    system="drop",
    template="think_first",
)
_GOPD_MATH = Origin(
    repo="Keven16/G-OPD-Training-Data",
    revision="c9bc6783733858dd4892f26f95e4aea0942e91f1",
    licence="none stated; made from DeepMath-103K, which is MIT",
    files="DeepMath-103K/train_filtered_level6.parquet",
    prompt_field="prompt",
    answer_field="reward_model.ground_truth",
    source_field="data_source",
)

ORIGINS: Mapping[OriginName, Origin] = {
    "custom": Origin(),
    "deepmath": Origin(
        repo="zwhe99/DeepMath-103K",
        revision="5cf055d1fe3d7a2eb19719ac020211469736ae44",
        licence="MIT",
        answer_field="final_answer",
        level_field="difficulty",
        template="math",
    ),
    "math_12k": Origin(
        repo="nlile/hendrycks-MATH-benchmark",
        revision="465bcdb36f5962aa3512891498966df785fc3c18",
        licence="MIT (MATH)",
        prompt_field="problem",
        level_field="level",
        source_field="subject",
        template="math",
    ),
    "gsm8k": Origin(
        repo="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        licence="MIT",
        config="main",
        answer_after="####",
        template="math",
    ),
    "eurus_code": _EURUS_CODE,
    "gopd_math": _GOPD_MATH,
    "gopd_code": replace(
        _EURUS_CODE,
        repo=_GOPD_MATH.repo,
        revision=_GOPD_MATH.revision,
        licence="none stated; made from Eurus-2-RL-Data, which is MIT",
        files="Eurus/code_train.parquet",
        where_field="",
        where="",
        system="keep",
        template="plain",
    ),
}
"""Name in settings -> data set; "custom" is one's own, with `question` and `answer`."""

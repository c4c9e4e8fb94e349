"""What every engine must do: one table, the same tests."""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import EOS, TOKENIZER, FakeEngine, bigram_table, ids, tiny_model
from tests.reference.rollout_twin import log_softmax, truncated
from tests.support.fake_server import serving, settings_of
from tests.support.fake_vllm import FakeLLM

from effopd.errors import NonFiniteError
from effopd.models.tokenizers import end_token_ids
from effopd.rollouts.engine import Completion, Engine, Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.server import ServerEngine, WeightReload
from effopd.rollouts.settings import VLLMSettings
from effopd.rollouts.vllm import VLLMEngine
from effopd.servers.client import Client
from effopd.servers.handshake import api_of

CAP = 14


@dataclass(frozen=True)
class Subject:
    """An engine and the student behind it.

    Attributes:
        engine: What is tested.
        logits: The student's own logits after a prefix, computed without the engine.
        damage_: Puts NaN into the student.
        perturb_: Changes the student a little.
        knows_scaled: Whether log-probabilities at temperatures other than 0 and 1 are known; else
            they are NaN.
    """

    engine: Engine
    logits: Callable[[Sequence[int]], list[float]]
    damage_: Callable[[], None]
    perturb_: Callable[[], None]
    knows_scaled: bool = True


@dataclass(frozen=True)
class Place:
    """What a subject is made with.

    Attributes:
        stack: Closed after the test.
        directory: Of the test alone.
        ends: End tokens that the generation settings of the student name.
    """

    stack: ExitStack
    directory: Path
    ends: tuple[int, ...] = (EOS,)

    def student(self) -> Any:
        model = tiny_model()
        model.generation_config.eos_token_id = list(self.ends)
        return model


def fake(place: Place) -> Subject:
    table = bigram_table()

    def set_(value: float) -> None:
        for row in table:
            row[3] = value

    return Subject(
        FakeEngine(table),
        lambda prefix: table[prefix[-1]],
        lambda: set_(float("nan")),
        lambda: set_(1),
    )


def of_model(model: Any, engine: Engine, *, knows_scaled: bool = True) -> Subject:
    """A subject whose student is a model."""
    weight = model.lm_head.weight.data

    @torch.no_grad()
    def logits(prefix: Sequence[int]) -> list[float]:
        return model(torch.tensor([prefix])).logits[0, -1].double().tolist()

    return Subject(
        engine,
        logits,
        lambda: weight[3].fill_(torch.nan),
        lambda: weight[3].neg_(),
        knows_scaled,
    )


def hugging_face(place: Place, batch_size: int, training: bool) -> Subject:
    model = place.student().train(training)
    return of_model(model, HFEngine(model, TOKENIZER, batch_size=batch_size))


def vllm(place: Place) -> Subject:
    model, size = place.student(), len(TOKENIZER)
    llm, settings = FakeLLM(model, TOKENIZER), VLLMSettings()
    engine = VLLMEngine(llm, dict, model, TOKENIZER, vocabulary_size=size, settings=settings)
    return of_model(model, engine, knows_scaled=False)


def server(place: Place, flavor: str) -> Subject:
    model, size = place.student(), len(TOKENIZER)
    fake_server = place.stack.enter_context(serving(copy.deepcopy(model), TOKENIZER, flavor=flavor))
    settings = settings_of(fake_server)
    client, api = Client(settings), api_of(settings)
    reload = WeightReload(model, client, api, place.directory, vocabulary_size=size)
    ends = end_token_ids(TOKENIZER, model)
    engine = ServerEngine(client, api, TOKENIZER, vocabulary_size=size, ends=ends, reload=reload)
    return of_model(model, engine, knows_scaled=False)


SUBJECTS: dict[str, Callable[[Place], Subject]] = {
    "fake": fake,
    "hf": lambda place: hugging_face(place, batch_size=5, training=True),
    "vllm": vllm,
    "vllm-server": lambda place: server(place, "vllm"),
    "sglang-server": lambda place: server(place, "sglang"),
}
LOOPBACK = pytest.mark.allow_hosts(["127.0.0.1"])


NAMES = [pytest.param(n, marks=LOOPBACK if n.endswith("-server") else ()) for n in SUBJECTS]


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    with ExitStack() as stack:
        yield SUBJECTS[request.param](Place(stack, tmp_path))


def requests(count: int = 6) -> list[Request]:
    """Prompts of 1 to 6 tokens, each with its own seed."""
    prompt = ids("<bos> 3 + 4 * 2")
    return [Request(prompt_ids=prompt[: 1 + i % 6], seed=10**9 * i + 7) for i in range(count)]


def write(subject: Subject, asked: Sequence[Request], **sampling: Any) -> list[Completion]:
    return subject.engine.generate(asked, Sampling(**({"max_new_tokens": CAP} | sampling)))


def prefixes(request: Request, completion: Completion) -> list[tuple[int, ...]]:
    """What precedes each token of the completion."""
    whole = request.prompt_ids + completion.token_ids
    return [whole[:i] for i in range(len(request.prompt_ids), len(whole))]


def test_nothing_asked_nothing_written(subject: Subject) -> None:
    assert write(subject, []) == []


def test_completion_depends_on_its_own_request_alone(subject: Subject) -> None:
    asked = requests()
    together = write(subject, asked)
    backwards = write(subject, asked[::-1])[::-1]
    alone = [write(subject, [request])[0] for request in asked]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert one.token_ids == other.token_ids == third.token_ids
        assert one.finish_reason == other.finish_reason == third.finish_reason
        assert one.text == other.text == third.text
        assert one.log_probs == pytest.approx(third.log_probs, abs=1e-4)


def test_same_seed_same_completion_and_another_seed_another(subject: Subject) -> None:
    prompt = ids("<bos> 3 + 4 =")
    asked = [Request(prompt_ids=prompt, seed=seed) for seed in (5, 5, *range(100, 112))]
    first, again, *others = write(subject, asked)
    assert (first.token_ids, first.text) == (again.token_ids, again.text)
    assert first.log_probs == pytest.approx(again.log_probs, abs=1e-4)
    assert len({completion.token_ids for completion in others}) >= 11


def test_log_probs_are_those_of_the_student(subject: Subject) -> None:
    for temperature in (1.0, 0.5, 0.0):
        asked = requests(3)
        for request, completion in zip(
            asked, write(subject, asked, temperature=temperature), strict=True
        ):
            if temperature not in {0.0, 1.0} and not subject.knows_scaled:
                assert all(map(math.isnan, completion.log_probs))
                continue
            expected = [
                log_softmax(subject.logits(prefix), temperature)[token]
                for prefix, token in zip(
                    prefixes(request, completion), completion.token_ids, strict=True
                )
            ]
            assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_end_of_sequence_is_the_last_token_and_the_cap_holds(subject: Subject) -> None:
    completions = write(subject, requests(16))
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {"stop", "length"}, "the seeds were chosen so that both occur"
    for completion in completions:
        ended = completion.finish_reason == "stop"
        assert completion.token_ids.count(EOS) == int(ended)
        assert (completion.token_ids[-1] == EOS) is ended
        assert len(completion.log_probs) == len(completion.token_ids) <= CAP
        assert ended or len(completion.token_ids) == CAP
        assert completion.text == TOKENIZER.decode(completion.token_ids, skip_special_tokens=True)
    # An end exactly at the cap is a stop.
    shortest = min(len(c.token_ids) for c in completions if c.finish_reason == "stop")
    for completion in write(subject, requests(16), max_new_tokens=shortest):
        at_the_cap = completion.token_ids[-1] == EOS
        assert completion.finish_reason == ("stop" if at_the_cap else "length")


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_end_token_of_the_student_ends_an_answer(name: str, tmp_path: Path) -> None:
    """Those of its generation settings too, whatever the tokenizer and the engine know."""
    ends = {EOS, *ids("3")}
    with ExitStack() as stack:
        subject = SUBJECTS[name](Place(stack, tmp_path, tuple(ends)))
        completions = write(subject, requests(16))
    assert {c.token_ids[-1] for c in completions if c.finish_reason == "stop"} == ends
    for completion in completions:
        *before, last = completion.token_ids
        assert not ends & {*before}
        assert (completion.finish_reason == "stop") is (last in ends)
        said = before if last in ends else completion.token_ids
        assert completion.text == TOKENIZER.decode(said, skip_special_tokens=True)


def test_a_lower_cap_cuts_the_same_text(subject: Subject) -> None:
    asked = requests()
    whole = write(subject, asked)
    for cap in (1, 3, 12):
        for short, long in zip(write(subject, asked, max_new_tokens=cap), whole, strict=True):
            assert short.token_ids == long.token_ids[:cap]


def test_stop_strings_end_the_text_at_the_first_occurrence(subject: Subject) -> None:
    asked, stop = requests(16), ("#", "3 4", "; 5")
    stopped = write(subject, asked, stop=stop)
    cut = 0
    for short, long in zip(stopped, write(subject, asked), strict=True):
        texts = [TOKENIZER.decode(long.token_ids[: n + 1]) for n in range(len(long.token_ids))]
        first = next((n for n, text in enumerate(texts) if any(s in text for s in stop)), None)
        if first is None:
            assert short.token_ids == long.token_ids
            continue
        cut += 1
        assert short.token_ids == long.token_ids[: first + 1]
        assert short.finish_reason == "stop"
        assert any(s in short.text for s in stop)
        assert len(short.log_probs) == first + 1
    assert 5 < cut < 16


def test_global_generators_are_left_alone_and_do_not_matter(subject: Subject) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    first = write(subject, requests(3))
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(123)
    random.seed(123)
    assert write(subject, requests(3)) == first


def test_temperature_zero_is_the_argmax(subject: Subject) -> None:
    asked = requests(6)
    for request, completion in zip(asked, write(subject, asked, temperature=0.0), strict=True):
        tokens: list[int] = []
        while len(tokens) < CAP and EOS not in tokens:
            logits = subject.logits([*request.prompt_ids, *tokens])
            tokens.append(max(range(len(logits)), key=logits.__getitem__))
        assert completion.token_ids == tuple(tokens)


TOP_K, TOP_P, BOTH = {"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.5}
CUTS = {
    "fake": [TOP_K],
    "hf": [TOP_K, TOP_P, BOTH],
    "vllm": [TOP_P, BOTH],
    "vllm-server": [TOP_K, BOTH],
    "sglang-server": [TOP_P, BOTH],
}
"""Every engine cuts, every pair of engine kind and cut is met: not all of their product."""


@pytest.mark.parametrize("name", NAMES)
def test_what_is_cut_off_is_never_written(name: str, tmp_path: Path) -> None:
    asked = requests(6)
    with ExitStack() as stack:
        subject = SUBJECTS[name](Place(stack, tmp_path))
        for cut in CUTS[name]:
            for request, completion in zip(asked, write(subject, asked, **cut), strict=True):
                before = prefixes(request, completion)
                for prefix, token in zip(before, completion.token_ids, strict=True):
                    assert truncated(subject.logits(prefix), **cut)[token] > 0


def test_nan_is_an_error_not_a_text(subject: Subject) -> None:
    subject.damage_()
    subject.engine.sync_weights()
    with pytest.raises(NonFiniteError):
        write(subject, requests(3))


def test_new_weights_write_after_a_sync(subject: Subject) -> None:
    asked = requests()
    before = write(subject, asked)
    subject.perturb_()
    subject.engine.sync_weights()
    after = write(subject, asked)
    assert before != after
    for request, completion in zip(asked, after, strict=True):
        first = log_softmax(subject.logits(request.prompt_ids))[completion.token_ids[0]]
        assert completion.log_probs[0] == pytest.approx(first, abs=1e-4)


def test_the_fake_counts_syncs_and_needs_them() -> None:
    engine = FakeEngine(bigram_table())
    before = engine.generate(requests(), Sampling(max_new_tokens=CAP))
    engine.table[:] = bigram_table(seed=1)
    assert engine.generate(requests(), Sampling(max_new_tokens=CAP)) == before
    engine.sync_weights()
    assert engine.syncs == 1
    assert engine.generate(requests(), Sampling(max_new_tokens=CAP)) != before

"""The contract of engines, with the Hugging Face engine on a GPU."""

import inspect
from collections.abc import Sequence

import pytest
import torch
from tests.contracts import test_engines as contract
from tests.fakes import TOKENIZER, tiny_model

from effopd.rollouts.hf import HFEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

for name, check in list(vars(contract).items()):
    if name.startswith("test_") and "subject" in inspect.signature(check).parameters:
        globals()[name] = check


@pytest.fixture
def subject() -> contract.Subject:
    model = tiny_model().to("cuda")
    weight = model.lm_head.weight.data

    @torch.no_grad()
    def logits(prefix: Sequence[int]) -> list[float]:
        found: list[float] = model(torch.tensor([prefix]).cuda()).logits[0, -1].double().tolist()
        return found

    return contract.Subject(
        HFEngine(model, TOKENIZER),
        logits,
        lambda: weight[3].fill_(torch.nan),
        lambda: weight[3].neg_(),
    )

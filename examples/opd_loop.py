"""On-policy distillation with the search, whole, in one file: read it, copy it, change it.

    python examples/opd_loop.py STUDENT TEACHER PROBLEMS.jsonl --out trained --steps 200

STUDENT and TEACHER are Hugging Face causal language models that share a tokenizer: directories or
repository ids. Each line of PROBLEMS.jsonl is an object with a "prompt": a text, or a list of chat
messages. The student writes answers, the teacher scores every token of them, and now and then the
search looks further along the way that the weights have gone and keeps what scores better on
validation prompts. `effopd train` is this loop with exact resume, memory budgets, evaluation and
records; this file leaves them out so that nothing hides the method.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from effopd import Draw, Extrapolator, Score, Search

ANSWERS_AT_A_TIME = 16


@dataclass
class Answers:
    """B left-padded prompts with an answer each: T tokens in all, the last N of them new."""

    ids_BT: Tensor
    attended_BT: Tensor  # 1 at tokens of prompt and answer, 0 at padding
    counts_BN: Tensor  # 1.0 at tokens of the answer up to and with its end token

    def parts(self, size: int = ANSWERS_AT_A_TIME) -> list["Answers"]:
        """The batch in micro-batches."""
        columns = [column.split(size) for column in (self.ids_BT, self.attended_BT, self.counts_BN)]
        return [Answers(*part) for part in zip(*columns, strict=True)]


@torch.no_grad()
def write_answers(model, tokenizer, prompts: list, longest: int, seed: int) -> Answers:
    """Samples one answer to each prompt from the model itself: temperature 1, nothing cut off.

    The same seed gives the same random numbers, so that two candidates of a search differ by their
    weights alone.
    """
    chats = [p if isinstance(p, list) else [{"role": "user", "content": p}] for p in prompts]
    if tokenizer.chat_template:
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        encoded = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    else:
        texts = ["\n".join(message["content"] for message in chat) for chat in chats]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
    encoded = encoded.to(model.device)
    torch.manual_seed(seed)
    written = model.generate(
        input_ids=encoded.input_ids, attention_mask=encoded.attention_mask,
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=longest,
    )  # fmt: skip
    new_BN = written[:, encoded.input_ids.shape[1] :]
    ends = torch.tensor(model.generation_config.eos_token_id, device=model.device)
    is_end_BN = torch.isin(new_BN, ends).int()
    counts_BN = is_end_BN.cumsum(1) - is_end_BN == 0  # no end token before this one
    return Answers(
        written,
        torch.cat([encoded.attention_mask, counts_BN.to(encoded.attention_mask)], dim=1),
        counts_BN.float(),
    )


def log_probs(model, answers: Answers, rows: int) -> Tensor:
    """Log-probabilities (B, N, V) in fp32 of what may stand at each place of the answers.

    Args:
        model: Student or teacher.
        answers: What was written.
        rows: V, the size of the vocabulary that both have: heads may be padded differently.
    """
    places_BT = (answers.attended_BT.cumsum(1) - 1).clamp(min=0)
    length = answers.counts_BN.shape[1]
    logits = model(
        input_ids=answers.ids_BT, attention_mask=answers.attended_BT, position_ids=places_BT,
        use_cache=False, logits_to_keep=length + 1,
    ).logits  # fmt: skip
    return logits[:, -length - 1 : -1, :rows].float().log_softmax(-1)


def reverse_kl(student, teacher, answers: Answers) -> Tensor:
    """KL(student || teacher) in nats (B, N) at each token of the answers, 0 behind their end.

    This is the expectation, over the student's own next token, of what the sampled-token objective
    log student(y) - log teacher(y) estimates from one token (arXiv 2605.11739, section 2).
    """
    rows = min(student.get_output_embeddings().weight.shape[0],
               teacher.get_output_embeddings().weight.shape[0])  # fmt: skip
    with torch.no_grad():
        theirs_BNV = log_probs(teacher, answers, rows)
    ours_BNV = log_probs(student, answers, rows)
    return (ours_BNV.exp() * (ours_BNV - theirs_BNV)).sum(-1) * answers.counts_BN


def distil(student, teacher, tokenizer, prompts: list, settings: argparse.Namespace) -> None:
    """Trains the student in place."""
    held_out, train = prompts[: settings.validation], prompts[settings.validation :]
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0
    )

    def validate(draw: Draw) -> Score:
        """Scores the live weights: minus the mean divergence of their own new answers.

        The same draw always means the same prompts and the same random numbers.
        """
        seed = 1_000_003 * draw.step
        answers = write_answers(student, tokenizer, held_out, settings.longest, seed)
        sums = [reverse_kl(student, teacher, part).sum(1) for part in answers.parts()]
        per_prompt = (-torch.cat(sums) / answers.counts_BN.sum(1)).tolist()
        return Score(value=sum(per_prompt) / len(per_prompt), per_prompt=tuple(per_prompt))

    # Candidates are anchor + s * (tip - anchor): the anchor is the weights after the last search.
    extrapolator = Extrapolator(student, validate, search=Search())
    order = torch.Generator().manual_seed(settings.seed)
    for step in range(1, settings.steps + 1):
        # 1. The student writes answers to new prompts.
        drawn = torch.randperm(len(train), generator=order)[: settings.batch].tolist()
        answers = write_answers(
            student, tokenizer, [train[i] for i in drawn], settings.longest, settings.seed + step
        )
        # 2. The teacher scores every token: the loss is the mean divergence of a token.
        tokens = answers.counts_BN.sum()
        loss = 0.0
        for part in answers.parts():
            part_loss = reverse_kl(student, teacher, part).sum() / tokens
            part_loss.backward()
            loss += part_loss.item()
        # 3. One update of AdamW.
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # 4. When a search is due, look ahead and keep the best point that validates.
        result = extrapolator.step(step)
        found = "" if result is None else f"  search: scale {result.accepted_scale:g} kept"
        print(f"step {step}  kl {loss:.4f} nats  gradient {norm:.3g}  tokens {int(tokens)}{found}")


def main() -> None:
    parser = argparse.ArgumentParser(description="On-policy distillation with the search.")
    parser.add_argument("student")
    parser.add_argument("teacher")
    parser.add_argument("problems", type=Path, help='JSON Lines with a "prompt" each')
    parser.add_argument("--out", type=Path, required=True, help="where the student is saved")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="answers per step")
    parser.add_argument("--validation", type=int, default=64, help="prompts held out for searches")
    parser.add_argument("--longest", type=int, default=512, help="tokens of an answer at most")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(settings.student, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # fp32 weights: at rates like 1e-6 most updates are smaller than one step of bf16.
    student = AutoModelForCausalLM.from_pretrained(settings.student, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(settings.teacher, dtype="auto")
    # All end tokens count. Penalties and cuts of the model's own defaults would make its answers
    # samples of another policy than the one that is trained.
    defaults = student.generation_config
    ends = defaults.eos_token_id if defaults.eos_token_id is not None else tokenizer.eos_token_id
    student.generation_config = GenerationConfig(
        eos_token_id=ends if isinstance(ends, list) else [ends],
        pad_token_id=tokenizer.pad_token_id,
    )
    lines = settings.problems.read_text("utf-8").split("\n")
    prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    if len(prompts) < settings.validation + settings.batch:
        parser.error(f"{len(prompts)} prompts are fewer than --validation and --batch together")

    distil(student.to(device), teacher.to(device), tokenizer, prompts, settings)
    student.generation_config = defaults
    student.save_pretrained(settings.out)
    tokenizer.save_pretrained(settings.out)


if __name__ == "__main__":
    main()

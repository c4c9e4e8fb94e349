"""A student, a teacher and prompts, all tiny, as verl wants them on disk."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", *(f"w{i}" for i in range(27))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
PROMPTS = 32


def write_world(folder: Path) -> None:
    """`student/`, `teacher/` (another seed, sharper) and `train.parquet` below a folder."""
    for name, seed, sharpness in (("student", 0, 1.0), ("teacher", 1, 3.0)):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config())
        with torch.no_grad():
            model.lm_head.weight.mul_(sharpness)
        model.save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"w{i % 27} w{(7 * i + 3) % 27}"}],
            "data_source": "rig",
            "reward_model": {"style": "rule", "ground_truth": f"w{i % 27}"},
            "extra_info": {"index": i},
        }
        for i in range(PROMPTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )

"""On-policy distillation with TRL, with the search as one more callback.

python examples/trl_effopd.py --student Qwen/Qwen3-1.7B-Base --teacher Qwen/Qwen3-4B \\
    --prompts prompts.jsonl --out runs/trl          # accelerate launch, for several GPUs

`prompts.jsonl` holds one {"prompt": ...} a line: a text, or a conversation in TRL's format.
A run that was killed goes on where it was with --resume.
"""

import argparse

from datasets import load_dataset
from trl import DistillationConfig, DistillationTrainer

from effopd.integrations.trl import EffOPDCallback

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--student", required=True)
parser.add_argument("--teacher", required=True)
parser.add_argument("--prompts", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--longest", type=int, default=2048, help="tokens of an answer")
parser.add_argument("--lr", type=float, default=1e-6)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--cpu", action="store_true")
options = parser.parse_args()

settings = DistillationConfig(
    output_dir=options.out,
    max_steps=options.steps,
    learning_rate=options.lr,
    per_device_train_batch_size=options.batch,
    max_completion_length=options.longest,
    beta=1.0,  # reverse KL
    save_steps=16,
    use_cpu=options.cpu,
    report_to="none",
)
trainer = DistillationTrainer(
    model=options.student,
    teacher_model=options.teacher,
    args=settings,
    train_dataset=load_dataset("json", data_files=options.prompts, split="train"),
)
trainer.add_callback(EffOPDCallback(trainer))
trainer.train(resume_from_checkpoint=options.resume)

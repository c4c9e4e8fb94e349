"""The search inside TRL's trainers, on one box: see docs/trl.md.

Needs `pip install 'effopd[trl]'`. The rest of effopd never imports this package.
"""

from effopd.trainers.trl.callback import FOLLOWING, EffOPDCallback
from effopd.trainers.trl.sampled_token import SampledTokenTrainer

__all__ = ["FOLLOWING", "EffOPDCallback", "SampledTokenTrainer"]

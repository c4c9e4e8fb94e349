"""The search inside TRL's trainers, on one box: see docs/trl.md.

Needs `pip install 'effopd[trl]'`. The rest of effopd never imports this package.
"""

from effopd.integrations.slope import SlopeCallback
from effopd.integrations.trl.callback import FOLLOWING, EffOPDCallback
from effopd.integrations.trl.sampled_token import SampledTokenTrainer

__all__ = ["FOLLOWING", "EffOPDCallback", "SampledTokenTrainer", "SlopeCallback"]

"""The paper's claims as numbers that records of the tiny world can contradict.

Each claim is a quantity per seed which the claim says is above a neutral value; where the paper
gives its size, the quantity is held against that too. What a record holds is said where it is
measured, in `accuracy.py`, `geometry.py` and `methods.py`.
"""

from studies.paper.claim import Claim
from studies.paper.training_claims import TRAINING
from studies.paper.update_claims import UPDATES

CLAIMS: tuple[Claim, ...] = (*UPDATES, *TRAINING)
"""In the order of the page; another reading of a claim follows it."""

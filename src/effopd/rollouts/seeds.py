"""Seeds as a pure function of what they are for, so nothing has to be saved to resume."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: `derive_seed(run_seed, "train", step, index)`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

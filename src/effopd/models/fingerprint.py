"""Whether the weights in a directory are still those they were, without reading them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def weights_fingerprint(directories: Iterable[Path]) -> str:
    """Changes when a weight file of one of the directories does, by name, size or time.

    Args:
        directories: Model or adapter directories; what is none, such as a repository's name, counts
            as empty.

    Returns:
        Hexadecimal digits; "" where there is no weight file.
    """
    files = [path for each in directories for path in sorted(each.glob("*.safetensors"))]
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest() if found else ""

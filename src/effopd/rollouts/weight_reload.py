"""The student's weights, brought to a server through a directory that both see."""

import shutil
from pathlib import Path
from typing import Any

from effopd.errors import ServerError
from effopd.rollouts.student_probe import StudentProbe
from effopd.servers.api import Api
from effopd.servers.client import Client
from effopd.servers.handshake import mean_difference, probe_ids, score


class WeightReload:
    """Saves the student, has the server load it, and compares both on a fixed text.

    Each sync writes a directory of its own, since a server may keep files it has read: a reload
    of the same path was seen to bring back the old weights (vLLM issue 32718).

    Args:
        model: The live student.
        client: Asks the server.
        api: How.
        directory: Where weights are written; the server reads them at the same path.
        vocabulary_size: Head rows that count.
    """

    def __init__(
        self, model: Any, client: Client, api: Api, directory: Path, *, vocabulary_size: int
    ) -> None:
        self._model, self._client, self._api = model, client, api
        self._directory = directory.expanduser().resolve()
        self.probe = StudentProbe(model, probe_ids(vocabulary_size), vocabulary_size)
        self._syncs = 0

    def sync(self) -> None:
        """Makes the server write with the student's weights as they are now.

        Weights that give NaN stay here; `probe.check_finite` reports them.

        Raises:
            ServerError: The server did not load them.
        """
        if not self.probe.look():
            return
        self._syncs += 1
        target = self._directory / f"weights-{self._syncs}"
        shutil.rmtree(target, ignore_errors=True)
        self._model.save_pretrained(target)
        for call in self._api.reload_calls(str(target)):
            self._client.control(call, self._client.settings.step_s)
        theirs = score(self._client, self._api, self.probe.token_ids, 1, self._client.step())
        nats = mean_difference(self.probe.log_probs, theirs)
        if not nats <= self._client.settings.tolerance_nats:
            raise ServerError(
                f"{self._client} does not have the student's weights after a reload from {target}: "
                f"log-probabilities differ by {nats:.3g} nats a token on average, allowed are "
                f"{self._client.settings.tolerance_nats:g} (tolerance_nats). Start it with the "
                "student's model, in a precision close to the student's."
            )
        shutil.rmtree(self._directory / f"weights-{self._syncs - 1}", ignore_errors=True)

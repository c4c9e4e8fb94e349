"""A small inference server: real HTTP on 127.0.0.1, a tiny model behind it, and faults on demand.

It answers what vLLM and SGLang answer to the requests that are used here. A fault strikes one
request for completions or scores, then the next is served well.
"""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from effopd.models.loading import ModelSettings, load_model
from effopd.models.policy import Policy
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.servers.hidden_states import LOG_PROBS, STATES, read_tensors, write_tensors
from effopd.servers.served_model import ServedModel, TeacherServerSettings
from effopd.servers.settings import ServerSettings

FAULTS = (
    "drop", "500", "502", "429", "stall", "slow body", "half body", "truncated", "not json",
    "wrong count", "wrong tokens", "wrong vocabulary", "nan", "null", "empty", "restart",
)  # fmt: skip
"""Those after which another try brings a good answer."""
TRICKLE_S = 0.05
PATIENCE_S = 1.0
"""Of a client whose server stalls: fifty times what a good answer takes."""
AWAY_S = 0.15

Json = Any


class FakeServer:
    """One server, which can be restarted at its port with another model.

    Args:
        model: Scores and writes; its weights change when it is told to reload.
        tokenizer: Of the model.
        flavor: "vllm" or "sglang"; or "effopd", whose answers are those of the teacher server.
        name: Of the served model.
        context: Longest sequence it takes.
        key: API key that it asks for.
        can_reload: Whether its endpoints for weights are open.
        most_likely: What vLLM's --max-logprobs allows.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        flavor: str = "vllm",
        name: str = "tiny",
        context: int = 4096,
        key: str = "",
        can_reload: bool = True,
        most_likely: int = 20,
    ) -> None:
        self.model, self.tokenizer, self.flavor, self.name = model, tokenizer, flavor, name
        self.context, self.key, self.can_reload = context, key, can_reload
        self.most_likely = most_likely
        self._served: tuple[Any, ServedModel] | None = None
        self._one_at_a_time: Any = nullcontext()
        self.fault_at: Callable[[int], str | None] = lambda number: None
        self.next_model: Any = None
        self.requests: list[tuple[str, Json]] = []
        self.struck: list[str] = []
        self.most_at_a_time = 0
        self.shift_nats = 0.0  # of what it writes, against what it scores
        self._at_a_time = self._counted = 0
        self._lock, self._computing = threading.Lock(), threading.Lock()
        self._restarts: list[threading.Thread] = []
        self._http = self._listen(0)
        self.port: int = self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def strike(self, plan: dict[int, str] | Callable[[int], str | None]) -> None:
        """Faults from now on, by the number of the request (0 is the next)."""
        with self._lock:
            self._counted, self.struck = 0, []
            self.fault_at = plan.get if isinstance(plan, dict) else plan

    def restart(self, away_s: float = AWAY_S) -> None:
        """Goes away, and comes back at the same port, with `next_model` if there is one."""
        self._stop()
        time.sleep(away_s)
        if self.next_model is not None:
            self.model, self.next_model = self.next_model, None
        self._http = self._listen(self.port)

    def restart_meanwhile(self) -> None:
        """`restart` beside the request that is being answered."""
        self._restarts.append(threading.Thread(target=self.restart))
        self._restarts[-1].start()

    def close(self) -> None:
        for thread in self._restarts:
            thread.join()
        self._stop()
        if self._served is not None:
            self._served[1].close()

    def _stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _listen(self, port: int) -> "_Listener":
        http = _Listener(("127.0.0.1", port), _handler(self))
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return http

    # What is asked -------------------------------------------------------------------------------

    def answer(self, path: str, asked: Json) -> tuple[int, Json]:
        """Status and content of a good answer."""
        with self._lock:
            self.requests.append((path, asked))
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            return self._answer(path, asked)
        finally:
            with self._lock:
                self._at_a_time -= 1

    def only_one_at_a_time(self) -> None:
        """Answers of the teacher server then depend on no other, bit for bit."""
        self._one_at_a_time = threading.Lock()

    def _effopd(self) -> ServedModel:
        """The teacher server's own answers, by the model as it is now."""
        with self._computing:
            if self._served is None or self._served[0] is not self.model:
                if self._served is not None:
                    self._served[1].close()
                settings = TeacherServerSettings(name=self.name, max_tokens=self.context)
                policy = Policy(self.model, self.tokenizer)
                self._served = (self.model, ServedModel(policy, settings))
            return self._served[1]

    def _answer(self, path: str, asked: Json) -> tuple[int, Json]:
        if self.flavor == "effopd":
            with self._one_at_a_time:
                reply = self._effopd().answer(path, asked)
            return reply.status, reply.content
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.name, "object": "model"}]}
        if path == "/tokenize":
            ids = self.tokenizer(asked["prompt"], add_special_tokens=asked["add_special_tokens"])
            tokens = ids["input_ids"]
            return 200, {"tokens": tokens, "count": len(tokens), "max_model_len": self.context}
        if self.flavor == "vllm" and path == "/v1/completions":
            return self._vllm(asked)
        if self.flavor == "sglang" and path == "/generate":
            return self._sglang(asked)
        if self.can_reload and (weights := self._weights(path, asked)):
            self._load_(weights)
            return 200, {"success": True, "message": "loaded"}
        if self.can_reload and path == "/reset_prefix_cache":
            return 200, None
        return 404, {"error": "Not Found"}

    def _weights(self, path: str, asked: Json) -> str | None:
        if path == "/collective_rpc" and asked["method"] == "reload_weights":
            return str(asked["kwargs"]["weights_path"])
        return str(asked["model_path"]) if path == "/update_weights_from_disk" else None

    def _load_(self, directory: str) -> None:
        loaded = load_model(ModelSettings(path=str(Path(directory))))
        with self._computing:
            self.model.load_state_dict(loaded.state_dict())

    def _vllm(self, asked: Json) -> tuple[int, Json]:
        ids = asked["prompt"]
        if asked["model"] != self.name:
            return 404, {"error": f"The model {asked['model']} does not exist."}
        if len(ids) + asked["max_tokens"] > self.context:
            return 400, {"error": f"maximum context length is {self.context}"}
        if max(ids) >= self.model.config.vocab_size:
            return 400, {"error": f"Token id {max(ids)} is out of vocabulary"}
        choice: Json = {"index": 0, "prompt_token_ids": ids, "prompt_logprobs": None}
        if "prompt_logprobs" in asked:
            k = asked["prompt_logprobs"]
            if k > self.most_likely:
                message = f"Requested prompt logprobs of {k}, which is greater than max allowed"
                return 400, {"error": {"message": f"{message}: {self.most_likely}"}}
            places = []
            for token, log_probs_V in zip(ids[1:], self._distributions(ids), strict=True):
                rank = int((log_probs_V >= log_probs_V[token]).sum())
                values, likely = log_probs_V.topk(k)
                ranked = [(token, rank, log_probs_V[token].item())]
                ranked += zip(likely.tolist(), range(1, k + 1), values.tolist(), strict=True)
                places.append(
                    {
                        str(i): {"logprob": value, "rank": rank, "decoded_token": "x"}
                        for i, rank, value in ranked
                    }
                )
            eos = self.tokenizer.eos_token_id
            choice |= {"prompt_logprobs": [None, *places], "token_ids": [eos]}
        else:
            keys = ("temperature", "top_p", "top_k", "stop", "stop_token_ids")
            settings = {key: asked[key] for key in keys}
            written = self._write(ids, asked["seed"], asked["max_tokens"], settings)
            choice |= {
                "text": written.text,
                "token_ids": list(written.token_ids),
                "logprobs": {"token_logprobs": list(written.log_probs)},
                "finish_reason": written.finish_reason,
            }
        return 200, {"object": "text_completion", "model": self.name, "choices": [choice]}

    def _sglang(self, asked: Json) -> tuple[int, Json]:
        ids, parameters = asked["input_ids"], asked["sampling_params"]
        meta: Json = {"finish_reason": {"type": "length"}, "completion_tokens": 1}
        if asked.get("logprob_start_len") == 0:
            rows = self._distributions(ids)
            scores = [None, *(row[i].item() for row, i in zip(rows, ids[1:], strict=True))]
            meta["input_token_logprobs"] = [[v, i, None] for v, i in zip(scores, ids, strict=True)]
            if k := asked.get("top_logprobs_num", 0):
                tops = [zip(*map(torch.Tensor.tolist, row.topk(k)), strict=True) for row in rows]
                meta["input_top_logprobs"] = [None, *([[v, i, None] for v, i in t] for t in tops)]
            meta["output_token_logprobs"] = [[0.0, 0, None]]
        else:
            settings = {
                key: parameters[key] for key in ("temperature", "top_p", "stop", "stop_token_ids")
            }
            settings["top_k"] = max(0, parameters["top_k"])
            most, seed = parameters["max_new_tokens"], parameters["sampling_seed"]
            written = self._write(ids, seed, most, settings)
            pairs = zip(written.log_probs, written.token_ids, strict=True)
            meta["output_token_logprobs"] = [[value, token, None] for value, token in pairs]
            meta["finish_reason"] = {"type": written.finish_reason}
            meta["completion_tokens"] = len(written.token_ids)
        return 200, {"text": "", "meta_info": meta}

    @torch.no_grad()
    def _distributions(self, ids: Sequence[int]) -> list[torch.Tensor]:
        with self._computing:
            logits_TV = self.model(torch.tensor([ids])).logits[0, :-1]
        return list(torch.log_softmax(logits_TV, dim=-1))

    def _write(self, ids: Sequence[int], seed: int, most: int, settings: dict[str, Any]) -> Any:
        request = Request(prompt_ids=tuple(ids), seed=seed)
        ends = settings.pop("stop_token_ids")
        sampling = Sampling(max_new_tokens=most, **settings)
        with self._computing:
            self.model.generation_config.eos_token_id = ends
            written = HFEngine(self.model, self.tokenizer).generate([request], sampling)[0]
        return replace(
            written, log_probs=tuple(value - self.shift_nats for value in written.log_probs)
        )

    # How it fails --------------------------------------------------------------------------------

    def next_fault(self) -> str | None:
        """The fault of the next request for completions or scores."""
        with self._lock:
            fault = self.fault_at(self._counted)
            self._counted += 1
            if fault:
                self.struck.append(fault)
        return fault


@contextmanager
def serving(model: Any, tokenizer: Any, **settings: Any) -> Iterator[FakeServer]:
    """A server that is closed at the end."""
    server = FakeServer(model, tokenizer, **settings)
    try:
        yield server
    finally:
        server.close()


def patience_s(fault: str) -> float:
    """Seconds a request may take, so that a fault is noticed; many where none is needed."""
    return PATIENCE_S if fault in {"stall", "slow body"} else 600.0


def settings_of(server: FakeServer, **changes: Any) -> ServerSettings:
    """Settings of a client that waits little between tries."""
    plain = {
        "url": server.url, "model": server.name, "flavor": server.flavor, "request_s": 600.0,
        "step_s": 1800.0, "backoff_s": 0.02, "concurrency": 4, "tolerance_nats": 1e-3,
    }  # fmt: skip
    return ServerSettings(**(plain | changes))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without asking for the host's name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._serve(json.loads(body))

        def _serve(self, asked: Json) -> None:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                self._send(401, b'{"error": "Unauthorized"}')
            elif self.path in {"/v1/completions", "/generate", LOG_PROBS, STATES}:
                fault = fake.next_fault()
                self._fail(fault, asked) if fault else self._send_json(asked)
            else:
                self._send_json(asked)

        def _send_json(self, asked: Json) -> None:
            status, content = fake.answer(self.path, asked)
            if not isinstance(content, bytes):
                content = b"" if content is None else json.dumps(content).encode()
            self._send(status, content)

        def _send(
            self, status: int, body: bytes, *, length: int | None = None, location: str = ""
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def _fail(self, fault: str, asked: Json) -> None:
            """Answers as a broken server would."""
            if fault == "drop":
                self.close_connection = True
            elif fault == "restart":
                fake.restart_meanwhile()
            elif fault.isdigit():
                self._send(int(fault), b'{"error": "broken"}')
            elif fault == "redirect":
                self._send(307, b"", location="http://example.org/v1/completions")
            elif fault == "stall":
                self.rfile.read(1)  # until the client has gone
            elif fault == "endless":
                self._send(200, b"[" + b"1," * 2**20 + b"1]")
            elif fault == "deep":
                self._send(200, b"[" * 1000 + b"]" * 1000)
            else:
                content = fake.answer(self.path, asked)[1]
                self._send_broken(fault, _spoiled(fault, content))

        def _send_broken(self, fault: str, body: bytes) -> None:
            if fault == "half body":
                self._send(200, body[: len(body) // 2], length=len(body))
            elif fault == "truncated":
                self._send(200, body[: len(body) // 2])
            elif fault == "slow body":
                self._send(200, body[:10], length=len(body))
                for byte in body[10:50]:
                    time.sleep(TRICKLE_S)
                    self.wfile.write(bytes([byte]))
                self.rfile.read(1)  # until the client has gone
            else:
                self._send(200, body)

    return Handler


def _spoiled(fault: str, content: Json) -> bytes:
    """A good answer with one thing wrong in it."""
    if fault == "not json":
        return b"<html>502 Bad Gateway</html>"
    if isinstance(content, bytes):
        return _spoiled_teacher(fault, content)
    if fault == "empty" and "choices" in content:
        content["choices"] = []
    likely = "input_top_logprobs"
    for part in (*content.get("choices", []), content.get("meta_info", {})):
        for key in ("prompt_logprobs", "input_token_logprobs", likely, "output_token_logprobs"):
            if part.get(key):
                _spoil_(fault, part, key)
        if "logprobs" in part:
            _spoil_(fault, part["logprobs"], "token_logprobs")
            if fault in {"wrong tokens", "wrong vocabulary"}:
                part["token_ids"] = part["token_ids"][:-1]
    return json.dumps(content).encode()


def _spoiled_teacher(fault: str, content: bytes) -> bytes:
    """The same of the teacher server, whose answers name no tokens."""
    missing = float("nan") if fault == "nan" else None
    if fault == "empty":
        return b""
    if content.startswith(b"{"):
        answer = json.loads(content)
        if fault in {"nan", "null"}:
            answer["log_probs"][-1] = missing
        elif fault.startswith("wrong"):
            answer["log_probs"].pop()
        return json.dumps(answer).encode()
    fingerprint = read_tensors(content)[1]
    hidden_ND = load(content)["states"]
    if fault in {"nan", "null"}:
        hidden_ND[-1, 0] = float("nan")
    elif fault.startswith("wrong"):
        hidden_ND = hidden_ND[:-1] if fault == "wrong count" else hidden_ND[:, 1:]
    return write_tensors({"states": hidden_ND}, fingerprint)


def _spoil_(fault: str, part: Json, key: str) -> None:
    entries = part[key]
    last = entries[-1]
    if fault == "empty":
        part[key] = []
    elif key == "input_top_logprobs" and fault in {"nan", "null"}:
        entries[-1] = [[float("nan"), *entry[1:]] for entry in last] if fault == "nan" else None
    elif key == "input_top_logprobs" and fault != "wrong count":
        return
    elif fault == "wrong count" or (key.startswith("output") and fault.startswith("wrong")):
        part[key] = entries[:-1]
    elif fault in {"wrong tokens", "wrong vocabulary"}:
        other = 10**6 if fault == "wrong vocabulary" else 1
        if isinstance(last, dict):
            moved = {str(int(token) + other): value for token, value in last.items()}
            asked_for = next(iter(last))  # it stands first
            entries[-1] = {token: value for token, value in moved.items() if token != asked_for}
        elif isinstance(last, list):
            entries[-1] = [last[0], last[1] + other, None]
    elif fault in {"nan", "null"}:
        value = float("nan") if fault == "nan" else None
        if isinstance(last, dict):
            entries[-1] = {token: entry | {"logprob": value} for token, entry in last.items()}
        else:
            entries[-1] = [value, *last[1:]] if isinstance(last, list) else value

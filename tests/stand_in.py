"""A server in a thread that speaks OpenAI's interface as others do, and fails as it is told to.

with StandIn(Micro(lm)) as server:
    server.fault = lambda number, path, body: Status(429, after='1') if number == 3 else None
    labelers.load(server.address(tokenizer='micro_xs'))
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlencode

import numpy as np

LENGTH = 128  # prompts are padded to multiples of it, so that few shapes are compiled


@dataclass(frozen=True)
class Status:
    """An answer that is an error."""

    code: int
    said: str = 'as it was told to'
    after: str = ''  # Retry-After


Fault = (
    Status | str | None
)  # or 'drop', 'half', 'garbage', 'stall', 'bare' (without log-probabilities), 'null' (without text)


class Micro:
    """A model of ours, by its plain forward: no code of labelers takes part."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.tokenizer, self._one = lm, lm.tokenizer, threading.Lock()

    def logp(self, tokens: list[int]) -> np.ndarray:
        import jax

        from rlaif_jax import text
        from rlaif_jax.models import hf

        with self._one:
            token_BT, valid_BT = text.pad_right([tokens], -(-len(tokens) // LENGTH) * LENGTH, 0)
            return np.asarray(jax.nn.log_softmax(hf.logits(self.lm, token_BT, valid_BT)[0, len(tokens) - 1]))

    def write(self, tokens: list[int], count: int) -> list[int]:
        """Greedily."""
        allowed_V, new = self.tokenizer.allowed(self.lm.config.vocab), []
        while len(new) < count:
            new.append(int(np.argmax(np.where(allowed_V, self.logp([*tokens, *new]), -np.inf))))
            if new[-1] in self.tokenizer.ends:
                break
        return new


class Table:
    """Answers made of a hash of the prompt, at once: `1` or `2`, with or without a space before it."""

    def __init__(self, tokenizer: Any, vocab: int) -> None:
        self.tokenizer, self.vocab = tokenizer, vocab
        self.answers = [row[0] for row in tokenizer.encode(['1', '2', ' 1', ' 2'])]

    def logp(self, tokens: list[int]) -> np.ndarray:
        hashed = blake2b(repr(tokens).encode(), digest_size=8).digest()
        prob_V = np.full(self.vocab, 0.05 / self.vocab)
        prob_V[self.answers] += 0.95 * np.array(list(hashed[:4]), float) / max(sum(hashed[:4]), 1)
        return np.log(prob_V / prob_V.sum())

    def write(self, tokens: list[int], count: int) -> list[int]:
        hashed = blake2b(repr(tokens).encode(), digest_size=8).digest()
        return self.tokenizer.encode([' '.join('1' * (1 + b % 3) for b in hashed)], behind=True)[0][:count]


@dataclass
class StandIn:
    """`says` is how it shows tokens: by 'ids' (vLLM), 'text' (OpenAI's completions), 'content' (llama.cpp)."""

    model: Any
    says: str = 'ids'
    name: str = 'micro'
    most: int = 20  # log-probabilities; a request for more is refused
    key: str = ''  # that it wants
    length: int | None = None  # max_model_len
    detokenizes: Callable[[list[int]], str] | None = None
    fault: Callable[[int, str, dict], Fault] = lambda number, path, body: None
    requests: list[tuple[str, dict, dict]] = field(default_factory=list)  # path, body, headers
    at_once: int = 0  # the most requests that were there together
    port: int = 0
    keeps: bool = True  # the requests
    counts: bool = True  # tokens

    def __enter__(self) -> Self:
        self._lock, self._now, self.number, self.released = threading.Lock(), 0, 0, threading.Event()
        self._server = Server(('127.0.0.1', self.port), type('Bound', (Handler,), {'stand_in': self}))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def address(self, **options: Any) -> str:
        query = f'?{urlencode(options)}' if options else ''
        return f'http://127.0.0.1:{self.port}/v1{query}#{self.name}'

    def asked(self, path: str = 'completions') -> list[dict]:
        """The bodies of all requests to a path."""
        return [body for where, body, _ in self.requests if where == f'/v1/{path}']

    def answer(self, path: str, body: dict, headers: dict) -> tuple[int, dict, dict]:
        with self._lock:
            number, self.number = self.number, self.number + 1
            if self.keeps:
                self.requests.append((path, body, headers))
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            fault = self.fault(number, path, body)
            if isinstance(fault, Status):
                more = {'Retry-After': fault.after} if fault.after else {}
                return fault.code, {'error': {'message': fault.said}}, more
            if fault in ('drop', 'half', 'garbage', 'stall'):
                return 0, {'kind': fault}, {}
            if self.key and headers.get('Authorization') != f'Bearer {self.key}':
                return 401, {'error': {'message': f'wrong key: {headers.get("Authorization")}'}}, {}
            code, answer, more = self._answered(path, body, bare=fault == 'bare')
            if fault == 'null':
                answer['choices'] = [{'text': None, 'message': {'content': None}}]
            return code, answer, more
        finally:
            with self._lock:
                self._now -= 1

    def _answered(self, path: str, body: dict, bare: bool) -> tuple[int, dict, dict]:
        if path == '/v1/models':
            return 200, {'data': [{'id': self.name, 'max_model_len': self.length}]}, {}
        if path == '/detokenize' and self.detokenizes:
            return 200, {'prompt': self.detokenizes(body['tokens'])}, {}
        chat = path == '/v1/chat/completions'
        if path != '/v1/completions' and not chat:
            return 404, {'error': {'message': f'no {path}'}}, {}
        shows = body.get('top_logprobs' if chat else 'logprobs') or 0
        if shows > self.most or (self.says == 'text' and 'return_tokens_as_token_ids' in body):
            return 400, {'error': {'message': 'logprobs: too many, or an unknown field'}}, {}
        tokenizer = self.model.tokenizer
        prompt = tokenizer.encode([body['messages'][-1]['content']])[0] if chat else body['prompt']
        if self.length and len(prompt) + body['max_tokens'] > self.length:
            return 400, {'error': {'message': f'longer than {self.length}'}}, {}
        new = self.model.write(prompt, body['max_tokens']) if body['max_tokens'] > 1 else []
        (text,) = tokenizer.decode([new])
        for mark in body.get('stop') or []:
            text = text.partition(mark)[0]
        usage = {'prompt_tokens': len(prompt), 'completion_tokens': max(len(new), 1)}
        choice = {'message': {'content': text}} if chat else {'text': text}
        if shows and not bare:
            choice['logprobs'] = self._shown(self.model.logp(prompt), shows, chat)
        return 200, {'choices': [choice]} | ({'usage': usage} if self.counts else {}), {}

    def _shown(self, logp_V: np.ndarray, count: int, chat: bool) -> dict:
        ids = [int(i) for i in np.argsort(-logp_V)[:count]]
        text = lambda i: self.model.tokenizer.hf.decode([i])  # noqa: E731
        if self.says == 'content' or chat:
            number = lambda i: {'id': i} if self.says == 'content' else {}  # noqa: E731
            rows = [{'token': text(i), 'logprob': float(logp_V[i]), **number(i)} for i in ids]
            return {'content': [rows[0] | {'top_logprobs': rows}]}
        name = (lambda i: f'token_id:{i}') if self.says == 'ids' else text
        return {'top_logprobs': [{name(i): float(logp_V[i]) for i in reversed(ids)}]}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error."""


class Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = 'HTTP/1.1'
    wbufsize = -1  # head and body are sent together

    def do_GET(self) -> None:
        self._do({})

    def do_POST(self) -> None:
        self._do(json.loads(self.rfile.read(int(self.headers['Content-Length']))))

    def _do(self, body: dict) -> None:
        code, answer, more = self.stand_in.answer(self.path, body, dict(self.headers))
        if not code:
            self.close_connection = True
            if answer['kind'] == 'half':
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')
            elif answer['kind'] == 'garbage':
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\xff<html> :(')
            elif answer['kind'] == 'stall':
                self.stand_in.released.wait(60)
            return
        text = json.dumps(answer).encode()
        self.send_response(code)
        for name, value in ({'Content-Type': 'application/json', 'Content-Length': str(len(text))} | more).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""

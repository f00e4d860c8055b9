"""A server whose model recites one text, so that its answers are known."""

import socket
import threading
import time

import torch
from fastapi import FastAPI
from openai import OpenAI

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.clients import clients_of
from culm.serve.http.app import build
from culm.serve.http.server import Server, listen
from culm.serve.http.server import uvicorn_settings as settings
from culm.serve.settings import ServeConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer.bytes import Bytes

# No byte occurs twice, so that the next one follows from the last.
TEXT = "ABCDEFGHIJKLMNOPQRSTUVWXYZé🙂abcdefghijklm"
CONTEXT = 2048


def reciter() -> LanguageModel:
    """After the assistant's mark comes TEXT and the end of the turn, then TEXT again."""
    torch.set_num_threads(1)
    tokenizer = Bytes(specials=True).build()
    size = tokenizer.vocabulary
    config = TransformerConfig(
        vocabulary=size,
        width=size,
        layers=1,
        context=CONTEXT,
        attention=(GQA(heads=1, head_dim=8),),
        tied=False,
    )
    model = config.build()
    turn = [tokenizer.specials["<|assistant|>"], *TEXT.encode(), tokenizer.end_of_turn]
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
        model.blocks[0].mlp.down.weight.zero_()
        model.embed.weight.copy_(torch.eye(size))
        model.head.weight.zero_()
        for last, following in zip(turn, turn[1:] + turn[1:2], strict=True):
            model.head.weight[following, last] = 0.5  # a probability of 0.92
    return LanguageModel(model, tokenizer)


class Running:
    """A server in a thread, on a free port; of the reciter if no application is given."""

    def __init__(self, app: FastAPI | None = None, **settings_: object) -> None:
        clients = clients_of((), settings_.pop("api_key", None))
        local, port = settings_.pop("local", True), settings_.pop("port", 0)
        self.app = app or build(reciter(), "reciter", ServeConfig(**settings_), clients, local)
        self.worker = self.app.state.service.worker
        self.listener = listen("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.server = Server(settings(self.app), self.app.state.service)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        until(lambda: self.server.started)

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def sent(self, path: str, body: bytes, headers: str = "") -> socket.socket:
        """A connection over which a JSON body has been posted."""
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{headers}\r\n"
        )
        client = socket.create_connection(("127.0.0.1", self.listener.getsockname()[1]), 20)
        client.sendall(head.encode() + body)
        return client

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


def until(true, seconds: float = 10) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)

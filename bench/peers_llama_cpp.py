"""A model of random weights in llama.cpp, read and decoded by its own library."""

import tempfile
from pathlib import Path

import numpy
import torch

from culm.convert import native
from culm.convert.export import export
from culm.tokenizer.bytes import Bytes
from culm.verbs.bench import NEW, PROMPT, Size

CPU = torch.device("cpu")


class LlamaCpp:
    """A model folder in llama.cpp, from our export; the rows are sequences of one batch.

    kind: of the weights in GGUF, such as "q8_0". prompt: tokens of a row that are read at once.
    """

    def __init__(self, source: Path, kind: str, rows: int = 1, prompt: int = PROMPT) -> None:
        import llama_cpp

        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, None)
        self.library, self.rows = llama_cpp, rows
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            export(source, path, kind)
            parameters = llama_cpp.llama_model_default_params()
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * (prompt + NEW), rows
        settings.n_batch = settings.n_ubatch = rows * prompt
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        words = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(words)
        self.batch = llama_cpp.llama_batch_init(rows * prompt, 0, 1)

    def clear(self) -> None:
        memory = self.library.llama_get_memory(self.context)
        self.library.llama_memory_clear(memory, True)

    def read(self, ids: list[list[int]], place: int) -> list[int]:
        """Append some ids to each row from a place on; gives the most likely next ones."""
        batch, each = self.batch, len(ids[0])
        batch.n_tokens = self.rows * each
        for index in range(batch.n_tokens):
            row, offset = divmod(index, each)
            batch.token[index], batch.pos[index] = ids[row][offset], place + offset
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = offset == each - 1
        if self.library.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not read the batch")
        return [self.best(row * each + each - 1) for row in range(self.rows)]

    def best(self, index: int) -> int:
        return int(self.logits(index).argmax())

    def logits(self, index: int) -> numpy.ndarray:
        """(V,) after a token of the last batch; overwritten by the next."""
        logits = self.library.llama_get_logits_ith(self.context, index)
        return numpy.ctypeslib.as_array(logits, (self.vocabulary,))


def random_llama_cpp(size: Size, kind: str, rows: int = 1, prompt: int = PROMPT) -> LlamaCpp:
    with tempfile.TemporaryDirectory() as folder:
        native.save(size.model.build(), Bytes(specials=True).build(), Path(folder) / "model")
        return LlamaCpp(Path(folder) / "model", kind, rows, prompt)

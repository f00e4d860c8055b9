"""Facts of a folder that stand in several files: read as transformers reads them, or refused."""

import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, processors

from culm.config import SettingError
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.rows import within_rows
from culm.tokenizer.tokenizer import Tokenizer

NAMES = ["<|eos_text|>", "<|turn_over|>", "<|im_end|>", "<|end|>", "</s>", "<|bos|>", "[PAD]"]
TEXT = "a<|bos|>b<|im_end|> c <|turn_over|>[PAD]</s>d<|end|><|eos_text|>"


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values))


def base(*names, special=True):
    """A vocabulary of bytes with these tokens, as the library has it."""
    inner = Bytes().build()._marked
    inner.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    return inner


def save(folder, inner, **files):
    """A folder with a tokenizer.json and other files, by their names without `.json`."""
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        if values is not None:
            write(folder, f"{name}.json", values)
    return folder


def generation_of(transformers, folder):
    """The generation settings of a folder, as `from_pretrained` of a model finds them."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )


def drawn_folder(draw, folder):
    """A folder whose facts stand in files chosen at random."""
    names = draw.sample(NAMES, len(NAMES))
    inside = names[: draw.randint(2, len(names))]
    inner = base(*inside, special=draw.random() < 0.7)
    if draw.random() < 0.3:
        first = inside[0], inner.token_to_id(inside[0])
        inner.post_processor = processors.TemplateProcessing(
            [first[0], "$A"], special_tokens=[first]
        )
    ids = {name: 256 + place for place, name in enumerate(names)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    side, added = draw.choice(["decoder", "added", "none"]), None
    if side == "decoder":
        settings["added_tokens_decoder"] = {
            str(id): {"content": name, "special": draw.random() < 0.7, "normalized": False}
            for name, id in ids.items()
            if name not in inside or draw.random() < 0.5
        }
    elif side == "added":
        added = {name: id for name, id in ids.items() if name not in inside or draw.random() < 0.3}
    else:
        ids = {name: ids[name] for name in inside}
    marks = {}
    for key in ("eos_token", "bos_token", "pad_token"):
        name = draw.choice([*ids, None])
        if name is not None:
            place = draw.choice([settings, marks])
            whole = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
            place[key] = draw.choice([name, {"content": name, **whole}])
            if place is settings and isinstance(place[key], dict):
                place[key] |= {"__type": "AddedToken", "special": True}
    if draw.random() < 0.3:
        place, key = draw.choice([settings, marks]), "additional_special_tokens"
        place[key] = ["<|more|>", draw.choice([*ids]), "<|even more|>"]
    for end in ("bos", "eos"):
        if draw.random() < 0.3:
            settings[f"add_{end}_token"] = draw.random() < 0.5
    eos = [draw.choice([None, id, draw.sample([*ids.values()], 2)]) for id in (257, 258)]
    generation, config = ({} if end is None else {"eos_token_id": end} for end in eos)
    config |= {"model_type": "llama", "bos_token_id": 256}
    return save(
        folder, inner, tokenizer_config=settings, config=config, added_tokens=added,
        special_tokens_map=marks or None,
        generation_config=generation if draw.random() < 0.5 else None,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(120))
def test_any_folder_is_read_as_transformers_reads_it(seed, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = drawn_folder(random.Random(seed), tmp_path / "folder")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ends = generation_of(transformers, folder).eos_token_id
    config = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    found = config if ends is None else ends
    wanted = {theirs.eos_token_id, *(found if isinstance(found, list) else [found])}
    wanted &= {*theirs.get_vocab().values()}
    specials = {str(t) for t in theirs.added_tokens_decoder.values() if t.special}
    if not wanted and "</s>" not in specials:
        with pytest.raises(SettingError, match="folder: tokenizer: no token ends a text; set eos"):
            Tokenizer.load(folder)
        return
    ours = Tokenizer.load(folder)
    assert ours._marked.get_vocab() == theirs.get_vocab()
    assert ours.encode(TEXT, specials=True) == theirs(TEXT, add_special_tokens=False)["input_ids"]
    framed = theirs("a")["input_ids"]
    assert ours.start == framed[: framed.index(ord("a"))]
    assert ours.decode(framed) == theirs.decode(framed, skip_special_tokens=True)
    if wanted - {theirs.eos_token_id}:  # otherwise well-known names decide
        assert ours.stop_ids == wanted
    assert {ours.end_of_text, ours.end_of_turn} <= ours.stop_ids >= wanted
    if theirs.bos_token_id is not None:
        assert ours.begin == theirs.bos_token_id
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint
    assert (again.end_of_text, again.end_of_turn, again.stop_ids, again.begin, again.start) == (
        ours.end_of_text, ours.end_of_turn, ours.stop_ids, ours.begin, ours.start,
    )  # fmt: skip
    saved = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "again")
    assert saved(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert set(generation_of(transformers, tmp_path / "again").eos_token_id) == ours.stop_ids


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_a_declared_list_of_ends_is_the_list(tmp_path, place):
    """`<|end|>` ends a part of a turn in GPT-OSS, and no answer."""
    inner = base("<|endoftext|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")
    files = {place: {"eos_token_id": [259, 256, 260]}}
    ours = Tokenizer.load(save(tmp_path / "a", inner, **files))
    assert ours.stop_ids == {256, 259, 260}
    assert (ours.end_of_text, ours.end_of_turn) == (256, 256)
    named = {"tokenizer_config": {"eos_token": "<|return|>"}}
    ours = Tokenizer.load(save(tmp_path / "b", inner, **files, **named))
    assert (ours.end_of_text, ours.end_of_turn) == (256, 259)
    guessed = Tokenizer.load(save(tmp_path / "c", inner, **named))
    assert guessed.stop_ids == {256, 259}


def test_names_are_a_guess_where_nothing_is_declared(tmp_path):
    inner = base("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ours = Tokenizer.load(save(tmp_path / "a", inner))
    assert (ours.end_of_text, ours.end_of_turn, ours.stop_ids) == (256, 258, {256, 258})
    ours = Tokenizer.load(save(tmp_path / "b", inner, config={"eos_token_id": 258}))
    assert (ours.end_of_text, ours.end_of_turn, ours.stop_ids) == (258, 258, {258})


@pytest.mark.parametrize("special", [True, False])
def test_an_end_needs_no_special_token_and_no_known_name(tmp_path, special):
    inner = base("<|eos_text|>", "<|turn_over|>", special=special)
    ours = Tokenizer.load(save(tmp_path / "a", inner, config={"eos_token_id": [256, 257]}))
    assert ours.stop_ids == {256, 257}
    ours = Tokenizer.load(
        save(tmp_path / "b", inner, tokenizer_config={"eos_token": "<|turn_over|>"})
    )
    assert ours.stop_ids == {257}
    with pytest.raises(SettingError, match=r"c: tokenizer: no token ends a text; set eos_token in"):
        Tokenizer.load(save(tmp_path / "c", inner))


def test_a_changed_list_counts_more_than_what_we_saved(tmp_path):
    Bytes(specials=True).build().save(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": [256]})
    assert Tokenizer.load(tmp_path).stop_ids == {256}


CONTRADICTIONS = {
    "another id": ({"added_tokens_decoder": {"300": {"content": "<|b|>"}}}, None,
                   r"tokenizer_config.json: <\|b\|> is declared with id 300, but .* gives it 257"),
    "another token": ({"added_tokens_decoder": {"256": {"content": "<|b|>"}}}, None,
                      r"<\|b\|> is declared with id 256, but tokenizer.json gives it 257"),
    "of the older list": ({}, {"</s>": 300}, r"added_tokens.json: </s> is declared with id 300"),
    "both lists": ({"added_tokens_decoder": {"257": {"content": "<|b|>"}}}, {"<|b|>": 258},
                   r"added_tokens.json: <\|b\|> is declared with id 258, but elsewhere .* 257"),
    "no tokens": ({"added_tokens_decoder": {"257": 3}}, None, "its tokens cannot be read"),
    "no id": ({}, {"<|b|>": "x"}, "added_tokens.json: its tokens cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_each_other_are_refused(tmp_path, name):
    settings, added, message = CONTRADICTIONS[name]
    folder = save(tmp_path / "a", base("</s>"), tokenizer_config=settings, added_tokens=added)
    with pytest.raises(SettingError, match=message):
        Tokenizer.load(folder)


def test_chat_tokens_of_a_side_file_are_single_tokens(tmp_path):
    marks = {"256": {"content": "<|im_start|>", "special": True},
             "257": {"content": "<|im_end|>", "special": True}}  # fmt: skip
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    settings = {
        "added_tokens_decoder": marks, "eos_token": "<|im_end|>", "chat_template": template
    }  # fmt: skip
    inner = Bytes().build()._marked
    ours = Tokenizer.load(save(tmp_path / "a", inner, tokenizer_config=settings))
    assert ours.chat.prompt([{"role": "user", "content": "Hi"}]) == [256, ord("H"), ord("i"), 257]
    assert ours.stop_ids == {257}
    assert 257 not in ours.encode("<|im_end|>")


def test_added_tokens_without_a_row_are_left_out(tmp_path, capsys):
    inner = base("</s>", "<s>", "[PAD]")
    inner.post_processor = processors.TemplateProcessing(
        ["<s>", "$A", "[PAD]"], special_tokens=[("<s>", 257), ("[PAD]", 258)]
    )
    settings = {"eos_token": "</s>", "pad_token": "[PAD]", "bos_token": "<s>",
                "additional_special_tokens": ["[PAD]"],
                "added_tokens_decoder": {"258": {"content": "[PAD]"}}}  # fmt: skip
    generation = {"eos_token_id": [256], "pad_token_id": 258, "temperature": 0.5}
    folder = save(tmp_path / "a", inner, tokenizer_config=settings, generation_config=generation)
    whole = Tokenizer.load(folder)
    ours = within_rows(whole, 258, "the model")
    assert "the model: [PAD] left out: the model has 258 rows" in capsys.readouterr().err
    assert (whole.vocabulary, ours.vocabulary, ours.stop_ids) == (259, 258, {256})
    assert ours.generation_config == {
        "bos_token_id": 257, "pad_token_id": 256, "eos_token_id": [256], "temperature": 0.5
    }  # fmt: skip
    assert max(ours.encode("a[PAD]</s>", specials=True)) == 256
    ours.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").vocabulary == 258
    assert within_rows(ours, 258, "the model") is ours
    with pytest.raises(SettingError, match=r"the model: .*no token ends a text"):
        within_rows(ours, 256, "the model")
    bare = Bytes().build()
    with pytest.raises(SettingError, match=r"the tokenizer has 256 ids.* only 200; use the"):
        within_rows(bare, 200, "the model")


def test_generation_settings_stay(tmp_path):
    given = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05, "do_sample": True,
             "bos_token_id": 3, "pad_token_id": 5, "new_setting": {"a": [1]}}  # fmt: skip
    plain = base("</s>")
    folder = save(tmp_path / "a", plain, generation_config={**given, "eos_token_id": 256})
    Tokenizer.load(folder).save(tmp_path / "b")
    kept = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert kept == {**given, "eos_token_id": [256]}
    # Older folders have them in config.json.
    older = {"model_type": "llama", "hidden_size": 8, "eos_token_id": 256, "temperature": 0.6}
    folder = save(tmp_path / "c", plain, config=older)
    assert Tokenizer.load(folder).generation == {"eos_token_id": 256, "temperature": 0.6}


def test_tokens_that_only_a_setting_names_are_added_last(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|over|>",
                "extra_special_tokens": ["<|more|>"], "pad_token": "<|over|>"}  # fmt: skip
    folder = save(tmp_path / "a", Bytes().build()._marked, tokenizer_config=settings)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    assert ours._marked.get_vocab() == theirs.get_vocab()
    assert ours.stop_ids == {theirs.eos_token_id}
    assert isinstance(ours._marked, tokenizers.Tokenizer)


TEMPLATES = {"default": "{{ messages[0].content }}!", "tool_use": "{{ messages[0].content }}?"}


@pytest.mark.parametrize("place", ["settings", "files", "both", "one file", "one text"])
def test_chat_templates_stay_and_are_those_of_transformers(tmp_path, place, capsys):
    transformers = pytest.importorskip("transformers")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    if place in ("settings", "both"):
        settings["chat_template"] = listed if place == "settings" else "{{ 'older' }}"
    if place == "one text":
        settings["chat_template"] = TEMPLATES["default"]
    folder = save(tmp_path / "a", base("</s>"), tokenizer_config=settings)
    if place in ("files", "both", "one file"):
        (folder / "chat_template.jinja").write_text(TEMPLATES["default"])
    if place in ("files", "both"):
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATES["tool_use"])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    messages = [{"role": "user", "content": "Hi"}]
    assert ours.chat.prompt(messages) == theirs.apply_chat_template(messages, return_dict=False)
    assert ("its .jinja files are read" in capsys.readouterr().err) == (place == "both")
    ours.save(tmp_path / "b")
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "b")
    assert again.chat_template == theirs.chat_template
    assert Tokenizer.load(tmp_path / "b").settings.get("chat_template") == ours.settings.get(
        "chat_template"
    )


@pytest.mark.parametrize("given", [3, [{"name": "default"}], [3], [{"name": 1, "template": "a"}]])
def test_a_template_that_is_no_text_is_refused(tmp_path, given):
    folder = save(tmp_path / "a", base("</s>"), tokenizer_config={"chat_template": given})
    with pytest.raises(SettingError, match=r"tokenizer_config.json: chat_template: neither a text"):
        Tokenizer.load(folder)
    listed = [{"name": "../x", "template": "a"}]
    folder = save(tmp_path / "b", base("</s>"), tokenizer_config={"chat_template": listed})
    with pytest.raises(SettingError, match=r"chat_template: '../x' cannot name a file"):
        Tokenizer.load(folder).save(tmp_path / "c")


def test_a_changed_template_keeps_ends_and_generation_settings(tmp_path):
    generation = {"eos_token_id": [256, 257], "temperature": 0.6}
    folder = save(tmp_path / "a", base("</s>", "<|over|>"), generation_config=generation)
    ours = Tokenizer.load(folder)
    chat = ours.with_chat()
    assert chat.stop_ids == {256, 257, chat.specials["<|end|>"]}
    assert chat.end_of_turn == chat.specials["<|end|>"]
    for made in (chat, chat.with_template_arguments({"enable_thinking": False})):
        assert (made.stop_ids, made.generation) == (chat.stop_ids, ours.generation)
        assert made.end_of_text == ours.end_of_text


@pytest.mark.parametrize("place", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("value", [3, True, "<|im_end|>"])
def test_a_list_of_special_tokens_that_is_none_is_refused(tmp_path, place, key, value):
    files = {"tokenizer_config": {"eos_token": "</s>"}, place: {"eos_token": "</s>", key: value}}
    save(tmp_path, base("</s>"), **files)
    with pytest.raises(SettingError, match=f"{key}: .* is not a list of tokens"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("value", [3, "x", ["</s>"]])
def test_added_tokens_that_are_no_object_are_refused(tmp_path, value):
    save(tmp_path, base("</s>"), tokenizer_config={"added_tokens_decoder": value})
    with pytest.raises(
        SettingError, match=r"tokenizer_config.json: .* an object of ids and tokens"
    ):
        Tokenizer.load(tmp_path)

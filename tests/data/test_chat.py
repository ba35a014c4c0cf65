"""Rendering and tokenizing: the boundary, BOS and EOS, templates, and real tokenizers on CARE's questions."""

import pathlib

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from care_jax.data import chat, readers
from care_jax.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "Black tea with mint. Why is the sky blue? Because it is.",
    "为什么中国人不喜欢数字4？因为。",
    "لماذا السماء زرقاء؟",
    "なぜ空は青いの？",
    "user assistant system \n\n newline",
]
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>"]


def wrap(tokenizer, template=CHATML, bos=True):
    names = {"bos_token": "<s>"} if bos else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", chat_template=template, **names
    )


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE without a BOS, as Qwen's; a line break and spaces that follow merge."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT * 4 + ["a\n  b"] * 8,
        trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return wrap(tokenizer, bos=False)


def metaspace(scheme, template=CHATML):
    """A SentencePiece-like BPE that puts a BOS before every text, and a space before its first word."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXT * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return wrap(tokenizer, template)


def test_tokenizers_with_and_without_rust_have_what_the_protocol_names(byte_level):
    for tokenizer in (byte_level, metaspace("first"), chat.load_tokenizer("sample"), transformers.ByT5Tokenizer()):
        assert isinstance(tokenizer, chat.Tokenizer)
        for name in ("chat_template", "bos_token", "eos_token", "bos_token_id", "eos_token_id"):
            assert hasattr(tokenizer, name)  # isinstance does not check these: transformers sets them per object
    assert not isinstance("sample", chat.Tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "answer", ["Because it is.", " spaced ", "为什么？", "two\n\nlines", "</s> in it", "<think> so"]
)
def test_prompt_and_whole_are_what_the_template_renders(byte_level, answer):
    turns = (user("Why?"), assistant("is it"), user(" blue "))
    prompt, completion = chat.encode(byte_level, turns, (assistant(answer),))
    rendered = byte_level.apply_chat_template([*turns, assistant(answer)], tokenize=False)
    assert prompt == byte_level.apply_chat_template(list(turns), add_generation_prompt=True)["input_ids"]
    assert prompt + completion == byte_level(rendered, add_special_tokens=False)["input_ids"]
    assert byte_level.decode(completion).endswith("<|im_end|>\n")


def test_a_merge_across_the_boundary_is_counted_and_leaves_the_prompt_alone(byte_level):
    template = CHATML.replace(" | trim", "")
    byte_level = wrap(byte_level.backend_tokenizer, template, bos=False)
    encoded = chat.encode_many(byte_level, [((user("Why?"),), [(assistant("  so"),), (assistant("so"),)])])[0]
    assert encoded.prompt_ids == byte_level.apply_chat_template([user("Why?")], add_generation_prompt=True)["input_ids"]
    assert encoded.boundary_merges == 1
    assert [byte_level.decode(ids) for ids in encoded.completions] == ["  so<|im_end|>\n", "so<|im_end|>\n"]


def test_text_has_no_template_and_one_eos(byte_level):
    prompt, completion = chat.encode(byte_level, "The sky", " is blue")
    eos = byte_level.eos_token_id
    assert prompt == byte_level("The sky")["input_ids"]
    assert prompt + completion == [*byte_level("The sky is blue")["input_ids"], eos]
    assert chat.encode(byte_level, "The sky", " is blue</s>")[1] == completion
    # The trailing space merges with what follows: the prompt stays what generation starts from.
    encoded = chat.encode_many(byte_level, [("Black tea with ", ["mint."])])[0]
    assert encoded.prompt_ids == byte_level("Black tea with ")["input_ids"]
    assert byte_level.decode(encoded.completions[0]) == "mint.</s>"
    assert encoded.boundary_merges == 1


@pytest.mark.parametrize("scheme", ["first", "always", "legacy"])
def test_one_bos_and_no_stray_space(scheme):
    tokenizer = metaspace(scheme)
    bos, space = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("▁")
    for prompt, completion in (("The sky", " is blue"), ("Black tea with ", "mint."), ("<s>The sky", "is")):
        prompt_ids, completion_ids = chat.encode(tokenizer, prompt, completion)
        assert (prompt_ids + completion_ids).count(bos) == 1 == prompt_ids.count(bos)
        assert completion_ids[0] != space
    prompt_ids, completion_ids = chat.encode(tokenizer, (user("Why?"),), (assistant("Because"),))
    assert (prompt_ids + completion_ids).count(bos) == 1
    assert prompt_ids[0] == bos
    twice = metaspace(scheme, "{{ bos_token }}{{ bos_token }}" + CHATML)
    assert chat.encode(twice, (user("Why?"),), (assistant("Because"),))[0].count(bos) == 1


def test_template_none_renders_messages_as_their_words(byte_level):
    assert chat.encode(byte_level, (user("The sky"),), (assistant(" is"),), template="none") == chat.encode(
        byte_level, "The sky", " is"
    )


def test_template_from_a_file(byte_level, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    prompt, completion = chat.encode(byte_level, (user("a"),), (assistant("b"),), template=str(tmp_path / "t.jinja"))
    assert byte_level.decode(prompt + completion) == "[a][b]"
    with pytest.raises(UserError, match="chat_template"):
        chat.encode(byte_level, (user("a"),), (assistant("b"),), template=str(tmp_path / "absent.jinja"))


def test_mixed_text_and_messages(byte_level):
    expected = chat.encode(byte_level, (user("a"),), (assistant("b"),))
    assert chat.encode(byte_level, "a", (assistant("b"),)) == expected
    assert chat.encode(byte_level, (user("a"),), "b") == expected


def test_ids_pass_through(byte_level):
    encoded = chat.encode_many(byte_level, [((5, 6), [(7,), (8, 9)]), ("a", ["b"]), ((1,), [])])
    assert (encoded[0].prompt_ids, encoded[0].completions) == ([5, 6], [[7], [8, 9]])
    assert (encoded[1].prompt_ids, encoded[1].completions[0]) == chat.encode(byte_level, "a", "b")


def test_a_thinking_generation_prompt(byte_level):
    # The generation prompt opens a block that the finished turn does not have.
    template = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    tokenizer = wrap(byte_level.backend_tokenizer, template, bos=False)
    prompt, completion = chat.encode(tokenizer, (user("a"),), (assistant("b"),))
    assert tokenizer.decode(prompt).endswith("assistant\n<think>\n")
    assert tokenizer.decode(completion) == "b<|im_end|>\n"


def test_template_failures_are_user_errors(byte_level):
    alternate = "{% if messages | length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML
    tokenizer = wrap(byte_level.backend_tokenizer, alternate, bos=False)
    with pytest.raises(UserError, match="user, user, assistant: roles must alternate"):
        chat.encode(tokenizer, (user("a"), user("b")), (assistant("c"),))
    for broken in ("{% for", "{{ messages[0].content.nope.nope }}"):
        with pytest.raises(UserError, match="template"):
            chat.encode(wrap(byte_level.backend_tokenizer, broken, bos=False), (user("a"),), (assistant("c"),))
    with pytest.raises(UserError, match="no chat template"):
        chat.encode(wrap(byte_level.backend_tokenizer, None, bos=False), (user("a"),), (assistant("c"),))


def test_a_template_that_asks_for_the_date_gets_the_given_one(byte_level):
    def rendered(template, date):
        tokenizer = wrap(byte_level.backend_tokenizer, template + CHATML, bos=False)
        return tokenizer.decode(chat.encode_prompt(tokenizer, (user("a"),), date=date))

    assert rendered("{{ strftime_now('%Y/%m/%d') }}", "2026-11-24").startswith("2026/11/24")
    assert rendered("{{ date_string }}", "2026-11-24").startswith("24 Nov 2026")
    fixed = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    assert rendered(fixed, "2026-11-24").startswith("26 Jul 2024")
    with pytest.raises(UserError, match="YYYY-MM-DD"):
        rendered("{{ date_string }}", "tomorrow")


def test_frames_write_what_the_template_writes(byte_level):
    # Contents that a template looks into, or changes, must come out as from the template itself.
    templates = (
        CHATML,
        CHATML.replace("| trim", "| upper"),
        CHATML.replace("m['content'] | trim", "m['content'].split('</think>')[-1].lstrip('\n')"),
        CHATML.replace("m['content'] | trim", "(m['content'] | tojson)"),
        CHATML.replace("m['content'] | trim", "('x' if 'secret' in m['content'] else m['content'])"),
    )
    contents = ["plain", " spaced\n", "a</think>\n\nb", 'quo"te', "the secret", "{{ 1 }}", "\ue0000\ue001", "", "为"]
    for template in templates:
        tokenizer = wrap(byte_level.backend_tokenizer, template, bos=False)
        for content in contents:
            turns = [user(content or "x"), assistant(content)]
            prompt, completion = chat.encode(tokenizer, (turns[0],), (turns[1],))
            rendered = tokenizer.apply_chat_template(turns, tokenize=False)
            assert tokenizer.decode(prompt + completion) == rendered


def test_batches_equal_single_examples(byte_level):
    items = [((user(f"{i}"),), [(assistant("x" * n),) for n in range(1, i % 4 + 1)]) for i in range(600)]
    encoded = chat.encode_many(byte_level, items)
    assert len(encoded) == 600
    for (prompt, completions), one in list(zip(items, encoded))[::97]:
        assert one == chat.encode_many(byte_level, [(prompt, completions)])[0]


def test_load_tokenizer(tmp_path, byte_level):
    byte_level.save_pretrained(tmp_path / "t")
    loaded = chat.load_tokenizer(tmp_path / "t")
    assert chat.encode(loaded, (user("a"),), (assistant("b"),)) == chat.encode(
        byte_level, (user("a"),), (assistant("b"),)
    )
    assert chat.load_tokenizer("sample").bos_token
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "absent", "a/b/c"):
        with pytest.raises(UserError, match="no "):
            chat.load_tokenizer(path)
    (tmp_path / "empty/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        chat.load_tokenizer(tmp_path / "empty")


def test_a_sentencepiece_model_alone(tmp_path):
    source = pathlib.Path(chat.SAMPLE) / "model/tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    tokenizer = chat.load_tokenizer(tmp_path)
    prompt, completion = chat.encode(tokenizer, "为什么", "因为")
    assert tokenizer.decode([*prompt, *completion[:-1]]) == "为什么因为"
    assert completion[-1] == tokenizer.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "gemma3"])
def test_real_tokenizers_on_every_evaluation_item(real_models, shared, name):
    tokenizer = chat.load_tokenizer(real_models / "tokenizers" / name)
    questions = readers.read("care_eval", str(shared / "data/care_eval")).questions
    encoded = chat.encode_many(tokenizer, [(q.prompt, [r.content for r in q.responses]) for q in questions])
    end = {"llama3_1": "<|eot_id|>", "qwen3": "<|im_end|>\n", "gemma3": "<end_of_turn>\n"}[name]
    assert len(encoded) == 450
    for question, one in zip(questions, encoded):
        prompt, completion = list(question.prompt), list(question.responses[0].content)
        rendered = tokenizer.apply_chat_template(prompt + completion)["input_ids"]
        assert one.prompt_ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert one.prompt_ids + one.completions[0] == rendered
        assert tokenizer.decode(one.completions[0]).endswith(end)
        if tokenizer.bos_token_id is not None:
            assert rendered.count(tokenizer.bos_token_id) == 1
    assert sum(one.boundary_merges for one in encoded) == 0

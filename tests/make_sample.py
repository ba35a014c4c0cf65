"""Trains the packaged sample's tokenizer and writes its model folder: `python tests/make_sample.py [FOLDER]`.

Reads care_jax/data/sample/care_sample.jsonl and writes into model/ or FOLDER tokenizer.model (SentencePiece unigram
with byte fallback and no normalisation, so that every text is kept byte for byte), the same tokenizer as tokenizer.json
with its configuration and chat template (which transformers loads), and the config.json of a tiny Llama. Run it again
when the text of the sample changes.
"""

import io
import json
import pathlib
import sys

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SAMPLE = pathlib.Path(__file__).resolve().parents[1] / "care_jax" / "data" / "sample"
VOCAB_SIZE = 2048
UNK, BOS, EOS, PAD, TURN_START, TURN_END = "<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def training_text() -> list[str]:
    """Each question once, each response, and the role names so often that they become pieces."""
    rows = [json.loads(line) for line in (SAMPLE / "care_sample.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = dict.fromkeys(row["question"] for row in rows)
    return [*questions, *(row["response"] for row in rows), *["user", "assistant", "system"] * 50]


def train_sentencepiece() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_text()),
        model_writer=written,
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        character_coverage=0.995,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        max_sentencepiece_length=12,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=[TURN_START, TURN_END],
        num_threads=1,
        minloglevel=1,
    )
    return written.getvalue()


def hugging_face_tokenizer(trained: bytes) -> PreTrainedTokenizerFast:
    """The same unigram model as transformers loads it, without torch and without sentencepiece."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained)
    tokenizer = Tokenizer(
        models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [UNK, BOS, EOS, PAD, TURN_START, TURN_END]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # As in Llama 3: plain text gets its BOS from the tokenizer, a conversation from the template.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def model_config(vocab_size: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 1024,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 3,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
    }


def write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trained = train_sentencepiece()
    (folder / "tokenizer.model").write_bytes(trained)
    tokenizer = hugging_face_tokenizer(trained)
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", model_config(len(tokenizer)))
    # Generation stops at the end of a turn as well as at the end of a text.
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": stop, "pad_token_id": 3})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE / "model")

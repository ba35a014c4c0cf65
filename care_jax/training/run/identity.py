"""What a run reads, by content: the sha256 of its data and tokenizer, and a fingerprint of its initial weights.

`resume.py` compares it after the configuration, and refuses to resume or repeat a run that read something else.
"""

import dataclasses
import hashlib
import pathlib

from care_jax.config import Config
from care_jax.data.corpus import Corpus
from care_jax.models.hf.export import CARRIED


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run reads.

    data: {path: sha256} of the data files. corpus: sha256 of the questions' keys, lengths and ratings, whatever files
    they came from. tokenizer: sha256 of its files and the chat template. weights: fingerprint of the model that the run
    starts from; "" if it is drawn from the seed, which the configuration holds.
    """

    data: dict[str, str]
    corpus: str
    tokenizer: str
    weights: str

    def differences(self, now: "Identity") -> list[str]:
        """Returns one line for each thing that differs in `now`, data files first.

        The corpus is named only if no data file that both read differs.
        """
        lines = [
            f"data file {path}: sha256 {self.data[path][:12]} then, {now.data[path][:12]} now"
            for path in self.data
            if path in now.data and self.data[path] != now.data[path]
        ]
        names = {"tokenizer": "the tokenizer or chat template", "weights": "the weights of model.path"}
        if not lines:
            names = {"corpus": "the data that were read"} | names
        for field, name in names.items():
            old, new = getattr(self, field), getattr(now, field)
            if old != new:
                lines.append(f"{name}: {old[:12]} then, {new[:12]} now")
        return lines


def identify(config: Config, folder: pathlib.Path, files: dict[str, str], corpus: Corpus, weights: str) -> Identity:
    """Returns the identity of a run. folder: the model's folder; files: {path: sha256} of the data files."""
    paths = [folder / name for name in CARRIED if (folder / name).is_file()]
    if config.data.chat_template not in ("model", "none"):
        paths.append(pathlib.Path(config.data.chat_template).expanduser())
    tokenizer = hashlib.sha256()
    for path in paths:
        tokenizer.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    from_seed = config.model.init == "random"
    return Identity(
        dict(sorted(files.items())), _corpus_digest(corpus), tokenizer.hexdigest(), "" if from_seed else weights
    )


def _corpus_digest(corpus: Corpus) -> str:
    digest = hashlib.sha256()
    for question in range(len(corpus.questions)):
        digest.update(corpus.key(question).encode("utf-8", "surrogatepass") + b"\0")
    for column in (corpus.prompt_lengths, corpus.completion_lengths, corpus.ratings):
        digest.update(column.astype("<f8").tobytes())
    return digest.hexdigest()

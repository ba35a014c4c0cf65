"""What decides whether a run may resume or be repeated: sha256 of the data, the tokenizer and the starting weights."""

import dataclasses
import hashlib
import pathlib

from care_jax.config import Config
from care_jax.data.corpus import Corpus
from care_jax.models.hf.export import CARRIED


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run reads, by content: another start may go on, or repeat it, only with the same.

    data: sha256 of each data file. corpus: of the questions' keys, lengths and ratings, whatever they came from.
    tokenizer: of its files and the chat template. weights: the fingerprint of the model that the run starts from, ""
    where it is drawn from the seed (which the configuration holds).
    """

    data: dict[str, str]
    corpus: str
    tokenizer: str
    weights: str

    def differences(self, other: "Identity") -> list[str]:
        """One line for each thing that is another in `other`; what both read and differs in content first."""
        found = [
            f"data file {path}: sha256 {self.data[path][:12]} then, {other.data[path][:12]} now"
            for path in self.data
            if path in other.data and self.data[path] != other.data[path]
        ]
        names = {"tokenizer": "the tokenizer or chat template", "weights": "the weights of model.path"}
        if not found:
            names = {"corpus": "the data that were read"} | names
        for name, shown in names.items():
            then, now = getattr(self, name), getattr(other, name)
            if then != now:
                found.append(f"{shown}: {then[:12]} then, {now[:12]} now")
        return found


def identify(config: Config, source: pathlib.Path, files: dict[str, str], corpus: Corpus, weights: str) -> Identity:
    """source: the model's folder; files: the sha256 of each data file."""
    paths = [source / name for name in CARRIED if (source / name).is_file()]
    if config.data.chat_template not in ("model", "none"):
        paths.append(pathlib.Path(config.data.chat_template).expanduser())
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    drawn = config.model.init == "random"
    return Identity(dict(sorted(files.items())), _of_corpus(corpus), found.hexdigest(), "" if drawn else weights)


def _of_corpus(corpus: Corpus) -> str:
    found = hashlib.sha256()
    for question in range(len(corpus.questions)):
        found.update(corpus.key(question).encode("utf-8", "surrogatepass") + b"\0")
    for column in (corpus.prompt_lengths, corpus.completion_lengths, corpus.ratings):
        found.update(column.astype("<f8").tobytes())
    return found.hexdigest()

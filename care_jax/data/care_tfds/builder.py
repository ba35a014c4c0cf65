"""The TFDS builder of CARE: the features of a record, and records from CARE's files."""

import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from care_jax.data import readers
from care_jax.data.questions import Question, plain_text
from care_jax.errors import UserError
from care_jax.textfiles import JsonObject

_Examples = Iterator[tuple[int, JsonObject]]
_DESCRIPTION = """\
Questions about culture with human-rated responses (CARE, arXiv 2504.05154), one record per question. Texts are those of
the source, byte for byte; an absent text is empty. Ratings are 1 to 10, the mean if a response was rated twice.
"""


class Care(tfds.core.GeneratorBasedBuilder):
    """CARE by question. `rows` is the file, folder or hub id to build from; if it is None, the manual folder."""

    name = "care"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012  # a class attribute is TFDS's convention
        tfds.core.BuilderConfig(name=name, description=f"{name} questions")
        for name in ("all", "arab", "chinese", "japanese")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put CARE's JSON, CSV or parquet files here, or use `care-jax data tfds`."
    rows: str | None = None
    code_path = None  # else TFDS looks next to the code for checksums and tags, which do not exist

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "key": text(doc="identity: culture, tab, normalised question"),
            "question": text(doc="the question in its own language"),
            "culture": text(doc="arab, chinese, japanese, ..."),
            "relation": text(doc="native or foreign to the annotators"),
            "category": text(doc="entities, commonsense, norms, opinion, literacy"),
            "language": text(doc="BCP 47"),
            "reference": text(doc="the reference answer"),
            "translated": text(doc="the question in English"),
            "responses": tfds.features.Sequence(
                {
                    "text": text(doc="the response"),
                    "rating": tfds.features.Scalar(np.float64, doc="1 to 10; NaN where not rated"),
                    "source": text(doc="a model, or human"),
                    "row": tfds.features.Scalar(np.int64, doc="row of the source, from 0"),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage="https://arxiv.org/abs/2504.05154",
            disable_shuffling=True,  # keep the order of the source: training has its own permutation
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, _Examples]:
        questions = readers.read("care", self.rows or str(dl_manager.manual_dir)).questions
        if self.builder_config.name != "all":
            questions = [q for q in questions if q.culture == self.builder_config.name]
        return {"train": self._generate_examples(questions)}

    def _generate_examples(self, questions: list[Question]) -> _Examples:
        for number, q in enumerate(questions):
            names = ("culture", "relation", "category", "language", "reference", "translated")
            record: JsonObject = {"key": q.key, "question": plain_text(q.prompt)}
            record |= {name: getattr(q, name) or "" for name in names}
            ratings = [math.nan if r.rating is None else r.rating for r in q.responses]
            record["responses"] = [
                {"text": plain_text(r.content), "rating": rating, "source": r.source, "row": r.row_number}
                for r, rating in zip(q.responses, ratings)
            ]
            yield number, record


def prepare(rows: str, data_dir: str | os.PathLike[str], configs: Sequence[str] | None = None) -> dict[str, int]:
    """Builds configs from CARE's rows into the folder; returns config -> number of questions.

    rows: a file, a folder, a hub id, or `sample`. configs: None builds all that have questions. A config that is in the
    folder already is kept.
    """
    known = [config.name for config in Care.BUILDER_CONFIGS]
    for name in configs or ():
        if name not in known:
            raise UserError(f"no config {name!r} of care; there are {', '.join(known)}")
    present = {"all", *(q.culture for q in readers.read("care", rows).questions)}
    questions = {}
    for name in configs or [name for name in known if name in present]:
        builder = Care(config=name, data_dir=str(pathlib.Path(data_dir).expanduser()), file_format="array_record")
        builder.rows = rows
        builder.download_and_prepare()
        questions[name] = int(builder.info.splits["train"].num_examples)
    return questions

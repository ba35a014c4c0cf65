"""The TFDS dataset `care`: questions as text, in ArrayRecord files, written and read without TensorFlow.

    from care_jax.data import care_tfds
    care_tfds.prepare("care.jsonl", "~/tensorflow_datasets")      # configs all, arab, chinese, japanese
    source = care_tfds.source("~/tensorflow_datasets", "arab")    # random access: len(source), source[7]

`care-jax data tfds` writes it too, and training reads it with `reader: tfds`. Importing this registers the builder, so
that `tfds.builder("care/arab")` works.
"""

from care_jax.data.care_tfds.builder import Care, prepare
from care_jax.data.rows.external import tfds_source as source

__all__ = ["Care", "prepare", "source"]

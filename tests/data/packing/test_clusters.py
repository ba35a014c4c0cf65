"""What one microbatch must hold together, and clusters of one question that are joined."""

import dataclasses

from care_jax.data.packing.batch import BatchShape
from care_jax.data.packing.clusters import clusters_of, indivisible_parts, join_questions
from care_jax.data.preferences import Unit
from tests.data import corpora

SHAPE = BatchShape(rows=1, row_length=64, responses=8, completions=64)
GROUP = Unit(0, (0, 1, 2), ((0, 1), (1, 2)), None, 0.5)


def test_a_group_is_divided_into_its_pairs_if_responses_are_not_shared():
    assert indivisible_parts([GROUP], SHAPE) == [GROUP]
    alone = dataclasses.replace(SHAPE, share_responses=False)
    pairs = [Unit(0, (0, 1), ((0, 1),), None, 0.5), Unit(0, (1, 2), ((0, 1),), None, 0.5)]
    assert indivisible_parts([GROUP], alone) == pairs
    label = Unit(0, (1,), (), True)
    assert indivisible_parts([label], alone) == [label]


def test_clusters_of_a_question_are_joined_with_or_without_its_repeated_responses():
    corpus = corpora.corpus_of([(4, [3, 5]), (2, [6, 7, 8])])
    first, second = Unit(1, (0, 1), ((0, 1),)), Unit(1, (1, 2), ((0, 1),))
    clusters = clusters_of([first, second], corpus)
    assert [(cluster.prompt, cluster.responses, cluster.lengths) for cluster in clusters] == [
        (2, [2, 3], [6, 7]),
        (2, [3, 4], [7, 8]),
    ]
    (merged,) = join_questions(clusters, merge=True)
    (repeated,) = join_questions(clusters, merge=False)
    assert (merged.responses, merged.pairs, merged.parts) == ([2, 3, 4], 2, clusters)
    assert repeated.responses == [2, 3, 3, 4]

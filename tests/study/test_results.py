"""Observations and the table of their values."""

from care_jax.study import results, stages


def test_results_are_a_parquet_of_observations(finished):
    from pyarrow import parquet

    folder = stages.run(finished)
    table = parquet.read_table(folder / "results.parquet")
    assert table.num_rows == 8 * 12 * (2 + 1)
    assert {"arm", "seed", "when", "measure", "question", "value", "data.fraction"} <= set(table.column_names)
    assert set(table.column("data.fraction").to_pylist()) == {0.5, 1.0}


def test_seeds_that_held_out_other_questions_are_still_averaged():
    observations = [
        results.Observation("r", "a", {}, seed, "end", "m", "all", "all", question, value)
        for seed, question, value in [(0, "x", 1.0), (0, "y", 0.0), (1, "x", 0.0), (1, "z", 1.0)]
    ]
    table = results.table(observations)
    assert table.questions == ("x", "y", "z")
    assert table.values.tolist() == [[0.5, 0.0, 1.0]]
    assert table.seeds == 2

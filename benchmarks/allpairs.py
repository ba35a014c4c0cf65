"""All rating-ordered pairs of two questions with nine responses each in one step: what each switch brings.

    python benchmarks/allpairs.py [--rounds 5] [--seed 0] [--quick]

The same pairs, weights and loss in every mode: `expanded` runs both sequences of every pair in a padded row of its own,
the others pack, share prompts, share responses, and all of it.
"""

import harness
import modes

if __name__ == "__main__":
    modes.run("allpairs", harness.parser(__doc__).parse_args())

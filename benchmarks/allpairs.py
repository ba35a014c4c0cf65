"""All rating-ordered pairs of two questions with nine responses each in one step: the effect of each switch.

    python benchmarks/allpairs.py [--rounds 5] [--seed 0] [--quick]

Pairs, weights and loss are the same in every mode. `expanded` runs both sequences of every pair in padded rows of their
own; the other modes pack rows, share prompts, share responses, or do all of these.
"""

import harness
import modes

if __name__ == "__main__":
    modes.run("allpairs", harness.parser(__doc__).parse_args())

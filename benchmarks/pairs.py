"""One pair per question, 64 questions in one step: the effect of packing and shared prompts if no response is shared.

python benchmarks/pairs.py [--rounds 5] [--seed 0] [--quick]
"""

import harness
import modes

if __name__ == "__main__":
    modes.run("pairs", harness.parser(__doc__).parse_args())

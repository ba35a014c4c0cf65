"""`python -m care_jax` is `care-jax`."""

import sys

from care_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

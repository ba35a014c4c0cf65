"""Units laid out in rows of tokens: the batch and its sizes, the plan of a step, and filling its arrays."""

"""The axioms: what breaks each of them, and that they and the clauses agree."""

"""The migrate_vma contract, executable: the vocabulary of traces, the clauses, and the reference model. Imports nothing of ours."""

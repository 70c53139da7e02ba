"""The migrate_vma contract, executable: the vocabulary of traces, the clauses, the reference model. Imports nothing of ours."""

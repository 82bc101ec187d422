"""Recording: one real run of a scope becomes a RecordedGraph, or a refusal that says why not."""

"""The process beside vLLM: takes frames, joins them, judges, writes, and answers HTTP."""

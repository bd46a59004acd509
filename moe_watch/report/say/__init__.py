"""The review in words: numbers, phrases, captions, the summary and the advice."""

"""Is one request unusual? The baseline of normal routing, and p-values against it."""

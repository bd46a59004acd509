"""What the dense shadow sees, and what it costs."""

"""What leaves the store: retention, and the data of a person."""

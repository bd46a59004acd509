"""What several detectors share: batches of fingerprints, moments, intervals, and arrays as bytes."""

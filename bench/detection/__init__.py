"""False alarms, delays and separation of the detectors, beside other libraries."""

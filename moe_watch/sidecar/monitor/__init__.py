"""The running picture of each replica: its windows, its detectors, its alarms and its verdict."""

"""Faults on real parts; installed as an app, it brings the receivers of the runs."""

"""Labelled pairs in, how right a model is out: published protocols, curves and a report."""

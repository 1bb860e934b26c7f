"""Photographs and frames in, faces and aligned crops out."""

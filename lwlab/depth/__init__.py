"""Depth: what each layer is for, and how many are needed."""

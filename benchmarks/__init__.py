"""Measurements behind the README's figures; each script prints what the README says."""

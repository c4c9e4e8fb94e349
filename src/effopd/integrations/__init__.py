"""Plug-ins of other trainers: TRL on one machine, verl on a cluster."""

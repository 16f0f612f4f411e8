"""The networks that are trained, as Flax modules.

`architectures` names them, `network` has the modules, `layers` what they are made of.
"""

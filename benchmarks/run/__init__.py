"""A run, from a configuration to a result.

`experiment` has what happens to one seed as pure functions, `programs` compiles them for all seeds,
`train` goes through the tasks, `checkpoints` and `results` keep what was measured, `jobs` puts them
together for the command line.
"""

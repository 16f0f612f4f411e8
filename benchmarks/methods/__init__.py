"""The registry of methods: those of `rgo_jax.baselines` on a `Problem`, and the paper's others.

To add one, write a function from `Problem` to `rgo_jax.baselines.Method`, whose ``init`` takes a
key alone (`base.on_problem`), and give it a line in `METHODS`; the training loop, the mapping over
seeds, the evaluation and the tables take it from there.
"""

from functools import partial

from benchmarks.methods import baselines, los, rgo, sgd
from benchmarks.methods.base import MethodSpec as MethodSpec
from benchmarks.methods.base import Problem as Problem
from benchmarks.methods.growing import apd, den, hat, pgn, rcl, trgp

_rgo = partial(
    MethodSpec,
    rgo.rgo,
    setting="authors",
    options=rgo.Rgo,
    unused_encodings=rgo.unused_encodings,
)
# Those that add to the network or divide it know which task they are at by its head.
_growing = partial(MethodSpec, fel=False, heads=("per_task",))

METHODS = {
    "rgo": _rgo("RGO", fel=True),
    "rgo-2": _rgo("RGO-2", fel=False),
    "sgd": MethodSpec(
        sgd.sgd,
        "SGD",
        fel=False,
        setting="authors",
        networks=sgd.NETWORKS,
        options=sgd.Sgd,
        batch_norm=True,
    ),
    "stl": MethodSpec(
        sgd.stl,
        "STL",
        fel=False,
        single_task=True,
        setting="authors",
        networks=sgd.STL_NETWORKS,
        options=sgd.Sgd,
        batch_norm=True,
    ),
    "ewc": MethodSpec(baselines.ewc, "EWC", fel=False),
    "ewc-textbook": MethodSpec(baselines.ewc_textbook, "EWC, by the letter", fel=False),
    "a-gem": MethodSpec(baselines.a_gem, "A-GEM", fel=False),
    "er-ring": MethodSpec(baselines.er_ring, "ER-Ring", fel=False),
    "los": MethodSpec(los.los, "LOS", fel=False, learning_rates=los.LEARNING_RATES),
    "gpm": MethodSpec(baselines.gpm, "GPM", fel=False),
    "owm": MethodSpec(baselines.owm, "OWM", fel=False),
    "sgp": MethodSpec(baselines.sgp, "SGP", fel=False),
    "owm-online": MethodSpec(baselines.owm_online, "OWM, online", fel=False),
    "pgn": _growing(pgn.pgn, "PGN", options=pgn.Pgn, capacity=pgn.capacity, plain_network=True),
    "den": _growing(den.den, "DEN", options=den.Den, capacity=den.capacity, plain_network=True),
    "rcl": _growing(rcl.rcl, "RCL", options=rcl.Rcl, capacity=rcl.capacity, plain_network=True),
    "apd": _growing(apd.apd, "APD", options=apd.Apd, capacity=apd.capacity),
    "hat": _growing(hat.hat, "HAT", options=hat.Hat, capacity=hat.capacity, plain_network=True),
    "trgp": _growing(trgp.trgp, "TRGP", options=trgp.Trgp, capacity=trgp.capacity),
}

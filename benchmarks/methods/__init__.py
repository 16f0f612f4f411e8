"""The registry of methods: those of `rgo_jax.baselines` on a `Problem`, and the paper's others.

To add one, write a function from `Problem` to `rgo_jax.baselines.Method`, whose ``init`` takes a
key alone (`base.on_problem`), and give it a line in `METHODS`; the training loop, the mapping over
seeds, the evaluation and the tables take it from there.
"""

from benchmarks.methods import baselines, los, rgo, sgd
from benchmarks.methods.base import MethodSpec as MethodSpec
from benchmarks.methods.base import Problem as Problem
from benchmarks.methods.growing import apd, den, hat, pgn, rcl, trgp

METHODS = {
    "rgo": MethodSpec(rgo.rgo, "RGO", fel=True, setting="authors", options=rgo.Rgo),
    "rgo-2": MethodSpec(rgo.rgo, "RGO-2", fel=False, setting="authors", options=rgo.Rgo),
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
    "pgn": MethodSpec(
        pgn.pgn,
        "PGN",
        fel=False,
        options=pgn.Pgn,
        capacity=pgn.capacity,
        heads=("per_task",),
        plain_network=True,
    ),
    "hat": MethodSpec(
        hat.hat,
        "HAT",
        fel=False,
        options=hat.Hat,
        capacity=hat.capacity,
        heads=("per_task",),
        plain_network=True,
    ),
    "trgp": MethodSpec(
        trgp.trgp,
        "TRGP",
        fel=False,
        options=trgp.Trgp,
        capacity=trgp.capacity,
        heads=("per_task",),
    ),
    "apd": MethodSpec(
        apd.apd,
        "APD",
        fel=False,
        options=apd.Apd,
        capacity=apd.capacity,
        heads=("per_task",),
    ),
    "den": MethodSpec(
        den.den,
        "DEN",
        fel=False,
        options=den.Den,
        capacity=den.capacity,
        heads=("per_task",),
        plain_network=True,
    ),
    "rcl": MethodSpec(
        rcl.rcl,
        "RCL",
        fel=False,
        options=rcl.Rcl,
        capacity=rcl.capacity,
        heads=("per_task",),
        plain_network=True,
    ),
}

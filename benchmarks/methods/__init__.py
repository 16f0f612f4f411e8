"""Continual-learning methods as bundles of pure functions, a file for each family.

To add one, write a function from `Problem` to `Method` and give it a line in `METHODS`; the
training loop, the mapping over seeds, the evaluation and the tables take it from there.
"""

from benchmarks.methods import ewc, gpm, los, owm, replay, rgo, sgd
from benchmarks.methods.base import Method as Method
from benchmarks.methods.base import MethodSpec as MethodSpec
from benchmarks.methods.base import Problem as Problem

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
    "ewc": MethodSpec(ewc.ewc, "EWC", fel=False),
    "ewc-textbook": MethodSpec(ewc.ewc_textbook, "EWC, by the letter", fel=False),
    "a-gem": MethodSpec(replay.a_gem, "A-GEM", fel=False),
    "er-ring": MethodSpec(replay.er_ring, "ER-Ring", fel=False),
    "los": MethodSpec(los.los, "LOS", fel=False, learning_rates=los.LEARNING_RATES),
    "gpm": MethodSpec(gpm.gpm, "GPM", fel=False),
    "owm": MethodSpec(owm.owm, "OWM", fel=False),
    "sgp": MethodSpec(gpm.sgp, "SGP", fel=False),
    "owm-online": MethodSpec(owm.owm_online, "OWM, online", fel=False),
}

"""The paper's own numbers: (ACC, BWT) in percent, None where it gives none.

Table 1 and section 6.3 of https://arxiv.org/abs/2201.12522.
"""

NUMBERS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("permuted-mnist", "rgo"): (91.15, -2.05),
    ("permuted-mnist", "rgo-2"): (87.95, -5.65),
    ("permuted-mnist", "gpm"): (83.29, -8.45),
    ("permuted-mnist", "er-ring"): (79.84, -12.88),
    ("permuted-mnist", "a-gem"): (72.32, -19.94),
    ("permuted-mnist", "ewc"): (67.79, -24.38),
    ("permuted-mnist", "sgd"): (46.11, -46.06),
    ("permuted-mnist", "stl"): (91.33, None),
    ("rotated-mnist", "rgo"): (91.25, -1.59),
    ("rotated-mnist", "rgo-2"): (72.26, None),
    ("rotated-mnist", "gpm"): (70.02, None),
    ("rotated-mnist", "er-ring"): (69.20, None),
    ("rotated-mnist", "a-gem"): (53.26, None),
    ("rotated-mnist", "ewc"): (43.27, None),
    ("rotated-mnist", "sgd"): (44.82, None),
    ("rotated-mnist", "stl"): (91.09, None),
}

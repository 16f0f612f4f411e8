"""The paper's own numbers: (ACC, BWT) in percent, None where it gives none.

Table 1 and section 6.3 of https://arxiv.org/abs/2201.12522.
"""

NUMBERS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("permuted-mnist", "rgo"): (91.15, -2.05),
    ("permuted-mnist", "rgo-2"): (87.95, -5.65),
    ("permuted-mnist", "sgd"): (46.11, -46.06),
    ("permuted-mnist", "stl"): (91.33, None),
    ("rotated-mnist", "rgo"): (91.25, -1.59),
    ("rotated-mnist", "rgo-2"): (72.26, None),
    ("rotated-mnist", "sgd"): (44.82, None),
    ("rotated-mnist", "stl"): (91.09, None),
}

"""The README's example runs and prints what the README says."""

import ast
import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    lines = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    claimed = [ast.literal_eval(text) for text in re.findall(r"`(\[.*?\])`", README)[:2]]
    assert [len(line) for line in lines] == [1, 2]
    for line, claim in zip(lines, claimed, strict=True):
        for ours, said in zip(line, claim, strict=True):
            # The last digit differs between versions and devices.
            assert abs(float(ours) - float(said)) < 0.01

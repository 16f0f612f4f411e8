"""Reading tables that were written as markdown."""


def rows(text, *words):
    found = [line for line in text.splitlines() if all(f"| {word} |" in line for word in words)]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found]


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]

"""What a published reward model is asked, read from its authors' own file.

A reward model is right for one text only, and its checkpoint does not hold the text. The authors' repositories do, as
a constant of a Python file; this project holds no copy. The file is parsed, not run.
"""

import ast
from pathlib import Path

from data.written import read_written

PROMPT = "{text_prompt}"  # the place of the clip's prompt


def read_text(file: str, constant: str) -> str:
    """A reward model's text with PROMPT in it: of a .py file the string constant of this name, else the whole file.

    Raises ValueError that names the file if it cannot be read, or has no such constant or no PROMPT.
    """
    try:
        whole = read_written(Path(file))
        text = _constant(whole, constant) if file.endswith(".py") else whole
    except SyntaxError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if text is None:
        raise ValueError(f"{file} assigns no text to {constant}")
    if PROMPT not in text:
        raise ValueError(f"{file}: the text has no {PROMPT}, where the clip's prompt belongs")
    return text


def _constant(code: str, name: str) -> str | None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            value = node.value
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return None

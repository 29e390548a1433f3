"""VLM-as-Teacher's questions: the rules and the goals that a task sets its video, as a VLM derives them."""

from feedback.differentiable.asks import GOAL, NO, PROCESS, YES, Ask, opposing
from feedback.questions.replies import quoted, read_json
from feedback.questions.sheet import QUESTION, Explanation, TeachingSheet, ending

KINDS = (PROCESS, GOAL)
KEYS = {"kind", "question", "wanted"}


def read_rules(reply: str, sheet: TeachingSheet, author: str, explanation: Explanation | None) -> list[Ask]:
    """The questions in a text model's reply, named process_1, goal_1 and so on in its order.

    Raises ValueError where the reply is not a list of 1 to `sheet.most` objects with kind, question and wanted, one of
    their values is wrong, or none of them is a goal.
    """
    given = read_json(reply)
    if not isinstance(given, list) or not 1 <= len(given) <= sheet.most:
        raise ValueError(f"the reply is not a list of 1 to {sheet.most} questions: {quoted(given)}")
    asks: list[Ask] = []
    for rule in given:
        if not isinstance(rule, dict) or set(rule) != KEYS or not all(isinstance(one, str) for one in rule.values()):
            keys = ", ".join(sorted(KEYS))
            raise ValueError(f"a question in the reply does not have the keys {keys}: {quoted(rule)}")
        kind, question, wanted = rule["kind"], " ".join(rule["question"].split()), rule["wanted"].strip().capitalize()
        if kind not in KINDS or wanted not in (YES, NO) or not question:
            raise ValueError(f"kind, wanted or question of {quoted(rule)} is none of process, goal; Yes, No; a text")
        name = f"{kind}_{1 + sum(ask.kind == kind for ask in asks)}"
        text = f"{sheet.ask.strip().replace(QUESTION, question)} {ending(sheet, explanation)}"
        asks.append(Ask(name, kind, text, wanted, opposing(wanted), None, False, author))
    if not any(ask.kind == GOAL for ask in asks):
        raise ValueError("no question in the reply is a goal")
    return asks

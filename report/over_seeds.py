"""summary.json as tables and figures show it: one row for a policy that was trained with several seeds."""

from collections.abc import Mapping
from typing import Any


def over_seeds(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with the figures of such a policy over its seeds under its name, and without the further seeds."""
    replicated, left_out = summary.get("replicates", {}), further(summary)
    policies = {
        name: {"baseline": one.get("baseline"), **replicated[name]} if name in replicated else one
        for name, one in summary["policies"].items()
        if name not in left_out
    }
    kept = {
        key: {name: one for name, one in summary[key].items() if name not in left_out}
        for key in ("trained", "costs")
        if key in summary
    }
    return {**summary, "policies": policies, **kept}


def single_seeds(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with the policies alone that are one seed of several, as each is by itself."""
    listed = [name for one in summary.get("replicates", {}).values() for name in one["policies"]]
    return {**summary, "policies": {name: summary["policies"][name] for name in listed}}


def further(summary: Mapping[str, Any]) -> dict[str, str]:
    """The policies of all seeds but the first, each with the name of the first."""
    replicated = summary.get("replicates", {})
    return {name: first for first, one in replicated.items() for name in one["policies"][1:]}

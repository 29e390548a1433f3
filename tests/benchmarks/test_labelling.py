"""The benchmark of labelling runs, and its client and server stay apart."""

import os
import re
import sys

import pytest

from benchmarks.labelling import two_cores
from tests.support.clone import ROOT, run


@pytest.mark.ci
def test_the_benchmark_of_labelling_prints_the_part_of_the_ideal_for_both_sizes():
    printed = run(ROOT, sys.executable, "-m", "benchmarks.labelling", "--clips", "32", "--latency", "0.05")
    assert re.findall(r"(\d+) clips, 0.05 s latency, 64 in flight: \S+ s, \S+% of the ideal", printed) == ["8", "32"]


def test_client_and_server_have_a_core_each_where_there_are_two(monkeypatch):
    for cores, expected in (({2, 5, 7}, ({2}, {7})), ({3}, ({3}, {3}))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        assert two_cores() == expected

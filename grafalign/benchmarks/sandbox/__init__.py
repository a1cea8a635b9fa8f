"""Evaluation in a sandbox world, whose truth is known: labelled sets, a supervised bound, and the report."""

from grafalign.benchmarks.sandbox.evaluate import Evaluation, SetSizes, evaluate_sandbox
from grafalign.benchmarks.sandbox.report import result_rows, write_report

__all__ = ['Evaluation', 'SetSizes', 'evaluate_sandbox', 'result_rows', 'write_report']

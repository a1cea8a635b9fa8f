"""Labelled sets, evaluation and reports."""

from grafalign.benchmarks.evaluate import Evaluation, SetSizes, evaluate_sandbox
from grafalign.benchmarks.report import result_rows, write_report

__all__ = ['Evaluation', 'SetSizes', 'evaluate_sandbox', 'result_rows', 'write_report']

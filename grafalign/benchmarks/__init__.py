"""Zero-shot benchmarks: any model, any set, figures with intervals in files that tables are made of."""

from grafalign.benchmarks.results import Result, read_result, read_results
from grafalign.benchmarks.run import evaluate
from grafalign.benchmarks.suite import Suite, load_suite
from grafalign.benchmarks.table import differences, tables

__all__ = ['Result', 'Suite', 'differences', 'evaluate', 'load_suite', 'read_result', 'read_results', 'tables']

"""From detections to average precision."""

from condseg.evaluation.coco_eval import CocoEvaluator
from condseg.evaluation.records import to_records
from condseg.evaluation.report import ClassResult, Report

__all__ = ["ClassResult", "CocoEvaluator", "Report", "to_records"]

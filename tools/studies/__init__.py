"""The study of guidance on shapes-wan: what tools/study.py runs and tools/study_report.py reads."""

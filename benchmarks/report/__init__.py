"""The report: run folders read, compared and judged, and written as a page and for machines."""

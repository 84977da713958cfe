"""``graft_report.html``: the report as one self-contained page, rendered from its JSON alone."""

from graftkit.report.page.page import PAGE, REPORT, render_page, render_top, write_page

__all__ = ["PAGE", "REPORT", "render_page", "render_top", "write_page"]

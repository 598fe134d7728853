"""Programs for maintainers: generated files, checks of the chart, the documentation site, releases."""
